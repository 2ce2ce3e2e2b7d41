"Several labelled sets at once: classes, faces, splits, shares of a batch, scores by set, and a hand-made joint set."
import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import fer_bench
from fer_bench.cli import app
from fer_bench.config import RunConfig, given_shares, run_id
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import build_faceset, verify_faceset
from fer_bench.data.feed import BalancedOrder, Order, SharedOrder, batch_rows
from fer_bench.data.joint import JointSource, class_maps, joint_split, lacking, read_rules, set_names, sets_of
from fer_bench.data.labels import FERPLUS8, meaning
from fer_bench.data.pools import held_out_hashes
from fer_bench.data.sources.fixtures import fake
from fer_bench.data.splits import make_split
from fer_bench.record import Record
from fer_bench.report.rows import leaderboard_table
from fer_bench.report.summary import measured, summarise
from fer_bench.report.tables import compare, notes
from fer_bench.runs.evaluation import evaluate_logits
from fer_bench.runs.experiment import find_record, run
from fer_bench.runs.task import load_data, prepare_data
from fer_bench.sweeps.grid import expand
from fer_bench.sweeps.plan import Plan
from fer_bench.train.batches import make_order

RNG = np.random.default_rng(0)

def picture(path, shade: int, size: int = 32, channels: int = 3):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = RNG.integers(0, 60, (size, size, channels)) + [shade] * channels
    Image.fromarray(noise.astype(np.uint8).squeeze()).save(path)

@pytest.fixture
def halves(tmp_path):
    "Two folders of one set, the second with other names for its classes and one class more."
    for half, names in (("a", ("fear", "happiness")), ("b", ("scared", "joy", "grin"))):
        for split, n in (("train", 9), ("val", 2), ("test", 4)):
            for c, name in enumerate(names):
                for i in range(n): picture(tmp_path/half/split/name/f"{i}.png", 80 * c)
    return [str(tmp_path/half) for half in "ab"]

@pytest.fixture
def joined(tiny, halves):
    "joined(**fields) → a tiny config of both halves."
    both = dict(dataset=["folder", "folder"], data_root=halves, label_map="grin=happiness", threads=1)
    return lambda **fields: tiny(**both | fields)

# classes

SPACES = st.lists(st.sampled_from(FERPLUS8), min_size=2, unique=True)

@settings(max_examples=60, deadline=None)
@given(SPACES, SPACES, st.booleans(),
       st.dictionaries(st.sampled_from(FERPLUS8), st.sampled_from(["", *FERPLUS8]), max_size=4))
def test_classes_go_by_rule_then_by_name(first, second, named, rules):
    "Against a plain version: a dict of rules, else the same name; refused where a class or a rule has no place."
    text = ", ".join(f"{'two:' if named else ''}{c}={to}" for c, to in rules.items())
    wanted = {c: rules.get(c, c) or None for c in second}
    fits = all(to in (None, *first) for to in wanted.values()) and rules.keys() <= set(second)
    if not fits:
        with pytest.raises(BenchError, match="label_map"): class_maps(["one", "two"], [first, second], text)
        return
    maps = class_maps(["one", "two"], [first, second], text)
    assert maps == [{c: c for c in first}, wanted]

def test_names_of_a_class_and_rules_of_one_set():
    first, second = ("happiness", "fear", "other"), ("0_happy", "scared", "Contempt", "disgust")
    maps = class_maps(["a", "b", "c"], [first, second, second], "contempt=other, disgust=, c:contempt=fear")
    assert maps[1] == {"0_happy": "happiness", "scared": "fear", "Contempt": "other", "disgust": None}
    assert maps[2] == maps[1] | {"Contempt": "fear"}
    assert read_rules("") == [] and read_rules(" a = b ,c:d=,") == [("", "a", "b"), ("c", "d", "")]

@pytest.mark.parametrize("second, text, says", [
    (("fear", "contempt"), "",
     "'contempt' of b has no place.*label_map='contempt=CLASS'.*label_map='contempt='.*more classes first"),
    (("fear", "contempt"), "contempt", "'contempt' is no rule. Write class=class"),
    (("fear", "contempt"), "contempt=scorn", "'scorn' is no class of the first set, whose classes are: fear, joy"),
    (("fear", "contempt"), "contempt=, smug=fear", "'smug' is no class of a set after the first.*fear, contempt"),
    (("fear", "contempt"), "contempt=, contempt=fear", "two rules for 'contempt' of b"),
    (("fear", "contempt"), "bb:contempt=", "label_map 'bb'"),
    (("fear", "contempt"), "a:joy=fear", "the first set, 'a', are those of all sets, and stay"),
    (("fear", "happy", "smile"), "", "'happy' and 'smile' of b both mean 'joy'.*label_map='happy=joy, smile=joy'"),
])
def test_maps_that_are_refused(second, text, says):
    with pytest.raises(BenchError, match=says): class_maps(["a", "b"], [("fear", "joy"), second], text)

# faces

def test_a_joint_set_is_a_faceset(joined, halves):
    "Keys, classes, hashes; the map is known by its effect; the record of each set; all of it is verified."
    faces = load_data(joined())
    names, sets = sets_of(faces)
    assert names == ["folder", "folder-2"] and faces.meta["name"] == "folder+folder-2"
    assert faces.classes == ("fear", "happiness")
    assert [key.partition("/")[0] for key in faces.index["key"]] == [names[i] for i in sets]
    assert faces.index["label"].notna().all() and len(faces) == 30 + 45 == len(verify_faceset(faces.folder))
    alone = load_data(RunConfig(preset="tiny", dataset="folder", data_root=halves[0]))
    mine = faces.index[sets == 0]
    assert mine["sha256"].tolist() == alone.index["sha256"].tolist() and sets_of(alone)[0] == []
    assert mine["file_sha256"].tolist() == alone.index["file_sha256"].tolist()
    dropped = load_data(joined(label_map="grin="))
    assert dropped.index["note"].dropna().unique().tolist() == ["label_map drops grin"]
    assert dropped.meta["content_hash"] != faces.meta["content_hash"]
    assert load_data(joined(label_map="folder-2:grin=happy")).meta["content_hash"] == faces.meta["content_hash"]
    assert faces.meta["facts"]["sets"][1]["classes"] == {"grin": "happiness", "happiness": "happiness", "fear": "fear"}

def test_size_and_colour_are_brought_together(tmp_path):
    for name, size, channels in (("grey", 24, 1), ("rgb", 40, 3)):
        for c, label in enumerate(("fear", "joy")):
            for i in range(4): picture(tmp_path/name/label/f"{i}.png", 90 * c, size, channels)
    from fer_bench.data.sources.folders import FolderSource
    members = [build_faceset(FolderSource(tmp_path/name, name), tmp_path/f"set-{name}") for name in ("grey", "rgb")]
    assert set_names([*members, members[0]]) == ["folder", "folder-2", "folder-3"]
    faces = build_faceset(JointSource(members), tmp_path/"joint", size=32)
    assert faces.images.shape == (16, 32, 32, 3) and faces.meta["colour"] == "rgb"
    facts = faces.meta["facts"]["sets"]
    assert [(one["size"], one["colour"]) for one in facts] == [([24, 24], "grey"), ([40, 40], "rgb")]
    first = faces.images[sets_of(faces)[1] == 0]  # keys in order: folder-2/ comes before folder/
    assert (first == first[..., :1]).all() and (faces.images != faces.images[..., :1]).any(), "grey is repeated"
    grey = build_faceset(JointSource([members[0], build_faceset(FolderSource(tmp_path/"rgb", "grey"), tmp_path/"g")]),
                         tmp_path/"joint-grey", size=24)
    assert grey.images.shape == (16, 24, 24, 1)
    assert np.array_equal(grey.images[sets_of(grey)[1] == 0], members[0].images)
    with pytest.raises(BenchError, match="two sets or more"): JointSource(members[:1])

def test_votes_landmarks_subjects(tmp_path):
    "Votes stay with the classes of the first set, landmarks where all have them; people get their set's name."
    one, two = (build_faceset(DrawnSource(80, 32, seed), tmp_path/str(seed)) for seed in (0, 1))
    both = build_faceset(JointSource([one, two]), tmp_path/"both", size=32)
    assert both.drawn and both.index["votes"].notna().all() and both.index["landmarks"].notna().all()
    for i, member in enumerate((one, two)):
        mine = both.index[sets_of(both)[1] == i]
        for name in ("landmarks", "votes"): assert np.array_equal(np.stack(mine[name]), np.stack(member.index[name]))
    assert both.index["subject"].nunique() == one.index["subject"].nunique() + two.index["subject"].nunique()
    assert not both.meta["facts"].get("published") and both.meta["licence"] == one.meta["licence"]

# splits

def test_each_set_is_tested_as_it_is_alone(tmp_path):
    "A set with official parts, and one without, whose parts are carved by people: with others it has the same."
    class NoSplit(DrawnSource):
        name = "nosplit"
        def rows(self): return super().rows().assign(split=None)
    members = [build_faceset(DrawnSource(160, 32), tmp_path/"a"), build_faceset(NoSplit(160, 32, 3), tmp_path/"b")]
    faces = build_faceset(JointSource(members), tmp_path/"joint", size=32)
    for seed in (0, 1):
        split, (names, sets) = joint_split(faces, seed=seed), sets_of(faces)
        for i, member in enumerate(members):
            alone = make_split(member.index, member.classes, seed=seed)
            for role in ("labelled", "unlabelled", "val", "test"):
                rows = getattr(split, role)
                mine = faces.index["key"].iloc[rows[sets[rows] == i]].tolist()
                assert mine == [f"{names[i]}/{key}" for key in member.index["key"].iloc[getattr(alone, role)]], role
    assert split.origin == {"val": "drawn: official; nosplit: carved", "test": "drawn: official; nosplit: carved"}
    budget = joint_split(faces, 4, seed=1)
    assert budget.counts["labelled"] == 32 and np.array_equal(budget.test, split.test)
    folds = joint_split(faces, how="fold:1/3")
    assert folds.origin["test"] == "fold:1/3" and set(sets[folds.test]) == {0, 1}
    one = make_split(faces.index, faces.classes, how="subject:drawn/s00001")
    assert lacking(split, faces, "val") == [] and lacking(one, faces, "test") == ["nosplit"]

def test_a_picture_of_two_sets(joined, halves, tmp_path):
    "In both training parts it counts once; a test picture of one set in the training of the other is dedupe's."
    shutil.copy(f"{halves[0]}/train/fear/0.png", f"{halves[1]}/train/joy/0.png")
    shutil.copy(f"{halves[0]}/test/fear/1.png", f"{halves[1]}/train/scared/1.png")
    shutil.copy(f"{halves[1]}/test/joy/2.png", f"{halves[0]}/train/happiness/2.png")
    faces = load_data(joined())
    rows = faces.index.set_index("key")
    twice = rows.loc["folder-2/train/joy/0.png"]
    assert pd.isna(twice["label"]) and twice["note"] == "the same picture as folder/train/fear/0.png, which counts"
    assert rows["label"].isna().sum() == 1
    assert [one["repeated"] for one in faces.meta["facts"]["sets"]] == [0, 1]
    labelled = lambda how: set(faces.index["key"].iloc[joint_split(faces, dedupe=how).labelled])
    kept = labelled("none")
    assert kept - labelled("cross_split") == {"folder-2/train/scared/1.png", "folder/train/happiness/2.png"}
    assert "folder-2/train/joy/0.png" not in kept
    split = joint_split(faces, dedupe="cross_split", labels_per_class=3)
    exam = held_out_hashes(faces.index, split)
    assert not exam & set(faces.index["sha256"].iloc[np.concatenate([split.labelled, split.unlabelled])])

# the batch

SHARES = st.lists(st.integers(1, 9), min_size=1, max_size=4)

@settings(max_examples=60, deadline=None)
@given(SHARES, st.integers(0, 500), st.integers(1, 64))
def test_shares_of_any_run_of_positions(shares, start, n):
    "Each order has its share but for less than a face for each order, is read from its start, and in any place alike."
    orders = [Order(np.arange(10 * i, 10 * i + 7), i) for i in range(len(shares))]
    mixed = SharedOrder(orders, shares)
    whole = mixed.take(np.arange(start + n))
    assert np.array_equal(mixed.take(np.arange(start, start + n)), whole[start:])
    for i, share in enumerate(shares):
        mine = whole[whole // 10 == i]
        assert np.array_equal(mine, orders[i].take(np.arange(len(mine))))
        count = (whole[start:] // 10 == i).sum()
        assert abs(count - n * share / sum(shares)) <= len(shares)

def test_given_shares():
    assert given_shares("proportional", 3) == () and given_shares("equal", 2) == (0.5, 0.5)
    assert given_shares("3, 1", 2) == (0.75, 0.25) == given_shares("0.75,.25", 2)
    for text in ("", "1", "1,0", "1,-1", "nan,1", "1,2,3", "a,b", "1/0,1", "1e9,1"):
        with pytest.raises(BenchError, match="for each of the 2 data sets a number above 0"): given_shares(text, 2)

@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_batches_have_the_shares(joined, balance):
    faces = load_data(joined())
    split = joint_split(faces)
    _, sets = sets_of(faces)
    rows = {shares: batch_rows(make_order(joined(set_shares=shares, balance=balance), faces, split.labelled), 3, 12)
            for shares in ("proportional", "equal", "3,1", "1,5")}
    counts = {shares: np.bincount(sets[r], minlength=2).tolist() for shares, r in rows.items()}
    assert [counts[shares] for shares in ("equal", "3,1", "1,5")] == [[6, 6], [9, 3], [2, 10]]
    if balance == "sampler": assert (faces.labels[rows["equal"]] == 0).sum() == 6
    plain = (BalancedOrder(split.labelled, faces.labels[split.labelled], 0, 1) if balance == "sampler" else
             Order(split.labelled, 0, 1))
    assert np.array_equal(rows["proportional"], batch_rows(plain, 3, 12)), "as before there were shares"

# runs

def by_hand(halves, folder):
    "The same faces as a csv set: keys, classes and parts as in the joint set of `halves`."
    rows = [("path", "label", "split")]
    for name, half in (("folder", halves[0]), ("folder-2", halves[1])): shutil.copytree(half, folder/name)
    for path in sorted(folder.rglob("*.png")):
        _, split, label, _ = path.relative_to(folder).parts
        rows.append((path.relative_to(folder).as_posix(), "happiness" if label == "grin" else meaning(label), split))
    with open(folder/"faces.csv", "w", newline="") as file: csv.writer(file).writerows(rows)
    return str(folder/"faces.csv")

@pytest.mark.parametrize("fields", [
    dict(method="supervised"), dict(method="fixmatch", labels_per_class=4, threshold=0.5),
    pytest.param(dict(method="byol"), marks=pytest.mark.nightly),
], ids=lambda fields: fields["method"])
def test_as_a_joint_set_made_by_hand(joined, tiny, halves, tmp_path, fields):
    "Content, split, logits and weights are equal to the bit."
    (tmp_path/"hand").mkdir()
    ours = joined(**fields)
    theirs = tiny(dataset="csv", data_root=by_hand(halves, tmp_path/"hand"), threads=1, **fields)
    a, b = run(ours), run(theirs)
    assert a.metrics.data_hash == b.metrics.data_hash and a.metrics.split_hash == b.metrics.split_hash and a.id != b.id
    assert np.array_equal(*(np.stack(r.predictions["logits"]) for r in (a, b)))
    assert (a.folder/"weights.safetensors").read_bytes() == (b.folder/"weights.safetensors").read_bytes()
    if a.metrics.pool: assert a.metrics.pool.faces == b.metrics.pool.faces
    assert b.metrics.sets is None and a.metrics.n == b.metrics.n

def test_scores_by_set_and_together(joined):
    "Each set's are those of its test faces; tables show them; a record whose scores were changed is damaged."
    record, other = run(joined()), run(joined(set_shares="equal"))
    assert record.id.startswith("supervised-folder+folder-") and record.id != other.id
    table, sets = record.predictions, record.metrics.sets
    assert list(sets) == ["folder", "folder-2"]
    assert sets["folder-2"].n == {"labelled": 27, "unlabelled": 0, "val": 6, "test": 12}
    for name, one in sets.items():
        mine = table[table["key"].str.startswith(f"{name}/")]
        found = evaluate_logits(np.stack(mine["logits"]), mine["label"].map(record.metrics.classes.index).to_numpy(),
                                record.metrics.classes)
        assert all(np.allclose(found[n], one.test[n]) for n in ("WAR", "UAR", "macro_F1", "confusion", "n"))
    runs = [record, other]
    for shown in (compare(runs), summarise(runs), leaderboard_table(measured(runs))):
        assert {"UAR folder", "WAR folder-2"} <= set(shown), list(shown)
    said = " ".join(notes(runs))
    assert "several data sets together: folder (8 test faces, 32x32, rgb); folder-2 (12 test faces" in said
    assert "grin as happiness" in said and summarise(runs)["method"].tolist()[1] == "supervised (set_shares equal)"
    assert {f.outcome for f in fer_bench.store.verify(record.folder.parent.parent)} == {"sound"}
    facts = json.loads((other.folder/"metrics.json").read_text())
    facts["sets"]["folder"], facts["sets"]["folder-2"] = facts["sets"]["folder-2"], facts["sets"]["folder"]
    (other.folder/"metrics.json").write_text(json.dumps(facts))
    from fer_bench.record import write_status
    write_status(other.folder, "finished")
    with pytest.raises(BenchError, match="another number of test faces of 'folder"): Record(other.folder).check()

def test_one_set_in_a_list_is_that_set(tiny, halves):
    one, listed = tiny(dataset="folder", data_root=halves[0]), tiny(dataset=["folder"], data_root=[halves[0]])
    assert one == listed and run_id(one, "d", "s") == run_id(listed, "d", "s")
    assert run_id(tiny(), "d", "s") == run_id(tiny(set_shares="proportional"), "d", "s")

def test_unlabelled_faces_of_all_sets(joined):
    for method, fields in (("dtm", dict(labels_per_class=2)), ("byol", {})):
        faces, split, pool = prepare_data(joined(method=method, batch_size=4, **fields))
        _, sets = sets_of(faces)
        taken = pool.members[0][1]
        assert set(sets[taken]) == {0, 1} and len(taken) == (45 if method == "byol" else 41)

def test_in_a_sweep_and_in_the_command(joined, halves, tmp_path, monkeypatch):
    "A list in a list is one value of a grid; a repeated option gives a list; one built FaceSet stands for all roots."
    base = joined().model_dump() | {"dataset": [["folder", "folder"], "folder"], "data_root": [halves, halves[0]]}
    with pytest.raises(BenchError, match="dataset names 2.*data_root|dataset names 1"): expand(base)
    cells = expand(base | {"dataset": [["folder", "folder"]], "data_root": [halves],
                           "set_shares": ["proportional", "equal"]})
    assert [c.config.set_shares for c in cells] == ["proportional", "equal"] and cells[0].config == joined()
    plan = Plan(tmp_path/"results")
    assert plan.identify(cells[0].config) == find_record(joined()).id
    import fer_bench.cli as cli
    given = {}
    def stop(notebook, output, values):
        given.update(values)
        raise BenchError("stopped here")
    monkeypatch.setattr(cli, "_execute", stop)
    words = ["run", "--preset", "tiny", "--dataset", "folder", "--dataset", "folder", "--label-map", "grin=happiness",
             "--results-dir", str(tmp_path/"results")]
    for root in halves: words += ["--data-root", root]
    CliRunner().invoke(app, words)
    assert given["dataset"] == ["folder", "folder"] and given["data_root"] == halves
    given.clear()
    CliRunner().invoke(app, ["run", "--preset", "tiny", "--results-dir", str(tmp_path/"results")])
    given.pop("compare_with")
    assert RunConfig(**given) == RunConfig(preset="tiny", results_dir=str(tmp_path/"results"))

def test_a_built_joint_set_and_its_parcel(joined, halves):
    "As Ray sends it: the FaceSet of all in place of the roots, with the same id."
    from fer_bench.sweeps.job import Job
    from fer_bench.sweeps.ray import parcel
    config, sent = joined(), {}
    found = parcel(Job("k", config, id="x", folder=config.path("results_dir")/"runs/x"), lambda value: value,
                   lambda folder: sent.setdefault("folder", str(folder)))
    there = RunConfig(**found["config"], data_root=sent["folder"], results_dir=config.results_dir)
    assert there.dataset == ["folder", "folder"] and find_record(there).id == find_record(config).id
    with pytest.raises(BenchError, match="holds folder.folder-2, label_map='grin=happiness'. Give a root for each"):
        load_data(there.model_copy(update={"label_map": "grin="}))
    with pytest.raises(BenchError, match="dataset names 2 .*data_root 1.*Give a root for each"):
        load_data(joined(data_root=halves[:1]))

# bad input

@pytest.mark.parametrize("fields, says", [
    (dict(dataset=[]), "dataset is an empty list"),
    (dict(dataset=["folder", "ck+"], data_root=[]), "data_root is an empty list"),
    (dict(dataset=["folder", "ck+"]), r"dataset names 2 \(folder, ck\+\), and data_root 1"),
    (dict(dataset=["folder", "ck+"], data_root=["a", "b", "c"]), r"names 2 .*, and data_root 3 \('a', 'b', 'c'\)"),
    (dict(dataset="folder", data_root=["a", "b"]), "dataset names 1 .*, and data_root 2"),
    (dict(dataset=["folder", "ck+"], data_root=["a", "./a"]), "data_root names 'a' twice"),
    (dict(dataset=["drawn", "drawn"], data_root=["", ""]), "dataset names 'drawn' twice"),
    (dict(dataset=["folder", "ck+"], data_root=["a", ""]), r"'ck\+' needs data_root"),
    (dict(dataset=["folder", 3], data_root=["a", "b"]), "'dataset' = .*valid string; it means"),
    (dict(label_map="contempt="), "label_map = 'contempt=' brings several data sets .* there is one, 'drawn'"),
    (dict(dataset=["folder", "ck+"], data_root=["a", "b"], set_shares="1,2,3"), "for each of the 2 data sets"),
    (dict(dataset=["folder", "ck+"], data_root=["a", "b"], set_shares="equal", method="byol"), "not trained on any"),
], ids=str)
def test_configs_that_are_refused(fields, says):
    with pytest.raises(BenchError, match=says): RunConfig(preset="tiny", **fields)

def test_data_that_are_refused(joined, tiny, halves, tmp_path):
    with pytest.raises(BenchError, match="'grin' of folder-2 has no place among the classes of folder"):
        run(joined(label_map=""))
    with pytest.raises(BenchError, match="set_shares = 'equal' is for several data sets, and 'drawn' is one"):
        run(tiny(set_shares="equal"))
    shutil.copytree(halves[0], tmp_path/"copy")
    with pytest.raises(BenchError, match="No face of folder-2 has a label: 18 are training pictures of an earlier set"):
        shutil.rmtree(tmp_path/"copy/val"); shutil.rmtree(tmp_path/"copy/test")
        load_data(joined(data_root=[halves[0], str(tmp_path/"copy")], label_map=""))
    from fer_bench.runs.judge import judge
    with pytest.raises(BenchError, match="one data set at a time"): judge("table.csv", joined())

def test_dtm_as_published_on_three_sets_and_a_pool(tiny, tmp_path):
    "Preset paper: Aff-Wild2, AffectNet and ExpW at once, in equal shares, every second frame, a face recognition pool."
    faces = {"abaw5-expr": 2, "affectnet-8": 12, "expw": 12}  # fake trees draw the same faces, so the larger keep some
    roots = [str(fake(name.removesuffix("-8"), tmp_path/name, n)) for name, n in faces.items()]
    record = run(tiny(method="dtm", preset="paper", dataset=list(faces), data_root=roots, set_shares="equal",
                      label_map="contempt=other", pool_root=str(fake("identities", tmp_path/"people", 3)), mu=1,
                      frames="every:2", smoothing="mean", epochs=1, steps_per_epoch=1, warmup_epochs=0, batch_size=6,
                      image_size=32, backbone="test_resnet", threads=1))
    m = record.metrics
    assert list(m.sets) == list(faces) and m.classes[-1] == "other" and m.pool.members == ["identities"]
    assert all(0 <= scores.test.macro_F1 <= 1 and scores.n["labelled"] for scores in m.sets.values())
    assert m.test_films == 2 + sum(scores.n["test"] for name, scores in m.sets.items() if name != "abaw5-expr")
    assert record.check() is None

def test_a_set_without_validation_has_no_say(joined, halves, tmp_path):
    "select = val is refused where a set has no validation face, and so are shares of a set without labelled ones."
    faces = load_data(joined())
    split = joint_split(faces)
    from fer_bench.data.splits import save_manifest
    _, sets = sets_of(faces)
    from dataclasses import replace
    save_manifest(faces.index, replace(split, val=split.val[sets[split.val] == 0]), tmp_path/"val.csv")
    with pytest.raises(BenchError, match="select = 'val', but folder-2 has no validation face and would have no say"):
        find_record(joined(split=str(tmp_path/"val.csv"), select="val"))
    save_manifest(faces.index, replace(split, labelled=split.labelled[sets[split.labelled] == 1]), tmp_path/"lab.csv")
    with pytest.raises(BenchError, match="set_shares = 'equal', but no labelled face is from folder"):
        find_record(joined(split=str(tmp_path/"lab.csv"), set_shares="equal"))
    assert find_record(joined(split=str(tmp_path/"lab.csv")))

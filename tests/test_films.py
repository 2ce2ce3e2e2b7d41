"""Films: kept together, thinned out in training, smoothed over time, written and read back frame by frame."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_record

import fer_bench
from fer_bench import RunConfig, run
from fer_bench.cli import main
from fer_bench.config import frame_rule
from fer_bench.core import BenchError, sha256
from fer_bench.data.audit.audit import audit
from fer_bench.data.drawn.films import LEVEL, FilmSource, draw_frames, film_geometry, plan
from fer_bench.data.faceset import build_faceset, verify_faceset
from fer_bench.data.frames import every_nth, film_numbers, films_in, frame_counts, random_frames
from fer_bench.data.labels import FERPLUS8
from fer_bench.data.sources.base import Source
from fer_bench.data.sources.fixtures import fake
from fer_bench.data.splits import carve, fold_of, load_manifest, make_split, manifest
from fer_bench.evaluate.metrics import classification_metrics, rates
from fer_bench.evaluate.smoothing import KINDS, choose_smoothing, smooth, smoothed_logits
from fer_bench.evaluate.statistics import bootstrap_intervals, paired_bootstrap, tails
from fer_bench.record import read_films, write_predictions
from fer_bench.runs.frame_files import frame_answers, frame_files, read_frame_files, write_frame_files
from fer_bench.runs.judge import judge
from fer_bench.runs.task import prepare_data
from fer_bench.train.batches import make_order

HASH = "5bed2d5c885941644d20b34538fd703f5d9784ddde9aa95f5e6e0ab05be69818"

# drawn films

@pytest.fixture(scope="module")
def frames(): return draw_frames([8] * 6 + [92] * 6, [*range(8, 14)] * 2, size=32)

def test_same_films_as_ever(frames):
    "A change here is a change of the data set: raise `films.FILMING` and say so."
    assert sha256(frames["images"]) == HASH

def test_a_frame_depends_on_film_and_number_alone(frames):
    alone = draw_frames([92, 8], [9, 13], size=32)
    for name, whole in frames.items(): assert np.array_equal(alone[name], whole[[7, 5]]), name

@settings(max_examples=10)
@given(st.integers(0, 2**20), st.integers(0, 2**64 - 1))
def test_a_film_is_one_person_with_one_expression_that_comes_and_goes(film, seed):
    script = plan([film], seed)
    every = np.arange(1, script["length"][0] + 1)
    g = film_geometry([film] * len(every), every, seed)
    name = FERPLUS8[script["expression"][0]]
    assert set(g["label"]) == {"neutral", name} and len(np.unique(g["subject"])) == 1
    assert np.array_equal(g["label"] == name, g["intensity"] >= LEVEL)
    rises = np.sign(np.diff(g["intensity"]))
    assert (np.diff(rises[rises != 0]) <= 0).all(), "up once, down once"
    assert np.ptp(g["skin"], axis=0).max() == 0 == g["intensity"][0] == g["intensity"][-1]

def test_a_set_of_films():
    rows = FilmSource(1, 32).rows()
    assert rows.groupby("film").agg({"split": "nunique", "subject": "nunique"}).max().max() == 1
    assert {s: set(part) for s, part in rows.groupby("split").label} == dict.fromkeys(
        ("train", "val", "test"), set(FERPLUS8))
    numbers = rows.groupby("film").frame.agg(["min", "max", "count"])
    length = plan(range(21))["length"]
    assert (numbers["min"] == 1).all() and (numbers["max"] == length).all()
    assert (numbers["count"] < length).any(), "some films have gaps"
    more = FilmSource(2000, 32).rows()
    assert abs(len(more) - 2000) < 300 and more.head(len(rows)).equals(rows), "more frames are more films"

@pytest.mark.parametrize("make, says", [
    (lambda: FilmSource(0), "at least one"), (lambda: FilmSource(9, 8), "size=8"),
    (lambda: FilmSource(9, 32, -1), "seed=-1"), (lambda: draw_frames([0], [0]), "no such frame"),
    (lambda: draw_frames([0], [99]), "no such frame"), (lambda: draw_frames([-1], [1]), "no such frame")])
def test_films_that_cannot_be_drawn(make, says):
    with pytest.raises(BenchError, match=says): make()

# a set that knows films

class Films(Source):
    "Grey squares, two classes by brightness: `films` films of `length` frames; every third frame is missing."
    name, licence = "squares", "none"
    def __init__(self, films: int = 8, length: int = 12, rows=None):
        rows = rows or [(f"f{f}/{n}", ("fear", "happiness")[n > length // 2], None, None, None, None, None, f"f{f}", n)
                        for f in range(films) for n in range(1, length + 1) if n % 3]
        super().__init__(rows, ("fear", "happiness"), "grey")
    def load(self, key):
        number = sum(map(ord, key)) % 97
        pixels = np.full((32, 32, 1), 60 + 100 * (dict((r[0], r[1]) for r in self._rows)[key] == "fear"), np.uint8)
        pixels[number % 32, number // 32 * 8:] = number
        pixels[0, :, 0] = np.frombuffer(key.ljust(32).encode()[:32], np.uint8)
        return pixels, None

@pytest.fixture(scope="module")
def squares(tmp_path_factory): return build_faceset(Films(), tmp_path_factory.mktemp("squares")/"films")

@pytest.fixture(scope="module")
def smoothed(squares, tmp_path_factory):
    "A finished run with everything that films have."
    return run(RunConfig(preset="tiny", dataset="faceset", data_root=str(squares.folder), device="cpu", threads=1,
                         frames="random:3", smoothing="val", results_dir=str(tmp_path_factory.mktemp("films"))))

def test_films_stand_in_the_index_and_in_the_hash(squares, tmp_path):
    assert {"film", "frame"} <= set(squares.index) and verify_faceset(squares.folder)
    assert squares.index.frame.dtype == np.int64 and squares.index.film.nunique() == 8
    rows = [row[:6] for row in Films()._rows]
    without = build_faceset(Films(rows=rows), tmp_path/"without")
    assert "film" not in without.index and without.meta["content_hash"] != squares.meta["content_hash"]
    renumbered = [(*row[:8], row[8] + 1) for row in Films()._rows]
    other = build_faceset(Films(rows=renumbered), tmp_path/"other")
    assert other.meta["content_hash"] != squares.meta["content_hash"]
    some = [(*row[:7], None, None) if i % 2 else row for i, row in enumerate(Films()._rows)]
    half = build_faceset(Films(rows=some), tmp_path/"half")
    assert half.index.film.isna().sum() == len(half) // 2 and verify_faceset(half.folder)

@pytest.mark.parametrize("film, frame, says", [
    ("f0", 1, "a frame twice"), ("f0", None, "without the number"), (None, 3, "without a film"),
    ("f0", -1, "negative")])
def test_frames_that_are_badly_numbered(tmp_path, film, frame, says):
    rows = [*Films()._rows, ("odd", "fear", None, None, None, None, None, film, frame)]
    with pytest.raises(BenchError, match=says): build_faceset(Films(rows=rows), tmp_path/"x")
    assert not (tmp_path/"x").exists()

# a film never stands in two splits

@st.composite
def indices(draw):
    "An index with films, some unknown, of subjects, some unknown, and some pictures that are twice there."
    n = draw(st.integers(40, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    some = lambda letter, most, lost: np.array([None if rng.random() < lost else f"{letter}{i}"
                                                for i in rng.integers(0, most, n)], object)
    film, subject = some("f", draw(st.integers(6, 20)), .1), some("s", 30, .7)
    pixels = np.where(rng.random(n) < .02, 0, np.arange(n))
    return pd.DataFrame({"key": [f"{i:03d}" for i in range(n)], "split": None, "subject": subject, "film": film,
                         "frame": np.arange(n), "sha256": [f"p{i}" for i in pixels], "file_sha256": None,
                         "label": [None if rng.random() < .1 else "ab"[i] for i in rng.integers(0, 2, n)]})

def torn(index, *parts) -> bool:
    part = pd.Series(index=index.index, dtype=object)
    for i, rows in enumerate(parts): part.iloc[rows] = i
    return bool((part.groupby(index["film"]).nunique() > 1).any())

@settings(max_examples=25)
@given(indices(), st.integers(0, 5), st.sampled_from(["official", "fold:1/3"]))
def test_a_film_is_in_one_part(index, seed, how):
    labelled = np.flatnonzero(index.label.notna())
    part = carve(index, labelled, .2, seed)
    assert not torn(index, part, np.setdiff1d(labelled, part))
    folds = fold_of(index, labelled, 3, seed)
    assert not torn(index, *(labelled[folds == i] for i in range(3)))
    try: split = make_split(index, ("a", "b"), None, seed, how=how)
    except BenchError: return  # everything hangs together, or a class lacks a part
    assert not torn(index, np.concatenate([split.labelled, split.unlabelled]), split.val, split.test)

def test_a_manifest_that_tears_a_film_is_refused(squares, tmp_path):
    split = make_split(squares.index, squares.classes, None, 0)
    table = manifest(squares.index, split)
    table.to_csv(tmp_path/"whole.csv", index=False)
    assert load_manifest(squares.index, tmp_path/"whole.csv").hash == split.hash
    film = squares.index.film.iloc[split.test[0]]
    row = table.index[table.key == squares.index.key.iloc[split.test[0]]][0]
    table.assign(role=table.role.where(table.index != row, "val")).to_csv(tmp_path/"torn.csv", index=False)
    with pytest.raises(BenchError, match=f"film '{film}' in test and val"):
        load_manifest(squares.index, tmp_path/"torn.csv")

def test_the_audit_finds_a_film_in_two_splits(squares, tmp_path):
    assert audit(squares, near=False)["films"].level == "ok"
    rows = [(*row[:4], "test" if row[8] > 9 and row[7] == "f3" else "train", *row[5:]) for row in Films()._rows]
    found = audit(build_faceset(Films(rows=rows), tmp_path/"torn"), near=False)["films"]
    assert (found.level, found.count) == ("failure", 1) and "f3" in found.sentence and len(found.rows) == 8

# frames in training

@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=60, unique=True),
       st.integers(1, 7), st.integers(0, 99))
def test_frames_that_are_taken(pairs, n, seed):
    "Against loops over films."
    films, frames = np.array(pairs).T
    rows = 10 + np.arange(len(pairs))
    wanted = {int(rows[i]) for f in set(films) for k, i in
              enumerate(sorted(np.flatnonzero(films == f), key=lambda i: frames[i])) if k % n == 0}
    assert every_nth(rows, films, frames, n).tolist() == sorted(wanted)
    drawn = random_frames(rows, films, n, np.random.default_rng(seed))
    assert np.array_equal(np.bincount(films[drawn - 10], minlength=6), np.minimum(np.bincount(films, minlength=6), n))
    assert np.array_equal(drawn, np.unique(drawn)) and np.isin(drawn, rows).all()
    index = pd.DataFrame({"film": films.astype(str), "frame": frames})
    assert frame_counts(f"random:{n}", index, np.arange(len(rows))).sum() == pytest.approx(len(drawn))
    if n > 1: assert frame_counts(f"every:{n}", index, np.arange(len(rows))).sum() == len(wanted)

def test_films_that_are_not_known():
    assert film_numbers(["a", None, "a", float("nan")]).tolist() == [0, 1, 0, 2]
    assert films_in(pd.DataFrame({"key": ["a"]})) is None
    assert films_in(pd.DataFrame({"film": [None], "frame": [None]})) is None
    film, frame = films_in(pd.DataFrame({"film": ["a", None, "b"], "frame": [4, None, 5]}), np.array([1, 2]))
    assert film.tolist() == [1, 0] and frame.tolist() == [0, 5]

@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_random_frames_are_new_in_each_epoch_and_a_function_of_the_step(squares, tiny, balance):
    rows, at = np.flatnonzero(squares.index.frame > 0), 8 * 2  # positions of an epoch
    order = lambda: make_order(tiny(frames="random:2", balance=balance), squares, rows)
    epochs = [order().take(np.arange(at * e, at * (e + 1))) for e in (0, 1, 2)]
    films = squares.index.film
    for epoch in epochs: assert pd.Series(epoch).groupby(films.iloc[epoch].to_numpy()).nunique().max() <= 2
    assert len({frozenset(epoch.tolist()) for epoch in epochs}) == 3
    assert np.array_equal(order().take(np.arange(at - 3, at + 3)), np.concatenate([epochs[0][-3:], epochs[1][:3]]))
    whole = make_order(tiny(frames="every:3"), squares, rows).take(np.arange(24))
    assert pd.Series(whole).groupby(films.iloc[whole].to_numpy()).nunique().eq(3).all()

def test_a_stopped_run_goes_on_to_the_same_bits(squares, smoothed, tmp_path, monkeypatch):
    import fer_bench.train.loop as loop
    config = RunConfig(**smoothed.config | {"results_dir": str(tmp_path)})
    save, count = loop.save_checkpoint, []
    def stops(*args):
        save(*args)
        count.append(1)
        if len(count) == 1: raise KeyboardInterrupt
    monkeypatch.setattr(loop, "save_checkpoint", stops)
    with pytest.raises(KeyboardInterrupt): run(config)
    record = run(config)
    assert record.id == smoothed.id and record.predictions.equals(smoothed.predictions)

@pytest.mark.parametrize("text", ["", "each", "every", "every:0", "every:1", "random:0", "random:-1", "random:1.5",
                                  "all:2"])
def test_rules_that_are_none(text, tiny):
    with pytest.raises(BenchError, match="give all; every:N"): tiny(frames=text)
    assert frame_rule("random:1") == ("random", 1) and frame_rule("all") == ("all", 1)

# smoothing, against a slow plain version

def slow(shares, films, frames, kind, radius):
    out = []
    for film, frame in zip(films, frames, strict=True):
        near = [j for j in range(len(films)) if films[j] == film and abs(frames[j] - frame) <= radius]
        p, d = shares[near], np.array([frames[j] - frame for j in near])
        if kind == "mean": found = p.mean(0)
        elif kind == "gaussian": found = np.average(p, axis=0, weights=np.exp(-d**2 / (2 * (radius / 2)**2)))
        else: found = np.maximum(np.median(p, axis=0), 1e-12)
        out.append(found / found.sum())
    return np.array(out)

FRAMES = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 30)), min_size=1, max_size=40, unique=True)

@settings(max_examples=80)
@given(FRAMES, st.sampled_from(KINDS), st.integers(1, 12), st.integers(0, 2**31))
def test_smoothing_is_that_of_a_loop(pairs, kind, radius, seed):
    films, frames = np.array(pairs).T
    shares = np.random.default_rng(seed).dirichlet([.3] * 4, len(films))
    found = smooth(shares, films, frames, kind, radius)
    assert np.allclose(found, slow(shares, films, frames, kind, radius), atol=1e-9)
    assert np.allclose(found.sum(1), 1) and (found >= 0).all()
    order = np.random.default_rng(seed).permutation(len(films))
    assert np.allclose(smooth(shares[order], films[order], frames[order], kind, radius), found[order], atol=1e-12)
    assert np.allclose(smooth(shares, films, frames + 7, kind, radius), found, atol=1e-12)
    assert np.array_equal(smooth(shares, films, frames, kind, 0), shares)

def test_gaps_and_films_of_one_frame():
    shares = np.array([[.9, .1], [.5, .5], [.1, .9]])
    assert np.allclose(smooth(shares, [0, 0, 0], [1, 2, 9], "mean", 3), [[.7, .3], [.7, .3], [.1, .9]])
    assert np.array_equal(smooth(shares, [0, 1, 2], [5, 5, 5], "median", 9), shares)
    assert smooth(np.zeros((0, 3)), [], [], "mean", 2).shape == (0, 3)
    logits = np.array([[100., 0, 0], [0, 3, 0], [0, 3, 0]])
    assert smoothed_logits(logits, [0] * 3, [1, 2, 3], "mean", 2).argmax(1).tolist() == [1, 1, 1], "a vote is at most 1"

@pytest.mark.parametrize("arguments, says", [
    (([0, 0], [3, 3], "mean", 1), "Frame 3 of film 0 is there twice"), (([0, 0], [3], "mean", 1), "do not match"),
    (([0, 0], [3, 4], "mode", 1), "'mode'"), (([0, 0], [3, 4], "mean", -1), "radius -1"),
    (([0, 0], [3, 4], "mean", 1.5), "radius 1.5")])
def test_what_cannot_be_smoothed(arguments, says):
    with pytest.raises(BenchError, match=says): smooth(np.full((2, 2), .5), *arguments)

def test_the_choice_is_by_macro_f1_and_may_be_none():
    rng = np.random.default_rng(0)
    frames, labels = np.tile(np.arange(40), 4), np.tile(np.arange(40) // 20, 4)
    films = np.repeat(np.arange(4), 40)
    noisy = np.eye(2)[labels] + rng.standard_normal((160, 2))
    kind, radius, tried = choose_smoothing(noisy, labels, films, frames)
    assert radius > 0 and tried[f"{kind} ± {radius} frames"] == max(tried.values()) > tried["none"] and len(tried) == 16
    kind, radius, tried = choose_smoothing(noisy, labels, films, frames, "median")
    assert kind == "median" and len(tried) == 6
    alternating = np.arange(160) % 2
    assert choose_smoothing(5. * np.eye(2)[alternating], alternating, films, frames)[:2] == ("none", 0)

# intervals over films

@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_intervals_over_films_are_those_of_a_loop(count, seed):
    rng = np.random.default_rng(seed)
    films, labels = rng.integers(0, count, 60) * 3, rng.integers(0, 3, 60)
    logits, others = rng.random((2, 60, 3))
    names, resampled, differences = np.unique(films), [], []
    drawn = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), size=50)
    for times in drawn:
        rows = np.concatenate([np.flatnonzero(films == f) for f, n in zip(names, times, strict=True) for _ in range(n)])
        a, b = (classification_metrics(x[rows], labels[rows], "abc") for x in (logits, others))
        resampled.append(a["macro_F1"])
        differences.append(a["UAR"] - b["UAR"])
    found = bootstrap_intervals(logits, labels, 50, 5, films=films)
    observed = classification_metrics(logits, labels, "abc")["macro_F1"]
    low, high = np.quantile(resampled, tails(.95))
    assert np.allclose(found["macro_F1"], (min(low, observed), max(high, observed))) and "WAR" in found
    gain = paired_bootstrap(logits, others, labels, 50, 5, films=films)["UAR"]
    low, high = np.quantile(differences, tails(.95))
    assert np.allclose(gain, (gain[0], min(low, gain[0]), max(high, gain[0])))

def test_one_film_says_nothing_of_the_next():
    logits, labels = np.eye(2)[[0, 1, 1]], np.array([0, 1, 0])
    assert bootstrap_intervals(logits, labels, films=[4, 4, 4])["WAR"] == (0, 1)
    assert paired_bootstrap(logits, logits, labels, films=[4, 4, 4])["WAR"] == (0, -1, 1)
    wide, narrow = (bootstrap_intervals(np.repeat(logits, 9, 0), np.repeat(labels, 9), films=films)["macro_F1"]
                    for films in (np.repeat([0, 1, 2], 9), np.arange(27)))
    assert wide[1] - wide[0] > narrow[1] - narrow[0], "copies of a frame are no news"

# a run

def test_a_run_with_films(smoothed, squares):
    m, told = smoothed.metrics, smoothed.predictions
    _, split, _ = prepare_data(RunConfig(**smoothed.config))
    assert told.film.tolist() == squares.index.film.iloc[split.test].tolist()
    assert told.frame.tolist() == squares.index.frame.iloc[split.test].tolist() and m.test_films == told.film.nunique()
    assert m.frames_an_epoch == 3 * squares.index.film.iloc[split.labelled].nunique() < m.n["labelled"]
    labels = told.label.map(list(m.classes).index).to_numpy()
    plain = np.stack(told.logits)
    again = smoothed_logits(plain, *films_in(told), m.smoothed.kind, m.smoothed.radius)
    assert m.test.macro_F1 == classification_metrics(plain, labels, m.classes)["macro_F1"], "of raw logits"
    assert m.smoothed.macro_F1 == pytest.approx(classification_metrics(again, labels, m.classes)["macro_F1"])
    assert m.smoothed.gain["macro_F1"][0] == pytest.approx(m.smoothed.macro_F1 - m.test.macro_F1)
    assert len(m.smoothed.tried) == 16 and smoothed.check() is None
    table = fer_bench.compare([smoothed])
    assert "macro-F1 smoothed" in table and table["method"][0].startswith("supervised")
    assert fer_bench.difference(smoothed, smoothed)["difference"].str.startswith("+0.0").all()
    assert "films" in fer_bench.measured([smoothed])["interval"].tolist()

def test_a_smoothed_number_that_was_changed_is_found(smoothed, tmp_path):
    import json
    import shutil

    from fer_bench.record import Record
    shutil.copytree(smoothed.folder, tmp_path/smoothed.id)
    path = tmp_path/smoothed.id/"metrics.json"
    facts = json.loads(path.read_text())
    facts["smoothed"]["radius"], facts["smoothed"]["kind"] = facts["smoothed"]["radius"] + 1, "mean"
    facts["smoothed"]["NLL"] += .1
    path.write_text(json.dumps(facts))
    status = tmp_path/smoothed.id/"status.json"
    told = json.loads(status.read_text())
    told["files"]["metrics.json"] = sha256(path.read_bytes())
    status.write_text(json.dumps(told))
    with pytest.raises(BenchError, match="does not match predictions.parquet"): Record(tmp_path/smoothed.id).check()

def test_predictions_of_some_faces_without_a_film(tmp_path):
    write = lambda films, frames: write_predictions(tmp_path, list("xyz"), list("pqp"), np.zeros((3, 2), "float32"),
                                                    pd.DataFrame({"film": films, "frame": frames}))
    data = lambda: (tmp_path/"predictions.parquet").read_bytes()
    write(["a", None, "b"], [1, np.nan, 3])
    assert read_films(data(), tmp_path) == {"film": ["a", None, "b"], "frame": [1, None, 3]}
    write([None] * 3, [None] * 3)
    assert read_films(data(), tmp_path) == {}
    write(["a", "b", "b"], [1, np.nan, 3])
    with pytest.raises(BenchError, match="a film without the number"): read_films(data(), tmp_path)

def test_macro_f1_comes_first_where_the_field_judges_by_it(smoothed):
    from types import SimpleNamespace as Named
    as_set = lambda name: Named(config={"dataset": name}, metrics=smoothed.metrics.model_copy(update={"dataset": name}))
    from fer_bench.report.scores import main_measures, measures
    first = lambda *names: next(iter(measures([as_set(n) for n in names])))
    assert first("abaw5-expr") == first("drawn-films", "abaw-mtl") == "macro_F1" and first("raf-db") == "WAR"
    assert list(measures([as_set("abaw5-expr")]))[:2] == ["macro_F1", "macro_F1_smoothed"]
    assert "macro_F1" not in main_measures([as_set("raf-db")]) and "macro_F1" in main_measures([as_set("abaw2-expr")])

@pytest.mark.parametrize("fields, says", [
    (dict(smoothing="mean"), "of none that is known"), (dict(frames="every:5"), "of none that is known"),
    (dict(frames="random:5", labels_per_class=1), "both choose labelled frames"),
    (dict(smoothing="mode"), "'smoothing'"), (dict(method="byol", frames="every:2"), "not trained on any"),
    (dict(method="dtm", unlabelled="pool", pool_dataset="drawn-films"), "Take drawn")], ids=lambda v: str(v)[:40])
def test_without_films(tiny, fields, says):
    with pytest.raises(BenchError, match=says): run(tiny(**fields))

def test_a_split_without_validation_films_and_a_class_that_is_lost(squares, tiny, tmp_path):
    fields = dict(dataset="faceset", data_root=str(squares.folder), threads=1)
    split = make_split(squares.index, squares.classes, None, 0)
    table = manifest(squares.index, split)
    table[table.role != "val"].to_csv(tmp_path/"split.csv", index=False)
    with pytest.raises(BenchError, match="this split has none"):
        run(tiny(**fields, smoothing="val", split=str(tmp_path/"split.csv")))
    with pytest.raises(BenchError, match="no labelled face of the class 'happiness'"):
        run(tiny(**fields, frames="every:99"))

def test_dtm_as_published_on_a_fake_tree_of_films(tiny, tmp_path):
    "Preset paper: films, every second frame, a pool of face recognition, smoothing that validation films choose."
    root, people = fake("abaw5-expr", tmp_path/"films", 2), fake("identities", tmp_path/"people", 4)
    record = run(tiny(method="dtm", preset="paper", dataset="abaw5-expr", data_root=str(root), pool_root=str(people),
                      frames="every:2", smoothing="val", epochs=1, steps_per_epoch=1, warmup_epochs=0, batch_size=4,
                      image_size=32, backbone="test_resnet", threads=1))
    m = record.metrics
    assert m.pool.faces[0] + m.pool.dropped[0] == 32 and m.frames_an_epoch == 8 and m.n["labelled"] == 16
    assert m.test_films == 2
    assert m.smoothed.kind in ("none", *KINDS) and record.check() is None
    assert list(fer_bench.compare([record]))[10:12] == ["macro-F1", "macro-F1 smoothed"]
    paths = frame_files(record, tmp_path/"files")
    assert [p.name for p in paths] == ["10-1920x1080.txt", "11-1920x1080.txt"]
    head, *lines = paths[0].read_text().splitlines()
    assert head == "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other" and len(lines) == 16

def test_smoothing_gains_on_drawn_films():
    "A layer on landmarks of a detector that fails in three frames of ten; other films than those of the notebook."
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    rows, rng = FilmSource(6000, seed=1).rows(), np.random.default_rng(1)
    points = np.array(rows["landmarks"].tolist()).reshape(len(rows), 68, 2) / 48
    points -= points[:, 36:48].mean(1, keepdims=True)
    points += np.where(rng.random(len(rows)) < .3, .05, .008)[:, None, None] * rng.standard_normal(points.shape)
    x, y = points.reshape(len(rows), -1), rows["label"].map(FERPLUS8.index).to_numpy(int)
    train, val, test = (np.flatnonzero(rows["split"] == part) for part in ("train", "val", "test"))
    x = StandardScaler().fit(x[train]).transform(x)
    logits = LogisticRegression(C=.01, max_iter=100).fit(x[train], y[train]).decision_function(x)
    kind, radius, _ = choose_smoothing(logits[val], y[val], *films_in(rows, val))
    film, frame = films_in(rows, test)
    better = smoothed_logits(logits[test], film, frame, kind, radius)
    assert paired_bootstrap(better, logits[test], y[test], films=film)["macro_F1"][1] > 0

# prediction files

@settings(max_examples=15)
@given(FRAMES, st.integers(0, 99))
def test_files_round_trip(tmp_path_factory, pairs, seed):
    folder = tmp_path_factory.mktemp("files")
    films, frames = np.array(pairs).T
    names, answers = [f"film {f + 3}" for f in films], np.random.default_rng(seed).integers(0, 3, len(films))
    write_frame_files(folder, names, frames + 1, answers, ["neutral", "anger", "fear"])
    head, found = read_frame_files(folder)
    assert head == ["Neutral", "Anger", "Fear"] and found.keys() == set(names)
    for name, frame, answer in zip(names, frames, answers, strict=True): assert found[name][frame] == answer
    for name, said in found.items():
        known = {f: a for n, f, a in zip(names, frames, answers, strict=True) if n == name}
        assert len(said) == max(known) + 1
        for f, a in enumerate(said): assert a == known[min(known, key=lambda k, f=f: (abs(k - f), k))]
    index = pd.DataFrame({"film": names, "frame": frames + 1})
    assert np.array_equal(frame_answers(folder, index)[0].argmax(1), answers)

def test_files_of_a_run_are_judged_to_its_own_numbers(smoothed, tmp_path, capsys):
    results = str(smoothed.folder.parent.parent)
    with pytest.raises(SystemExit) as e:
        main(["frames", smoothed.id, "--out", str(tmp_path/"ours"), "--results-dir", results])
    assert e.value.code == 0 and f"{smoothed.metrics.test_films} films in" in capsys.readouterr().out
    theirs = judge(tmp_path/"ours", smoothed.config | {"results_dir": str(tmp_path/"results")})
    for name in ("WAR", "UAR", "macro_F1", "macro_F1_ci", "confusion"):
        assert theirs.metrics.test[name] == smoothed.metrics.smoothed[name], name
    assert theirs.metrics.runtime == "frames" and theirs.check() is None
    assert judge(tmp_path/"ours", smoothed.config | {"results_dir": str(tmp_path/"results")}).id == theirs.id

def test_films_without_labels(smoothed, squares, tmp_path):
    "The run's network answers for pictures of films, smoothed as validation chose; a gap is bridged."
    from PIL import Image
    for name, n in (("new", 1), ("new", 4), ("newer", 2)):
        (tmp_path/"films"/name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(squares.images[n][..., 0]).save(tmp_path/"films"/name/f"{n:05d}.png")
    results = str(smoothed.folder.parent.parent)
    paths = frame_files(smoothed.id, tmp_path/"out", str(tmp_path/"films"), results)
    assert [(p.name, len(p.read_text().splitlines())) for p in paths] == [("new.txt", 5), ("newer.txt", 3)]
    Image.fromarray(squares.images[0][..., 0]).save(tmp_path/"films"/"new"/"cover.png")
    with pytest.raises(BenchError, match="has no number for a name"):
        frame_files(smoothed.id, tmp_path/"other", str(tmp_path/"films"), results)

@pytest.mark.parametrize("text, says", [
    ("", "no list of class names"), ("0\n1\n", "no list of class names"), ("Fear,Happiness\n0\n2\n", "Line 3"),
    ("Fear,Happiness\n0\n\n1\n", "Line 3"), ("Fear,Happiness\nfear\n", "Line 2"), ("Fear,Happiness\n-2\n", "Line 2")])
def test_files_that_cannot_be_read(tmp_path, text, says):
    (tmp_path/"a.txt").write_text(text)
    with pytest.raises(BenchError, match=says): read_frame_files(tmp_path)

def test_files_that_do_not_fit(tmp_path, smoothed):
    index = pd.DataFrame({"film": ["a", "b"], "frame": [1, 2]})
    with pytest.raises(BenchError, match="holds no prediction file"): read_frame_files(tmp_path)
    (tmp_path/"a.txt").write_text("Fear,Happiness\n0\n")
    with pytest.raises(BenchError, match="1 of 2 labelled frames have no answer.*b 2"): frame_answers(tmp_path, index)
    with pytest.raises(BenchError, match="of none that is known"): frame_answers(tmp_path, index[["frame"]])
    with pytest.raises(BenchError, match="holds 'a.txt'"): write_frame_files(tmp_path, ["b"], [1], [0], ["x", "y"])
    (tmp_path/"b.txt").write_text("Happiness,Fear\n0\n0\n")
    with pytest.raises(BenchError, match="different first lines"): read_frame_files(tmp_path)
    write = lambda film, frame: write_frame_files(tmp_path/"new", [film] * 2, [frame, 5], [0, 1], ["x", "y"])
    for film, frame, says in (("../x", 1, "name of a file"), ("x", 0, "from 1"), ("x", 5, "twice"),
                              (None, 1, "no known")):
        with pytest.raises(BenchError, match=says): write(film, frame)
    assert not (tmp_path/"new").exists()
    with pytest.raises(BenchError, match="There is no prediction|holds no prediction"):
        (tmp_path/"empty").mkdir()
        judge(tmp_path/"empty", smoothed.config)

def test_a_run_on_single_faces_has_no_files(tmp_path):
    record = made_record(tmp_path)
    with pytest.raises(BenchError, match="frames of no film"): frame_files(record, tmp_path/"x")
    assert list(record.predictions) == ["key", "label", "logits"]

def test_rates_of_film_counts_are_those_of_all_frames():
    "`rates` of summed confusion counts: the observed value of the bootstrap."
    counts = np.random.default_rng(0).integers(0, 9, (4, 3, 3))
    assert rates(counts.sum(0))["WAR"] == pytest.approx(np.trace(counts.sum(0)) / counts.sum())

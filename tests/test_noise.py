"""Labels that are wrong on purpose: which faces, which classes, who sees them, and what the record says."""
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fer_bench import run
from fer_bench.catalogue import registered
from fer_bench.config import NUMERICS, PROBE, RunConfig, recorded_config, run_id
from fer_bench.core import BenchError, write_json
from fer_bench.data.labels import vote_shares
from fer_bench.data.noise import (
    given_counts,
    read_shares,
    shape_table,
    training_labels,
    vote_confusion,
    with_noise,
    wrong_labels,
)
from fer_bench.data.splits import make_split, manifest, save_manifest
from fer_bench.evaluate.statistics import t_interval
from fer_bench.methods.supervised import Supervised
from fer_bench.record import Record, read_relabelled
from fer_bench.report.figures import run_title
from fer_bench.report.noise import figure_noise, figure_relabelled, noise_table
from fer_bench.report.summary import measured
from fer_bench.report.tables import compare, notes
from fer_bench.report.tasks import noises, tasks
from fer_bench.runs.experiment import build, find_record
from fer_bench.runs.noise import check_noise, validation_confusion
from fer_bench.runs.task import prepare_data
from fer_bench.schema import example_environment, example_metrics
from fer_bench.store import merge, pack, split_hash, verify


def config(**fields): return RunConfig(**{"preset": "tiny", "drawn_faces": 160, **fields})

@pytest.fixture(scope="module")
def data():
    faceset, split, _ = prepare_data(config())
    return faceset, split

def plainly_wrong(labels, rate, table, draws):
    "`wrong_labels` by loops: face by face in the order of their times, each with the class that its number falls on."
    k, times = len(table), []
    for i, y in enumerate(labels):
        mass = sum(table[y][j] for j in range(k) if j != y)
        times.append((-np.log(1 - draws[i][0]) / mass if mass else np.inf, i))
    found = list(labels)
    for _, i in sorted(times)[:round(rate * len(labels))]:
        y, left = labels[i], draws[i][1] * sum(table[labels[i]][j] for j in range(k) if j != labels[i])
        for j in range(k):
            if j == y or not table[y][j]: continue
            found[i] = j
            left -= table[y][j]
            if left < 0: break
    return found

@st.composite
def cases(draw):
    k, n, seed = draw(st.integers(2, 6)), draw(st.integers(1, 60)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    table = rng.random((k, k)) * (rng.random((k, k)) < 0.7) + 0.01
    return rng.integers(k, size=n), table, rng.random((n, 2))

@given(cases(), st.floats(0, 0.99))
def test_wrong_labels_are_those_of_plain_loops(case, rate):
    labels, table, draws = case
    assert wrong_labels(labels, rate, table, draws).tolist() == plainly_wrong(labels, rate, table, draws)

@given(cases(), st.floats(0, 0.99), st.floats(0, 0.99))
def test_wrong_labels_are_exactly_so_many_and_nested(case, rate, other):
    labels, table, draws = case
    few, many = (wrong_labels(labels, r, table, draws) for r in sorted((rate, other)))
    assert (few != labels).sum() == round(min(rate, other) * len(labels))
    changed = few != labels
    assert (many[changed] == few[changed]).all() and (many != labels).sum() == round(max(rate, other) * len(labels))

def test_shape_decides_who_and_what():
    "A class of three times the mass is wrong three times as often, and goes where its row says."
    labels, table = np.repeat([0, 1], 20_000), np.array([[0.4, 0.6, 0.0], [0.05, 0.8, 0.15], [0, 0, 1.0]])
    found = wrong_labels(labels, 0.02, table, np.random.default_rng(1).random((40_000, 2)))
    wrong = found != labels
    assert wrong[labels == 0].sum() / wrong[labels == 1].sum() == pytest.approx(3, rel=0.25)
    assert (found[wrong & (labels == 0)] == 1).all() and (found[wrong & (labels == 1)] == 2).mean() == pytest.approx(
        0.75, abs=0.1)

def test_last_draws_stay_on_a_class():
    table, labels = np.random.default_rng(0).random((7, 7)), np.arange(7)
    found = wrong_labels(labels, 0.99, table, np.full((7, 2), np.nextafter(1, 0)))
    assert (found != labels).all() and (found < 7).all()

def test_too_few_faces_can_be_wrong():
    with pytest.raises(BenchError, match="changes only classes with 2 faces"):
        wrong_labels(np.array([0, 0, 1, 1]), 0.9, np.array([[0, 1.0], [0, 1]]), np.full((4, 2), 0.5))

@pytest.mark.parametrize("shape", ["symmetric", "votes"])
def test_only_labelled_faces_change_and_the_rest_stays(data, shape):
    faceset, split = data
    noisy, more = (with_noise(faceset, split, rate, shape, 3) for rate in (0.1, 0.3))
    labels, seen = faceset.labels, training_labels(faceset, noisy)
    others = np.setdiff1d(np.arange(len(faceset)), split.labelled)
    assert (seen[others] == labels[others]).all() and noisy.hash not in (split.hash, more.hash)
    assert (seen != labels).sum() == round(0.1 * len(split.labelled))
    changed = seen != labels
    assert (training_labels(faceset, more)[changed] == seen[changed]).all()
    counts = given_counts(faceset, noisy)
    plain = np.zeros_like(counts)
    for row in split.labelled: plain[labels[row], seen[row]] += 1
    assert (counts == plain).all()
    assert training_labels(faceset, with_noise(faceset, split, 0.0)) is faceset.labels
    again, other = (with_noise(faceset, split, 0.1, shape, seed).hash for seed in (3, 4))
    assert noisy.hash == again != other

def test_a_face_keeps_its_numbers_under_another_budget(data):
    "Not all are wrong in both, but a face that is has the same wrong class."
    faceset, split = data
    small = make_split(faceset.index, faceset.classes, 5)
    one, two = (training_labels(faceset, with_noise(faceset, s, 0.4)) for s in (split, small))
    both = (one != faceset.labels) & (two != faceset.labels)
    assert both.any() and (one[both] == two[both]).all()

def test_vote_confusion_is_a_mean_of_shares(data):
    faceset, split = data
    rows = np.union1d(split.labelled, split.unlabelled)
    table = vote_confusion(faceset.index, rows, faceset.classes)
    for k, name in enumerate(faceset.classes):
        votes = [faceset.index["votes"].iloc[r] for r in rows if faceset.index["label"].iloc[r] == name]
        np.testing.assert_allclose(table[k], np.mean([vote_shares(v)[0] for v in votes], axis=0), atol=1e-6)
    np.testing.assert_allclose(shape_table("votes", faceset, split), table)
    with pytest.raises(BenchError, match="needs faces with votes"):
        vote_confusion(faceset.index.assign(votes=None), rows, faceset.classes)
    with pytest.raises(BenchError, match="needs faces with votes"):
        vote_confusion(faceset.index, rows, faceset.classes[::-1])

def test_table_is_read_by_the_names_of_classes(tmp_path):
    path = tmp_path/"t.csv"
    path.write_text("true,b,a\na,1,3\nb,5,0\n")
    np.testing.assert_allclose(read_shares(path, ["a", "b"]), [[0.75, 0.25], [0, 1]])

@pytest.mark.parametrize(("text", "why"), [
    (None, "cannot be read"), ("", "cannot be read"), ("x,a,b\na,1,2\n", "first column"),
    ("x,a,c\na,1,2\nb,1,2\n", "first line"),
    ("x,a,b\na,1,-2\nb,1,2\n", "numbers from 0"), ("x,a,b\na,1,many\nb,1,2\n", "numbers from 0"),
    ("x,a,b\na,1,\nb,1,2\n", "numbers from 0")])
def test_bad_table(tmp_path, text, why):
    if text is not None: (tmp_path/"t.csv").write_text(text)
    with pytest.raises(BenchError, match=why): read_shares(tmp_path/"t.csv", ["a", "b"])

@pytest.mark.parametrize(("rate", "why"), [(0.001, "none of"), (0.97, "no face with the label|changes only")])
def test_rates_that_make_no_sense(tmp_path, rate, why):
    faceset, split, _ = prepare_data(config(drawn_faces=64))
    table = pd.DataFrame(0, faceset.classes, faceset.classes).assign(neutral=1)  # all become neutral
    table.to_csv(tmp_path/"t.csv")
    with pytest.raises(BenchError, match=why): with_noise(faceset, split, rate, str(tmp_path/"t.csv"))

@pytest.mark.parametrize(("fields", "why"), [
    ({"label_noise": 1.0}, "label_noise"), ({"label_noise": -0.1}, "label_noise"),
    ({"noise_shape": "votes"}, "makes no label wrong"),
    ({"label_noise": 0.1, "noise_shape": "vote"}, "give symmetric, votes"),
    ({"label_noise": 0.1, "targets": "soft"}, "Set targets='hard'")])
def test_config_refuses(fields, why):
    with pytest.raises(BenchError, match=why): config(**fields)

def test_id_is_that_of_before_without_noise_and_another_with():
    clean, noisy = config(), config(label_noise=0.2)
    assert run_id(clean, "d", "s") == run_id(recorded_config({k: v for k, v in clean.model_dump().items()
                                                             if "noise" not in k}), "d", "s")
    assert run_id(clean, "d", "s") == run_id(noisy, "d", "s"), "the split's hash says it"
    ids = {find_record(config(results_dir="unused", **f)).id for f in (
        {}, {"label_noise": 0.1}, {"label_noise": 0.2}, {"label_noise": 0.2, "noise_shape": "votes"},
        {"label_noise": 0.2, "label_seed": 1})}
    assert len(ids) == 5

def test_manifest_with_given_labels_gives_the_same_data(data, tmp_path):
    faceset, split = data
    noisy = with_noise(faceset, split, 0.25, "votes")
    path = tmp_path/"m.csv"
    save_manifest(faceset.index, noisy, path)
    back = make_split(faceset.index, faceset.classes, how=str(path))
    assert back.hash == noisy.hash == split_hash(path.read_bytes()) and list(back.given) == list(noisy.given)
    table = pd.read_csv(path, dtype=str, keep_default_na=False).sample(frac=1, random_state=0)
    table.to_csv(path, index=False)
    assert make_split(faceset.index, faceset.classes, how=str(path)).hash == noisy.hash, "the order of rows is nothing"
    assert "given" not in manifest(faceset.index, split)
    table.assign(given=table["label"].where(table["role"] == "labelled", "")).to_csv(path, index=False)
    same = make_split(faceset.index, faceset.classes, how=str(path))
    assert same.given is None and same.hash == split.hash, "labels that are not wrong are no noise"
    with pytest.raises(BenchError, match="has wrong labels already"): with_noise(faceset, noisy, 0.1)

@pytest.mark.parametrize(("role", "value"), [("labelled", "joyful"), ("labelled", ""), ("test", "fear")])
def test_manifest_with_odd_labels(data, tmp_path, role, value):
    faceset, split = data
    table = manifest(faceset.index, with_noise(faceset, split, 0.25))
    table.loc[table.index[table["role"] == role][0], "given"] = value
    table.to_csv(tmp_path/"m.csv", index=False)
    with pytest.raises(BenchError, match="The column given holds"):
        make_split(faceset.index, faceset.classes, how=str(tmp_path/"m.csv"))

@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_everything_that_trains_sees_the_given_labels(balance):
    "Targets, order, counts, what thresholds read, and nothing of the true ones."
    from fer_bench.runs.evaluation import watch
    from fer_bench.train.batches import make_batches
    c = config(label_noise=0.4, balance=balance, batch_size=16, epochs=1, steps_per_epoch=8)
    faceset, split, pool = prepare_data(c)
    _, method, feed, _ = build(c, faceset, split, pool)
    batch_at, given = make_batches(c, method, feed, faceset, split), training_labels(faceset, split)[split.labelled]
    for step in range(8):
        batch = batch_at(step)
        assert (batch["targets"].numpy() == given[batch["place"].numpy()]).all()
        if balance == "sampler": assert np.ptp(np.bincount(batch["targets"], minlength=8)) <= 1
    seen = []
    method.after_epoch = lambda progress, labelled: seen.append(labelled()[1].numpy()) or {}
    watch(c, method, feed, faceset, split, pool)(1.0)
    assert (seen[0] == given).all() and (given != faceset.labels[split.labelled]).mean() == pytest.approx(0.4, abs=0.01)

@pytest.mark.parametrize("kind", ["linear", "sgd"])
def test_probe_learns_and_folds_by_the_given_labels(monkeypatch, kind):
    from fer_bench.runs import evaluation
    c, seen = config(method="linear_probe", label_noise=0.4, labels_per_class=5, probe=kind), []
    faceset, split, pool = prepare_data(c)
    _, method, feed, _ = build(c, faceset, split, pool)
    class Stop(Exception): pass
    def stop(*args, **more):
        seen.extend(args)
        raise Stop
    for name in ("cross_validated_probe", "sgd_probe"): monkeypatch.setattr(evaluation, name, stop)
    monkeypatch.setattr(evaluation, "fold_of", lambda index, rows, *_: index["label"].to_numpy()[rows])
    with pytest.raises(Stop): evaluation.probe(c, method, feed, faceset, split)
    given = training_labels(faceset, split)[split.labelled]
    assert (np.asarray(seen[1 if kind == "linear" else 3]) == given).all()
    if kind == "linear": assert list(seen[2]) == list(split.given), "folds are stratified by them"

@pytest.fixture(scope="module")
def records(tmp_path_factory):
    places = {"results_dir": str(tmp_path_factory.mktemp("noise"))}
    return [run(config(**places, **f)) for f in ({}, {"label_noise": 0.25, "noise_shape": "votes"},
            {"method": "linear_probe", "label_noise": 0.25, "labels_per_class": 5})]

def test_record_says_it(records):
    clean, noisy, probe = records
    assert clean.metrics.noise is None and clean.metrics.split_hash != noisy.metrics.split_hash
    for r, shape in ((noisy, "votes"), (probe, "symmetric")):
        counts, n = np.array(r.metrics.noise.given), r.metrics.n["labelled"]
        assert r.metrics.noise.shape == shape and counts.sum() == n
        assert r.metrics.noise.rate == (n - np.trace(counts)) / n == round(0.25 * n) / n
        assert counts.sum(0).tolist() == r.metrics.labelled_counts
        kept = r.folder.parent.parent/"splits"/f"{r.metrics.split_hash[:12]}.csv"
        table = pd.read_csv(kept, keep_default_na=False)
        labelled = table[table["role"] == "labelled"]
        assert (labelled["given"] != labelled["label"]).sum() == n - np.trace(counts)
        assert (table["given"][table["role"] != "labelled"] == "").all()
        trained = np.array(r.metrics.prior.trained)
        np.testing.assert_allclose(trained, counts.sum(0) / n if shape == "votes" else trained)
    assert clean.metrics.test.n == noisy.metrics.test.n

def test_manifest_of_a_noisy_run_makes_the_same_run(records):
    noisy = records[1]
    path = noisy.folder.parent.parent/"splits"/f"{noisy.metrics.split_hash[:12]}.csv"
    again = find_record(config(split=str(path), results_dir=str(noisy.folder.parent.parent)))
    assert again.id == noisy.id

def test_records_travel(records, tmp_path):
    pack(records, tmp_path/"r.zip")
    assert {f.outcome for f in verify(tmp_path/"r.zip")} == {"sound"}
    assert {f.outcome for f in merge(tmp_path/"r.zip", tmp_path/"there")} == {"added"}

@pytest.mark.parametrize("change", [{"noise": None}, {"rate": 0.3}, {"given": [[1, 2], [3]]}])
def test_edited_noise_is_refused(records, tmp_path, change):
    noisy = records[1]
    facts = json.loads((noisy.folder/"metrics.json").read_text())
    facts |= change if "noise" in change else {"noise": facts["noise"] | change}
    write_json(tmp_path/"metrics.json", facts)
    from fer_bench.record import read_metrics
    with pytest.raises(BenchError, match="noise|wrong labels"):
        read_metrics((tmp_path/"metrics.json").read_bytes(), noisy.config, tmp_path)

def test_confusion_of_validation_faces_is_a_shape_and_of_test_faces_is_refused(records, tmp_path):
    clean = records[0]
    counts = validation_confusion(clean)
    assert counts.to_numpy().sum() == clean.metrics.n["val"] and list(counts) == clean.metrics.classes
    war = np.trace(counts.to_numpy()) / counts.to_numpy().sum()
    assert war == pytest.approx(clean.history["val_WAR"].iloc[-1])
    counts.to_csv(tmp_path/"val.csv")
    assert find_record(config(label_noise=0.2, noise_shape=str(tmp_path/"val.csv"),
                              results_dir=str(clean.folder.parent.parent))).id != clean.id
    names = clean.metrics.classes
    tested = pd.DataFrame(np.random.default_rng(0).integers(9, size=(8, 8)), names, names)
    facts = {"data_hash": clean.metrics.data_hash, "test": {"confusion": tested.to_numpy().tolist()}}
    (folder := tmp_path/"runs"/"other").mkdir(parents=True)
    for table in (tested, tested.div(tested.sum(axis=1), axis=0)):
        table.to_csv(tmp_path/"test.csv")
        c = config(label_noise=0.2, noise_shape=str(tmp_path/"test.csv"), results_dir=str(tmp_path))
        write_json(folder/"metrics.json", facts | {"data_hash": "0" * 64})
        assert find_record(c).id, "of other data"
        write_json(folder/"metrics.json", facts)
        with pytest.raises(BenchError, match="of run 'other' on its test faces"): find_record(c)

def test_soft_targets_beside_a_manifest_of_wrong_labels(data):
    faceset, split = data
    with pytest.raises(BenchError, match="Set targets='hard'"):
        check_noise(config(targets="soft"), faceset, with_noise(faceset, split, 0.2))

def test_record_is_done_once(records): assert isinstance(run(recorded_config(records[1].config)), Record)


# --- tables and figures ---

def made(method="supervised", uar=0.5, rate=0.0, draw=0, shape="symmetric", **more):
    "A run of two classes with its share of wrong labels, without a training."
    wrong = round(20 * rate)
    noise = dict(rate=wrong / 20, shape=shape, given=[[20 - wrong, wrong], [wrong, 20 - wrong]]) if rate else None
    test = {"UAR": uar, "WAR": uar + 0.1, "macro_F1": uar}
    test |= {f"{m}_ci": [v - 0.04, v + 0.02] for m, v in test.items()} | {"confusion": [[300, 100], [100, 300]]}
    fields = dict(RunConfig(preset="quick", labels_per_class=20, label_noise=rate)) | {
        "method": method, "label_seed": draw, "noise_shape": shape} | more
    return SimpleNamespace(id=f"{method}-{rate}-{draw}-{shape}-{uar}", config=fields, environment=example_environment(),
                           history=pd.DataFrame({"epoch": [1]}), status=SimpleNamespace(tuned=None),
                           metrics=example_metrics(method=method, noise=noise, test=test, numerics=[NUMERICS, PROBE],
                                                   labelled_counts=[20, 20]))

@pytest.fixture
def runs():
    rng = np.random.default_rng(0)
    return [made(m, 0.6 - fall * rate + 0.02 * rng.standard_normal(), rate, draw)
            for m, fall in (("supervised", 0.5), ("eac", 0.3)) for rate in (0.0, 0.1, 0.2) for draw in range(3)]

def test_noise_is_part_of_the_task(runs):
    found = tasks(runs)
    assert [t.partition("48 px")[2] for t in found] == ["", ", 10 % wrong labels", ", 20 % wrong labels"]
    assert [len(group) for group in found.values()] == [6, 6, 6]
    with pytest.raises(BenchError, match="different wrong labels never share a table"): measured(runs)
    table = compare(runs[:4])
    assert table["labels"].tolist() == ["20"] * 3 + ["20, 10 % wrong labels"]
    assert any("made wrong on purpose (10 % wrong labels)" in s for s in notes(runs[:4]))
    assert not any("on purpose" in s for s in notes(runs[:3]))
    votes = made(rate=0.1, shape="votes")
    assert len(tasks([*runs, votes])) == 4 and "10 % wrong labels (votes)" in run_title(votes)

def test_runs_with_several_shares_are_grouped_by_shape(runs):
    others = [made(rate=0.1, shape="votes"), made("mek", rate=0.1), made(rate=0.2, select="oracle")]
    others[-1].metrics = others[-1].metrics.model_copy(update={"select": "oracle"})
    symmetric, votes = noises([*runs, *others]).values()
    assert symmetric == runs and votes == [*runs[:3], others[0]]
    assert noises(runs[:3]) == {}

def test_table_tells_gain_at_the_same_noise_and_fall_from_none(runs):
    table = noise_table(runs).set_index(["wrong labels", "method"])
    uar = lambda m, rate: np.array([r.metrics.test.UAR for r in runs if r.config["method"] == m
                                    and r.config["label_noise"] == rate])
    said = lambda values: "{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * v for v in t_interval(values)))
    row = table.loc[("20 %", "eac")]
    assert row["UAR"] == said(uar("eac", 0.2))[1:] and row["draws"] == 3
    assert row["UAR gain"] == said(uar("eac", 0.2) - uar("supervised", 0.2))
    assert row["UAR fall"] == said(uar("eac", 0.2) - uar("eac", 0.0)) != row["UAR gain"]
    assert (table.loc["0 %", "UAR fall"] == "").all() and table.loc[("10 %", "supervised"), "UAR gain"] == ""

def test_figure_draws_a_line_a_method(runs):
    fig = figure_noise(runs)
    for ax, m in zip(fig.axes, ("UAR", "WAR"), strict=True):
        for name, bars in zip(("eac", "supervised"), ax.containers, strict=True):
            points, (*_, ends) = np.array(bars.lines[0].get_xydata()), bars.lines[2]
            for (x, y), (low, high), rate in zip(points, ends.get_segments(), (0, 10, 20), strict=True):
                values = [100 * r.metrics.test[m] for r in runs if r.config["method"] == name
                          and 100 * r.config["label_noise"] == rate]
                assert x == pytest.approx(rate, abs=0.5)
                np.testing.assert_allclose([y, low[1], high[1]], t_interval(values))
    alone = figure_noise([r for r in runs if r.config["label_seed"] == 0])
    (_, ends), test = alone.axes[0].containers[0].lines[1:], runs[9].metrics.test
    np.testing.assert_allclose(ends[0].get_segments()[0][:, 1], 100 * np.array(test.UAR_ci))
    assert "over test faces" in alone._supxlabel.get_text().replace("\n", " ")

@pytest.mark.parametrize("figure", [noise_table, figure_noise])
def test_no_figure_without_several_shares(runs, figure):
    with pytest.raises(BenchError, match="several shares"): figure(runs[:3])
    with pytest.raises(BenchError, match="2 tasks or shapes"):
        figure([*runs, *(made(rate=0.1, shape="votes", draw=d) for d in range(3))])

def test_other_figures_take_runs_of_one_noise(runs):
    from fer_bench.show.gallery import choose
    assert {r.config["label_noise"] for r in choose(runs, "confusion")[0]} == {0.0}
    assert {r.config["label_noise"] for r in choose(runs[3:], "budget")[0]} == {0.1}
    chosen, lacking = choose(runs, "noise")
    assert len(chosen) == len(runs) and not lacking
    assert choose(runs[:3], "noise") == ([], ["--method supervised --label-noise 0.2"])


# --- methods that change labels ---

class Relabelling(Supervised):
    "After each epoch it changes the label of every second face that it saw to the next class: a known rule."
    def __init__(self, net, config, counts, n_unlabelled=0):
        super().__init__(net, config.ema)
        self.register_buffer("relabelled", torch.full((int(counts.sum()),), -1, dtype=torch.int16))

    def after_epoch(self, progress, labelled):
        _, given = labelled()
        changed = torch.arange(len(given)) % 2 == 0 if progress == 1 else torch.arange(len(given)) < 3
        self.relabelled.copy_(torch.where(changed, (given + 1) % 8, -1))
        return {}

class Odd(Relabelling):
    "Its buffer is of another shape."
    def after_epoch(self, progress, labelled):
        self.relabelled = self.relabelled[1:]
        return {}

@pytest.fixture(scope="module")
def relabelling(tmp_path_factory):
    with registered("relabelling", Relabelling):
        yield run(config(method="relabelling", label_noise=0.4, results_dir=str(tmp_path_factory.mktemp("relabelled"))))

def test_what_a_method_changed_is_counted_by_the_true_labels(relabelling):
    faceset, split, _ = prepare_data(config(label_noise=0.4))
    true, given = faceset.labels[split.labelled], training_labels(faceset, split)[split.labelled]
    for changed, (_, row) in zip((range(3), range(0, len(true), 2)), relabelling.history.iterrows(), strict=True):
        right = lost = 0
        for i in changed:
            right += (given[i] + 1) % 8 == true[i]
            lost += given[i] == true[i]
        assert (row["relabelled"], row["relabelled_right"], row["relabelled_lost"]) == (len(changed), right, lost)
    assert lost and right, "both are seen"
    table, names = relabelling.relabelled, np.array(faceset.classes)
    assert table["key"].tolist() == faceset.index["key"].iloc[split.labelled[::2]].tolist()
    for column, values in (("label", true), ("given", given), ("relabelled", (given + 1) % 8)):
        assert (table[column] == names[values[::2]]).all()

def test_changed_labels_are_sealed_and_travel(relabelling, records, tmp_path):
    relabelling.check()
    assert "relabelled.parquet" in relabelling.status.files and records[0].relabelled is None
    pack([relabelling], tmp_path/"r.zip")
    assert {f.outcome for f in verify(tmp_path/"r.zip")} == {"sound"}
    merge(tmp_path/"r.zip", tmp_path/"there")
    there = Record(tmp_path/"there"/"runs"/relabelling.id)
    there.check()
    pd.testing.assert_frame_equal(there.relabelled, relabelling.relabelled)
    (there.folder/"relabelled.parquet").unlink()
    with pytest.raises(BenchError, match="relabelled.parquet"): Record(there.folder).check()
    assert [f.outcome for f in verify(tmp_path/"there")][0] == "damaged"

@pytest.mark.parametrize(("change", "why"), [
    (lambda t: t.assign(relabelled="joyful"), "none of the classes"),
    (lambda t: t.assign(relabelled=t["given"]), "was given"),
    (lambda t: pd.concat([t, t]), "twice"),
    (lambda t: t.drop(columns="given"), "cannot be read"),
    (lambda t: pd.concat([t] * 9), "more rows"),
    (lambda t: t.assign(label=1), "texts|read")])
def test_edited_changes_are_refused(relabelling, tmp_path, change, why):
    change(relabelling.relabelled).to_parquet(tmp_path/"relabelled.parquet", index=False)
    with pytest.raises(BenchError, match=why):
        read_relabelled((tmp_path/"relabelled.parquet").read_bytes(), relabelling.metrics, tmp_path)

def test_a_buffer_of_another_shape_is_refused(tmp_path):
    with registered("odd", Odd), pytest.raises(BenchError, match="relabelled of method 'odd' is int16"):
        run(config(method="odd", results_dir=str(tmp_path)))

def test_figure_of_what_changed(relabelling, runs):
    from fer_bench.show.gallery import choose
    (ax,) = figure_relabelled([relabelling]).axes
    h, n = relabelling.history, relabelling.metrics.n["labelled"]
    wrong = h["relabelled"] - h["relabelled_right"] - h["relabelled_lost"]
    for line, counts in zip(ax.lines, (h["relabelled_right"], h["relabelled_lost"], wrong), strict=False):
        np.testing.assert_allclose(line.get_ydata(), 100 * counts / n)
    assert ax.lines[3].get_ydata()[0] == pytest.approx(40, abs=1)
    with pytest.raises(BenchError, match="None of these runs changes labels"): figure_relabelled(runs)
    assert choose([relabelling], "relabelled")[0] == [relabelling] and choose(runs, "relabelled") == ([], [])

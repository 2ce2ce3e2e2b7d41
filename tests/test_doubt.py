"""Doubt: what methods say of it, what the record keeps, and whether people's votes agree."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import CLASSES, made_record
from pyarrow import parquet
from scipy.stats import entropy, spearmanr

from fer_bench import check_method, run
from fer_bench.catalogue import registered
from fer_bench.core import BenchError
from fer_bench.data.labels import vote_entropy
from fer_bench.evaluate.statistics import spearman
from fer_bench.methods.supervised import Supervised
from fer_bench.record import Record, check_record, read_doubts, write_predictions
from fer_bench.report.doubt import DOUBTS, doubt_correlations, doubt_table, doubts, figure_doubt, has_votes
from fer_bench.show.gallery import choose


class Doubting(Supervised):
    "Cross-entropy, and a doubt of its own: the darker the face, the larger."
    def __init__(self, net, config, counts, n_unlabelled=0): super().__init__(net, config.ema)
    def doubt(self, images): return 1 - images.mean((1, 2, 3))

class Column(Doubting):
    "Its doubt has the wrong shape."
    def doubt(self, images): return images.mean((1, 2, 3))[:, None]

class Infinite(Doubting):
    "Its doubt is no number."
    def doubt(self, images): return images.mean((1, 2, 3)) / 0

# --- numbers ---

VOTES = st.lists(st.integers(0, 10), min_size=10, max_size=10)

@settings(max_examples=25)
@given(st.lists(VOTES, min_size=1, max_size=6), st.sampled_from([7, 8]))
def test_entropy_of_votes_is_scipys(votes, n):
    for found, one in zip(vote_entropy(votes, n), np.array(votes)[:, :n], strict=True):
        assert (np.isnan(found) and not one.any()) or found == pytest.approx(entropy(one), abs=1e-6)

@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(3, 40))
def test_correlation_is_scipys_and_lies_in_its_interval(seed, n):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(4, size=n), rng.standard_normal(n)
    rho, low, high = spearman(x, y, n_resamples=50)
    if len(set(x)) == 1: assert np.isnan([rho, low, high]).all()
    else:
        assert rho == pytest.approx(spearmanr(x, y).statistic) and -1 <= low <= high <= 1
        assert spearman(-x, y, n_resamples=50)[0] == pytest.approx(-rho)

def test_resamples_are_those_of_repeated_faces():
    rng = np.random.default_rng(3)
    x, y, films = rng.integers(5, size=30), rng.standard_normal(30).round(1), rng.integers(8, size=30)
    for groups in (np.arange(30), np.unique(films, return_inverse=True)[1]):
        count, drawn = groups.max() + 1, []
        for times in np.random.default_rng(7).multinomial(count, np.full(count, 1 / count), size=60):
            rows = [i for i in range(30) for _ in range(times[groups[i]])]
            drawn.append(spearmanr(x[rows], y[rows]).statistic)
        found = spearman(x, y, n_resamples=60, seed=7, films=groups)
        np.testing.assert_allclose(found[1:], np.quantile(drawn, [0.025, 0.975]), atol=1e-9)

def test_interval_holds_the_truth_about_as_often_as_it_says_and_knows_films():
    rng, hits = np.random.default_rng(0), 0
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman's of a normal pair with correlation 0.5
    for i in range(40):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 120).T
        _, low, high = spearman(x, y, n_resamples=100, seed=i)
        hits += low <= truth <= high
    assert 0.8 <= hits / 40 <= 1
    films = np.repeat(np.arange(12), 10)
    x, y = np.repeat(x[:12], 10), np.repeat(y[:12], 10)  # ten copies of twelve faces are twelve
    width = lambda found: found[2] - found[1]
    assert width(spearman(x, y, films=films)) > 2 * width(spearman(x, y))

@pytest.mark.parametrize(("x", "y"), [([1], [2]), ([1, 2], [1, 2, 3]), ([1, np.nan], [1, 2]), ([[1, 2]], [[1, 2]])])
def test_no_correlation_of_odd_values(x, y):
    with pytest.raises(BenchError, match="two lists of finite numbers"): spearman(x, y)

def test_measures_of_doubt_are_those_of_the_probabilities():
    logits = np.random.default_rng(0).standard_normal((20, 5)) * 30
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    found = doubts(pd.DataFrame({"logits": list(logits.astype("float32")), "doubt": np.arange(20)}))
    assert tuple(found) == DOUBTS and (found[DOUBTS[0]] == np.arange(20)).all()
    np.testing.assert_allclose(found[DOUBTS[1]], 1 - p.max(1), atol=1e-5)
    np.testing.assert_allclose(found[DOUBTS[2]], entropy(p, axis=1), atol=1e-5)

# --- the contract and the record ---

def test_contract():
    check_method(Doubting)
    with pytest.raises(BenchError, match=r"doubt gives a tensor of shape \(6, 1\) for six faces"): check_method(Column)
    with pytest.raises(BenchError, match="doubt gives numbers that are not finite"): check_method(Infinite)

@pytest.fixture(scope="module")
def records(tmp_path_factory):
    places = dict(results_dir=str(tmp_path_factory.mktemp("doubt")), preset="tiny", test_views="flip")
    with registered("doubting", Doubting): yield [run({"method": m, **places}) for m in ("doubting", "supervised")]

def test_record_keeps_doubt_and_votes(records):
    from fer_bench.config import recorded_config
    from fer_bench.runs.task import prepare_data
    own, plain = records
    faceset, split, _ = prepare_data(recorded_config(plain.config))
    assert "doubt" not in plain.predictions and "doubt" in own.predictions
    bright = faceset.images[split.test].mean((1, 2, 3)) / 255
    np.testing.assert_allclose(own.predictions["doubt"], 1 - bright, atol=1e-5)
    votes = np.array(faceset.index["votes"].iloc[split.test].tolist())[:, :8]
    for r in records: np.testing.assert_allclose(r.predictions["vote_entropy"], entropy(votes, axis=1), atol=1e-6)
    own.check()

def test_wrong_shape_stops_the_run_and_says_so(tmp_path):
    with registered("column", Column), pytest.raises(BenchError, match="has to be one number a face"):
        run({"method": "column", "preset": "tiny", "results_dir": str(tmp_path)})

def test_a_record_without_them_is_read_as_before(tmp_path):
    record = made_record(tmp_path)
    record.check()
    assert list(record.predictions) == ["key", "label", "logits"] and not has_votes(record)
    with pytest.raises(BenchError, match="holds no entropy of votes"): doubt_correlations(record)

@pytest.mark.parametrize(("column", "values", "why"), [
    ("doubt", ["much", "little"], "doubt must be a number"), ("doubt", [True, False], "doubt must be a number"),
    ("doubt", [0.5, np.nan], "doubt is missing, NaN"), ("doubt", [0.5, np.inf], "doubt is missing, NaN"),
    ("vote_entropy", ["a", "b"], "vote_entropy must be a number"), ("vote_entropy", [-0.1, 0.5], "from 0 on"),
    ("vote_entropy", [np.inf, 0.5], "from 0 on"), ("vote_entropy", [[0.1], [0.2]], "vote_entropy must be a number")])
def test_other_columns_are_refused(tmp_path, column, values, why):
    write_predictions(tmp_path, ["a", "b"], CLASSES, np.zeros((2, 2), "float32"))
    path = tmp_path/"predictions.parquet"
    pd.read_parquet(path).assign(**{column: values}).to_parquet(path)
    with pytest.raises(BenchError, match=why): read_doubts(path.read_bytes(), tmp_path)

def test_check_of_a_record_reads_them(tmp_path):
    record = made_record(tmp_path)
    path = record.folder/"predictions.parquet"
    pd.read_parquet(path).assign(doubt="odd").to_parquet(path)
    from fer_bench.record import PARTS, write_status
    write_status(record.folder, "finished")
    again = Record(record.folder)
    with pytest.raises(BenchError, match="doubt must be a number"):
        check_record(again.id, {name: again.read(name) for name in PARTS}, again.folder)

def test_faces_without_votes_stay_null_and_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    votes = rng.random(12).astype("float32")
    votes[3] = np.nan
    record = made_record(tmp_path)
    table = record.predictions
    write_predictions(record.folder, table["key"], table["label"], np.stack(table["logits"]), vote_entropy=votes,
                      doubt=np.arange(12, dtype="float32"))
    assert np.isnan(parquet.read_table(record.folder/"predictions.parquet")["vote_entropy"].to_pandas()[3])
    from fer_bench.record import write_status
    write_status(record.folder, "finished")
    record = Record(record.folder)
    record.check()
    known = ~np.isnan(votes)
    assert doubt_correlations(record)["own doubt"][0] == pytest.approx(
        spearmanr(np.arange(12)[known], votes[known]).statistic)
    with pytest.raises(BenchError, match="column of predictions"):
        write_predictions(record.folder, ["a"], ["fear"], np.zeros((1, 2)), doubts=np.zeros(1))

# --- tables and figures ---

def test_table_and_figure_say_the_same(records):
    table, fig = doubt_table(records), figure_doubt(records)
    assert table["method"].tolist() == ["doubting"] * 3 + ["supervised"] * 2 and set(table["runs"]) == {1}
    found = {(name, m): values for r, name in zip(records, ("doubting", "supervised"), strict=True)
             for m, values in doubt_correlations(r).items()}
    for row in table.to_dict("records"):
        values = found[row["method"], row["doubt"]]
        said = "–" if np.isnan(values[0]) else "{:.2f} [{:.2f}, {:.2f}]".format(*values)
        assert row["Spearman"] == said
    drawn = sorted(c.lines[0].get_xdata()[0] for c in fig.axes[0].containers)
    np.testing.assert_allclose(drawn, sorted(v[0] for v in found.values() if not np.isnan(v[0])))
    assert "bootstrap over test faces" in fig._supxlabel.get_text().replace("\n", " ")

def test_a_paper_takes_runs_with_votes(records, tmp_path):
    assert {r.id for r in choose(records, "doubt")[0]} == {r.id for r in records}
    assert choose([made_record(tmp_path)], "doubt") == ([], [])

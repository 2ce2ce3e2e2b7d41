"""A schema of what a record holds: what no run can have is refused by name, what came later has a default."""
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_record

from fer_bench.core import BenchError, read_json
from fer_bench.record import Record, load_run, write_metrics, write_status
from fer_bench.schema import Metrics, Status, checked, completed, example_environment, example_metrics

RESULTS = Path(__file__).parent.parent/"results"
FOLDERS = [*RESULTS.glob("runs/*"), *RESULTS.glob("precision/runs/*")]


def facts(**changes) -> dict: return example_metrics().model_dump() | changes

def with_test(**changes) -> dict: return facts(test=facts()["test"] | changes)


BAD = {
    "a rate above one": (with_test(WAR=1.5), r"test\.WAR = 1\.5"),
    "a text": (with_test(UAR="0.5"), r"test\.UAR = '0\.5'"),
    "NaN": (with_test(NLL=float("nan")), r"test\.NLL = nan"),
    "half an interval": (with_test(WAR_ci=[0.1]), r"test\.WAR_ci"),
    "a negative count": (with_test(n=-1), r"test\.n = -1"),
    "a bool for a count": (with_test(n=True), r"test\.n = True"),
    "no square": (with_test(confusion=[[1, 2]]), "test.confusion must be 2 lists of 2 counts"),
    "a path for a hash": (facts(split_hash="../../x"), "split_hash"), "no hash": (facts(data_hash=""), "data_hash"),
    "too few classes": (facts(labelled_counts=[1]), "labelled_counts must have 2 counts"),
    "another selection": (facts(select="best"), "select = 'best'"), "no classes": (facts(classes=[]), "classes"),
    "a long text": (facts(method="x" * 20_000), "method"), "too many": (facts(audit=["x"] * 2000), "audit"),
    "nothing": ({}, "is missing"), "a list": ([], "it is a list, and no JSON object"),
}

@pytest.mark.parametrize("name", BAD)
def test_what_no_run_can_have_is_refused_with_file_field_and_remedy(name):
    given, words = BAD[name]
    with pytest.raises(BenchError, match=words) as error: checked(Metrics, given, "there/metrics.json")
    assert "there/metrics.json" in str(error.value) and "Restore it, or delete its folder" in str(error.value)

def test_a_key_of_a_later_version_is_ignored_and_of_the_writer_refused(tmp_path):
    read = checked(Metrics, facts(novelty=1), "metrics.json")
    assert read == example_metrics() and "novelty" not in read and read.get("novelty", 2) == 2
    with pytest.raises(KeyError): read["novelty"]
    with pytest.raises(BenchError, match="'clases'.*'classes'"): write_metrics(tmp_path, **facts(clases=[]))
    with pytest.raises(BenchError, match=r"test\.WAR = 2"): write_metrics(tmp_path, **with_test(WAR=2.0))
    with pytest.raises(BenchError, match="state = 'done'"): write_status(tmp_path, "done")
    assert not list(tmp_path.iterdir())

def test_attributes_and_keys_say_the_same():
    m = example_metrics(pool={"members": ["a"], "faces": [3], "dropped": [0], "hash": "b" * 64})
    assert m.test.WAR == m["test"]["WAR"] == 0.75 and m.pool.faces == m["pool"]["faces"] == [3]
    assert "pool" in m and "probe" not in m and m.get("probe", 7) == 7 and m["probe"] is None
    assert checked(Metrics, json.loads(json.dumps(m.model_dump())), "metrics.json") == m

def test_what_early_records_lack_follows_from_their_config():
    early = {name: value for name, value in facts().items() if name not in ("kind", "labelled_seen", "device", "audit")}
    config = {"method": "dtm", "epochs": 2, "steps_per_epoch": 3, "batch_size": 5}
    m = checked(Metrics, completed(early, config), "metrics.json")
    assert (m.kind, m.labelled_seen, m.device, m.audit, m.loss_parts) == ("semi-supervised", 30, "unknown", [], None)
    for own, kind in [({}, "supervised"), ({"unlabelled": "rest"}, "semi-supervised"),
                      ({"probe": "sgd"}, "self-supervised")]:
        assert completed(early, config | {"method": "lab.Mine"} | own)["kind"] == kind

@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_every_committed_record_is_read_whole(folder):
    "Nothing that a record's files say is lost but what the schema does not know, and there is nothing of that."
    record = Record(folder)
    for name, model in (("metrics", record.metrics), ("environment", record.environment), ("status", record.status)):
        said, dumped = read_json(folder/f"{name}.json"), model.model_dump(exclude_unset=True)
        assert {n: dumped[n] for n in said if said[n] is not None and n != "loaded"} == \
            {n: v for n, v in said.items() if v is not None and n != "loaded"}

def test_a_finished_run_seals_every_file():
    with pytest.raises(BenchError, match="does not seal every file of the record: environment.json"):
        checked(Status,
                {"state": "finished", "files": {n: "a" * 64 for n in ("config.json", "metrics.json", "history.jsonl",
                                                                             "predictions.parquet")}}, "status.json")

def test_one_run_is_loaded_without_reading_others(tmp_path):
    mine, broken = (made_record(tmp_path, seed=seed) for seed in (0, 1))
    (broken.folder/"status.json").write_text("{")
    assert load_run(mine.id, tmp_path).metrics == mine.metrics
    (broken.folder/"status.json").unlink()
    for name in ("mine", broken.id, f"../runs/{mine.id}", ""):
        with pytest.raises(BenchError, match="no finished run"): load_run(name, tmp_path)

def test_parts_of_the_loss_are_told_from_what_is_watched(tmp_path):
    parts = {seed: made_record(tmp_path, {"loss_parts": said}, seed=seed).loss_parts
             for seed, said in enumerate((["labelled", "unlabelled"], [], None))}
    assert parts == {0: ["labelled"], 1: [], 2: None}

def test_examples_are_valid():
    assert example_metrics(classes=["a"]).test.confusion == [[3]] and example_environment(commit=None).commit is None

JSONS = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
                     lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=4),
                     max_leaves=6)

@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(list(Metrics.model_fields)), value=JSONS)
def test_any_value_is_taken_or_refused_with_a_sentence(name, value):
    try: checked(Metrics, facts(**{name: value}), "metrics.json")
    except BenchError as error: assert "metrics.json" in str(error) and len(str(error)) < 600

"""Records of strangers: whatever one has changed and sealed again, `verify`, tables and leaderboard agree about it.

All of them take the record, with equal numbers, or all of them refuse it with a sentence; the records beside it keep
their table."""
import json
import os
import shutil

import pandas as pd
import pytest
from made_records import made_record

from fer_bench.core import BenchError, write_json
from fer_bench.record import PARTS, SEALED, load_run, load_runs, read_runs, write_status
from fer_bench.report.card import model_card
from fer_bench.report.exports import save_tables, to_csv
from fer_bench.report.leaderboard import leaderboard
from fer_bench.report.tables import compare, notes
from fer_bench.store import merge, verify


def at(path: str, value, of="metrics"):
    "→ a change of the record's JSON file `of`: what stands at `path` is `value`, or gone for `...`."
    def change(record):
        facts = place = json.loads((record.folder/f"{of}.json").read_text())
        *way, last = [int(n) if n.isdigit() else n for n in path.split(".")]
        for name in way: place = place[name]
        if value is ...: del place[last]
        else: place[last] = value
        (record.folder/f"{of}.json").write_text(json.dumps(facts))
    return change

def config(name, value): return at(name, value, "config")

def text(name: str, said: str): return lambda record: (record.folder/name).write_text(said)

def predicted(**columns):
    "→ a change of columns of the predictions, each a function of the column; None: it is gone."
    def change(record):
        table = pd.read_parquet(path := record.folder/"predictions.parquet")
        for name, do in columns.items():
            if do is None: del table[name]
            else: table[name] = do(table.get(name))
        table.to_parquet(path)
    return change

def gone(name): return lambda record: (record.folder/name).unlink()

def pipe(name):
    def change(record):
        (record.folder/name).unlink()
        os.mkfifo(record.folder/name)
    return change

def link(name):
    def change(record):
        (record.folder/name).rename(record.folder/"elsewhere")
        (record.folder/name).symlink_to(record.folder/"elsewhere")
    return change

DEEP = "[" * 200_000 + "]" * 200_000
SAID = "<script>alert(1)</script> ![](http://x.test/y.png)\n\n# top | =cmd()"
NESTED = json.loads("[" * 150 + "]" * 150)
POOL = {"members": ["a"], "faces": [1, 2], "dropped": [0], "hash": "a" * 64}
FACES = {"size": [10**5] * 2, "resize": "x", "colour": "rgb", "alignment": "x", "licence": "x"}

REFUSED = {
    **{f"metrics without {n}": at(n, ...) for n in (
        "drawn", "n", "classes", "test", "test.WAR_ci", "test.recall", "n.test", "data_hash", "select", "run_id")},
    "text for a number": at("test.UAR", "0.5"), "text for a count": at("images_seen", "100"),
    "null in an interval": at("test.UAR_ci.0", None), "null for a rate": at("test.WAR", None),
    "NaN": at("test.NLL", float("nan")), "infinity": at("train_seconds", float("inf")),
    "1e999": text("environment.json", '{"threads": 1e999}'),
    "an interval upside down": at("test.UAR_ci", [0.9, 0.1]), "an interval elsewhere": at("test.WAR_ci", [0.0, 0.01]),
    "an interval of three": at("test.WAR_ci", [0.1, 0.5, 0.9]),
    "a class more": at("classes", ["fear", "happiness", "anger"]), "a class twice": at("classes", ["fear", "fear"]),
    "recall of another class": at("test.recall", {"fear": 0.5, "joy": 0.5}),
    "another recall": at("test.recall.fear", 0.0101), "another NLL": at("test.NLL", 0.0101),
    "another ECE": at("test.ECE", 0.0101), "another macro-F1": at("test.macro_F1", 0.99),
    "another method": at("method", "dtm"), "another kind": at("kind", "probe"),
    "another id": at("run_id", "supervised-x"),
    "drawn faces as real ones": at("drawn", False), "another selection": at("select", "oracle"),
    "a pool of other lengths": at("pool", POOL), "faces of 100,000 pixels": at("faces", FACES),
    "an unknown class capped": at("capped", {"joy": 3}), "1e300 seconds": at("train_seconds", 1e300),
    "a text of a megabyte": at("dataset", "x" * 10**6), "nested options": at("option_defaults", {"x": NESTED}),
    **{f"{name} nested": text(name, DEEP) for name in PARTS if "json" in name},
    **{f"{name} a list": text(name, "[1]") for name in PARTS if "json" in name},
    **{f"{name} empty": text(name, "") for name in PARTS if name != "history.jsonl"},
    **{f"{name} html": text(name, SAID) for name in PARTS},
    **{f"no {name}": gone(name) for name in SEALED}, **{f"{name} a link": link(name) for name in SEALED},
    **{f"{name} a pipe": pipe(name) for name in PARTS},
    "history with NaN": text("history.jsonl", '{"epoch": NaN}'), "history without epochs": text("history.jsonl", "{}"),
    "seed": config("seed", 2**64), "lr": config("lr", 1e300), "batch_size": config("batch_size", 10**9),
    "method": config("method", 3), "split": config("split", "fold:1/x"), "init": config("init", "run:../../x"),
    "an entry": config("_entry", {}), "self": config("self", 1), "a field of tomorrow": config("novelty", 1),
    "another config": config("lr", 0.5), "commit": at("commit", 7, "environment"),
    "versions": at("versions", [], "environment"), "no seal": at("files", {}, "status"),
    "predictions without keys": predicted(key=None), "one key": predicted(key=lambda c: "a"),
    "other labels": predicted(label=lambda c: c.iloc[::-1].to_numpy()),
    "an unknown label": predicted(label=lambda c: "joy"),
    "no label": predicted(label=lambda c: None), "numbers for labels": predicted(label=lambda c: 1),
    "numbers for logits": predicted(logits=lambda c: 1.0), "texts for logits": predicted(logits=lambda c: "a"),
    "short logits": predicted(logits=lambda c: c.map(lambda x: x[:1])),
    "logits of NaN": predicted(logits=lambda c: c.map(lambda x: x * float("nan"))),
    "other logits": predicted(logits=lambda c: c.map(lambda x: -x)),
    "no parquet": text("predictions.parquet", "PAR1" * 9),
}
TAKEN = {
    "nothing": lambda record: None, "a config without init": config("init", ...),
    "a config without draws": config("label_seed", ...), "a fact of tomorrow": at("novelty", 1),
    "more columns": predicted(more=lambda c: 1), "no history": text("history.jsonl", ""),
    "texts": lambda record: [at(n, v)(record) for n, v in {"audit": [SAID], "device": SAID, "dataset": SAID}.items()],
}

@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    "A results folder with two records."
    place = tmp_path_factory.mktemp("honest")/"results"
    return [made_record(place, seed=seed) for seed in (0, 1)]

@pytest.fixture
def changed(honest, tmp_path):
    "changed(change) → (record that was changed and sealed again, the one beside it), copies of those of `honest`."
    def make(change):
        shutil.copytree(honest[0].folder.parents[1], place := tmp_path/"results")
        mine, other = (load_run(r.id, place) for r in honest)
        sealed = (mine.folder/"status.json").read_text()[:100]
        change(mine)
        status = mine.folder/"status.json"
        same = status.is_file() and status.read_text().startswith(sealed)
        if same and all((mine.folder/n).is_file() for n in SEALED): write_status(mine.folder, "finished")
        return mine, other
    return make

def rows(records) -> dict: return dict(zip((r.id for r in records), compare(records).to_dict("records"), strict=True))

@pytest.mark.parametrize("name", [*REFUSED, *TAKEN])
def test_all_take_a_record_or_all_refuse_it(changed, honest, capsys, name):
    mine, other = changed((REFUSED | TAKEN)[name])
    place = mine.folder.parents[1]
    found = {f.name: f for f in verify(place)}
    records, left_out = read_runs(place)
    page, table, before = leaderboard(place), rows(records), rows(honest)
    assert table[other.id] == before[other.id] and found[other.id].outcome == "sound" and notes(records)
    merged = {f.name: f.outcome for f in merge(place, place.parent/"theirs")}
    if name in TAKEN:
        assert found[mine.id].outcome == "sound" and merged[mine.id] == "added" and not left_out
        assert {n: table[mine.id][n] for n in ("WAR", "UAR", "macro-F1")} == {
            n: before[mine.id][n] for n in ("WAR", "UAR", "macro-F1")} and f"the {len(records)} finished runs" in page
        return
    assert found[mine.id].outcome == "damaged" and merged[mine.id] == "refused" and mine.id in left_out
    assert list(table) == [other.id] and mine.id in page and "the 1 finished runs" in page
    assert [r.id for r in load_runs(place)] == [other.id]
    said = capsys.readouterr().err
    assert said.startswith(f"Run {mine.id!r} is left out: ") and len(said) < 700 and "Traceback" not in said
    with pytest.raises(BenchError): load_run(mine.id, place)
    assert "<script>" not in page and "![](" not in page

def test_there_are_many(): assert len(REFUSED) >= 80

def test_a_record_under_another_id_is_not_counted_twice(changed, capsys):
    mine, other = changed(lambda record: None)
    shutil.copytree(mine.folder, copy := mine.folder.with_name("supervised-drawn-all-s0-0123456789"))
    assert [r.id for r in load_runs(copy.parents[1])] == sorted((mine.id, other.id))
    assert f"make it {mine.id!r}" in capsys.readouterr().err
    assert {f.name: f.outcome for f in verify(copy.parents[1])}[copy.name] == "damaged"
    write_json(copy/"metrics.json", mine.metrics.model_dump() | {"run_id": copy.name})
    write_status(copy, "finished")
    assert copy.name not in [r.id for r in load_runs(copy.parents[1])]

def test_a_run_that_goes_on_or_has_not_begun_is_left_out_in_silence(changed, capsys):
    mine, other = changed(lambda record: None)
    for state in ("running", "failed"):
        write_status(mine.folder, state)
        (mine.folder/"environment.json").unlink(missing_ok=True)
        assert [r.id for r in load_runs(mine.folder.parents[1])] == [other.id] and not capsys.readouterr().err
        assert {f.name: f.outcome for f in verify(mine.folder.parents[1])}[mine.id] == "unfinished"
    (mine.folder/"status.json").unlink()
    assert {f.name: f.outcome for f in verify(mine.folder.parents[1])}[mine.id] == "unfinished"

def test_what_a_record_says_is_text_wherever_it_is_written(tmp_path):
    metrics = {"drawn": False, "dataset": SAID, "device": SAID, "audit": [SAID], "faces": FACES | {
        "size": [48, 48], "alignment": SAID, "licence": SAID}}
    record = made_record(tmp_path, metrics, dataset="ck+", data_root="x", init=f"{SAID}.pt", backbone=SAID)
    card = model_card(record, record.metrics.faces.model_dump(), ["model.safetensors"])
    saved = save_tables(compare([record]), tmp_path/"tables", "t", notes([record]))
    for page in [card, leaderboard(tmp_path), saved[0].read_text()]:
        assert "<script>alert" not in page and "![](" not in page and "\n# top" not in page
    assert "<script>alert" not in saved[2].read_text()

def test_no_cell_of_a_csv_is_a_formula():
    table = pd.DataFrame({"=name": ["=1+1", "@SUM(A1)", "-cmd", "+x()", "\t=1", "a=b"], "n": [-1.5] * 6,
                          "gain": ["+8.3 [3.0, 11.2]", "-0.5", "", "**-2.0** [-3.0, -1.0]", "+1", "-"]})
    again = to_csv(table).splitlines()
    assert again[0] == "'=name,n,gain" and again[1] == '\'=1+1,-1.5,"+8.3 [3.0, 11.2]"'
    assert [line[:2] for line in again[2:6]] == ["'@", "'-", "'+", "'\t"] and again[6].startswith("a=b,-1.5,'-")
    assert "-2.0 [-3.0" in again[4]

"""The committed tables are what the committed records say."""
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from built_pages import BLOCK, BLOCKS, RECORDS, RESULTS, ROOT, built, chosen

from fer_bench.config import BY_HASH, NO_NUMBER, NUMERICS, PROBE, RunConfig, recorded_config, run_id
from fer_bench.evaluate.statistics import t_interval
from fer_bench.record import KEPT_BYTES, load_runs
from fer_bench.report.tables import to_markdown
from fer_bench.sweeps.grid import expand


@pytest.mark.parametrize("record", [*RECORDS, *load_runs(RESULTS/"precision")], ids=lambda r: r.id)
def test_a_record_is_whole_and_named_by_what_it_holds(record):
    "Every file has the hash that was sealed, and the config still gives the name."
    for name in record.status.files: record.read(name)
    m, config = record.metrics, recorded_config(record.config)
    hashes = m.data_hash, m.split_hash, m.init_hash, m.pool.hash if m.pool else ""
    name = lambda *numerics: run_id(config, *hashes, config.precision == "bf16", "", *numerics)
    assert name(tuple(m.numerics)) == record.id
    assert (name() == record.id) == (m.numerics == [NUMERICS, PROBE]), "a run of older numerics counts as one of today"
    assert m.test.n == len(record.predictions) and record.environment.dirty is False
    assert record.metrics["test"]["WAR"] == m.test.WAR
    json.dumps(m.model_dump(), allow_nan=False)

@pytest.mark.parametrize("page", BLOCKS)
def test_numbers_in_prose_are_built_from_the_records(page):
    text = (ROOT/page).read_text(encoding="utf-8")
    assert set(BLOCKS[page]) == {name for _, name, *_ in BLOCK.findall(text)}
    assert built(page) == text, "python tests/built_pages.py"

MEASURED = re.compile(r"\d+\.\d+ (?:%|points|\[)|[+−]\d+\.\d|\d\.\d+ WAR")

@pytest.mark.parametrize("page", [*BLOCKS, "nbs/index.ipynb", "nbs/own_method.ipynb", "nbs/run_benchmark.ipynb",
                                  "nbs/compare_methods.ipynb", "nbs/paper_figures.ipynb"])
def test_no_measured_number_is_typed_by_hand(page):
    text = (ROOT/page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        text = "\n\n".join(c["source"] for c in nbformat.reads(text, 4).cells if c["cell_type"] == "markdown")
    text = re.sub(r"(?s)```.*?```|`[^`]*`", "", BLOCK.sub("", text))
    assert MEASURED.findall(text) == []

def test_a_typed_number_is_seen():
    for text in ("was +8.3 [2.3, 14.2] points", "has 72.6 % on", "−0.8 of", "51.5 WAR"): assert MEASURED.search(text)
    for text in ("lr 0.05, EMA 0.999", "`--floor 0.7`", "48.5 px", "version 0.1.0"): assert not MEASURED.search(text)

def test_what_figures_need_lies_beside_the_records_and_shows_no_licensed_face():
    "Arrays of drawn faces, and of others nothing but averages; small."
    files = list(RESULTS.rglob("*.npz"))
    licensed = [f for r in RECORDS if not r.metrics.drawn for f in r.folder.glob("*.npz")]
    assert {f.name.rpartition("-")[0] for f in licensed} <= {"mean_map", "landmarks"}
    assert all(f.stat().st_size <= KEPT_BYTES for f in files) and sum(f.stat().st_size for f in files) <= 12_000_000

BEFORE = {"mae": dict(optimizer="sgd", weight_decay=1e-4, lr=0.05, warmup_epochs=1), "mocov2": dict(momentum=0.99),
          "byol": dict(momentum=0.99, momentum_schedule="constant"), "simfle": {}, "simclr": {}, "supervised": {}}
IDS = {"mae": "8e95d9a5ee", "mocov2": "9afb3760bc", "byol": "c66bf69055", "simfle": "88c3aa1bdc",
       "simclr": "365eeb6fd1", "supervised": "1a2e879fc6"}  # of the preset quick, by the code of NUMERICS 1, PROBE 2

@pytest.mark.parametrize("method", BEFORE)
def test_ids_of_older_numerics_stay(method):
    "A config as it was recorded then, without fields that are newer, gives the id of then, and of now another."
    values = RunConfig(method=method).model_dump()
    for newer in ("beta2", "bn_groups"): values.pop(newer, None)
    preset = {"lr": 0.05} | ({} if method == "mae" else {"backbone": "resnet10t"})  # what quick was then
    optimizer = {} if method == "supervised" else {"optimizer": "sgd"}
    config = recorded_config(values | preset | optimizer | BEFORE[method])
    assert config.beta2 == 0.999
    assert run_id(config, "d", "s", numerics=(1, 2)).rpartition("-")[2] == IDS[method]
    assert run_id(config, "d", "s").rpartition("-")[2] != IDS[method]

def test_the_grid_of_few_labels_is_what_was_run():
    "Every run of `ferplus-50.yaml` has its record, and no other of its kind is in the table."
    wanted = [c.config for c in expand(RESULTS/"ferplus-50.yaml")
              if c.config.labels_per_class == 50 and not c.config.min_map]
    shaping = lambda config: json.dumps({k: v for k, v in config.items() if k not in NO_NUMBER | BY_HASH},
                                        sort_keys=True)
    recorded = [shaping(recorded_config(r.config).model_dump())
                for r in chosen(dataset="ferplus", labels_per_class=50, min_map=0, dedupe="none")]
    assert sorted(shaping(c.model_dump()) for c in wanted) == sorted(recorded)

def test_the_grid_of_drawn_faces_is_what_was_run():
    "The shipped runs on drawn faces are those of `drawn.yaml`, so one command makes them again."
    shaping = lambda c: json.dumps({k: v for k, v in c.model_dump().items() if k not in NO_NUMBER}, sort_keys=True)
    short = lambda c: (c.method, c.labels_per_class or 0, c.seed, c.label_seed, c.preset, c.threads)
    cells, drawn = [c.config for c in expand(RESULTS/"drawn.yaml")], [r for r in RECORDS if r.metrics.drawn]
    assert sorted(map(short, cells)) == sorted(short(recorded_config(r.config)) for r in drawn)
    today = [r for r in drawn if r.metrics.numerics == [NUMERICS, PROBE]]  # older ones have other defaults
    assert {shaping(recorded_config(r.config)) for r in today} <= set(map(shaping, cells))

WAYS = {"fp32": {}, "bf16": {"precision": "bf16"}, "torch.compile": {"compile": True}}

def precision_table():
    "WAR and UAR of each way, mean ± sd over seeds in points, and its mean difference to float32 with a 95 % interval."
    records, rows, plain = load_runs(RESULTS/"precision"), [], {}
    for method in ("supervised", "dtm"):
        for way, fields in WAYS.items():
            fields = {"method": method, "precision": "auto", "compile": False} | fields
            runs = sorted((r for r in records if all(r.config[k] == v for k, v in fields.items())),
                          key=lambda r: r.config["seed"])
            row = {"method": method, "way": way, "seeds": len(runs)}
            for name in ("WAR", "UAR"):
                values = 100 * np.array([r.metrics.test[name] for r in runs])
                if way == "fp32": plain[name] = values
                over = "{:+.1f} [{:.1f}, {:.1f}]".format(*t_interval(values - plain[name])) if way != "fp32" else ""
                row |= {name: f"{values.mean():.1f} ± {values.std(ddof=1):.1f}", f"{name} over fp32": over}
            rows.append(row)
    return to_markdown(pd.DataFrame(rows))

def test_the_table_of_precisions():
    assert precision_table() in (RESULTS/"precision.md").read_text()

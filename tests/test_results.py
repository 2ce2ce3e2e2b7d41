"""The committed tables are what the committed records say."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fer_bench.config import BY_HASH, NO_NUMBER, NUMERICS, PROBE, RunConfig, recorded_config, run_id
from fer_bench.evaluate.statistics import t_interval
from fer_bench.record import load_runs
from fer_bench.report.summary import difference, summarise
from fer_bench.report.tables import to_markdown
from fer_bench.sweeps.grid import expand

RESULTS = Path(__file__).parent.parent/"results"
RECORDS = load_runs(RESULTS)

def chosen(**fields): return [r for r in RECORDS if all(r.config.get(k, 0) == v for k, v in fields.items())]

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

BEFORE = {"mae": dict(optimizer="sgd", weight_decay=1e-4, lr=0.05, warmup_epochs=1), "mocov2": dict(momentum=0.99),
          "byol": dict(momentum=0.99, momentum_schedule="constant"), "simfle": {}, "simclr": {}, "supervised": {}}
IDS = {"mae": "8e95d9a5ee", "mocov2": "9afb3760bc", "byol": "c66bf69055", "simfle": "88c3aa1bdc",
       "simclr": "365eeb6fd1", "supervised": "1a2e879fc6"}  # of the preset quick, by the code of NUMERICS 1, PROBE 2

@pytest.mark.parametrize("method", BEFORE)
def test_ids_of_older_numerics_stay(method):
    "A config as it was recorded then, without fields that are newer, gives the id of then, and of now another."
    values = RunConfig(method=method).model_dump()
    for newer in ("beta2", "bn_groups"): values.pop(newer, None)
    optimizer = {} if method == "supervised" else {"optimizer": "sgd"}
    config = recorded_config(values | optimizer | BEFORE[method])
    assert config.beta2 == 0.999
    assert run_id(config, "d", "s", numerics=(1, 2)).rpartition("-")[2] == IDS[method]
    assert run_id(config, "d", "s").rpartition("-")[2] != IDS[method]

def test_the_table_of_few_labels():
    table = to_markdown(summarise(chosen(dataset="ferplus", labels_per_class=50, min_map=0)))
    for page in (RESULTS/"ferplus-50.md", RESULTS.parent/"README.md"): assert table in page.read_text()

def test_the_grid_of_few_labels_is_what_was_run():
    "Every run of `ferplus-50.yaml` has its record, and no other of its kind is in the table."
    wanted = [c.config for c in expand(RESULTS/"ferplus-50.yaml")
              if c.config.labels_per_class == 50 and not c.config.min_map]
    shaping = lambda config: json.dumps({k: v for k, v in config.items() if k not in NO_NUMBER | BY_HASH},
                                        sort_keys=True)
    recorded = [shaping(recorded_config(r.config).model_dump())
                for r in chosen(dataset="ferplus", labels_per_class=50, min_map=0)]
    assert sorted(shaping(c.model_dump()) for c in wanted) == sorted(recorded)

@pytest.mark.parametrize("method, baseline",
                         [("linear_probe", "linear probe of random weights"), ("supervised", "supervised")])
def test_the_tables_of_pretraining(method, baseline):
    table = to_markdown(summarise(chosen(dataset="ferplus", labels_per_class=50, min_map=4, method=method), baseline))
    assert table in (RESULTS/"pretraining.md").read_text()

@pytest.mark.parametrize("dataset", ["ferplus", "drawn"])
def test_the_differences_to_a_random_backbone(dataset):
    text = (RESULTS/"pretraining.md").read_text()
    (random,) = chosen(dataset=dataset, labels_per_class=None, method="linear_probe", init="scratch")
    for name in ("byol", "simfle", *["simfle_random"] * (dataset == "ferplus")):
        (record,) = chosen(dataset=dataset, labels_per_class=None, method=name)
        war, uar, _ = difference(record, random)["difference"]
        assert f"| {name} | {percent(record, 'WAR')} | {percent(record, 'UAR')} | {war} | {uar} |" in text
    assert f"| random weights | {percent(random, 'WAR')} | {percent(random, 'UAR')} |" in text

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

def percent(record, name):
    test = record.metrics.test
    return f"{100 * test[name]:.1f} [{100 * test[name + '_ci'][0]:.1f}, {100 * test[name + '_ci'][1]:.1f}]"

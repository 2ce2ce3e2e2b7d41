"""Finished records without a training, which every check of a record takes."""
from pathlib import Path

import numpy as np

from fer_bench.config import NUMERICS, PROBE, RunConfig, recorded_config, run_id
from fer_bench.core import write_json
from fer_bench.evaluate.metrics import classification_metrics
from fer_bench.record import (
    Record,
    runs_folder,
    write_environment,
    write_history,
    write_metrics,
    write_predictions,
    write_status,
)
from fer_bench.schema import example_metrics, kind_of

CLASSES = ["fear", "happiness"]

def made_record(results, metrics: dict = {}, split_hash: str = "5" * 64, faces: int = 12, **fields) -> Record:  # noqa: B006
    "A finished record in `results` of two classes; `metrics`: other facts; `fields`: of its config."
    config = recorded_config(RunConfig(preset="tiny", results_dir=str(results)).model_dump() | fields)
    folder = runs_folder(results)/run_id(config, "d" * 64, split_hash)
    logits = np.random.default_rng(config.seed).standard_normal((faces, 2)).astype("float32")
    labels = np.arange(faces) % 2
    facts = {"run_id": folder.name, "method": config.method, "kind": kind_of(config.model_dump()), "drawn": True,
             "split_hash": split_hash, "numerics": [NUMERICS, PROBE], **metrics}
    facts["test"] = classification_metrics(logits, labels, CLASSES) | metrics.get("test", {})
    write_json(folder/"config.json", config.model_dump())
    write_metrics(folder, **example_metrics(classes=CLASSES, **facts).model_dump())
    write_environment(Path(folder), device="cpu")
    write_history(folder, [{"epoch": 1, "loss": 2.0, "labelled": 1.5, "accuracy": 0.5}])
    write_predictions(folder, [f"é{i}" for i in range(faces)], [CLASSES[i] for i in labels], logits)
    write_status(folder, "finished")
    return Record(folder)

def untimed(history):
    "A record's `history` without its times, to compare two runs."
    return history.drop(columns=["seconds", "cpu_seconds"], errors="ignore")  # a probe has no CPU seconds

"""Run by `test_processes` in one process and in several: steps of each method in float64, and a stopped training."""
import contextlib
import json
import sys
from pathlib import Path

import torch

from fer_bench.catalogue import methods_of
from fer_bench.config import RunConfig
from fer_bench.distributed import all_gather, all_reduce_mean, is_main, launched_processes, patched_batch_norm, world
from fer_bench.runs.experiment import build
from fer_bench.runs.task import load_data, make_pool, split_data
from fer_bench.train.batches import make_batches
from fer_bench.train.loop import fit, make_accelerator, prepare, seed_step, train_step

METHODS = methods_of("supervised", "semi-supervised", "self-supervised")
FEW = ("dtm", "simfle")  # those that `make test` runs
STEPS = dict.fromkeys(METHODS, 6) | dict.fromkeys(("supervised", "dtm", "byol", "simfle"), 20)

FIELDS = {"rul": {"map_dropout": 0.0}}  # each process draws its own dropout

def setup(method: str):
    config = RunConfig(method=method, preset="tiny", drawn_faces=200, lr=0.003, threads=1, device="cpu",
                       **FIELDS.get(method, {}))
    faces = load_data(config)
    split = split_data(config, faces)
    pool = make_pool(config, faces, split)
    accelerator, net, feed, _ = build(config, faces, split, pool)
    return config, accelerator, net.double(), make_batches(config, net, feed, faces, split, pool)

def double(value):
    if isinstance(value, list): return [double(v) for v in value]
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value

def apart(x: torch.Tensor) -> float:
    "The largest difference between the processes' `x` (N,)."
    return float((all_gather(x[None]) - x).abs().max())

def some_steps(method: str) -> dict:
    config, accelerator, net, batch_at = setup(method)
    for part in (getattr(net, name, None) for name in ("policy", "alignment")):
        if part is not None: part.float()  # they are made of float32 probabilities
    model, optimizer = prepare(net.train(), config, accelerator)
    batch_of = lambda step: {k: double(v) for k, v in batch_at(step).items()} | {"progress": step / 20}
    losses = []
    for step in range(STEPS[method]):
        seed_step(0, step)
        row = train_step(model, net, optimizer, accelerator, batch_of(step), config, step)
        losses.append(float(all_reduce_mean(row["loss"].detach())))
    with patched_batch_norm(): accelerator.backward(model(batch_of(20))[0])
    gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    state = torch.cat([v.double().flatten() for v in net.state_dict().values()])
    return {"losses": losses, "gradients_apart": apart(gradients), "state_apart": apart(state)}

def stopped_and_taken_up(folder: Path) -> list:
    "Losses of four epochs of five steps, stopped in the third; only the first process sees the checkpoints."
    folder = folder if is_main() else folder/"not there"
    for stops in (True, False):
        config, accelerator, net, batch_at = setup("supervised")
        config = config.model_copy(update={"epochs": 4, "steps_per_epoch": 5})
        batch_of = lambda step, batch_at=batch_at: {k: double(v) for k, v in batch_at(step).items()}
        def after_epoch(progress, stops=stops):
            if stops and progress == 0.75: raise KeyboardInterrupt
            return {}
        with contextlib.suppress(KeyboardInterrupt):
            history = fit(net, batch_of, config, folder, accelerator, after_epoch)
    return [row["loss"] for row in history]

if __name__ == "__main__":
    if launched_processes() > 1: make_accelerator("cpu")
    place, methods = Path(sys.argv[1]), sys.argv[2:]
    found = {method: some_steps(method) for method in methods}
    found |= {"stopped": stopped_and_taken_up(place), "processes": world()[1]}
    if is_main(): (place/"found.json").write_text(json.dumps(found))

"""Pretrain without labels, then probe: whole runs, their weights in other runs, resume, paper preset, bad input."""
import json

import numpy as np
import pytest
import torch
from made_records import untimed
from safetensors.numpy import load_file, save_file

from fer_bench.catalogue import method_entry, methods_of
from fer_bench.config import RunConfig, baseline, kept_epochs, start_run
from fer_bench.core import BenchError
from fer_bench.data.sources.fixtures import fake
from fer_bench.record import PARTS, Record, check_record, load_runs, write_metrics, write_status
from fer_bench.report.names import called
from fer_bench.runs.attribution import faces_to_show
from fer_bench.runs.experiment import run
from fer_bench.runs.masks import look_masks, mask_hits, mask_table, masks_of
from fer_bench.runs.networks import PRETRAINED, kept_of, load_classifier, load_pretrained
from fer_bench.runs.task import load_data, make_pool, split_data
from fer_bench.train.loop import make_optimizer


def slow_step(name, w, g, memory, c):
    "A step of the optimizer `name` on the weights `w` (numpy) with the gradient `g`, as the papers write it."
    if name.startswith("adam"):
        decay, g = (c.weight_decay, g) if name == "adamw" else (0, g + c.weight_decay * w)
        memory["t"] = t = memory.get("t", 0) + 1
        memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
        memory["v"] = c.beta2 * memory.get("v", 0) + (1 - c.beta2) * g**2
        mean, square = memory["m"] / (1 - 0.9**t), memory["v"] / (1 - c.beta2**t)
        return w - c.lr * decay * w - c.lr * mean / (np.sqrt(square) + 1e-8)
    size, slope, g = np.linalg.norm(w), np.linalg.norm(g), g + c.weight_decay * w
    if name == "lars": g = 0.001 * size / (slope + c.weight_decay * size) * g
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return w - c.lr * (g + 0.9 * memory["v"] if name == "sgd" else memory["v"])

@pytest.mark.parametrize("name, beta2", [("sgd", 0.999), ("momentum", 0.999), ("lars", 0.999), ("adam", 0.95),
                                         ("adamw", 0.95), ("adamw", 0.999)])
def test_optimizers_against_plain_versions(name, beta2):
    "sgd is Nesterov's, momentum is not; lars and the betas of adamw are those of the papers."
    torch.manual_seed(0)
    layer, rng, memory = torch.nn.Linear(4, 3, bias=False).double(), np.random.default_rng(0), {}
    config = RunConfig(preset="tiny", optimizer=name, lr=0.1, weight_decay=0.05,
                       **({"beta2": beta2} if name.startswith("adam") else {}))
    optimizer, w = make_optimizer(layer, config), layer.weight.detach().numpy().copy()
    for _ in range(4):
        g = rng.normal(size=(3, 4))
        layer.weight.grad = torch.from_numpy(g)
        optimizer.step()
        w = slow_step(name, w, g, memory, config)
        np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=1e-6, atol=1e-8)

PUBLISHED = {  # optimizer, lr, weight decay, warm-up epochs, beta2; momentum of the target and its schedule
    "simfle": ("momentum", 0.05, 1e-4, 0, 0.999, 0.99, "constant"),
    "byol": ("lars", 0.2, 1.5e-6, 10, 0.999, 0.996, "cosine"),
    "simclr": ("lars", 0.3, 1e-6, 10, 0.999, None, None),
    "mocov2": ("momentum", 0.03, 1e-4, 0, 0.999, 0.999, "constant"),
    "simsiam": ("momentum", 0.05, 1e-4, 0, 0.999, None, None),
    "mae": ("adamw", 1.5e-4, 0.05, 10, 0.95, None, None),
}

@pytest.mark.parametrize("name", PUBLISHED)
def test_each_method_has_the_recipe_of_its_paper(name):
    "For batches of 256 and 100 epochs; at other presets the optimizer is the same, or SGD where the paper's is LARS."
    c = RunConfig(method=name, preset="paper")
    assert c.batch_size == 256 and c.epochs == 100
    found = (c.optimizer, c.lr, c.weight_decay, c.warmup_epochs, c.beta2)
    assert (*found, c.options.get("momentum"), c.options.get("momentum_schedule")) == PUBLISHED[name]
    quick = RunConfig(method=name, preset="standard")
    assert quick.optimizer == PUBLISHED[name][0].replace("lars", "momentum")
    if name == "mae": assert quick.warmup_epochs == quick.epochs // 10

def weights(record): return load_file(record.folder/"weights.safetensors")

def same_backbone(a, b):
    names = [name for name in weights(a) if name.startswith("backbone.")]
    return all(np.array_equal(weights(a)[name], weights(b)[name]) for name in names)

def stop_after(monkeypatch, epoch):
    import fer_bench.train.loop as loop
    real = loop.save_checkpoint
    def save(folder, done, state):
        real(folder, done, state)
        if done == epoch: raise KeyboardInterrupt
    monkeypatch.setattr(loop, "save_checkpoint", save)

FEW = ("simfle", "mocov2")  # a masked autoencoder beside a momentum encoder; a queue
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in methods_of("self-supervised") if name not in FEW]

@pytest.mark.parametrize("name", [*FEW, *NIGHTLY])
def test_interrupted_pretraining_ends_with_the_same_bits(tiny, tmp_path, name, monkeypatch):
    fields = dict(method=name, epochs=3, **({"queue": 16} if name == "mocov2" else {}))
    whole = run(tiny(**fields, results_dir=str(tmp_path/"whole")))
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt): run(tiny(**fields))
    monkeypatch.undo()
    record = run(tiny(**fields))
    assert untimed(record.history).equals(untimed(whole.history))
    assert all(np.array_equal(v, weights(whole)[k]) for k, v in weights(record).items())
    m, labelled = record.metrics, "labels" in method_entry(name).flags
    assert m["labelled_seen"] == (6 * 8 if labelled else 0) and m["images_seen"] == 6 * 8
    assert m["probe"]["kind"] == "linear" and "pool_used" not in record.history
    assert record.history["feature_std"].between(0, 3).all() and record.history["spread"].between(0, 3).all()
    assert load_classifier(record).head.weight.abs().sum() > 0, "the probe is the head"

def test_kept_epochs_survive_an_interruption_and_can_be_probed(tiny, tmp_path, monkeypatch):
    "One pretraining gives a curve: each kept epoch is a start for a probe, and what it had seen counts."
    fields = dict(method="byol", epochs=4, keep_epochs="every 2")
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt): run(tiny(**fields))
    monkeypatch.undo()
    record = run(tiny(**fields))
    kept = {f"weights-{epoch:05d}.safetensors" for epoch in (2, 4)}
    assert kept < record.metrics.weights.keys() and {p.name for p in record.folder.glob("weights-*")} == kept
    assert not same_files(record, *sorted(kept)) and record.id == run(tiny(**fields | {"keep_epochs": ""})).id
    half = run(tiny(method="linear_probe", init=f"run:{record.id}@2"))
    whole = run(tiny(method="linear_probe", init=f"run:{record.id}@4"))
    assert half.metrics.images_seen == 2 * 2 * 8
    assert whole.metrics.images_seen == record.metrics.images_seen == 4 * 2 * 8
    assert not same_backbone(half, record) and same_backbone(whole, record)
    assert called(half) == "linear probe of byol at epoch 2" and verify(half)
    with pytest.raises(BenchError, match="kept no weights of epoch 3, but 2, 4"):
        run(tiny(method="linear_probe", init=f"run:{record.id}@3"))
    (record.folder/"weights-00002.safetensors").write_bytes((record.folder/"weights-00004.safetensors").read_bytes())
    with pytest.raises(BenchError, match="is not the file that run"):
        run(tiny(method="linear_probe", init=f"run:{record.id}@2"))

def test_of_a_method_that_masks_all_is_kept_and_its_masks_are_counted_by_epoch(tiny, monkeypatch):
    "On drawn faces the history has the same numbers; the last epoch's are those of the end, and the first others."
    record = run(tiny(method="simfle", epochs=3, keep_epochs="1,2"))
    kept = [f"pretrained-{epoch:05d}.safetensors" for epoch in (1, 2)]
    assert {*kept} < record.metrics.weights.keys() and kept_of(record, PRETRAINED) == [1, 2] == kept_of(record)
    assert not same_files(record, *kept) and verify(record)
    faces, rows = faces_to_show(RunConfig(**record.config), landmarks=True)
    hits = mask_hits(record)
    columns = [f"{of}_{region}" for of in ("hit", "centre_hit") for region in ("eyes", "mouth", "all")]
    assert hits["epoch"].tolist() == [1, 2, 3] and {*columns, "hit_chance"} <= {*hits} & {*record.history}
    assert all(record.history[c].nunique() == 1 for c in columns if c.startswith("centre")), "the faces' alone"
    assert not np.array_equal(masks_of(record, faces, rows, 1), masks_of(record, faces, rows))
    with pytest.raises(BenchError, match="kept no weights of epoch 3, but 1, 2"): masks_of(record, faces, rows, 3)
    scores = look_masks(record)
    assert set(scores["masks"]) == {"kept", "of another face", "random", "centre"}
    means = scores.groupby(["masks", "region"])["hit"].mean()
    assert means["kept", "eyes"] == pytest.approx(hits["hit_eyes"].iloc[-1])
    assert len(scores[scores["masks"] == "kept"].assign(c=scores.hit - scores.gain)["c"].round(9).unique()) == 1
    table = mask_table(scores)
    assert list(table)[1:4] == ["kept", "over chance", "over of another face"] and len(table) == 6
    (record.folder/"pretrained.safetensors").unlink()
    assert look_masks(record).equals(scores), "read from the table"

def same_files(record, *names): return len({(record.folder/name).read_bytes() for name in names}) == 1
def verify(record): return check_record(record.id, {p: (record.folder/p).read_bytes() for p in PARTS})

@pytest.mark.parametrize("text, epochs, found", [
    ("", 5, []), ("3", 5, [3]), ("4,2,2", 5, [2, 4]), ("every 2", 5, [2, 4]), ("every 1", 3, [1, 2, 3]),
    *[(text, 5, None) for text in ("6", "0", "every 0", "every 6", "2, 4", "every two", "1,", "-1")]])
def test_which_epochs_are_kept(text, epochs, found):
    if found is not None: assert kept_epochs(text, epochs) == found
    else:
        with pytest.raises(BenchError, match=f"give epochs from 1 to {epochs}"): kept_epochs(text, epochs)
        with pytest.raises(BenchError, match="keep_epochs"): RunConfig(preset="tiny", epochs=epochs, keep_epochs=text)

def test_a_probe_keeps_no_epoch():
    with pytest.raises(BenchError, match="'keep_epochs' is for other methods"):
        RunConfig(method="linear_probe", keep_epochs="1")
    assert baseline(RunConfig(method="byol", keep_epochs="1"), "linear_probe").keep_epochs == ""

@pytest.mark.parametrize("init, found", [
    ("run:byol-x-s0-1@12", ("byol-x-s0-1", 12)), ("run:a@b", ("a@b", None)), ("run:a", ("a", None)),
    ("scratch", ("", None)), ("weights@3", ("", None)), ("run:@3", ("", 3))])
def test_what_a_start_names(init, found): assert start_run(init) == found

def test_labels_of_a_supervised_pretraining(tiny):
    "It sees the labelled faces alone, and no pool."
    record = run(tiny(method="supcon", labels_per_class=1))
    assert record.metrics.pool is None and record.metrics.labelled_seen == record.metrics.images_seen == 4 * 8
    assert record.metrics.probe.kind == "linear" and record.metrics.kind == "self-supervised"

def test_all_training_faces_and_no_label(tiny):
    config = tiny(method="byol", labels_per_class=1)
    faces = load_data(config)
    split = split_data(config, faces)
    assert len(make_pool(config, faces, split)) == len(split.labelled) + len(split.unlabelled)

@pytest.fixture
def pretrained(tiny): return run(tiny(method="simfle"))

def test_another_run_starts_from_it(tiny, pretrained):
    "The probe keeps every bit of the backbone; a supervised run and dtm start from it; a random one is another run."
    init = dict(init=f"run:{pretrained.id}", min_map=4)
    for kind in ("linear", "sgd"):
        probe = run(tiny(method="linear_probe", probe=kind, labels_per_class=1, **init))
        assert same_backbone(pretrained, probe) and probe.metrics["loaded"]["missing"] == []
        assert probe.metrics["images_seen"] == pretrained.metrics["images_seen"] == 4 * 8, "what the pretraining saw"
        assert probe.metrics["labelled_seen"] == 0 and len(probe.history) == (1 if kind == "linear" else 100)
    random = run(tiny(method="linear_probe"))
    assert not same_backbone(pretrained, random) and random.id != run(tiny(method="linear_probe", **init)).id
    for name in ("supervised", "dtm"):
        record = run(tiny(method=name, **init))
        assert record.metrics["loaded"]["matched"] > 50 and not same_backbone(pretrained, record)
        own = 4 * 8 * (1 + (record.config["mu"] or 0))
        assert record.metrics["images_seen"] == 4 * 8 + own and record.metrics["labelled_seen"] == 4 * 8
    again = run(tiny(method="linear_probe", init=f"run:{record.id}", min_map=4))
    assert again.metrics["images_seen"] == record.metrics["images_seen"] > 4 * 8, "two starts, one behind the other"

def test_labels_that_choose_the_penalty(tiny):
    "All labels: validation faces. A budget: the labelled faces themselves, whatever labels the validation faces have."
    full, few, none = (run(tiny(method="linear_probe", labels_per_class=k)).metrics.probe for k in (None, 2, 1))
    assert full.chosen_by == "validation faces" and few.chosen_by == none.chosen_by == "cross-validation"
    assert none.strength == 10 and set(none.val_WAR.values()) == {0}

def test_a_random_backbone_has_calibrated_norms_and_a_trained_one_keeps_its_own(tiny, pretrained):
    stats = lambda record: {n: v for n, v in weights(record).items() if n.endswith("running_var")}
    random = stats(run(tiny(method="linear_probe")))
    assert len(random) > 3 and all((v != 1).all() for v in random.values())
    few = stats(run(tiny(method="linear_probe", labels_per_class=1)))
    assert all(np.array_equal(v, few[n]) for n, v in random.items()), "the same training faces, with and without labels"
    kept = stats(run(tiny(method="linear_probe", init=f"run:{pretrained.id}", min_map=4)))
    assert all(np.array_equal(v, kept[n]) for n, v in stats(pretrained).items())

@pytest.mark.parametrize("name", ["weights.safetensors", "pretrained.safetensors"])
def test_weights_of_another_run_are_refused(tiny, pretrained, name):
    other = run(tiny(method="simfle", seed=1))
    assert pretrained.metrics.weights.keys() == {"weights.safetensors", "pretrained.safetensors"}
    load = {"weights.safetensors": load_classifier, "pretrained.safetensors": load_pretrained}[name]
    load(pretrained)
    (pretrained.folder/name).write_bytes((other.folder/name).read_bytes())
    with pytest.raises(BenchError, match="is not the file that run"): load(pretrained)
    if name == "weights.safetensors":
        with pytest.raises(BenchError, match="is not the file that run"):
            run(tiny(init=f"run:{pretrained.id}", min_map=4))

@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tiny, value):
    "Also in a record of before the weights were sealed, whose file only says what it holds."
    record = run(tiny())
    path, facts = record.folder/"weights.safetensors", json.loads((record.folder/"metrics.json").read_text())
    values = load_file(path)
    values["head.bias"][0] = value
    save_file(values, path)
    write_metrics(record.folder, **{n: v for n, v in facts.items() if n != "weights"})
    write_status(record.folder, "finished")
    with pytest.raises(BenchError, match="NaN or infinite, such as in 'head.bias'"):
        load_classifier(Record(record.folder))

def test_what_it_pretrained_comes_back(pretrained):
    "Heads and FaceMAE as they were; their maps and reconstructions as pictures; scores at the landmarks of the faces."
    seen = load_pretrained(pretrained).explain(torch.rand(3, 3, 32, 32), torch.tensor([0, 5, 31]))
    for name in ("face", "map", "kept", "reconstructed"):
        assert seen[name].shape == (3, 3, 32, 32) and 0 <= seen[name].min() <= seen[name].max() <= 1
    kept = seen["mask"] == 0
    assert kept.sum(1).tolist() == [4, 4, 4]
    assert (seen["kept"] != 0.5).any(1).unfold(1, 8, 8).unfold(2, 8, 8).flatten(3).any(3).flatten(1).equal(kept)
    assert pretrained.history[["hit_all", "hit_chance", "hit_mouth"]].map(lambda v: 0 <= v <= 1).all(axis=None)
    assert (pretrained.history["val_reconstruction"] > 0).all()
    (pretrained.folder/"pretrained.safetensors").unlink()
    with pytest.raises(BenchError, match="travel without weights"): load_pretrained(pretrained)

def test_probe_of_the_same_labels_is_that_of_the_pretraining(tiny, pretrained):
    again = run(tiny(method="linear_probe", init=f"run:{pretrained.id}"))
    np.testing.assert_array_equal(*(np.stack(r.predictions["logits"]) for r in (again, pretrained)))

PAPER = [("affectnet", "affectnet-8"), ("affectnet-csv", "affectnet-7"), ("ferplus", "ferplus"), ("sfew", "sfew")]

@pytest.mark.parametrize("layout, dataset", [
    ("raf-db", "raf-db"), *(pytest.param(*names, marks=pytest.mark.nightly) for names in PAPER)])
def test_paper_preset_on_fake_trees(tiny, tmp_path, layout, dataset):
    "Two steps of the paper's settings, but for the widths that two cores cannot carry in a test."
    config = RunConfig(method="simfle", preset="paper", dataset=dataset, data_root="x")
    assert (config.backbone, config.image_size, config.batch_size) == ("resnet50", 224, 256)
    assert (config.epochs, config.facemae) == (100, "base")
    assert (config.lr, config.weight_decay, config.clip_grad, config.momentum) == (0.05, 1e-4, 0, 0.99)
    assert (config.proj_hidden, config.proj_dim) == (4096, 256)
    root = fake(layout, tmp_path/"faces", faces_per_class=4)
    small = dict(batch_size=2, backbone="resnet18", facemae="tiny", proj_hidden=64, image_size=112, epochs=1,
                 steps_per_epoch=2)
    assert run(tiny(method="simfle", preset="paper", dataset=dataset, data_root=str(root), **small)).finished

def test_baselines_of_a_pretraining(tiny):
    simfle = tiny(method="simfle", labels_per_class=1)
    for name in ("byol", "linear_probe", "supervised", "dtm"):
        other = baseline(simfle, name)
        assert other.min_map == 4 and other.labels_per_class == 1 and other.backbone == simfle.backbone
    assert baseline(simfle).ema == 0.999 and baseline(simfle, "byol").ema == 0 and not baseline(simfle).options

@pytest.mark.parametrize("fields, says", [
    (dict(groups=7), "do not divide|no multiple|divide"), (dict(mask_ratio=0.999), "keep"),
    (dict(mask_ratio=1.0), "'mask_ratio'"),
    (dict(patch_size=7), "multiple"), (dict(min_map=0), "min_map=4"), (dict(backbone="test_vit", min_map=0), "map|CNN"),
    (dict(backbone="test_vit"), "map|CNN"), (dict(batch_size=1), "'batch_size' = 1"),
    (dict(method="mae", backbone="test_resnet"), "FaceMAE"),
    (dict(method="mocov2", queue=4), "shorter than a batch"),
    (dict(method="supervised", groups=16), "'groups' is for other methods"),
    (dict(method="byol", policy="fixed"), "'policy' is for other methods"),
    (dict(method="linear_probe", init="run:none"), "finished run"),
    (dict(batch_size=64), "fewer than the 64 of a step"),
], ids=lambda v: str(v)[:40])
def test_bad_choices(tiny, fields, says):
    with pytest.raises(BenchError, match=says): run(tiny(**{"method": "simfle", **fields}))
    assert load_runs(tiny().results_dir) == []

def test_start_from_a_run_that_does_not_fit(tiny, pretrained):
    with pytest.raises(BenchError, match="min_map=4"): run(tiny(init=f"run:{pretrained.id}"))
    with pytest.raises(BenchError, match="backbone='test_resnet'"):
        run(tiny(init=f"run:{pretrained.id}", backbone="resnet10t", min_map=4))
    (pretrained.folder/"weights.safetensors").unlink()
    with pytest.raises(BenchError, match="travel without weights"): run(tiny(init=f"run:{pretrained.id}", min_map=4))

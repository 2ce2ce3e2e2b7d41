"""Weights files: each style of names arrives value for value, what does not fit as a whole is refused, no code runs."""
import argparse
import io
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from fer_bench import RunConfig, export, load_model, run
from fer_bench.config import NORMALISE, normalisation, run_id
from fer_bench.core import BenchError, read_json
from fer_bench.models.backbones import create_backbone, create_classifier, create_cnn
from fer_bench.models.weights import ArrayUnpickler, load_weights, read_weights
from fer_bench.report.names import called, run_names
from fer_bench.report.tables import compare, notes


def network(name: str = "test_resnet", **kwargs) -> nn.Module: return timm.create_model(name, num_classes=0, **kwargs)

def state_of(net: nn.Module) -> dict: return {k: torch.rand_like(v) if v.is_floating_point() else v
                                              for k, v in net.state_dict().items()}

def under(prefix: str, state: dict) -> dict: return {prefix + name: v for name, v in state.items()}

def arrived(state: dict, net: nn.Module) -> bool:
    return all(torch.equal(v, state[name]) for name, v in net.state_dict().items())

# wrong networks

def insightface() -> dict:
    "IResNet: named as a ResNet, with a third batch norm in each block and a small first convolution."
    state = torchvision.models.resnet34().state_dict()
    norms = {n.replace("bn2", "bn3"): v for n, v in state.items() if ".bn2." in n}
    return state | norms | {"conv1.weight": state["conv1.weight"][..., :3, :3]}

def few_layers() -> dict:
    state = torchvision.models.resnet18().state_dict()
    return {n: v for n, v in state.items() if "bn" in n or n.startswith("layer1")}

WRONG = [("resnet50", "resnet18"), ("resnet101", "resnet50"), ("resnet50", "resnet101"), ("resnet34", "resnet18"),
         ("resnet18", "resnet34"), ("wide_resnet50_2", "resnet50"), ("resnext50_32x4d", "resnet50"),
         ("densenet169", "densenet121"), ("mobilenet_v3_large", "mobilenetv2_100"), ("vgg19", "vgg16"),
         ("vgg16_bn", "vgg16"),
         ("vit_b_16", "vit_base_patch16_224"), (insightface, "resnet34"), (few_layers, "resnet18"),
         ("timm:swin_small_patch4_window7_224", "swin_tiny_patch4_window7_224"),
         ("timm:deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"),
         ("timm:seresnet50", "resnet50"), ("timm:resnet50d", "resnet50")]

@pytest.mark.parametrize("theirs, ours", WRONG, ids=lambda x: getattr(x, "__name__", x))
def test_wrong_networks_are_refused(theirs, ours):
    with torch.device("meta"):  # only names and shapes
        if callable(theirs): state = theirs()
        elif theirs.startswith("timm:"): state = timm.create_model(theirs.removeprefix("timm:")).state_dict()
        else: state = torchvision.models.get_model(theirs).state_dict()
        net = network(ours)
    with pytest.raises(BenchError, match="does not fit the backbone.*Set backbone to the network that the file is of"):
        load_weights(net, state, "w.pt")

@pytest.mark.parametrize("theirs, ours", [("resnet18", "resnet18"), ("resnet50", "resnet50"),
                                          ("densenet121", "densenet121"), ("regnet_y_400mf", "regnety_004")])
def test_torchvision_files_of_the_right_network(theirs, ours):
    "Names differ in DenseNet and RegNet: timm's own conversion is used."
    state, net = torchvision.models.get_model(theirs).state_dict(), network(ours)
    report = load_weights(net, state, "w.pt")
    assert report["missing"] == [] and report["matched"] == len(net.state_dict())
    assert all(name.startswith(("fc.", "classifier.", "head.fc.")) for name in report["unused"])

@pytest.mark.parametrize("theirs, ours", [("mobilenet_v2", "mobilenetv2_100"), ("vgg11", "vgg11")])
def test_numbered_tensors_are_paired_in_their_order(theirs, ours):
    "torchvision's MobileNetV2 numbers all its layers. The maps agree, so every tensor is at its place."
    net, source = network(ours).eval(), torchvision.models.get_model(theirs).eval()
    for m in source.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.uniform_(m.weight), nn.init.uniform_(m.running_mean)
    load_weights(net, source.state_dict(), "w.pt", partial=False)
    face = torch.rand(1, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(net.forward_features(face)[..., :2, :2],
                                                     source.features(face)[..., :2, :2], rtol=1e-3, atol=1e-4)

def renamed(state: dict) -> dict:
    "Other names for all tensors, in the same order, and a classifier at the end."
    theirs = {n: "_".join(part for part in n.split(".")[:-1] if not part.isdigit()) for n in state}
    theirs = {f"_{theirs[n]}.{i}.{n.rpartition('.')[2]}": v for i, (n, v) in enumerate(state.items())}
    return theirs | {"_fc.weight": torch.rand(8, 4), "_fc.bias": torch.rand(8)}

def test_tensors_of_other_names_are_paired_in_their_order():
    net = create_cnn("tf_efficientnet_lite0", 64, 1)
    state = state_of(net)
    facts = load_weights(net, renamed(state), "w.pt")
    assert arrived(state, net) and (facts["missing"], facts["unused"]) == ([], ["_fc.bias", "_fc.weight"])

def test_names_count_before_the_order():
    "Two convolutions of one shape, the second first in the file: by their order they would change places."
    net, state = network("resnet18"), state_of(network("resnet18"))
    swap = {f"layer1.0.conv{i}.weight": f"layer1.0.conv{3 - i}.weight" for i in (1, 2)}
    other = lambda name: swap.get(name, name)
    turned = {other(name): state[other(name)] for name in state}
    assert [*turned] != [*state] and [v.shape for v in turned.values()] == [v.shape for v in state.values()]
    turned |= {"fc.weight": torch.rand(8, 4), "fc.bias": torch.rand(8)}
    facts = load_weights(net, under("module.", turned), "w.pt")
    assert arrived(state, net) and (facts["prefix"], facts["unused"]) == ("module.", ["fc.bias", "fc.weight"])

@pytest.mark.parametrize("spoil", [
    lambda s: dict(sorted(s.items())), lambda s: s | {"_more.weight": torch.rand(4)},
    lambda s: {n: v for n, v in s.items() if n != [*s][7]}, lambda s: s | {[*s][0]: torch.rand(5, 5)}],
    ids=["sorted", "one more", "one less", "another shape"])
def test_other_names_in_another_order_are_refused(spoil):
    net = network()
    with pytest.raises(BenchError): load_weights(net, spoil(renamed(state_of(net))), "w.pt")

# styles of names

def children(state: dict) -> dict:
    "As `nn.Sequential(*net.children())` calls them; children without tensors have a number too."
    tops = [n for n, _ in network().named_children()]
    return {f"{tops.index(name.partition('.')[0])}.{name.partition('.')[2]}": v for name, v in state.items()}

def nested_children(state: dict) -> dict:
    "As children of two `nn.Sequential`: stem and stages."
    tops = dict.fromkeys(n.partition(".")[0] for n in state)
    place = {top: f"0.{i}" if i < len(tops) - 4 else f"{i}" for i, top in enumerate(tops)}
    return {f"{place[name.partition('.')[0]]}.{name.partition('.')[2]}": v for name, v in state.items()}

STYLES = {
    "plain": lambda s, o: s,
    "data parallel": lambda s, o: {"state_dict": under("module.", s), "epoch": 3},
    "compiled": lambda s, o: under("_orig_mod.", s),
    "DDP, compiled": lambda s, o: {"model": under("module._orig_mod.", s)},
    "module.encoder": lambda s, o: {"model": under("module.encoder.", s) | {"module.head.0.weight": torch.rand(4, 4)}},
    "MoCo": lambda s, o: {"state_dict": under("module.encoder_k.", o) | under("module.encoder_q.", s)
                          | {"module.queue": torch.rand(4, 8), "module.encoder_q.fc.0.weight": torch.rand(4, 4)}},
    "MoCo v3": lambda s, o: {"state_dict": under("module.base_encoder.", s) | under("module.momentum_encoder.", o)},
    "BYOL": lambda s, o: under("online_encoder.net.", s) | under("target_encoder.net.", o),
    "online": lambda s, o: under("online_network.encoder.", s) | under("target_network.encoder.", o),
    "SimFLE": lambda s, o: under("online_network.encoder.", children(s)) | under("target_network.encoder.", children(o))
                           | {"online_network.projetion.net.0.weight": torch.rand(4, 4)},
    "lightly": lambda s, o: {"state_dict": under("backbone_momentum.", o) | under("backbone.", s)},
    "momentum_backbone": lambda s, o: under("momentum_backbone.", o) | under("backbone.", s),
    "Sequential": lambda s, o: under("backbone.", children(s)),
    "features": lambda s, o: under("features.", children(s)) | {"classifier.weight": torch.rand(8, 4)},
    "Sequential of Sequentials": lambda s, o: nested_children(s),
    "DINO": lambda s, o: {"student": under("module.backbone.", o), "teacher": under("backbone.", s), "epoch": 1},
    "nested": lambda s, o: {"backbone": dict(s), "head": {"weight": torch.rand(3)}},
    "nested twice": lambda s, o: {"net": {"encoder": OrderedDict(s)},
                                  "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "average": lambda s, o: {"model": o, "model_ema": s},
    "average, dotted": lambda s, o: under("model.", o) | under("ema.module.", s),
    "timm's average": lambda s, o: {"state_dict": o, "state_dict_ema": s, "args": argparse.Namespace(lr=0.1)},
    "the same twice": lambda s, o: under("a.", s) | under("b.", s),
    "without counters": lambda s, o: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
}

@pytest.mark.parametrize("style", STYLES)
def test_each_style_of_names_arrives(style, tmp_path):
    net, state, other = network(), state_of(network()), state_of(network())
    torch.save(STYLES[style](state, other), tmp_path/"w.pt")
    report = load_weights(net, read_weights(tmp_path/"w.pt"), "w.pt")
    assert arrived(state, net) and report["missing"] == [] and report["matched"] >= len(state) - 30
    copies = any(word in style for word in ("MoCo", "BYOL", "online", "SimFLE", "mom", "lightly", "DINO", "average"))
    assert bool(report["passed_over"]) == copies

@pytest.mark.parametrize("write", [lambda s, p: save_file(s, p), lambda s, p: torch.save(s, p),
                                   lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False)],
                         ids=["safetensors", "zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_formats_are_known_by_their_content(write, name, tmp_path):
    state, net = state_of(network()), network()
    write(under("module.", children(state)), tmp_path/name)
    load_weights(net, read_weights(tmp_path/name), name)
    assert arrived(state, net)

def test_two_equal_copies_without_a_rule_are_refused():
    state = under("model.", state_of(network())) | under("net.", state_of(network()))
    with pytest.raises(BenchError, match="more than once, with other values: under 'model.' and 'net.'. Save the one"):
        load_weights(network(), state, "w.pt")

def test_numbered_children_of_another_order_are_refused():
    "Blocks of the same shapes as the backbone's, but in a sorted file: 10 before 2."
    class Plain(nn.Sequential): pass
    net = nn.ModuleDict({"stem": nn.Linear(4, 4), "body": Plain(*[nn.Linear(4, 4) for _ in range(12)])})
    state = {f"{i // 2}.{i % 2}.{n}": torch.rand(4, 4) if n == "weight" else torch.rand(4) for i in range(13)
             for n in ("weight", "bias")}
    load_weights(net, state, "w.pt")
    assert torch.equal(net["body"][11].weight, state["6.0.weight"])
    shuffled = dict(sorted(state.items(), key=lambda item: item[0], reverse=True))
    with pytest.raises(BenchError, match="does not fit"): load_weights(net, shuffled, "w.pt")

# values

@pytest.mark.parametrize("spoil, says", [
    (lambda v: v.fill_(float("nan")), r"not finite .* in 1 of \d+ tensors \(conv1.weight\)"),
    (lambda v: v.view(-1)[5:6].fill_(float("inf")).view(1), "not finite"), (lambda v: v.to(torch.int8), "1 of its")])
@pytest.mark.parametrize("partial", [False, True])
def test_values_that_are_no_weights(spoil, says, partial):
    state = state_of(network("resnet10t", stem_type=""))
    out = spoil(state["conv1.weight"])
    if not out.is_floating_point(): state["conv1.weight"], partial = out, False
    with pytest.raises(BenchError, match=says):
        load_weights(network("resnet10t", stem_type=""), state, "w.pt", partial)

def test_spoilt_values_of_a_head_do_not_matter():
    state = state_of(network())
    load_weights(network(), state | {"fc.weight": torch.full((3, 3), float("nan"))}, "w.pt")

def test_half_precision_arrives_rounded():
    state, net = state_of(network()), network()
    load_weights(net, {n: v.half() if v.is_floating_point() else v for n, v in state.items()}, "w.pt")
    for n, v in net.state_dict().items(): assert torch.equal(v, state[n].half().float().to(v.dtype))

def test_partial_loads_what_fits_and_counts_the_rest():
    state, net = state_of(network()), network()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    part = {n: v for n, v in under("m.", state).items() if "layer4" not in n}
    with pytest.raises(BenchError, match="does not fit.*under 'm.'.*init_partial=True"): load_weights(net, part, "w.pt")
    report = load_weights(net, part, "w.pt", partial=True)
    lacking = [n for n in state if "layer4" in n]
    assert report["missing"] == sorted(n for n in lacking if not n.endswith("num_batches_tracked"))
    for n, v in net.state_dict().items(): assert torch.equal(v, before[n] if n in lacking else state[n])
    with pytest.raises(BenchError, match="Nothing fits: the file calls its tensors a.b"):
        load_weights(net, {"a.b": torch.rand(3)}, "w.pt", partial=True)

# what timm converts

def test_position_embeddings_of_another_size():
    state, net = state_of(network("test_vit", img_size=64)), network("test_vit", img_size=96)
    report = load_weights(net, under("module.", state), "w.pt")
    grids = [network("test_vit", img_size=s).patch_embed.grid_size for s in (64, 96)]
    expected = resample_abs_pos_embed(state["pos_embed"], grids[1], grids[0], num_prefix_tokens=net.num_prefix_tokens)
    torch.testing.assert_close(net.pos_embed.data, expected)
    assert report["adapted"] == ["pos_embed"] and report["missing"] == []

def test_official_swin_files():
    "They shrink at the end of a stage, timm at the start of the next, and hold buffers that timm computes."
    small = dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    net = network("swin_tiny_patch4_window7_224", **small)
    state = state_of(network("swin_tiny_patch4_window7_224", **small))
    official = {n: v for n, v in state.items() if "downsample" not in n}
    official |= {n.replace(f"layers.{i}.", f"layers.{i - 1}."): v for n, v in state.items() for i in (1, 2, 3)
                 if f"layers.{i}.downsample" in n}
    official |= {"layers.0.blocks.0.attn.relative_position_index": torch.ones(49, 49),
                 "head.weight": torch.rand(9, 192)}
    report = load_weights(net, {f"model.{n}": v for n, v in official.items()}, "w.pt")
    assert arrived(state, net) and sum("downsample" in n for n in state) == 9 and report["missing"] == []

def test_a_first_convolution_of_grey_images():
    "A grey face, repeated to three channels, gives the response that the grey network gives."
    grey, net = network("resnet18", in_chans=1).eval(), network("resnet18").eval()
    report = load_weights(net, grey.state_dict(), "w.pt")
    face = torch.rand(2, 1, 64, 64)
    assert report["adapted"] == ["conv1.weight"]
    torch.testing.assert_close(net(face.expand(-1, 3, -1, -1)), grey(face), rtol=1e-4, atol=1e-5)

# files as people have them

def test_arguments_and_numpy_values_beside_the_weights(tmp_path):
    state, net = state_of(network()), network()
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1, at=[1, 2]), "best": np.float64(0.5),
                "epoch": np.int64(3), "seen": np.bool_(True), "curve": np.arange(3.0)}, tmp_path/"w.pt")
    load_weights(net, read_weights(tmp_path/"w.pt"), "w.pt")
    assert arrived(state, net)

class Python2(pickle._Pickler):
    "Writes byte strings as Python 2 did, as VGGFace2's files have them."
    dispatch = dict(pickle._Pickler.dispatch)
    def save_bytes(self, data): self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
    def save_text(self, text): self.save_bytes(text.encode("latin1"))
    dispatch[bytes], dispatch[str] = save_bytes, save_text

def python2(value) -> bytes:
    out = io.BytesIO()
    Python2(out, protocol=2).dump(value)
    return out.getvalue()

@pytest.mark.parametrize("dump", [python2, lambda v: pickle.dumps(v, 2), pickle.dumps], ids=["Python 2", "2", "newest"])
def test_pickles_of_numpy_arrays(dump, tmp_path):
    state, net = state_of(network()), network()
    arrays = {n: v.numpy() for n, v in state.items()} | {"fc.weight": np.asfortranarray(np.ones((3, 4), ">f4"))}
    (tmp_path/"w.pkl").write_bytes(dump(arrays))
    found = read_weights(tmp_path/"w.pkl")
    load_weights(net, found, "w.pkl")
    assert arrived(state, net) and torch.equal(found["fc.weight"], torch.ones(3, 4))

class Calls:
    def __init__(self, function, *given): self.call = function, given
    def __reduce__(self): return self.call

@pytest.mark.parametrize("value, name", [
    (Calls(subprocess.getoutput, "touch pwned"), "subprocess.getoutput"), (Calls(eval, "1"), "builtins.eval"),
    (Calls(np.fromfile, "x"), "numpy.fromfile"), (np.load, "numpy"), (Calls(np.memmap, "x", "u1", "w+"), "memmap"),
    ({"a": nn.Linear(1, 1)}, "torch"), (argparse.Namespace(a=1), "argparse.Namespace")])
def test_the_array_unpickler_admits_no_other_class(value, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=name): ArrayUnpickler(io.BytesIO(pickle.dumps(value))).load()
    (tmp_path/"w.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(BenchError, match=f"holds an object of .*{name}"): read_weights("w.pkl")
    assert not (tmp_path/"pwned").exists() and not (tmp_path/"x").exists()

def test_the_array_unpickler_makes_only_what_the_file_holds():
    "An array of 10^15 numbers is asked for, and a decompressing codec; both calls are ours and make nothing."
    from fer_bench.models import weights
    assert weights._empty_array(np.ndarray, (10**15,), b"b").size == 0
    with pytest.raises(pickle.UnpicklingError, match="zip"): weights._latin1("x", "zip")
    with pytest.raises(TypeError): ArrayUnpickler(io.BytesIO(pickle.dumps(Calls(np.ndarray, (10**15,))))).load()

def archive(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z: z.writestr(name, "x")
    return out.getvalue()

def scripted() -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.rand(1, 1)), out)
    return out.getvalue()

@pytest.mark.parametrize("content, says", [
    (b"", "is empty. Download it again"), (b" \n", "is empty"), (b"\n<!DOCTYPE html><html>", "it is a web page"),
    (b"<HTML lang=en>", "it is a web page"), (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 file, such as Keras"), (b"\x1f\x8b\x08", "Unpack it"),
    (b"7z\xbc\xaf'\x1c", "Unpack it"),
    (archive("a/model.pth"), r"is an archive \(a/model.pth, ...\). Unpack it"), (scripted, "is a TorchScript program"),
    (b"not weights", "cut off, damaged or of another format. Download it again"), (b"\x80\x04}", "cut off"),
    (b"PK\x03\x04" + b"0" * 99, "cut off")])
def test_a_file_that_is_no_weights_is_called_what_it_is(content, says, tmp_path):
    (tmp_path/"w.pt").write_bytes(content() if callable(content) else content)
    with pytest.raises(BenchError, match=says) as caught: read_weights(tmp_path/"w.pt")
    assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)

@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"args": argparse.Namespace(lr=1)}])
def test_a_checkpoint_without_tensors(value, tmp_path):
    torch.save(value, tmp_path/"w.pt")
    with pytest.raises(BenchError, match="holds no weights: there is no tensor in it"): read_weights(tmp_path/"w.pt")

@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", [nn.Linear(2, 2), {"hook": argparse.ArgumentParser}], ids=["a module", "code"])
def test_the_class_in_the_way_is_named(value, zipped, tmp_path):
    torch.save(value, tmp_path/"w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BenchError, match="holds an object of (torch.nn.modules.linear.Linear|argparse.ArgumentParser), "
                                         "and to load that would run code.*torch.save.model.state_dict") as caught:
        read_weights(tmp_path/"w.pt")
    assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)

def test_nested_dicts_end():
    "Dicts that hold themselves, or each other many times."
    from fer_bench.models.weights import _flat
    knot = {"w": torch.ones(1)}
    knot["self"] = knot
    bomb = {"w": torch.ones(1)}
    for _ in range(200): bomb = {"a": bomb, "b": bomb}
    assert list(_flat(knot, "x")) == ["w"] and len(_flat(bomb, "x")) == 1
    with pytest.raises(BenchError, match="two tensors called 'a.b'"):
        _flat({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "x")

# normalisation of the pixels

RGB = torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)

@pytest.mark.parametrize("name, expected", [
    ("", [(0.25 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
    ("imagenet", [(0.25 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225]), ("half", [-0.5, 0, 1]),
    ("arcface", [(v * 255 - 127.5) / 128 for v in (0.25, 0.5, 1)]),
    ("vggface2", [255 - 91.4953, 127.5 - 103.8827, 63.75 - 131.0912]),  # blue first
    ("simfle", [(0.25 - 0.5795) / 0.2769, (0.5 - 0.4522) / 0.2473, (1 - 0.3957) / 0.2412]),
    ("0,0,0,0.5,0.25,1", [0.5, 2, 1])])
def test_pixels_are_normalised_as_the_weights_were_trained(name, expected):
    net = create_classifier("resnet10t", 3, 32, normalise=name)[0]
    got = net.normalise(RGB)
    torch.testing.assert_close(got.flatten(), torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.denormalise(got), RGB, rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize("text", ["imagenet2", "0.5,0.5,0.5", "0,0,0,1,1,0", "0,0,0,1,1,-1", "nan,0,0,1,1,1", ",,,,,",
                                  "131,103,91,1,1,1"])
def test_what_is_no_normalisation(text):
    for ask in (normalisation, lambda t: RunConfig(normalise=t)):
        with pytest.raises(BenchError, match="normalise = .*give imagenet.*six numbers"): ask(text)

def test_defaults_leave_run_ids_as_they_were(monkeypatch):
    "Only another value than the default enters the id, so older records keep theirs."
    hashed = []
    monkeypatch.setitem(run_id.__globals__, "json_hash", lambda value: hashed.append(value[1]) or "0" * 64)
    for values in ({}, {"normalise": "half"}, {"init": "w.pt", "init_partial": True}):
        run_id(RunConfig(preset="tiny", **values), "d", "s", "i")
    new = [{n: v for n, v in shaping.items() if n in ("normalise", "init_partial")} for shaping in hashed]
    assert new == [{}, {"normalise": "half"}, {"init_partial": True}]
    with pytest.raises(BenchError, match="init_partial is for weights files"): RunConfig(init_partial=True)

# runs

def tiny(tmp_path, **values):
    return RunConfig(**{"preset": "tiny", "device": "cpu", "threads": 1, "results_dir": str(tmp_path/"results"),
                        "cache_dir": str(tmp_path/"cache")} | values)

def test_a_run_says_what_it_loaded_and_how_it_normalises(tmp_path, capsys):
    torch.manual_seed(0)
    state = {n: v for n, v in network().state_dict().items() if "layer4" not in n}
    torch.save(under("ema.", state), tmp_path/"w.pt")
    config = tiny(tmp_path, init=str(tmp_path/"w.pt"), init_partial=True, normalise="vggface2")
    with pytest.raises(BenchError, match="does not fit"): run(config.model_copy(update={"init_partial": False}))
    capsys.readouterr()
    record = run(config)
    loaded = record.metrics.loaded
    random = f"{len(loaded.missing)} of {loaded.matched + len(loaded.missing)} tensors random"
    assert f"Start weights: {tmp_path/'w.pt'}: {random}; from 'ema.' of the file" in capsys.readouterr().out
    assert compare([record])["method"].item() == called(record) == f"supervised from w ({random})"
    assert run_names([record])[0].startswith(f"supervised from w ({random}") and random in " ".join(notes([record]))
    assert record.metrics.pixels.channels == "BGR"
    assert record.metrics.pixels.mean == pytest.approx(NORMALISE["vggface2"][:3])
    folder = export(record, tmp_path/"model")
    facts, card = read_json(folder/"model.json"), (folder/"README.md").read_text()
    assert facts["normalise"] == "vggface2" and facts["channels"] == "BGR"
    assert "(mean 0.5141, 0.4074, 0.3588; std 0.003922, 0.003922, 0.003922; then blue first)" in card and random in card
    face = torch.rand(1, 3, 32, 32)
    net = load_model(folder)
    assert net.channels == "BGR" and torch.equal(net(face), load_model(record)(face))
    # runs that start from it
    again = tiny(tmp_path, method="linear_probe", min_map=0, init=f"run:{record.id}")
    with pytest.raises(BenchError, match="trained with normalise = 'vggface2', but this run has ''. Set normalise="):
        run(again)
    with pytest.raises(BenchError, match="another normalisation of the pixels. Set normalise="):
        run(tiny(tmp_path, init=str(folder/"model.safetensors")))
    probe = run(RunConfig(**again.model_dump() | {"normalise": "vggface2"}))
    assert probe.metrics.loaded.missing == [] and "init_partial" in probe.config

# networks that cannot be built or fetched

@pytest.mark.parametrize("make", [create_backbone, create_cnn])
@pytest.mark.parametrize("name, size", [("mvitv2_tiny", 48), ("twins_pcpvt_small", 112)])
def test_faces_that_a_network_cannot_take(make, name, size):
    with pytest.raises(BenchError, match=f"'{name}' cannot take faces of {size} px .*Choose another image_size"):
        make(name, size)

def test_pretrained_weights_without_network_are_asked_for_once(monkeypatch, capfd, caplog):
    "No retries, no waiting: one request, one sentence."
    import huggingface_hub
    asked = []
    class Dead:
        def head(self, url, timeout): asked.append(timeout) or (_ for _ in ()).throw(ConnectionError("no route"))
    monkeypatch.setattr(huggingface_hub, "get_session", Dead)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(BenchError, match="could not be fetched: they are not in this machine's cache, and https"):
        create_backbone("test_resnet", 32, pretrained=True)
    assert len(asked) == 1 and asked[0] <= 5 and before == huggingface_hub.constants.HF_HUB_OFFLINE
    assert capfd.readouterr() == ("", "") and not caplog.records

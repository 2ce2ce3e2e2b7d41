"""IResNet, IR, IR-SE and MobileFaceNet: files in each style of names, against plain forwards from the papers."""
import itertools

import numpy as np
import pytest
import torch
import torchvision

from fer_bench import export, run
from fer_bench.catalogue import BACKBONES, make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.evaluate.explain import class_maps, layer_name, target_layer
from fer_bench.models.backbones import create_backbone, create_classifier, create_cnn, map_size
from fer_bench.models.weights import load_weights

DEPTHS = {"iresnet18": (2, 2, 2, 2), "iresnet50": (3, 4, 14, 3), "ir18_bn": (2, 2, 2, 2), "ir50_bn": (3, 4, 14, 3),
          "ir50": (3, 4, 14, 3), "ir_se50": (3, 4, 14, 3)}
NAMES = [*DEPTHS, "mobilefacenet"]

# files: the names and shapes that the published ones are known by

class File(dict):
    "Name → random tensor, added layer by layer."
    def conv(self, name, out, before, kernel):
        fan_in = before * kernel**2
        self[f"{name}.weight"] = torch.randn(out, before, kernel, kernel) / fan_in**0.5

    def norm(self, name, width):
        for what in ("weight", "bias", "running_mean", "running_var"):
            self[f"{name}.{what}"] = torch.rand(width) + 0.5 * (what in ("weight", "running_var"))
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def slopes(self, name, width): self[f"{name}.weight"] = torch.rand(width) / 2

    def rest(self, **shapes):
        "Parts of the embedding; without memory, since they are not used."
        for name, shape in shapes.items(): self[name.replace("__", ".")] = torch.zeros(()).expand(shape)

def insightface(depths) -> File:
    f = File()
    f.conv("conv1", 64, 3, 3), f.norm("bn1", 64), f.slopes("prelu", 64)
    for stage, (before, width, n) in enumerate(zip((64, 64, 128, 256), (64, 128, 256, 512), depths, strict=True), 1):
        for i in range(n):
            at, c = f"layer{stage}.{i}", before if i == 0 else width
            f.norm(f"{at}.bn1", c), f.conv(f"{at}.conv1", width, c, 3), f.norm(f"{at}.bn2", width)
            f.slopes(f"{at}.prelu", width), f.conv(f"{at}.conv2", width, width, 3), f.norm(f"{at}.bn3", width)
            if i == 0: f.conv(f"{at}.downsample.0", width, c, 1), f.norm(f"{at}.downsample.1", width)
    f.norm("bn2", 512)
    f.rest(fc__weight=(512, 25088), fc__bias=(512,), features__weight=(512,), features__bias=(512,),
           features__running_mean=(512,), features__running_var=(512,))
    return f

def body(depths, norm: bool, squeeze: bool) -> File:
    f, unit = File(), 0
    f.conv("input_layer.0", 64, 3, 3), f.norm("input_layer.1", 64), f.slopes("input_layer.2", 64)
    for before, width, n in zip((64, 64, 128, 256), (64, 128, 256, 512), depths, strict=True):
        for i in range(n):
            at, c, numbers = f"body.{unit}.res_layer", before if i == 0 else width, itertools.count()
            f.norm(f"{at}.{next(numbers)}", c), f.conv(f"{at}.{next(numbers)}", width, c, 3)
            if norm: f.norm(f"{at}.{next(numbers)}", width)
            f.slopes(f"{at}.{next(numbers)}", width), f.conv(f"{at}.{next(numbers)}", width, width, 3)
            f.norm(f"{at}.{next(numbers)}", width)
            if squeeze: f.conv(f"{at}.5.fc1", width // 16, width, 1), f.conv(f"{at}.5.fc2", width, width // 16, 1)
            shortcut = f"body.{unit}.shortcut_layer"
            if c != width: f.conv(f"{shortcut}.0", width, c, 1), f.norm(f"{shortcut}.1", width)
            unit += 1
    f.norm("output_layer.0", 512)
    f.rest(output_layer__3__weight=(512, 25088), output_layer__3__bias=(512,), output_layer__4__weight=(512,),
           output_layer__4__bias=(512,), output_layer__4__running_mean=(512,), output_layer__4__running_var=(512,))
    return f

def mobile(more: int = 0) -> File:
    "`more`: bottlenecks in the longest row beyond the paper's six."
    f = File()
    def block(name, out, before, kernel, slopes=True):
        f.conv(f"{name}.conv", out, before, kernel), f.norm(f"{name}.bn", out)
        if slopes: f.slopes(f"{name}.prelu", out)
    def bottleneck(name, before, out, wide):
        block(f"{name}.conv", wide, before, 1), block(f"{name}.conv_dw", wide, 1, 3)
        block(f"{name}.project", out, wide, 1, slopes=False)
    block("conv1", 64, 3, 3), block("conv2_dw", 64, 1, 3), bottleneck("conv_23", 64, 64, 128)
    for i in range(4): bottleneck(f"conv_3.model.{i}", 64, 64, 128)
    bottleneck("conv_34", 64, 128, 256)
    for i in range(6 + more): bottleneck(f"conv_4.model.{i}", 128, 128, 256)
    bottleneck("conv_45", 128, 128, 512)
    for i in range(2): bottleneck(f"conv_5.model.{i}", 128, 128, 256)
    block("conv_6_sep", 512, 128, 1)
    f.rest(conv_6_dw__conv__weight=(512, 1, 7, 7), conv_6_dw__bn__weight=(512,), conv_6_dw__bn__bias=(512,),
           conv_6_dw__bn__running_mean=(512,), conv_6_dw__bn__running_var=(512,), linear__weight=(128, 512),
           bn__weight=(128,), bn__bias=(128,), bn__running_mean=(128,), bn__running_var=(128,))
    return f

def file_of(name: str) -> File:
    torch.manual_seed(0)
    if name == "mobilefacenet": return mobile()
    return (insightface(DEPTHS[name]) if name.startswith("iresnet") else
            body(DEPTHS[name], name.endswith("_bn"), "_se" in name))

UNUSED = ("fc.", "features.", "output_layer.3.", "output_layer.4.", "conv_6_dw.", "linear.", "bn.")

# plain forwards, float64: x is (B, C, h, w)

class Plain:
    "The layers as equations on the tensors of a file."
    def __init__(self, file): self.file = {k: v.numpy().astype(float) for k, v in file.items() if v.numel() < 1e7}

    def conv(self, x, name, stride=1):
        w = self.file[f"{name}.weight"]  # (O, C, k, k), or (C, 1, k, k): each channel by itself
        k = w.shape[-1]
        x = np.pad(x, ((0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2))
        h, v = ((side - k) // stride + 1 for side in x.shape[2:])
        total = 0
        for i, j in np.ndindex(k, k):
            cut = x[:, :, i:i + stride * (h - 1) + 1:stride, j:j + stride * (v - 1) + 1:stride]
            own = w.shape[1] == 1 and cut.shape[1] > 1
            total = total + (cut * w[:, 0, i, j, None, None] if own else
                             np.moveaxis(np.tensordot(w[:, :, i, j], cut, (1, 1)), 0, 1))
        return total

    def norm(self, x, name):
        scale, shift, mean, var = (self.file[f"{name}.{what}"][:, None, None]
                                   for what in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + shift

    def prelu(self, x, name): return np.maximum(x, 0) + self.file[f"{name}.weight"][:, None, None] * np.minimum(x, 0)

    def insightface(self, x, depths):
        x = self.prelu(self.norm(self.conv(x, "conv1"), "bn1"), "prelu")
        for at, stride in [(f"layer{s}.{i}", 2 if i == 0 else 1) for s, n in enumerate(depths, 1) for i in range(n)]:
            f = self.conv(self.norm(x, f"{at}.bn1"), f"{at}.conv1")
            f = self.prelu(self.norm(f, f"{at}.bn2"), f"{at}.prelu")
            f = self.norm(self.conv(f, f"{at}.conv2", stride), f"{at}.bn3")
            x = f + (self.norm(self.conv(x, f"{at}.downsample.0", 2), f"{at}.downsample.1") if stride == 2 else x)
        return self.norm(x, "bn2")

    def body(self, x, depths, norm, squeeze):
        x = self.prelu(self.norm(self.conv(x, "input_layer.0"), "input_layer.1"), "input_layer.2")
        strides = [2 if i == 0 else 1 for n in depths for i in range(n)]
        for unit, stride in enumerate(strides):
            at = f"body.{unit}.res_layer"
            f = self.conv(self.norm(x, f"{at}.0"), f"{at}.1")
            f = self.prelu(self.norm(f, f"{at}.2") if norm else f, f"{at}.{2 + norm}")
            f = self.norm(self.conv(f, f"{at}.{3 + norm}", stride), f"{at}.{4 + norm}")
            if squeeze:
                s = np.maximum(self.conv(f.mean((2, 3), keepdims=True), f"{at}.5.fc1"), 0)
                f = f / (1 + np.exp(-self.conv(s, f"{at}.5.fc2")))
            short = f"body.{unit}.shortcut_layer"
            wider = f"{short}.0.weight" in self.file
            x = f + (self.norm(self.conv(x, f"{short}.0", stride), f"{short}.1") if wider else
                     x[:, :, ::stride, ::stride])
        return self.norm(x, "output_layer.0")

    def block(self, x, name, stride=1):
        return self.prelu(self.norm(self.conv(x, f"{name}.conv", stride), f"{name}.bn"), f"{name}.prelu")

    def bottleneck(self, x, name, stride=1):
        f = self.block(self.block(x, f"{name}.conv"), f"{name}.conv_dw", stride)
        return self.norm(self.conv(f, f"{name}.project.conv"), f"{name}.project.bn")

    def mobile(self, x):
        x = self.block(self.block(x, "conv1", 2), "conv2_dw")
        for first, row, n in (("conv_23", "conv_3", 4), ("conv_34", "conv_4", 6), ("conv_45", "conv_5", 2)):
            x = self.bottleneck(x, first, 2)
            for i in range(n): x = x + self.bottleneck(x, f"{row}.model.{i}")
        return self.block(x, "conv_6_sep")

    def last_map(self, x, name):
        if name == "mobilefacenet": return self.mobile(x)
        if name.startswith("iresnet"): return self.insightface(x, DEPTHS[name])
        return self.body(x, DEPTHS[name], name.endswith("_bn"), "_se" in name)

@pytest.mark.parametrize("name", NAMES)
def test_a_file_arrives_and_the_network_is_the_papers(name, tmp_path):
    """Every tensor of the trunk value for value, the embedding named; then the map, its mean and the pixels.

    At an odd size, where each stride rounds up."""
    file = file_of(name)
    torch.save(dict(file), tmp_path/"backbone.pth")
    net, report = create_classifier(name, 7, 21, init=str(tmp_path/"backbone.pth"))
    left = {n for n in file if n.startswith(UNUSED)}
    assert net.backbone.state_dict().keys() == file.keys() - left and report["unused"] == sorted(left)
    assert all(torch.equal(v, file[n]) for n, v in net.backbone.state_dict().items())
    assert report["missing"] == report["adapted"] == report["passed_over"] == [] and report["prefix"] == ""
    images = torch.rand(2, 3, 21, 34, dtype=torch.float64)
    wanted = Plain(file).last_map((images.numpy() * 255 - 127.5) / 128, name)
    net = net.double().eval()
    net.mean.fill_(127.5 / 255), net.std.fill_(128 / 255)  # float32 numbers until here
    with torch.no_grad(): found, features = net.backbone.forward_features(net.normalise(images)), net.encode(images)
    assert found.shape == (2, 512, 2, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
    np.testing.assert_allclose(features, wanted.mean((2, 3)), rtol=1e-6, atol=1e-6 * np.abs(wanted).max())

def under(prefix, state): return {prefix + name: v for name, v in state.items()}

WRAPS = {
    "training script": lambda f: ({"state_dict": under("module.", f), "epoch": 3}, "state_dict.module."),
    "lightning": lambda f: ({"state_dict": under("model.", f), "head": torch.rand(9, 512)}, "state_dict.model."),
    "whole model": lambda f: (under("module.backbone.", f) | {"module.head.kernel": torch.rand(512, 9)},
                              "module.backbone."),
    "nested": lambda f: ({"backbone": dict(f), "header": {"weight": torch.rand(9, 512)}}, "backbone."),
    "trunk alone": lambda f: ({n: v for n, v in f.items() if not n.startswith(UNUSED)}, "")}

@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", ["iresnet18", "ir18_bn", "mobilefacenet"])
def test_wrapped_files_arrive(name, wrap, tmp_path):
    file = file_of(name)
    content, prefix = WRAPS[wrap](file)
    torch.save(content, tmp_path/"w.pth")
    net, report = create_classifier(name, 7, 48, init=str(tmp_path/"w.pth"))
    assert all(torch.equal(v, file[n]) for n, v in net.backbone.state_dict().items())
    assert report["missing"] == [] and report["prefix"] == prefix

def test_a_file_like_resnet18_msceleb(tmp_path):
    "torchvision's names, the classifier of the identities, in a state_dict: timm's resnet18, its own normalisation."
    state = torchvision.models.resnet18(num_classes=9).state_dict()
    torch.save({"state_dict": under("module.", state), "epoch": 1, "best": 0.5}, tmp_path/"resnet18_msceleb.pth")
    net, report = create_classifier("resnet18", 7, 112, init=str(tmp_path/"resnet18_msceleb.pth"))
    assert all(torch.equal(v, state[n]) for n, v in net.backbone.state_dict().items())
    assert report["missing"] == [] and report["unused"] == ["fc.bias", "fc.weight"]
    assert net.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])

DEEPER = {"iresnet100": lambda: insightface((3, 13, 30, 3)), "ir100": lambda: body((3, 13, 30, 3), False, False),
          "resnet18": lambda: torchvision.models.resnet18().state_dict(),
          "resnet50": lambda: torchvision.models.resnet50().state_dict(), "longer mobilefacenet": lambda: mobile(1)}
WRONG = [*itertools.permutations(["ir50", "ir50_bn", "ir_se50"], 2), ("iresnet18", "iresnet50"),
         ("iresnet50", "iresnet18"), ("iresnet100", "iresnet50"), ("ir100", "ir50"), ("iresnet50", "ir50_bn"),
         ("ir50_bn", "iresnet50"), ("ir18_bn", "ir50_bn"), ("ir50_bn", "ir18_bn"), ("iresnet18", "resnet18"),
         ("iresnet50", "resnet50"), ("resnet18", "iresnet18"), ("resnet50", "iresnet50"),
         ("mobilefacenet", "iresnet18"), ("longer mobilefacenet", "mobilefacenet")]

@pytest.mark.parametrize("theirs, ours", WRONG, ids=lambda x: x)
def test_files_of_another_network_are_refused(theirs, ours):
    with torch.device("meta"):  # only names and shapes
        state = DEEPER[theirs]() if theirs in DEEPER else file_of(theirs)
        net = BACKBONES[ours].load()(112) if ours in BACKBONES else getattr(torchvision.models, ours)()
    if ours.startswith("resnet"): del net.fc
    with pytest.raises(BenchError, match="does not fit the backbone.*Set backbone to the network that the file is of"):
        load_weights(net, state, "w.pth")

# counts of the literature, with the embedding that is not here

@pytest.mark.parametrize("name, trunk, whole", [("iresnet18", 11.2, 24.0), ("iresnet50", 30.7, 43.6),
                                                ("ir50", 30.7, 43.6), ("mobilefacenet", 0.9, 1.0)])
def test_counts_of_weights(name, trunk, whole):
    count = sum(p.numel() for p in create_backbone(name, 112).parameters())
    embedding = 512 * 49 + 1024 + 512 * 128 + 256 if name == "mobilefacenet" else 25088 * 512 + 512 + 1024
    assert round(count / 1e6, 1) == trunk and round((count + embedding) / 1e6, 1) == whole

# as backbones

@pytest.mark.parametrize("name", ["iresnet18", "ir18_bn", "mobilefacenet"])
def test_sizes(name):
    "Half a side at each of four strides, rounded up; the message where that is too coarse."
    net = create_cnn(name, 49, min_map=4)
    assert [map_size(net, name, size)[0] for size in (112, 64, 48, 33, 16, 15, 1)] == [7, 4, 3, 3, 1, 1, 1]
    with pytest.raises(BenchError, match=f"'{name}' makes a map of 3 × 3 cells from a face of 48 px; 4 × 4 are needed"):
        create_cnn(name, 48, min_map=4)
    with pytest.raises(BenchError, match="no pretrained weights for"): create_cnn(name, 48, pretrained=True)

@pytest.mark.parametrize("name", NAMES)
def test_stages_and_heat_maps(name):
    "Each stage has the cells that its entry says; the last one's Grad-CAM is the class-activation map."
    torch.manual_seed(0)
    net, _ = create_classifier(name, 3, 64)
    torch.nn.init.normal_(net.head.weight)
    seen, images, backbone = {}, torch.rand(2, 3, 64, 64), net.eval().backbone
    for stage in backbone.feature_info:
        backbone.get_submodule(stage["module"]).register_forward_hook(
            lambda _m, _i, out, module=stage["module"]: seen.update({module: tuple(out.shape)}))
    with torch.no_grad(): last = backbone.forward_features(net.normalise(images))
    assert seen == {s["module"]: (2, s["num_chs"], *[64 // s["reduction"]] * 2) for s in backbone.feature_info}
    assert target_layer(net, 64) is backbone.get_submodule(backbone.feature_info[-1]["module"])
    assert layer_name(net, 48).endswith("(6 x 6)")  # the last stage has 3 × 3 cells there
    wanted = torch.einsum("kc,bchw->bkhw", net.head.weight.detach(), last)[torch.arange(2), [0, 2]].relu() / 16
    wanted = torch.nn.functional.interpolate(wanted[:, None], (64, 64), mode="bilinear")[:, 0]
    np.testing.assert_allclose(class_maps(net, images, [0, 2], scaled=False), wanted, atol=1e-5 * float(wanted.max()))

@pytest.mark.parametrize("name", NAMES)
def test_random_weights_have_features(name):
    "A probe of a network before any training needs numbers of a usual size."
    torch.manual_seed(0)
    with torch.no_grad(): features = create_backbone(name, 64).eval()(torch.randn(4, 3, 64, 64))
    assert 1e-3 < features.std() < 10

@pytest.mark.parametrize("method", ["eac", "simfle"])
@pytest.mark.parametrize("name", ["iresnet18", "ir18_bn", "mobilefacenet"])
def test_methods_that_need_a_map(name, method):
    "Their loss and gradients are finite in bf16, for a map of 4 × 4 cells."
    torch.manual_seed(0)
    config = RunConfig(method=method, preset="tiny", backbone=name, image_size=64, min_map=4)
    made = make_method(config, create_classifier(name, 3, 64, min_map=4)[0], [4, 4, 4], 8).train()
    batch = {role: [torch.rand(4, 3, 64, 64) for _ in views] for role, views in made.views.items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = made(batch | {"targets": torch.arange(4) % 3, "step": 0, "progress": 0.5, "index": torch.arange(4)})
    loss.backward()
    grads = [p.grad for p in made.net.backbone.parameters()]
    assert loss.isfinite() and all(g is not None and g.isfinite().all() and g.dtype == torch.float32 for g in grads)

# a run from a file, and its export

@pytest.mark.parametrize("name", ["mobilefacenet", *(pytest.param(name, marks=pytest.mark.nightly)
                                                    for name in ("ir_se50", "ir50_bn", "iresnet50"))])
def test_a_run_from_a_file_and_its_onnx(tiny, tmp_path, name):
    "The plain command: --backbone NAME --init backbone.pth. `export` itself compares ONNX to 1e-4."
    for package in ("onnx", "onnxscript"): pytest.importorskip(package)
    torch.save({"state_dict": under("module.", file_of(name))}, tmp_path/"backbone.pth")
    record = run(tiny(backbone=name, init=str(tmp_path/"backbone.pth")))
    assert record.finished and record.metrics.loaded.missing == [] and record.metrics.pixels.channels == "RGB"
    assert record.metrics.pixels.mean == pytest.approx([0.5] * 3)
    assert record.metrics.pixels.std == pytest.approx([128 / 255] * 3)
    assert all(n.startswith(UNUSED) for n in record.metrics.loaded.unused)
    assert (export(record, tmp_path/"model", onnx=True)/"model.onnx").stat().st_size > 1e6

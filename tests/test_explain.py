"""Maps against plain hooks and backward passes, and against the package; explaining leaves nothing behind."""
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fer_bench.catalogue import find_method
from fer_bench.core import BenchError
from fer_bench.evaluate.explain import (
    KINDS,
    activation_maps,
    attention_rollout,
    class_maps,
    grad_cam,
    group_maps,
    layer_name,
    map_layers,
    target_layer,
)
from fer_bench.models.backbones import create_classifier
from fer_bench.models.facemae import FaceEncoder


class Classifier(nn.Module):
    "As ours looks from outside: normalisation, a backbone, a head."
    def __init__(self, backbone="test_resnet", classes=4, seed=1, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = (FaceEncoder(32, 8, 32, 3, 2) if backbone == "facemae" else
                         timm.create_model(backbone, num_classes=0, **options))
        self.head = nn.Linear(self.backbone.num_features, classes)
        nn.init.normal_(self.head.weight, std=3)  # maps of some size, since they are compared before any scaling

    def forward(self, images): return self.head(self.backbone((images - 0.5) / 0.25))


def faces(n=3, size=32): return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))
def squares(tokens, first=1): return tokens[:, first:].transpose(1, 2).unflatten(-1, (2, 2) if first else (4, 4))
def larger(maps, size=32): return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)

def close(found, expected, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), atol=atol, rtol=0)

def stretch(x):
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-12)

NETWORKS = {  # name: (classifier, the layer looked at, its output as maps)
    "resnet": (lambda: Classifier("test_resnet"), lambda b: b.layer2, lambda x: x),
    "convnext": (lambda: Classifier("test_convnext"), lambda b: b.stages[1], lambda x: x),
    "vit, class token": (lambda: Classifier("test_vit", img_size=32), lambda b: b.blocks[-1].norm1, squares),
    "vit, mean": (lambda: Classifier("test_vit", img_size=32, global_pool="avg"), lambda b: b.blocks[-1].norm1,
                  squares),
    "facemae": (lambda: Classifier("facemae"), lambda b: b.blocks[-2].norm1, lambda x: squares(x, 0)),
}


def plain_grad_cam(model, layer, images, targets, lay_out=lambda x: x):
    "One face at a time: hook the layer, backward through everything from one logit, weigh, sum, clip, resize."
    model.eval()
    maps = []
    for image, target in zip(images, targets, strict=True):
        kept = []
        handle = layer.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        logit = model(image[None].clone().requires_grad_())[0, target]
        handle.remove()
        features, gradient = lay_out(kept[0]), lay_out(torch.autograd.grad(logit, kept[0])[0])  # (1, C, h, w)
        cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).clamp(min=0)
        maps.append(larger(cam.detach())[0, 0])
    return torch.stack(maps)


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_hooks_and_a_backward(name):
    make, layer, lay_out = NETWORKS[name]
    images, targets, model = faces(2).repeat(4, 1, 1, 1), [0, 0, 1, 1, 2, 2, 3, 3], make()
    expected = plain_grad_cam(model, layer(model.backbone), images, targets, lay_out)
    assert (expected.amax((1, 2)) > 0.1).sum() >= 2, "the case must have something to compare"
    found = class_maps(model, images, targets, scaled=False)
    assert found.shape == (8, 32, 32) and found.dtype == np.float32
    close(found, expected)
    close(grad_cam(model, images, targets), stretch(expected), atol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "vit, class token"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_package_one_face_at_a_time(kind, name):
    import pytorch_grad_cam
    make, layer, lay_out = NETWORKS[name]
    model, images, targets = make().eval(), faces(6), [0, 1, 2, 3, 0, 1]
    package = getattr(pytorch_grad_cam, {"eigencam": "EigenCAM"}.get(kind, KINDS[kind]))
    raw, scaled = [], []
    with package(model, [layer(model.backbone)], reshape_transform=lay_out) as cam:
        for image, target in zip(images, targets, strict=True):
            pick = pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(target)
            scaled.append(cam(image[None].clone().requires_grad_(), [pick])[0])
            seen = cam.activations_and_grads
            gradients = seen.gradients[0].numpy() if seen.gradients else None
            one = torch.from_numpy(cam.get_cam_image(None, None, None, seen.activations[0].numpy(), gradients, False))
            if kind == "eigencam" and -one.min() > one.max(): one = -one
            raw.append(larger(one[None].float().clamp(min=0))[0, 0])
    raw, some = torch.stack(raw), torch.stack(raw).amax((1, 2)) > 0.01
    assert some.sum() >= 2, "the case must have something to compare"
    close(class_maps(model, images, targets, kind, scaled=False), raw, atol=1e-5 * raw.max().clamp(min=1).item())
    if kind != "eigencam":  # its sign is ours; and faint maps show the 1e-7 that the package adds to a maximum
        close(class_maps(model, images, targets, kind)[some], np.stack(scaled)[some], atol=1e-4)


class Toy(nn.Module):
    "A stage that sees mirrored faces mirrored, and behind it a layer that writes into its output, and a head."
    feature_info = [{"module": "stage", "reduction": 2}]
    def __init__(self, cell=2):
        super().__init__()
        self.cell = cell
        torch.manual_seed(0)
        self.stage = nn.Conv2d(3, 8, 3, padding=1)
        self.stage.weight.data += self.stage.weight.data.flip(3)
        self.head = nn.Linear(8, 4)
        nn.init.normal_(self.head.weight, std=30)
    def forward(self, x): return self.head(self.stage(F.avg_pool2d(x, self.cell)).relu_().square().mean((2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_face_has_a_mirrored_map(kind):
    maps, mirrored = (class_maps(Toy(), x, [0, 1, 2], kind, scaled=False) for x in (faces(), faces().flip(3)))
    assert maps.max() > 0.01 and np.abs(maps - maps[..., ::-1]).max() > 0.01
    close(mirrored[..., ::-1].copy(), maps)


@pytest.mark.parametrize("sign", [1, -1])
def test_eigencam_points_at_what_stands_out(sign):
    model, images = Toy(), torch.zeros(1, 3, 32, 32)
    images[:, :, 8:12, 20:24] = 1
    with torch.no_grad(): model.stage.weight.copy_(sign * model.stage.weight.abs())
    row, column = np.unravel_index(class_maps(model, images, kind="eigencam")[0].argmax(), (32, 32))
    assert 8 <= row < 12 and 20 <= column < 24


def test_without_targets_explains_the_class_that_is_given():
    model = Classifier().eval()
    with torch.no_grad(): given = model(faces()).argmax(1)
    assert (class_maps(model, faces()) == class_maps(model, faces(), given)).all()
    with torch.no_grad():
        model.head.weight[1:] = model.head.weight[0]
        model.head.bias.zero_()  # all classes tie: the first is predicted
    assert (class_maps(model, faces(), scaled=False) == class_maps(model, faces(), [0, 0, 0], scaled=False)).all()


def test_each_face_has_its_own_target_in_any_batch():
    together, apart = (class_maps(Classifier(), faces(5), np.array([3, 1, 2, 0, 1]), batch_size=b) for b in (64, 2))
    close(together, apart, atol=1e-4)


def test_takes_another_layer():
    model = Classifier()
    expected = plain_grad_cam(model, model.backbone.layer1, faces(), [0, 1, 2])
    close(class_maps(model, faces(), [0, 1, 2], scaled=False, layer=model.backbone.layer1), expected)


def test_remembers_nothing_up_to_the_layer():
    "Backward stays behind the layer: what comes before it has no graph."
    model, seen = Classifier(), []
    for name in ("layer1", "layer2", "layer3"):
        getattr(model.backbone, name).register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    class_maps(model, faces().requires_grad_())
    assert seen[-3:] == [False, False, True]  # the hook of layer2 sees its output before it is cut


def test_a_map_that_is_equal_everywhere_is_empty():
    model = Toy(cell=3)  # 10 cells on 32 pixels: interpolation rounds
    with torch.no_grad(): model.stage.weight.zero_(); model.stage.bias.fill_(1 / 3); model.head.weight.fill_(1)
    assert class_maps(model, faces(), [0] * 3, scaled=False).min() > 0 and not class_maps(model, faces(), [0] * 3).any()


# ---- without labels

def test_activation_maps_are_sums_of_squares():
    model = Classifier().eval()
    with torch.no_grad(): features = model.backbone.layer2(model.backbone.layer1(model.backbone.maxpool(
        model.backbone.act1(model.backbone.bn1(model.backbone.conv1((faces() - 0.5) / 0.25))))))
    expected = torch.stack([sum(channel ** 2 for channel in face) for face in features])[:, None]
    close(activation_maps(model, faces(), scaled=False), larger(expected)[:, 0], atol=1e-5 * expected.max().item())
    before = activation_maps(model, faces())
    with torch.no_grad(): model.head.weight.zero_()
    assert (before == activation_maps(model, faces())).all() and before.max() == 1


def test_activation_maps_of_tokens():
    model = Classifier("facemae").eval()
    vit = model.backbone
    with torch.no_grad(): tokens = vit.blocks[:-1](vit.embed((faces() - 0.5) / 0.25) + vit.positions)
    expected = larger(tokens.square().sum(2).view(3, 1, 4, 4))[:, 0]
    close(activation_maps(model, faces(), scaled=False), expected, atol=1e-4)


def plain_rollout(backbone, tokens, first_token: bool, first: int):
    "One face, one head, one token at a time."
    joint = None
    for block in (b for b in backbone.blocks if hasattr(b, "attn")):
        a, n = block.attn, tokens.shape[1]
        q, k, _ = a.qkv(block.norm1(tokens))[0].view(n, 3, a.num_heads, -1).unbind(1)  # (n, heads, d)
        shares = torch.zeros(n, n)
        for h in range(a.num_heads):
            for i in range(n):
                e = torch.stack([q[i, h] @ k[j, h] / k.shape[2] ** 0.5 for j in range(n)]).exp()
                shares[i] += e / e.sum() / a.num_heads
        step = 0.5 * shares + 0.5 * torch.eye(n)
        joint = step if joint is None else step @ joint
        tokens = block(tokens)
    return (joint[0] if first_token else joint[first:].mean(0)), joint


@pytest.mark.parametrize("name, first_token, first", [("facemae", False, 0), ("vit, class token", True, 1)])
def test_rollout_equals_a_plain_one(name, first_token, first):
    model = NETWORKS[name][0]().eval()
    for block in model.backbone.blocks:  # attention that differs from token to token
        if hasattr(block, "attn"): nn.init.normal_(block.attn.qkv.weight, std=0.3)
    b, found = model.backbone, attention_rollout(model, faces(2), scaled=False)
    for image, one in zip(faces(2), found, strict=True):
        x = (image[None] - 0.5) / 0.25
        with torch.no_grad():
            tokens = b.embed(x) + b.positions if name == "facemae" else b.norm_pre(b._pos_embed(b.patch_embed(x)))
            read, joint = plain_rollout(b, tokens, first_token, first)
        torch.testing.assert_close(joint.sum(1), torch.ones(len(joint)))
        side = int((len(read) - first) ** 0.5)
        assert read[first:].max() > 1.3 * read[first:].min(), "the case must have something to compare"
        close(one, larger(read[first:].view(1, 1, side, side))[0, 0])


# ---- SimFLE

def simfle(name="simfle", seed=0):
    torch.manual_seed(seed)
    config = SimpleNamespace(
        momentum=0.9, momentum_schedule="constant", groups=8, mask_ratio=0.75, patch_size=None, facemae="tiny",
        masking="semantic", lambda_d=0.3, lambda_g=0.03, proj_hidden=16, proj_dim=8, grouping_init="kaiming",
        x0_statistics="frozen", joint_views=False, image_size=32, backbone="test_resnet", epochs=1,
        steps_per_epoch=1, seed=0, batch_size=8)
    return find_method(name)(create_classifier("test_resnet", 8, 32, min_map=4)[0], config, None, 0)


def test_group_maps_are_sums_of_their_channels():
    method = simfle().train()
    size = method.net.backbone.num_features // 8
    with torch.no_grad():
        for values in method.ffl.grouping.norm.parameters(): values[:size] = 0  # group 0 is dead
    evaluated = copy.deepcopy(method).eval()
    with torch.no_grad(): a = evaluated.ffl.grouping(evaluated.encode_x0(faces(5))[1])  # (5, C, 4, 4)
    expected = torch.stack([sum(a[:, g * size + c] for c in range(size)) for g in range(8)], 1)
    found = group_maps(method, faces(5), batch_size=2, scaled=False)
    assert found.shape == (5, 8, 32, 32) and found.dtype == np.float32 and method.training
    close(found, larger(expected))
    scaled = group_maps(method, faces(5))
    close(scaled, stretch(larger(stretch(expected))), atol=1e-4)
    assert not scaled[:, 0].any() and scaled[:, 1].max() == 1


# ---- all of them

METHODS = {
    **{kind: (Classifier, lambda m, x, kind=kind, **k: class_maps(m, x, kind=kind, **k)) for kind in KINDS},
    "activation": (Classifier, activation_maps),
    "rollout": (lambda: Classifier("facemae"), attention_rollout),
    "groups": (simfle, group_maps),
}


@pytest.mark.parametrize("name", METHODS)
def test_batches_change_nothing(name):
    make, maps = METHODS[name]
    model = make()
    close(maps(model, faces(5), batch_size=64), maps(model, faces(5), batch_size=2), atol=1e-4)
    assert maps(model, faces(0)).shape[-3:] in ((0, 32, 32), (8, 32, 32))


def state_of(model):
    "All that explaining might leave changed."
    hooks = [(m._forward_hooks, m._forward_pre_hooks, m._backward_hooks) for m in model.modules()]
    return dict(modes=[m.training for m in model.modules()], frozen=[p.requires_grad for p in model.parameters()],
                hooks=sum(len(h) for three in hooks for h in three),
                fused=[getattr(m, "fused_attn", None) for m in model.modules()],
                grads=[None if p.grad is None else p.grad.sum().item() for p in model.parameters()],
                values=[v.double().sum().item() for v in model.state_dict().values()],
                formats=[p.stride() for p in model.parameters()], grad=torch.is_grad_enabled())


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_leaves_everything_as_it_was(name, failing):
    make, maps = METHODS[name]
    model = make().train()
    first, *_, last = model.parameters()
    first.requires_grad_(False); last.grad = torch.ones_like(last)
    next(m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)).eval()
    before = state_of(model)
    if failing:
        with pytest.raises(RuntimeError): maps(model, torch.rand(1, 2, 32, 32))  # two colours: fails inside the network
    else:
        with torch.no_grad(): assert maps(model, faces()).max() > 0, "a frozen backbone has maps too"
        with torch.inference_mode(): maps(model, faces())
    assert state_of(model) == before


@pytest.mark.parametrize("size, stage", [(224, "layer4"), (112, "layer4"), (96, "layer3"), (48, "layer2"),
                                         (32, "layer2"), (16, "layer1"), (4, "layer4")])
def test_takes_the_last_stage_that_is_not_too_coarse(size, stage):
    model = Classifier()
    assert target_layer(model, size) is getattr(model.backbone, stage)


@pytest.mark.parametrize("make, size, kind, name", [
    (Classifier, 32, "gradcam", "layer2 (4 x 4)"), (Classifier, 48, "activation", "layer2 (6 x 6)"),
    (lambda: create_classifier("test_resnet", 8, 48, min_map=4)[0], 48, "gradcam", "layer4 (6 x 6)"),
    (lambda: Classifier("facemae"), 32, "gradcam", "blocks.2.norm1 (4 x 4)"),
    (lambda: Classifier("facemae"), 32, "activation", "blocks.2 (4 x 4)"),
    (lambda: Classifier("test_vit", img_size=32), 32, "gradcam", "blocks.5.norm1 (2 x 2)"),
    (lambda: Classifier("test_convnext"), 63, "gradcam", "stages.1 (7 x 7)")])
def test_says_which_layer(make, size, kind, name):
    "Cells are counted: at 63 px the third stage of a ConvNeXt has 3, and not 63 / 16 rounded up."
    assert layer_name(make().train(), size, kind) == name


def test_another_layer_by_its_name():
    "The same stage in a network with and without `min_map`; its maps are those of the module itself."
    plain, fine = (create_classifier("test_resnet", 8, 48, min_map=m)[0] for m in (0, 4))
    assert map_layers(plain, 48)[-3:] == ["layer2 (6 x 6)", "layer3 (3 x 3)", "layer4 (2 x 2)"]
    assert map_layers(fine, 48) == [*map_layers(plain, 48)[:-2], "layer3 (6 x 6)", "layer4 (6 x 6)"]
    assert layer_name(fine, 48, layer="layer2") == "layer2 (6 x 6)" == layer_name(plain, 48)
    images = faces(size=48)
    assert np.array_equal(class_maps(fine, images, layer="layer2"),
                          class_maps(fine, images, layer=fine.backbone.layer2))
    assert not np.array_equal(activation_maps(fine, images, layer="layer2"), activation_maps(fine, images))
    for maps in (class_maps, activation_maps):
        with pytest.raises(BenchError, match="There is no layer 'layer5'. Did you"): maps(fine, images, layer="layer5")


class Last(nn.Module):
    "The same network with the channels last or first in its stage; nothing but `num_chs` says which, as in VOLO."
    feature_info = [{"module": "stage", "reduction": 2, "num_chs": 6}]
    def __init__(self, last: bool, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.last, self.conv = last, nn.Conv2d(3, 6, 3, 2, 1)
        self.stage, self.head = nn.Identity(), nn.Linear(6, classes)
    def forward(self, x):
        x = self.conv(x).relu()
        x = self.stage(x.movedim(1, -1)).movedim(-1, 1) if self.last else self.stage(x)
        return self.head(x.square().mean((2, 3)))


def test_which_axis_holds_the_channels_follows_from_their_number():
    for maps in (class_maps, activation_maps):
        assert maps(Last(True), faces()).std() > 0
        close(maps(Last(True), faces()), maps(Last(False), faces()))


def test_a_stage_that_does_not_exist_is_passed_over():
    model = Last(True)
    model.feature_info = [*Last.feature_info, {"module": "stem", "num_chs": 64}]  # HRNet's first
    close(class_maps(model, faces()), class_maps(Last(True), faces()))


def test_channels_that_are_nowhere_are_named():
    model = Last(True)
    model.feature_info = [{"module": "stage", "num_chs": 7}]
    with pytest.raises(BenchError, match=r"no heat maps.*shape \(1, 16, 16, 6\), but timm says that it has 7"):
        class_maps(model, faces())


class Late(nn.Module):
    "A plain transformer whose class token joins after the blocks, as in CaiT and XCiT."
    num_prefix_tokens, patch_embed = 1, SimpleNamespace(num_patches=16)
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, block = nn.Conv2d(3, 8, 8, 8), nn.Module()
        block.norm1, block.attn = nn.LayerNorm(8), nn.Linear(8, 8)
        block.forward = lambda x: x + block.attn(block.norm1(x)).relu()
        self.blocks, self.head = nn.ModuleList([block]), nn.Linear(8, 4)
    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks[0](x).square().mean(1))


def test_tokens_without_a_class_token_form_the_whole_square():
    assert layer_name(Late(), 32) == "blocks.0.norm1 (4 x 4)"
    model = Late()
    expected = plain_grad_cam(model, model.blocks[0].norm1, faces(), [0, 1, 2], lambda x: squares(x, 0))
    assert expected.max() > 0
    close(class_maps(model, faces(), [0, 1, 2], scaled=False), expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout", "test_efficientnet", "test_maxvit", "facemae_tiny"])
def test_takes_what_create_classifier_makes(name):
    size = 64 if name == "test_maxvit" else 48
    net, _ = create_classifier(name, 8, size)
    nn.init.normal_(net.head.weight)
    for maps in (class_maps, activation_maps):
        found = maps(net, faces(2, size))
        assert found.shape == (2, size, size) and found.max() == 1 and found.min() == 0


def test_takes_a_plain_timm_classifier():
    model = timm.create_model("test_resnet", num_classes=4).eval()
    assert class_maps(model, faces()).shape == (3, 32, 32)


class Several(nn.Module):
    "A stage that returns a list, as HRNet's does."
    feature_info = [{"module": "stage", "reduction": 1}]
    num_features = 2
    def __init__(self):
        super().__init__()
        self.stage = type("Stage", (nn.Linear,), {"forward": lambda self, x: [x, x]})(2, 2)
    def forward(self, x): return self.stage(x)[0].mean((2, 3))


@pytest.mark.parametrize("model, targets, message", [
    (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), None, "A Sequential names no feature stages"),
    (Several(), None, "output of a stage of Several cannot be arranged"),
    (Classifier("test_vit", img_size=(32, 64)), None, "8 patches do not form a square grid"),
    (Classifier(), [-1], "Target -1 is not a class: the model has 4"),
    (Classifier(), [4], "Target 4 is not a class: the model has 4"),
    (Classifier(), [0, 1], "2 targets for 1 images"),
    (timm.create_model("test_resnet", num_classes=0), None, "This ResNet has no classes"),
], ids=["no stages", "several maps", "oblong grid", "negative target", "target too high", "too many targets",
        "no classes"])
def test_bad_input_is_named(model, targets, message):
    images = torch.rand(1, 3, 32, 64) if "square" in message else faces(1)
    with pytest.raises(BenchError, match=message): class_maps(model, images, targets)
    if hasattr(model, "head"):
        assert not any(m._forward_hooks for m in model.modules()) and model.head.weight.requires_grad


@pytest.mark.parametrize("call, message", [
    (lambda: class_maps(Classifier(), faces(), kind="scorecam"), "no kind of class map 'scorecam'"),
    (lambda: class_maps(Classifier(), faces().numpy()), "float tensor .N, 3, H, W.; these are float32"),
    (lambda: activation_maps(Classifier(), (255 * faces()).to(torch.uint8)), "these are torch.uint8 .3, 3, 32, 32."),
    (lambda: attention_rollout(Classifier("facemae"), faces()[0]), "these are torch.float32 .3, 32, 32."),
    (lambda: attention_rollout(Classifier(), faces()), "needs a plain transformer"),
    (lambda: activation_maps(nn.Linear(2, 2), faces()), "A Linear names no feature stages"),
    (lambda: group_maps(simfle("byol"), faces()), "has no groups of channels"),
    (lambda: group_maps(Classifier(), faces()), "This Classifier has no groups"),
    (lambda: activation_maps(Classifier(), faces(), batch_size=0), "batch_size=0"),
    (lambda: class_maps(m := Classifier(), faces(), layer=copy.deepcopy(m.backbone.layer2)), "was not run"),
], ids=["kind", "array", "uint8", "one face", "rollout of a CNN", "no stages", "byol", "no method", "batch size",
        "foreign layer"])
def test_bad_calls_are_named(call, message):
    with pytest.raises(BenchError, match=message): call()

"""Grad-CAM against hooks and a backward pass written out, and what it leaves behind: nothing."""
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fer_bench.core import BenchError
from fer_bench.evaluate.explain import grad_cam, target_layer


class Classifier(nn.Module):
    "As ours looks from outside: normalisation, a backbone, a head."
    def __init__(self, backbone="test_resnet", classes=4, seed=1, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = timm.create_model(backbone, num_classes=0, **options)
        self.head = nn.Linear(self.backbone.num_features, classes)
        nn.init.normal_(self.head.weight)

    def forward(self, images): return self.head(self.backbone((images - 0.5) / 0.25))


def faces(n=3, size=32): return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def plain_grad_cam(model, layer, images, targets, lay_out=lambda x: x):
    "One face at a time: hook the layer, backward from one logit, weigh, sum, clip, stretch to the image and to [0, 1]."
    model.eval()
    maps = []
    for image, target in zip(images, targets, strict=True):
        kept = []
        handle = layer.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        logit = model(image[None].clone().requires_grad_())[0, target]
        handle.remove()
        features, gradient = lay_out(kept[0]), lay_out(torch.autograd.grad(logit, kept[0])[0])  # (1, C, h, w)
        cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).clamp(min=0)
        cam = F.interpolate(cam.detach(), image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
        maps.append(stretch(cam))
    return torch.stack(maps)


def stretch(x): return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)


@pytest.mark.parametrize("backbone, layer, lay_out", [
    ("test_resnet", lambda b: b.layer2, lambda x: x),
    ("test_convnext", lambda b: b.stages[1], lambda x: x),
    ("test_vit", lambda b: b.blocks[-1].norm1, lambda x: x[:, 1:].transpose(1, 2).unflatten(-1, (2, 2))),
])
def test_equals_hooks_and_a_backward(backbone, layer, lay_out):
    images, targets = faces(2).repeat(4, 1, 1, 1), [0, 0, 1, 1, 2, 2, 3, 3]
    model = Classifier(backbone, **({"img_size": 32} if backbone == "test_vit" else {}))
    expected = plain_grad_cam(model, layer(model.backbone), images, targets, lay_out)
    found = torch.from_numpy(grad_cam(model, images, targets))
    assert found.shape == (8, 32, 32) and found.dtype == torch.float32
    assert expected.amax((1, 2)).count_nonzero() >= 2, "the case must have something to compare"
    # the package adds 1e-7 to the maximum before it divides, which shows where gradients are tiny
    torch.testing.assert_close(torch.stack([stretch(m) for m in found]), expected, atol=2e-4, rtol=0)


def test_without_targets_explains_the_class_that_is_given():
    model = Classifier().eval()
    given = model(faces()).argmax(1)
    assert (grad_cam(model, faces()) == grad_cam(model, faces(), given)).all()


def test_batches_change_nothing():
    model = Classifier()
    together, alone = (grad_cam(model, faces(5), [0, 1, 2, 3, 0], batch_size=b) for b in (64, 2))
    torch.testing.assert_close(torch.from_numpy(together), torch.from_numpy(alone), atol=1e-4, rtol=0)
    assert grad_cam(model, faces(0)).shape == (0, 32, 32)


def test_leaves_mode_gradients_freezing_and_hooks_as_they_were():
    model = Classifier().train()
    model.backbone.requires_grad_(False)
    model.backbone.layer1.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad(): maps = grad_cam(model, faces())
    assert maps.max() > 0, "a frozen backbone has maps too"
    assert model.training and model.head.training and not model.backbone.layer1.training
    assert not any(p.requires_grad for p in model.backbone.parameters()) and model.head.weight.requires_grad
    assert (model.head.weight.grad == 1).all() and model.head.bias.grad is None
    assert not model.backbone.layer2._forward_hooks
    assert all((before[k] == v).all() for k, v in model.state_dict().items())


def test_leaves_everything_as_it_was_after_an_error_too():
    model = Classifier().train()
    with pytest.raises(BenchError, match="Target 4 is no class: the model has 4"): grad_cam(model, faces(1), [4])
    assert model.training and model.head.weight.requires_grad and not model.backbone.layer2._forward_hooks


@pytest.mark.parametrize("size, stage", [(224, "layer4"), (112, "layer4"), (96, "layer3"), (48, "layer2"),
                                         (32, "layer2"), (16, "layer1"), (4, "layer4")])
def test_takes_the_last_stage_that_is_not_too_coarse(size, stage):
    model = Classifier()
    assert target_layer(model, size) is getattr(model.backbone, stage)


def test_takes_a_plain_timm_classifier():
    model = timm.create_model("test_resnet", num_classes=4).eval()
    assert grad_cam(model, faces()).shape == (3, 32, 32)


class Several(nn.Module):
    "A stage that returns a list, as HRNet's does."
    feature_info = [{"module": "stage", "reduction": 1}]
    num_features = 2
    def __init__(self):
        super().__init__()
        self.stage = type("Stage", (nn.Linear,), {"forward": lambda self, x: [x, x]})(2, 2)
    def forward(self, x): return self.stage(x)[0].mean((2, 3))


@pytest.mark.parametrize("model, targets, message", [
    (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), None, "no feature stages in a Sequential"),
    (Several(), None, "cannot lay out what a stage of a Several"),
    (Classifier("test_vit", img_size=(32, 64)), None, "square grid of patches, and 8"),
    (Classifier(), [-1], "Target -1 is no class"),
    (Classifier(), [0, 1], "2 targets for 1 images"),
], ids=["no stages", "several maps", "oblong grid", "negative target", "too many targets"])
def test_bad_input_is_named(model, targets, message):
    images = torch.rand(1, 3, 32, 64) if "square" in message else faces(1)
    with pytest.raises(BenchError, match=message): grad_cam(model, images, targets)

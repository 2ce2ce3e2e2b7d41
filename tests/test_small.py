"""Small faces: the built-in backbones, the small stem, the choice of views, mixup and cutmix, flip at test."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fer_bench import run
from fer_bench.catalogue import METHODS, methods_of
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.feed import Feed
from fer_bench.data.views import VIEWS
from fer_bench.evaluate.predict import of_views, predict
from fer_bench.methods.base import Method
from fer_bench.models.backbones import create_classifier, create_cnn
from fer_bench.report.names import called
from fer_bench.train.batches import mix, view_names


def logits_of(record): return np.stack(record.predictions["logits"])

# backbones

@pytest.mark.parametrize("name, weights", [("small_resnet", 776_864), ("small_resnet_s1", 785_744),
                                           ("small_sepconv", 166_587)])
def test_small_backbones(name, weights):
    "Fewer than a million weights, a map of 6 × 6 at 48 px and 4 × 4 at 32, whose mean is the feature; any batch size."
    net = create_classifier(name, 8, 48, min_map=6)[0].eval()
    assert sum(p.numel() for p in net.backbone.parameters()) == weights
    for size, cells in ((32, 4), (48, 6), (64, 8), (50, 6)):
        faces = torch.rand(3, 3, size, size)
        with torch.no_grad(): maps, features = net.backbone.forward_features(faces), net.backbone(faces)
        assert maps.shape == (3, net.backbone.num_features, cells, cells)
        torch.testing.assert_close(features, maps.mean((2, 3)))
    last = net.backbone.feature_info[-1]
    assert last["num_chs"] == net.backbone.num_features and 48 // last["reduction"] == 6

def test_pixels_are_the_grey_face_made_small(tiny):
    "576 numbers of a face, without a weight; a probe on them is a run like any other."
    net = create_classifier("pixels", 8, 48)[0]
    faces = torch.rand(3, 3, 48, 48)
    expected = (faces.mean(1).view(3, 24, 2, 24, 2).mean((2, 4)) - 0.5) / 0.25
    assert not [*net.backbone.parameters()] and net.encode(faces).shape == (3, 576)
    assert (net.encode(faces).view(3, 24, 24) - expected).abs().mean() < 0.15  # the filter reaches a little farther
    record = run(tiny(method="linear_probe", backbone="pixels", min_map=0, labels_per_class=2))
    assert record.metrics.parameters == 577 * len(record.metrics.classes)
    assert called(record) == "linear probe of raw pixels"

@pytest.mark.parametrize("stride, cells", [(1, 6), (2, 3)])
def test_the_small_stem(stride, cells):
    "The first stage has the whole face, or half of it; the rest of the network is timm's."
    plain, small = (create_cnn("resnet18", 48, 1, small_stem=s) for s in (0, stride))
    seen = {}
    small.layer1.register_forward_hook(lambda module, args, out: seen.update(first=out.shape[-1]))
    assert small.forward_features(torch.rand(1, 3, 48, 48)).shape == (1, 512, cells, cells)
    assert seen["first"] == 48 // stride
    shapes = lambda net: {k: v.shape for k, v in net.state_dict().items() if k != "conv1.weight"}
    assert shapes(plain) == shapes(small) and small.conv1.weight.shape == (64, 3, 3, 3)
    assert [s["reduction"] for s in small.feature_info] == [stride * r for r in (1, 1, 2, 4, 8)]

@pytest.mark.parametrize("fields, says", [
    (dict(backbone="vit_tiny_patch16_224"), "small_stem is for timm's ResNets, and backbone 'vit_tiny"),
    (dict(backbone="small_resnet"), "small_stem is for timm's ResNets, and backbone 'small_resnet'"),
    (dict(backbone="resnet18", init="timm"), "timm's weights of 'resnet18' are for its own stem")])
def test_stems_that_do_not_fit(tiny, fields, says):
    with pytest.raises(BenchError, match=says): run(tiny(small_stem=2, **fields))

def test_weights_go_on_into_the_same_stem_alone(tiny):
    first = run(tiny(backbone="resnet10t", small_stem=2))
    with pytest.raises(BenchError, match="trained with small_stem = 2, but this run has 0"):
        run(tiny(backbone="resnet10t", init=f"run:{first.id}"))
    assert run(tiny(backbone="resnet10t", small_stem=2, init=f"run:{first.id}")).metrics.loaded.missing == []

# views

def test_the_field_names_every_view():
    assert set(RunConfig.model_fields["view"].annotation.__args__[0].__args__) == set(VIEWS)

def test_which_views_are_replaced():
    "Those of labelled faces; where there are none, all but the plain view. Without a choice, the method's own."
    semi = SimpleNamespace(views={"labelled": ["weak"], "unlabelled": ["weak", "strong"]})
    ssl = SimpleNamespace(views={"unlabelled": ["ssl", "ssl", "plain"]})
    config = SimpleNamespace(view="geometric")
    assert view_names(semi, config, "labelled") == ["geometric"]
    assert view_names(semi, config, "unlabelled") == ["weak", "strong"]
    assert view_names(ssl, config, "unlabelled") == ["geometric", "geometric", "plain"]
    assert view_names(ssl, SimpleNamespace(view=None), "unlabelled") == ["ssl", "ssl", "plain"]

@pytest.mark.parametrize("method", methods_of("supervised", "semi-supervised", "self-supervised"))
def test_every_method_takes_the_geometric_view(tiny, method):
    record = run(tiny(method=method, view="geometric", view_strength=0.5))
    assert record.finished and record.config["view"] == "geometric"

@pytest.mark.parametrize("fields, says", [
    (dict(view_strength=0.5), "view_strength = 0.5 is for view='geometric'"),
    (dict(view="weak", view_strength=0.5), "view_strength = 0.5 is for view='geometric'"),
    (dict(view="round"), "Parameter 'view' = 'round'"), (dict(view="geometric", view_strength=0.0), "view_strength"),
    (dict(method="linear_probe", view="strong"), "trains on features of whole faces"),
    (dict(method="byol", mixup=0.2), "mixup = 0.2 mixes labelled faces"),
    (dict(method="linear_probe", cutmix=1.0), "cutmix = 1.0 mixes labelled faces"),
    (dict(mixup=-1.0), "Parameter 'mixup' = -1.0")])
def test_choices_that_mean_nothing(fields, says):
    with pytest.raises(BenchError, match=says): RunConfig(preset="tiny", **fields)

# mixup and cutmix

def mixed(soft: bool = False, views: int = 1, **alphas):
    "A batch of 16 faces before and after `mix`; face i has the grey i / 16 and the class i mod 8."
    faces = (torch.arange(16.0) / 16).view(16, 1, 1, 1).expand(-1, 3, 12, 12)
    targets = torch.arange(16) % 8
    if soft: targets = torch.nn.functional.one_hot(targets, 8).float()
    batch = {"labelled": [faces] * views, "targets": targets}
    mix(batch, SimpleNamespace(**{"mixup": 0.0, "cutmix": 0.0} | alphas), 8)
    return faces, targets, batch

def share(batch) -> float:
    "What is left of each face in the targets."
    return batch["targets"][0, 0].item()

@pytest.mark.parametrize("soft", [False, True])
def test_mixup_against_the_plain_formula(soft):
    torch.manual_seed(0)
    faces, targets, batch = mixed(soft, mixup=1.0, views=2)
    kept = share(batch)
    one_hot = targets if soft else torch.nn.functional.one_hot(targets, 8).float()
    assert 0 < kept < 1
    for i in range(16):  # each with the one before it
        for view in batch["labelled"]:
            torch.testing.assert_close(view[i], kept * faces[i] + (1 - kept) * faces[i - 1])
        torch.testing.assert_close(batch["targets"][i], kept * one_hot[i] + (1 - kept) * one_hot[i - 1])

def test_cutmix_takes_the_share_of_its_pixels():
    torch.manual_seed(0)
    for _ in range(20):
        faces, _, batch = mixed(cutmix=1.0)
        own = (batch["labelled"][0] == faces).float().mean((1, 2, 3))
        assert (own == own[0]).all() and share(batch) == pytest.approx(own[0].item(), abs=1e-6)
        whole = (batch["labelled"][0] == faces) | (batch["labelled"][0] == faces.roll(1, 0))
        assert whole.all()

def test_no_mixing_leaves_the_batch_alone():
    faces, targets, batch = mixed()
    assert batch["labelled"][0] is faces and batch["targets"] is targets

def test_with_both_each_step_takes_one():
    torch.manual_seed(0)
    cut = []
    for _ in range(60):
        faces, _, batch = mixed(mixup=1.0, cutmix=1.0)
        pixels = batch["labelled"][0][5, 0]
        cut.append(bool(((pixels == faces[5, 0]) | (pixels == faces[4, 0])).all()))
    assert 15 < sum(cut) < 45

@pytest.mark.parametrize("method", methods_of("supervised", "semi-supervised"))
def test_every_labelled_method_takes_shares(tiny, tmp_path, method):
    "And an interrupted run goes on with the same draws: two runs are equal to the bit."
    whole = {"scn": {"relabel_from": 1}, "dce": {"select_from": 1}}.get(method, {})  # else they need one label a face
    made = [run(tiny(method=method, mixup=0.4, cutmix=0.4, results_dir=str(tmp_path/place), **whole)) for place in "ab"]
    assert np.array_equal(*map(logits_of, made))

# flip at test

def test_flip_is_the_mean_of_two_probabilities():
    net = create_classifier("small_resnet", 5, 48)[0].eval()
    torch.nn.init.normal_(net.head.weight)
    images = torch.rand(4, 3, 48, 48)
    with torch.no_grad():
        both = (net(images).softmax(1) + net(images.flip(3)).softmax(1)) / 2
        torch.testing.assert_close(of_views(net, images, "flip").softmax(1), both)
        torch.testing.assert_close(of_views(net, images, "flip"), of_views(net, images.flip(3), "flip"))
        assert torch.equal(of_views(net, images), net(images))
    pixels = np.random.default_rng(0).integers(0, 256, (7, 48, 48, 1), np.uint8)
    found = predict(Method(net), Feed(pixels), np.arange(7), 48, views="flip")
    turned = predict(Method(net), Feed(np.ascontiguousarray(pixels[:, :, ::-1])), np.arange(7), 48, views="flip")
    np.testing.assert_allclose(found, turned, atol=1e-5)

def test_flip_at_test_changes_the_evaluation_alone(tiny):
    "The same weights; the record's predictions are those of the loaded model, its export, and its ONNX file."
    plain, flip = (run(tiny(test_views=views)) for views in ("plain", "flip"))
    assert plain.id != flip.id and plain.metrics.weights == flip.metrics.weights
    assert not np.array_equal(logits_of(plain), logits_of(flip))
    np.testing.assert_allclose(np.exp(logits_of(flip)).sum(1), 1, atol=1e-5)

def test_a_model_predicts_by_the_views_of_its_run(tiny, tmp_path):
    from fer_bench.data.drawn.faces import draw_faces
    from fer_bench.runs.inference import export, load_model
    from fer_bench.runs.inference import predict as classify
    record = run(tiny(test_views="flip"))
    faces = draw_faces(range(6), size=32)["images"]
    turned = np.ascontiguousarray(faces[:, :, ::-1])
    for model in (load_model(record), load_model(export(record, tmp_path/"out", onnx=True))):
        tables = [classify(model, pictures).drop(columns="note").to_numpy() for pictures in (faces, turned)]
        np.testing.assert_allclose(*tables, atol=1e-5)

def test_methods_without_a_choice_keep_their_names():
    "The new fields have defaults that no method changes, so that ids of earlier records stay."
    for name in ("view", "view_strength", "mixup", "cutmix", "test_views", "small_stem"):
        assert not any(name in entry.defaults for entry in METHODS.values())

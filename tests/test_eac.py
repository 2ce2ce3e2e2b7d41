"""EAC: its maps, loss and view against plain versions; what it refuses."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fer_bench.catalogue import make_method
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.views import make_view, seeded
from fer_bench.methods.eac import class_activation, mirror_disagreement
from fer_bench.models.backbones import create_classifier


def make(backbone="test_resnet", size=32, **fields):
    torch.manual_seed(0)
    config = RunConfig(method="eac", preset="tiny", backbone=backbone, image_size=size, **{"ema": 0.0} | fields)
    return make_method(config, create_classifier(backbone, 3, size)[0], [4, 4, 4])

def test_maps_and_disagreement_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    f, w = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(3, 5))
    maps = class_activation(torch.from_numpy(f), torch.from_numpy(w)).numpy()
    wanted = np.zeros((2, 3, 3, 4))
    for b, k, i, j in np.ndindex(wanted.shape): wanted[b, k, i, j] = sum(w[k, c] * f[b, c, i, j] for c in range(5))
    np.testing.assert_allclose(maps, wanted, atol=1e-12)
    other = rng.normal(size=maps.shape)
    total = sum((maps[b, k, i, j] - other[b, k, i, 3 - j])**2 for b, k, i, j in np.ndindex(maps.shape))
    assert mirror_disagreement(*map(torch.from_numpy, (maps, other))).item() == pytest.approx(total / maps.size)

def test_loss_is_that_of_two_plain_passes():
    "In evaluation mode, where the two images do not share batch statistics."
    method, faces, targets = make(lambda_eac=2.0).eval(), torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    loss, parts = method({"labelled": [faces], "targets": targets})
    net = method.net
    f, m = (net.backbone.forward_features(net.normalise(x)) for x in (faces, faces.flip(-1)))
    maps = [torch.einsum("kc,bchw->bkhw", net.head.weight, x) for x in (f, m)]
    wanted = F.cross_entropy(net(faces), targets) + 2 * (maps[0] - maps[1].flip(-1)).square().mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert sum(parts.values()).item() == pytest.approx(loss.item())

def test_the_head_learns_from_the_labels_alone():
    method, faces, targets = make(), torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    grads = []
    for factor in (0.0, 5.0):
        method.lambda_eac = factor
        loss, _ = method({"labelled": [faces], "targets": targets})
        grads.append(torch.autograd.grad(loss, [method.net.head.weight, next(method.net.backbone.parameters())]))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert not torch.allclose(grads[0][1], grads[1][1])

def test_doubt_is_the_disagreement_of_a_face_by_the_evaluated_network():
    method, faces = make(ema=0.5), torch.rand(3, 3, 32, 32)
    loss, _ = method({"labelled": [torch.rand(4, 3, 32, 32)], "targets": torch.tensor([0, 1, 2, 0])})
    loss.backward()
    with torch.no_grad():
        for p in method.net.parameters(): p -= 0.1 * p.grad
        method.after_step(0)
        doubt, net = method.eval().doubt(faces), method.ema
        maps = [class_activation(net.backbone.forward_features(net.normalise(x)), net.head.weight)
                for x in (faces, faces.flip(-1))]
    for b in range(3):
        wanted = mirror_disagreement(maps[0][b:b + 1], maps[1][b:b + 1]).item()
        assert doubt[b].item() == pytest.approx(wanted, rel=1e-4)

def test_the_recipe_is_the_papers():
    c = RunConfig(method="eac", preset="paper")
    assert (c.backbone, c.optimizer, c.lr, c.epochs, c.batch_size) == ("resnet18", "adam", 2e-4, 60, 32)
    assert (c.init, c.min_map, c.lambda_eac) == ("timm", 7, 5.0)

def test_training_makes_maps_agree():
    disagreement = []
    for factor in (0.0, 20.0):
        method = make(lambda_eac=factor)
        faces, targets = torch.rand(12, 3, 32, 32, generator=seeded(0)), torch.arange(12) % 3
        optimizer = torch.optim.SGD(method.parameters(), 0.01, 0.9)
        for _ in range(40):
            loss, _ = method({"labelled": [faces], "targets": targets})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        maps = [class_activation(method.net.backbone.forward_features(method.net.normalise(x)), method.net.head.weight)
                for x in (faces, faces.flip(-1))]
        disagreement.append((mirror_disagreement(*maps) / maps[0].var()).item())
    assert disagreement[1] < 0.5 * disagreement[0]

@pytest.mark.parametrize("backbone, size", [("test_vit", 160), ("facemae_tiny", 32), ("mobilenetv3_small_050", 64)])
def test_refuses_networks_without_such_maps(backbone, size):
    with pytest.raises(BenchError, match="class-activation maps"): make(backbone, size)

def test_other_methods_have_no_use_for_its_weight():
    with pytest.raises(BenchError, match="'lambda_eac' is for other methods"): RunConfig(lambda_eac=1.0)

def test_erased_is_weak_with_a_rectangle():
    "In about half of the faces, 2 to 25 % of the area, all in one rectangle; the rest as in the weak view."
    faces = torch.randint(0, 100, (400, 1, 64, 64), dtype=torch.uint8, generator=seeded(1))  # never mid grey
    params = make_view("erased").sample(seeded(2), 400)
    erased = make_view("erased")(faces, 64, **params)
    weak = make_view("weak")(faces, 64, **{k: v for k, v in params.items() if k != "box"})
    differs = (erased != weak).any(1)  # (B, S, S)
    assert 0.4 < differs.any((1, 2)).float().mean() < 0.6 and (erased[:, 0][differs] == 0.5).all()
    area = differs.float().mean((1, 2))[differs.any((1, 2))]
    assert area.min() > 0.01 and area.max() < 0.27 and area.max() > 0.2
    for face in differs[differs.any((1, 2))]:
        rows, columns = (face.any(d).nonzero().flatten() for d in (1, 0))
        assert face[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].float().mean() > 0.95

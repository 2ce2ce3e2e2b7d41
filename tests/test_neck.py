"A method may bring layers between the backbone's last map and the head; the network is one thing with them."
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

import fer_bench
from fer_bench import check_method, export, load_model, predict, run
from fer_bench.catalogue import registered
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import draw_faces
from fer_bench.methods.supervised import Supervised
from fer_bench.models.backbones import Head, create_classifier


class Flatten(nn.Module):
    "The whole map in a row, through one layer: what pooling would throw away."
    def __init__(self, options, channels: int, cells: tuple):
        super().__init__()
        self.width = options.wide
        self.layer = nn.Linear(channels * cells[0] * cells[1], self.width)

    def forward(self, maps): return self.layer(maps.flatten(1)).relu()

class Necked(Supervised):
    "Cross-entropy through a neck."
    neck = Flatten

    class Options(fer_bench.Options):
        wide: int = Field(6, gt=0, description="features of the neck")

    def __init__(self, net, config, counts, n_unlabelled=0): super().__init__(net, config.ema)

def test_head_with_batch_norm_is_linear_and_batch_norm():
    torch.manual_seed(0)
    head, linear, norm = Head(5, 3, normed=True), nn.Linear(5, 3), nn.BatchNorm1d(3)
    with torch.no_grad():
        linear.weight.copy_(head.weight)
        linear.bias.zero_()  # in training it has no effect
        for p, value in ((head.scale, [2.0, 0.5, 1.0]), (head.bias, [1.0, -1.0, 0.0])): p.copy_(torch.tensor(value))
        norm.weight.copy_(head.scale)
        norm.bias.copy_(head.bias)
    for mode in (True, True, False):
        x = torch.randn(7, 5) + 1
        torch.testing.assert_close(head.train(mode)(x), norm.train(mode)(linear.train(mode)(x)))

def test_head_with_batch_norm_is_exact_under_bf16():
    "Features that differ in their fourth digit, as DAN's do: bf16 has three."
    torch.manual_seed(0)
    head, features = Head(64, 8, normed=True), -5.5 + 1e-3 * torch.randn(16, 64)
    with torch.autocast("cpu", torch.bfloat16): found = head(features)
    torch.testing.assert_close(found, head(features))

def test_contract(): check_method(Necked, wide=4)

def test_a_backbone_without_parameters():
    "Of the pixels, only neck and head learn."
    net, _ = create_classifier("pixels", 3, 32, neck=lambda *map: Flatten(SimpleNamespace(wide=4), *map))
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3) and not list(net.backbone.parameters())

def test_layers_after_pooling_are_not_trained():
    "A neck leaves out MobileNetV3's convolution after pooling: without a gradient, two processes would stop there."
    check_method(Necked, backbone="mobilenetv3_small_050", image_size=64, lr=1e-3)

def test_needs_a_map():
    with pytest.raises(BenchError, match="makes no map of channels"):
        check_method(Necked, backbone="test_vit", image_size=32)

@pytest.fixture
def record(tmp_path):
    with registered("necked", Necked):
        yield run({"method": "necked", "preset": "tiny", "wide": 5, "results_dir": str(tmp_path),
                   "cache_dir": str(tmp_path/"cache")})

def test_run_is_loaded_exported_and_predicts_the_same(record, tmp_path):
    model = load_model(record)
    assert model.head.in_features == 5 and model.neck.width == 5
    exported = export(record, tmp_path/"out")
    faces = draw_faces(range(4), size=32)["images"]
    a, b = predict(model, faces), predict(load_model(exported), faces)
    np.testing.assert_allclose(a[list(model.classes)], b[list(model.classes)], atol=1e-6)

def test_a_neck_of_a_module_that_is_not_imported(tmp_path, monkeypatch):
    "Weights from outside must not import the module that their record names."
    (tmp_path/"stranger.py").write_text(f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
                                        "from test_neck import Necked\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    record = run({"method": "stranger.Necked", "preset": "tiny", "results_dir": str(tmp_path),
                  "cache_dir": str(tmp_path/"cache")})
    out = export(record, tmp_path/"out")
    assert load_model(record).neck.width == load_model(out).neck.width == 6
    monkeypatch.delitem(sys.modules, "stranger")
    for stored in (record, out):
        with pytest.raises(BenchError, match="If you trust that module, import stranger first"): load_model(stored)
    assert "stranger" not in sys.modules

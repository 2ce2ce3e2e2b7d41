"""One entry is enough: a temporary method, data set and backbone are found everywhere; no other module has a name."""
import ast
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import fer_bench
from fer_bench import catalogue, cli
from fer_bench.catalogue import BACKBONES, DATASETS, KINDS, METHODS, MethodEntry, methods_of
from fer_bench.config import RunConfig, filled, option_defaults, own_values, recorded_config, run_id
from fer_bench.core import BenchError

LIBRARY = Path(fer_bench.__file__).parent

THROW_AWAY = """
import numpy as np
import torch
import torch.nn.functional as F
from fer_bench.data.sources.base import Source
from fer_bench.methods.base import Method

class Ours(Method):
    def __init__(self, net, config):
        super().__init__(net, config.ema)
        self.weight = config.weight
    def forward(self, batch):
        loss = self.weight * F.cross_entropy(self.net(batch["labelled"][0]), batch["targets"])
        return loss, {"weighted": loss, "half": loss / 2}

def ours(net, config, counts, n_unlabelled=0): return Ours(net, config)

class Stripes(Source):
    name, licence = "stripes", "none"
    def __init__(self, root):
        rows = [(f"{split}/{i}.png", ("anger", "fear")[i % 2], None, None, split, None)
                for split in ("train", "test") for i in range(24)]
        super().__init__(rows, ("anger", "fear"), "grey")
    def load(self, key):
        i = int(key.split("/")[1][:-4])
        pixels = np.full((32, 32, 1), 40, np.uint8)
        pixels[::2 + i % 2] = 180 + i
        return pixels, key

class Small(torch.nn.Module):
    num_features, head_hidden_size = 8, 8
    pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, 4)
    def forward_features(self, x): return self.conv(x)
    def forward_head(self, x, pre_logits=False): return x.mean((2, 3))
    def forward(self, x): return self.forward_head(self.forward_features(x))

def small(image_size): return Small()
"""

@pytest.fixture
def added(tmp_path, monkeypatch):
    "The module `throw_away` and one entry each in the catalogue, in this process."
    (tmp_path/"throw_away.py").write_text(textwrap.dedent(THROW_AWAY))
    monkeypatch.syspath_prepend(tmp_path)
    import throw_away
    options = type("OursOptions", (catalogue.Options,), {"__annotations__": {"weight": float}, "weight": 1.0})
    entry = MethodEntry(throw_away.ours, "supervised", "weighted cross-entropy", "nobody 2026", options)
    monkeypatch.setitem(METHODS, "ours", entry)
    stripes = catalogue.DatasetEntry(throw_away.Stripes, "striped squares", frozenset({"native_size"}))
    monkeypatch.setitem(DATASETS, "stripes", stripes)
    monkeypatch.setitem(BACKBONES, "small", catalogue.BackboneEntry(throw_away.small, "one convolution"))
    yield throw_away
    sys.modules.pop("throw_away", None)

def test_one_entry_each_is_found_everywhere(added, tiny, tmp_path, capsys):
    config = tiny(method="ours", weight=2.0, dataset="stripes", data_root=str(tmp_path), backbone="small",
                  image_size=32, threads=1, cache_dir=str(tmp_path/"cache"))
    configs = [config, config.model_copy(update={"weight": 3.0}), fer_bench.baseline(config)]
    records = [fer_bench.run(c) for c in configs]
    assert records[0].metrics.kind == "supervised" and records[0].metrics.dataset == "stripes"
    assert records[0].config["weight"] == 2.0
    assert records[0].id.startswith("ours-stripes-all-s0-") and len({r.id for r in records}) == 3
    table = fer_bench.compare(records)
    assert table["method"].tolist() == ["ours (weight 2.0)", "ours (weight 3.0)", "supervised"]
    assert set(table["data"]) == {"stripes"}
    assert {"ours (weight 2.0)", "supervised"} <= set(fer_bench.measured(records)["method"])
    assert fer_bench.check_method("ours") is None
    assert fer_bench.store.verify(config.results_dir)[0].outcome == "sound"
    from fer_bench.report.figures import training_curve
    drawn = [line.get_label() for line in training_curve(records[0]).axes[0].lines]
    assert drawn == ["loss", "half"], "a part that equals the loss has no line of its own"
    assert records[0].loss_parts == ["weighted", "half"]
    from fer_bench.sweeps.grid import expand
    grid = {"preset": "tiny", "method": "ours", "weight": [1.0, 2.0], "dataset": "stripes", "data_root": "x"}
    assert len(expand(grid)) == 2
    for command, words in ((["methods"], ("ours", "stripes")),
                           (["methods", "ours"], ("nobody 2026", "--weight", "1.0"))):
        with pytest.raises(SystemExit): cli.main(command)
        said = capsys.readouterr().out
        assert all(word in said for word in words)

def test_the_notebook_takes_an_option_of_any_entry(added):
    cells = ["# The parameters\nmethod: str = 'supervised'", "# Parameters\nmethod = 'ours'\nweight = 4.0"]
    values = fer_bench.config.notebook_parameters(cells, {"method": "ours", "weight": 4.0}, options=True)
    assert RunConfig(**values).weight == 4.0

# the entries that there are

@pytest.mark.parametrize("name", METHODS)
def test_an_entry_is_whole(name):
    entry = METHODS[name]
    assert entry.kind in KINDS and entry.about and entry.paper and entry.flags <= catalogue.FLAGS.keys()
    assert callable(entry.load())
    for values in (entry.defaults, entry.recipe):
        assert values.keys() <= RunConfig.model_fields.keys() | entry.options.model_fields.keys()
    assert not entry.options.model_fields.keys() & RunConfig.model_fields.keys(), "an option has a field's name"
    for field in entry.options.model_fields.values(): assert field.description
    for preset in fer_bench.config.PRESETS:
        pool = {"pool_root": "x"} if preset == "paper" and entry.recipe.get("unlabelled") == "pool" else {}
        config = RunConfig(method=name, preset=preset, **pool)
        assert config.options.keys() == entry.options.model_fields.keys()
        assert all(getattr(config, n) == v for n, v in filled(name, preset).items() if n in config.options)
    pretrains_with_labels = "labels" in entry.flags
    unlabelled = entry.kind in ("semi-supervised", "self-supervised") and not pretrains_with_labels
    assert ("unlabelled" in entry.flags) == unlabelled == ("unlabelled" in entry.defaults)
    assert (entry.kind in ("self-supervised", "probe")) == ("probe" in entry.defaults)

@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_whole(name): assert DATASETS[name].about and callable(DATASETS[name].load())

def test_kinds_and_flags_are_asked():
    assert methods_of("probe") == ("linear_probe",)
    assert "dtm" in methods_of(flag="thresholds") and "mae" in methods_of(flag="reconstructs")
    assert set(methods_of()) == set(METHODS)

def test_defaults_leave_no_trace_in_the_id():
    ids = lambda **fields: run_id(RunConfig(preset="tiny", **fields), "d", "s")
    for name in METHODS:
        config = RunConfig(method=name, preset="tiny")
        spelt = {n: v for n, v in (option_defaults(name) | own_values(name)).items() if v == getattr(config, n)}
        assert ids(method=name) == ids(method=name, **spelt)
    assert ids(method="dtm", floor=0.7) != ids(method="dtm") != ids(method="fixmatch")
    assert run_id(RunConfig(), "d", "s", bf16=True) != run_id(RunConfig(), "d", "s")
    assert ids(precision="auto") == ids(precision="fp32"), "what is used counts, not how it was asked for"

def test_a_config_of_before_options_is_read():
    others = {"momentum": 0.99, "queue": 4096, "lambda_eac": 5.0, "temperature": None, "groups": 32}
    old = RunConfig(method="dtm").model_dump() | others
    assert recorded_config(old).model_dump() == RunConfig(method="dtm").model_dump()
    with pytest.raises(BenchError, match="'momentum' is for other methods"): RunConfig(**old)

def test_a_record_of_a_method_that_is_not_here_imports_nothing():
    values = RunConfig().model_dump() | {"method": "not_here.Mine", "alpha": 0.3}
    config = recorded_config(values)
    assert config.alpha == 0.3 and config.options == {"alpha": 0.3} and "not_here" not in sys.modules
    assert run_id(config, "d", "s") != run_id(recorded_config(values | {"alpha": 0.4}), "d", "s")

@pytest.mark.parametrize("name, says", [
    ("no_such_lab.Source", "Data set 'no_such_lab.Source' cannot be imported"), ("json.Source", "has no 'Source'"),
    ("rafdb", "Did you mean 'raf-db'")])
def test_data_sets_that_are_not_there(name, says):
    with pytest.raises(BenchError, match=says): catalogue.dataset_entry(name)

def test_a_data_set_of_ones_own_by_its_name(tmp_path, monkeypatch, tiny):
    (tmp_path/"mydata.py").write_text(textwrap.dedent(THROW_AWAY))
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny(dataset="mydata.Stripes", data_root=str(tmp_path), threads=1, cache_dir=str(tmp_path/"cache"))
    record = fer_bench.run(config)
    assert record.metrics.classes == ["anger", "fear"] and record.id.startswith("supervised-mydata.Stripes-")
    del sys.modules["mydata"]
    with pytest.raises(BenchError, match="If you trust that module, import mydata first"):
        fer_bench.runs.task.load_data(recorded_config(record.config))
    assert "mydata" not in sys.modules

def test_a_backbone_of_ones_own_by_its_name(tmp_path, monkeypatch, tiny):
    "Its code is part of the run id; a record that names a module which nobody imported does not import it."
    (tmp_path/"mynet.py").write_text(textwrap.dedent(THROW_AWAY))
    monkeypatch.syspath_prepend(tmp_path)
    fields = dict(backbone="mynet.small", threads=1, cache_dir=str(tmp_path/"cache"))
    record = fer_bench.run(tiny(**fields))
    assert record.metrics.init_hash and fer_bench.load_classifier(record)(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    del sys.modules["mynet"]
    with pytest.raises(BenchError, match="If you trust that module, import mynet first"):
        fer_bench.load_classifier(record)
    assert "mynet" not in sys.modules
    (tmp_path/"mynet.py").write_text(textwrap.dedent(THROW_AWAY).replace("Conv2d(3, 8, 3, 4)", "Conv2d(3, 8, 3, 2)"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import importlib
    importlib.invalidate_caches()
    assert fer_bench.runs.experiment.find_record(tiny(**fields)).id != record.id
    sys.modules.pop("mynet", None)

# names stand once

METHOD_NAMES = set(methods_of()) - {"supervised"}  # which is also the name of a kind, and the default baseline
OWN_MODULES = {"catalogue.py", "methods"}
WORDS = {"folder", "csv", "parquet", "drawn", "faceset", "records", "identities"}  # also words of other meanings

def names_in(path):
    "Text constants of a module that are exactly a name, docstrings aside."
    tree = ast.parse(path.read_text())
    is_all = lambda node: isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    tree.body = [node for node in tree.body if not is_all(node)]
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {n.value for n in texts if id(n) not in docs}

def modules(): return [p for p in sorted(LIBRARY.rglob("*.py")) if p.name != "_modidx.py"]

@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(LIBRARY).as_posix())
def test_no_other_module_knows_a_method_by_name(path):
    inside = path.relative_to(LIBRARY).parts
    if inside[0] in OWN_MODULES: return
    also = {"simfle"} if inside == ("config.py",) else set()  # the mean and std of its weights go by its name
    assert names_in(path) & METHOD_NAMES <= also

@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(LIBRARY).as_posix())
def test_no_other_module_knows_a_data_set_by_name(path):
    inside = path.relative_to(LIBRARY).parts
    if inside[0] == "catalogue.py" or inside[:2] in (("data", "sources"), ("data", "drawn")): return
    assert names_in(path) & (set(DATASETS) - WORDS) == set()

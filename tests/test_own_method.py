"""Own methods: each duty broken in turn is named, the name finds the class, and another code is another run."""
import functools
import json
import os
import random
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fer_bench
from fer_bench.catalogue import METHODS, find_method, register_method
from fer_bench.config import RunConfig, baseline
from fer_bench.core import BenchError
from fer_bench.methods.base import Method
from fer_bench.methods.own import code_hash, own_code
from fer_bench.report.tables import comparable, compare
from fer_bench.runs import contract
from fer_bench.runs.contract import check_method
from fer_bench.runs.experiment import find_record, run
from fer_bench.runs.inference import load_model
from fer_bench.runs.networks import init_hash
from fer_bench.sweeps.grid import expand


@pytest.fixture(autouse=True)
def own_catalogue():
    "What a test registers is forgotten after it."
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)

class Good(Method):
    "Cross-entropy, and nothing wrong."
    def __init__(self, net, config, counts, n_unlabelled):
        super().__init__(net, config.ema)
        self.setup()

    def setup(self): pass
    def loss(self, logits, batch): return F.cross_entropy(logits, batch["targets"])

    def forward(self, batch):
        loss = self.loss(self.net(batch["labelled"][0]), batch)
        return loss, {"cross_entropy": loss}

class Unlabelled(Good):
    "Also asks to be sure about unlabelled faces, and counts those it has seen."
    views = {"labelled": ["weak"], "unlabelled": ["weak", "strong"]}

    def setup(self): self.register_buffer("seen", torch.tensor(0))

    def forward(self, batch):
        loss, parts = super().forward(batch)
        weak, strong = (self.net(view) for view in batch["unlabelled"])
        assert len(weak) == len(batch["index"])
        agree = F.mse_loss(strong.softmax(1), weak.detach().softmax(1))
        self.seen += len(weak)
        return loss + agree, parts | {"agree": agree}

    def after_epoch(self, progress, labelled): return {"seen": self.seen.item(), "recalls": [0.5, 0.25]}

# the contract

@pytest.mark.parametrize("method", [Good, functools.partial(Unlabelled), "simclr"], ids=str)
def test_methods_that_keep_it(method): assert check_method(method) is None

def broken(base=Good, **parts): return type("Mine", (base,), parts)

def with_loss(function): return broken(loss=lambda self, logits, batch: function(logits, batch["targets"]))

def with_head(loss, **parts):
    "A layer beside net, kept as `parts` say."
    return broken(loss=lambda self, x, batch: F.cross_entropy(loss(self, x), batch["targets"]), **parts)

def stray(self): self.layers = [nn.Linear(8, 8)]
def plain_tensor(self): self.scale = torch.ones(8)
def unused(self): self.extra = nn.Linear(2, 2)
def counter(self): self.steps = 0

def counted(self, logits, batch):
    self.steps += 1
    return F.cross_entropy(logits, batch["targets"]) / self.steps

def calls_backward(self, batch):
    loss, parts = Good.forward(self, batch)
    loss.backward(retain_graph=True)
    return loss, parts

def moves_weights(self, batch):
    with torch.no_grad(): self.net.head.bias += 1
    return Good.forward(self, batch)

def a_part_called_lr(self, batch): return self.net(batch["labelled"][0]).mean(), {"lr": torch.tensor(0.0)}
def other_head(self): self.net.head = nn.Sequential(nn.Linear(self.net.head.in_features, 8))
def after_epoch(facts): return broken(after_epoch=lambda self, progress, labelled: facts)
def classify(function): return broken(classify=lambda self, images: function(self.evaluated(images)))

Bare = type("Mine", (nn.Module,), {"__init__": lambda self, *given: nn.Module.__init__(self)})
BROKEN = {  # duty: {what: (method, what is said of it)}
    contract.is_made: {
        "not a module": (lambda *given: 3, "is a int. Derive it from fer_bench.Method"),
        "a bare module": (Bare, r"has no `net`.*no `views`.*`evaluated`"),
        "other arguments": (type("Mine", (Method,), {}), "made by make.*TypeError")},
    contract.wants_views: {
        "no dict": (broken(views=["weak"]), r"views = \['weak'\]"), "empty": (broken(views={}), r"views = {}"),
        "a name misspelt": (broken(views={"labeled": ["weak"]}), "views = .*labeled"),
        "an unknown view": (broken(views={"labelled": ["week"]}), "names 'week'; there are plain, weak"),
        "text": (broken(views={"labelled": "weak"}), "takes a list of names")},
    contract.gives_a_loss: {
        "no pair": (broken(forward=lambda self, batch: self.net(batch["labelled"][0]).mean()),
                    "gives Tensor; it has to give a pair"),
        "a loss a face": (with_loss(functools.partial(F.cross_entropy, reduction="none")),
                          r"the loss as a tensor of shape \(8,\)"),
        "a plain number": (with_loss(lambda x, y: F.cross_entropy(x, y).item()),
                           "the loss as float; it has to be one number"),
        "not finite": (with_loss(lambda x, y: F.cross_entropy(x, y) / 0), "the loss = inf"),
        "a part's name": (broken(forward=a_part_called_lr), "a part 'lr'"),
        "an error": (with_loss(lambda x, y: [][0]),
                     "forward.*IndexError.*batch has step: int, progress: float, labelled: 1 of a tensor")},
    contract.learns: {
        "detached": (with_loss(lambda x, y: F.cross_entropy(x.detach(), y)), "No gradient reaches the network"),
        "argmax": (with_loss(lambda x, y: x.argmax(1).float().mean()), "No gradient reaches the network"),
        "beside net": (with_head(lambda self, x: self.extra(x.detach()),
                                 setup=lambda self: setattr(self, "extra", nn.Linear(8, 8))),
                       "No gradient reaches `net`"),
        "a layer in a list": (with_head(lambda self, x: self.layers[0](x), setup=stray), "is not a parameter of it"),
        "an unused layer": (broken(setup=unused),
                            r"No gradient reaches extra.weight, extra.bias: with several processes"),
        "backward": (broken(forward=calls_backward), "calls backward itself"),
        "moves weights": (broken(forward=moves_weights), "forward changes parameters"),
        "odd gradients": (with_loss(lambda x, y: (x - x).square().sum().sqrt() + F.cross_entropy(x, y)),
                          "gradient of .* is not finite")},
    contract.in_bf16: {
        "bf16": (with_loss(lambda x, y: -x[range(8), y].mean()), "Under bf16 the loss is .* in torch.bfloat16")},
    contract.repeats: {
        "numpy": (with_loss(lambda x, y: F.cross_entropy(x, y) * (1 + np.random.rand())),
                  "Draw random numbers from torch"),
        "random": (with_loss(lambda x, y: F.cross_entropy(x, y) * (1 + random.random())),
                   "Draw random numbers from torch")},
    contract.resumes: {
        "a count": (broken(setup=counter, loss=counted), "another loss. Changed in training, but not a buffer: steps"),
        "a plain tensor": (broken(setup=plain_tensor), r"scale: a plain tensor.*register_buffer\('scale'")},
    contract.moves: {
        "after_step": (broken(after_step=lambda self: None), "after_step.*TypeError"),
        "nothing": (after_epoch(None), "after_epoch gives NoneType"),
        "a tensor": (after_epoch({"a": torch.ones(1)}), r"use .item\(\)"),
        "nan": (after_epoch({"a": float("nan")}), "takes finite numbers"),
        "a name": (after_epoch({"epoch": 1}), "gives 'epoch', which has another meaning")},
    contract.evaluates: {
        "classes": (classify(lambda x: x.argmax(1)), r"classify gives a tensor of shape \(6,\)"),
        "by the batch": (classify(lambda x: x - x.mean(0)), "that depend on its batch"),
        "by chance": (classify(lambda x: x + torch.rand(8)), "other logits the second time"),
        "nan": (classify(lambda x: x * float("nan")), "logits that are not finite"),
        "a map": (broken(encode=lambda self, images: self.evaluated.backbone.forward_features(images)),
                  r"encode gives .*\(6, \d+, 1, 1\)"),
        "trains": (broken(classify=lambda self, images: self.evaluated.train()(images)),
                   "Evaluation changes its parameters or buffers"),
        "another network": (broken(setup=other_head), "do not fit a new network")},
    contract.doubts: {
        "one for all": (broken(doubt=lambda self, images: images.mean()),
                        r"doubt gives a tensor of shape \(\) for six faces"),
        "nan": (broken(doubt=lambda self, images: images.mean((1, 2, 3)) * float("nan")), "that are not finite")},
    contract.knows_no_device: {
        "the CPU": (with_loss(lambda x, y: (x.softmax(1) * torch.arange(8)).mean()), "makes a tensor on the CPU")},
    contract.names_its_forward_only: {"a number": (broken(forward_only=lambda self, batch: 3), "gives int")},
}

def test_every_duty_is_broken_below(): assert set(BROKEN) == {*contract.FIRST, *contract.DUTIES}

@pytest.mark.parametrize("duty, what", [(duty, what) for duty in BROKEN for what in BROKEN[duty]],
                         ids=lambda v: getattr(v, "__name__", v))
def test_a_broken_duty_is_named(duty, what):
    make, says = BROKEN[duty][what]
    found = contract._answers(duty, contract.Trial(make, RunConfig(preset="tiny", ema=0.0)), [])
    assert any(re.search(says, sentence) for sentence in found), found

def test_all_that_is_wrong_comes_at_once_and_the_cause_with_it():
    make = broken(setup=plain_tensor, loss=lambda self, x, b: F.cross_entropy(x, b["targets"]) * np.random.rand(),
                  forward_only=lambda self, batch: batch["no such"])
    with pytest.raises(BenchError) as e: check_method(make)
    lines = str(e.value).splitlines()
    assert lines[0].startswith("Mine does not keep")
    assert [line[:2] for line in lines[1:]] == ["- "] * 4  # also: it cannot resume
    assert isinstance(e.value.__cause__, KeyError)
    with pytest.raises(BenchError, match="keep the contract") as e: check_method(broken(views={}, forward_only=None))
    assert len(str(e.value).splitlines()) == 2, "without views nothing else can be asked"

def test_it_leaves_torchs_chance_as_it_was():
    before = torch.get_rng_state()
    check_method(Good, ema=0.0)
    assert torch.equal(torch.get_rng_state(), before)

# the hash of the code

SOURCE = """
import functools, math, torch
from fer_bench.methods.base import Method
ALPHA = {"a": 0.3}
def halved(x): return x / 2
def scaled(x): return halved(x) * ALPHA["a"]
class Base(Method):
    @torch.no_grad()
    def after_step(self, step): pass
class Mine(Base):
    views = {"labelled": ["weak"]}
    def __init__(self, net, config, counts, n_unlabelled): super().__init__(net, 0.0)
    def forward(self, batch):
        # a comment
        return scaled(sum(v for v in map(math.sqrt, (1, 2)) if v in {"x", "y", 1.0})), {}
    @property
    def twice(self): return 2
    @staticmethod
    @functools.cache
    def kept(x): return x + 1
unused = 1
"""

@pytest.fixture
def mylab(tmp_path, monkeypatch):
    "mylab(text) writes it as the module `mylab` into the working folder and forgets the one before."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    def write(text=SOURCE, name="mylab"):
        sys.modules.pop(name, None)
        (tmp_path/f"{name}.py").write_text(textwrap.dedent(text))
        import importlib
        importlib.invalidate_caches()
        return find_method(f"{name}.Mine")
    yield write
    for name in ("mylab", "mylab_helpers"): sys.modules.pop(name, None)

@pytest.mark.parametrize("old, new, same", [
    ("# a comment", "# another", True), ("unused = 1", "unused = 2", True), ("\nclass Base", "\n\n\nclass Base", True),
    ("x / 2", "x / 3", False), ('"a": 0.3', '"a": 0.4', False), ('["weak"]', '["strong"]', False),
    ("step): pass", "step): return 1", False),
    ("net, 0.0", "net, 0.5", False), ("@torch.no_grad()", "@torch.inference_mode()", False),
    ("    @torch.no_grad()\n", "", False), ("return 2", "return 3", False), ("x + 1", "x + 2", False),
    ("math.sqrt", "math.exp", False), ('"x", "y"', '"x", "z"', False)])
def test_what_changes_the_hash(mylab, old, new, same):
    first = code_hash(mylab())
    assert SOURCE.count(old) == 1 and (code_hash(mylab(SOURCE.replace(old, new))) == first) is same

def test_helpers_in_another_module_count(mylab, tmp_path):
    source = SOURCE.replace("import functools", "import mylab_helpers, functools")
    source = source.replace("halved(x) *", "mylab_helpers.halved(x) *")
    def hash_with(text):
        sys.modules.pop("mylab_helpers", None)
        (tmp_path/"mylab_helpers.py").write_text(text)
        return code_hash(mylab(source))
    first = hash_with("RATE = 2\ndef halved(x): return x / RATE")
    assert hash_with("RATE = 2\ndef halved(x): return x / RATE  # same") == first
    others = ["RATE = 3\ndef halved(x): return x / RATE", "RATE = 2\ndef halved(x): return x * RATE"]
    assert len({first, *map(hash_with, others)}) == 3

def test_the_code_that_runs_counts_and_not_the_file(mylab, tmp_path):
    first = code_hash(mine := mylab())
    (tmp_path/"mylab.py").write_text(SOURCE.replace("x / 2", "x / 3"))  # edited after the import
    assert code_hash(mine) == first
    mine.forward = lambda self, batch: None  # as autoreload does
    assert code_hash(mine) != first

def test_arguments_of_a_partial_count():
    make = lambda k: functools.partial(Good, k=k)
    assert code_hash(make(1)) == code_hash(make(1)) != code_hash(make(2))
    table = np.arange(3.0)
    def factory(*given): return Good(*given), table
    first = code_hash(factory)
    table[0] = 5
    assert code_hash(factory) != first

# names

@pytest.mark.parametrize("name, says", [
    ("no_such_lab.Mine", "cannot be imported: ModuleNotFoundError"), ("json.Mine", "has no 'Mine'"),
    ("os.path.join", "is not a class derived from fer_bench.Method"),
    ("json.decoder.JSONDecoder", "is not a class derived"),
    (".Mine", "cannot be imported"), ("fer_bench.methods.base.", "has no ''"),
    ("supervisd", "Did you mean 'supervised'.*in the process that registered it")])
def test_names_that_find_nothing(name, says):
    with pytest.raises(BenchError, match=says): find_method(name)

def test_a_module_that_fails_says_why(mylab):
    with pytest.raises(BenchError, match="cannot be imported: ZeroDivisionError"): mylab("1 / 0")

@pytest.mark.parametrize("name, make, says", [
    ("Mine", Good, "cannot be called 'Mine'"), ("my.one", Good, "cannot be called"), ("", Good, "cannot be called"),
    ("dtm", Good, "built-in method 'dtm'"), ("mine", 3, "given as int")])
def test_what_cannot_be_registered(name, make, says):
    with pytest.raises(BenchError, match=says): register_method(name, make)

def test_registering():
    register_method("mine", Good)
    assert METHODS["mine"].about == "Cross-entropy, and nothing wrong." and own_code("supervised") == ""
    first = own_code("mine")
    register_method("mine", Unlabelled, "two")
    assert METHODS["mine"].about == "two" and own_code("mine") != first and fer_bench.register_method is register_method

# runs

@pytest.fixture
def own(tiny, tmp_path):
    "own(**fields): a tiny config on one thread, its faces in the test's folder."
    return lambda **fields: tiny(threads=1, cache_dir=str(tmp_path/"cache"), **fields)

def test_a_run_beside_the_baseline_and_another_version(own):
    register_method("mine", Good)
    config = own(method="mine")
    record, other = run(config), run(baseline(config))
    assert record.id.startswith("mine-drawn-all-s0-") and other.config["method"] == "supervised"
    assert compare(comparable([record, other], record))["method"].tolist() == ["mine", "supervised"]
    assert load_model(record).run_id == record.id and record.metrics["init_hash"] == init_hash(config) != ""
    assert find_record(config).id == record.id and find_record(config).finished
    register_method("mine", broken(loss=lambda self, x, b: 2 * F.cross_entropy(x, b["targets"])))
    assert not find_record(config).finished and find_record(config).id != record.id
    assert init_hash(own(method="supervised")) == "" and init_hash(own(method="mine", init="timm")) != init_hash(config)
    assert fer_bench.store.verify(record.folder.parent.parent)[0].outcome == "sound"

def test_a_registered_method_is_known_to_one_process(own):
    register_method("mine", Good)
    with pytest.raises(BenchError, match="was registered in this process"): run(own(method="mine", processes=2))

TRAINED = """
import torch.nn.functional as F
from fer_bench import Method
NAMES = {"cross", "entropy", "loss"}
class Mine(Method):
    def __init__(self, net, config, counts, n_unlabelled): super().__init__(net, config.ema)
    def forward(self, batch):
        loss = F.cross_entropy(self.net(batch["labelled"][0]), batch["targets"])
        return loss, {name: loss for name in sorted(NAMES - {"loss", "cross"})}
"""

def test_a_class_by_name_in_another_process(own, mylab, tmp_path):
    mylab(TRAINED)
    config = own(method="mylab.Mine")
    (tmp_path/"config.json").write_text(json.dumps(config.model_dump()))
    code = "import json, fer_bench; print(fer_bench.run(json.load(open('config.json'))).id)"
    # another hash seed: another order of the names in a set than in this process
    quiet = {**os.environ, "FER_BENCH_PROGRESS": "log", "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=quiet)
    assert done.stdout.strip() == find_record(config).id and find_record(config).finished, done.stderr
    assert done.stdout.startswith("mylab.Mine-drawn-all-s0-")

def test_unlabelled_faces_that_nobody_asked_for_and_that_nobody_wants(own):
    register_method("mine", Unlabelled)
    with pytest.raises(BenchError, match="unlabelled faces, but the config gives none. Set unlabelled='rest'"):
        run(own(method="mine"))
    with pytest.raises(BenchError, match="unlabelled = 'rest' needs mu"): own(method="mine", unlabelled="rest")
    register_method("mine", Good)
    with pytest.raises(BenchError, match="has no views of unlabelled faces"):
        run(own(method="mine", unlabelled="rest", mu=1, labels_per_class=1))
    with pytest.raises(BenchError, match="is for other methods"): own(method="supervised", mu=2)

def test_an_own_method_learns_from_unlabelled_faces(own):
    register_method("mine", Unlabelled)
    config = own(method="mine", unlabelled="rest", mu=2, labels_per_class=1)
    record = run(config)
    assert record.metrics["pool"]["faces"][0] > 16
    assert record.metrics["images_seen"] == 3 * record.metrics["labelled_seen"]
    assert record.history["seen"].tolist() == [32, 64] and "agree" in record.history
    assert baseline(config).labels_per_class == 1 and baseline(config).unlabelled is None

def test_an_own_method_pretrains_and_is_probed(own):
    class Pretrain(Good):
        "Two views of a face shall look alike."
        views = {"unlabelled": ["ssl", "ssl"]}
        def setup(self): self.net.head.requires_grad_(False)
        def forward(self, batch):
            one, two = (self.net.encode(view) for view in batch["unlabelled"])
            loss = F.mse_loss(one, two) - one.std(0).mean()
            return loss, {"apart": loss}
        def forward_only(self, batch): return self.net.encode(batch["unlabelled"][0]).mean()
    check_method(Pretrain, ema=0.0)
    register_method("mine", Pretrain)
    record = run(own(method="mine", unlabelled="rest", mu=1, probe="linear", min_map=4, ema=0.0))
    faces = record.metrics["n"]
    assert record.metrics["probe"]["kind"] == "linear" and record.metrics["labelled_seen"] == 0
    assert record.metrics["pool"]["faces"] == [faces["labelled"] + faces["unlabelled"]]  # all of the training split

def test_an_own_method_in_a_grid_and_on_the_command_line(own, mylab):
    mylab(TRAINED)
    cells = expand({"preset": "tiny", "method": ["supervised", "mylab.Mine"]})
    assert [cell.config.method for cell in cells] == ["supervised", "mylab.Mine"]
    with pytest.raises(BenchError, match="Method 'mylab.Yours': the module 'mylab' has no 'Yours'"):
        expand({"method": "mylab.Yours"})

# options

WITH_OPTIONS = TRAINED + """
from pydantic import Field
import fer_bench
class Scaled(Mine):
    class Options(fer_bench.Options):
        scale: float = Field(1.0, gt=0, le=10, description="what the loss is multiplied by")
        name: str = "plain"
    def __init__(self, net, config, counts, n_unlabelled):
        super().__init__(net, config, counts, n_unlabelled)
        self.scale = config.scale
    def forward(self, batch):
        loss, parts = super().forward(batch)
        return self.scale * loss, {n: self.scale * v for n, v in parts.items()}
"""

def test_options_are_checked_and_recorded_flat(own, mylab):
    mylab(WITH_OPTIONS)
    config = own(method="mylab.Scaled", scale=2.0)
    assert config.scale == 2.0 and config.options == {"scale": 2.0, "name": "plain"}
    assert config.model_dump()["scale"] == 2.0
    assert own(method="mylab.Scaled") == own(method="mylab.Scaled", scale=1.0) != config
    for wrong, says in ((dict(scale=20.0), "'scale' = 20.0: .*what the loss is multiplied by"),
                        (dict(scale="2"), "'scale' = '2'"),
                        (dict(scael=2.0), "no parameter 'scael'. Did you mean 'scale'"),
                        (dict(floor=0.5), "'floor' is for other methods .*'mylab.Scaled' does not use it")):
        with pytest.raises(BenchError, match=says): own(method="mylab.Scaled", **wrong)
    with pytest.raises(BenchError, match="'scale'"): own(method="supervised", scale=2.0)
    class Wrong(Good):
        class Options: pass
    with pytest.raises(BenchError, match="not derived from fer_bench.Options"): register_method("wrong", Wrong)
    check_method(find_method("mylab.Scaled"), scale=3.0)

def test_an_option_is_swept_and_shown(own, mylab, tmp_path):
    mylab(WITH_OPTIONS)
    grid = {"preset": "tiny", "method": "mylab.Scaled", "scale": [1.0, 2.0, 4.0], "threads": 1, "device": "cpu",
            "results_dir": str(tmp_path/"results"), "cache_dir": str(tmp_path/"cache")}
    records = [run(cell.config) for cell in expand(grid)]
    assert len({r.id for r in records}) == 3 and [r.config["scale"] for r in records] == [1.0, 2.0, 4.0]
    names = ["mylab.Scaled", "mylab.Scaled (scale 2.0)", "mylab.Scaled (scale 4.0)"]
    assert compare(records)["method"].tolist() == names
    assert sorted(fer_bench.measured(records)["method"]) == names
    with pytest.raises(BenchError, match="scael.*Did you mean 'scale'"): expand({**grid, "scael": [1.0]})
    assert fer_bench.store.verify(tmp_path/"results")[0].outcome == "sound"

def test_an_option_on_the_command_line_and_in_papermill(own, mylab, tmp_path, monkeypatch, capsys):
    from fer_bench import cli
    mylab(WITH_OPTIONS)
    taken = {}
    monkeypatch.setattr(cli, "_execute", lambda notebook, output, values: taken.update(values))
    monkeypatch.setattr(cli, "_print_comparison", lambda runs, record: None)
    common = ["run", "--method", "mylab.Scaled", "--preset", "tiny", "--results-dir", str(tmp_path/"results")]
    for words in (["--scale", "2"], ["--scale=2.0"], ["--scale", "2.0", "--name", "7"]):
        with pytest.raises(SystemExit) as done: cli.main([*common, *words])
        assert done.value.code in (0, None) and taken["scale"] == 2
    assert taken["name"] == "7"
    for words, says in ((["--scael", "2"], "Did you mean 'scale'"), (["--scale"], "requires an argument"),
                        (["more"], "extra argument")):
        with pytest.raises(SystemExit) as done: cli.main([*common, *words])
        said = " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().err).split())
        assert done.value.code == 2 and says in said
    cells = ["# The parameters\nmethod: str = 'supervised'", "# Parameters\nscale = 2.0\nmethod = 'mylab.Scaled'"]
    found = fer_bench.config.notebook_parameters(cells, {"method": "mylab.Scaled", "scale": 2.0}, options=True)
    assert RunConfig(**found).scale == 2.0

def test_a_probe_trains_the_head_that_is_evaluated(own):
    "An own method with an average and a probe is evaluated with the head that the probe trained."
    class Averaged(Good):
        views = {"unlabelled": ["ssl", "ssl"]}
        def setup(self): self.net.head.requires_grad_(False)
        def forward(self, batch):
            one, two = (self.net.encode(view) for view in batch["unlabelled"])
            loss = F.mse_loss(one, two)
            return loss, {"apart": loss}
    register_method("mine", Averaged)
    record = run(own(method="mine", unlabelled="rest", mu=1, probe="linear", min_map=4, ema=0.9))
    weights = load_model(record).head.weight
    assert weights.abs().max() > 0.1, "a head as it was initialised: N(0, 0.01)"

def test_run_puts_torch_back(own):
    settings = lambda: (torch.get_num_threads(), torch.backends.cudnn.benchmark,
                        torch.are_deterministic_algorithms_enabled())
    before = settings()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(own(method="supervised", deterministic=True, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert before == settings()

def test_a_number_that_is_not_finite_stops_the_run_with_a_sentence(own):
    class Odd(Good):
        def after_epoch(self, progress, labelled): return {"share": float("nan")}
    register_method("mine", Odd)
    with pytest.raises(BenchError, match="The share became nan in epoch 1"): run(own(method="mine"))

def test_watched_numbers_are_no_parts_of_the_loss(own):
    register_method("mine", Unlabelled)
    record = run(own(method="mine", unlabelled="rest", mu=2, labels_per_class=1))
    assert record.metrics["loss_parts"] == ["cross_entropy", "agree"] and "seen" in record.history

"""The doctor: each fault is found, named, and has a remedy; what is fine is left alone and nothing is left behind."""
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from typer.testing import CliRunner

from fer_bench import doctor
from fer_bench.cli import app
from fer_bench.doctor import FAILURE, OK, WARNING, examine, report

GIB = 2**30

@pytest.fixture
def look(tmp_path):
    "look(what) → the finding about `what`, and that every other line is as good as it was."
    def look(what, **places):
        places = {"results_dir": str(tmp_path/"results"), "cache_dir": str(tmp_path/"cache"), **places}
        found, = (f for f in examine(**places) if f.what == what)
        assert (found.level == OK) <= (not found.remedy or found.what.startswith("extra")) and (found.level == OK or found.remedy)
        return found
    return look

def test_a_sound_place(tmp_path):
    found = examine(str(tmp_path/"results"), str(tmp_path/"cache"))
    assert [f for f in found if f.level == FAILURE] == [] and list(tmp_path.iterdir()) == []
    assert [f.what for f in found if not f.what.startswith("extra")] == [
        "Python", "packages", "torch", "GPU", "memory", "results", "cache", "kernel", "data"]
    assert "fer-bench run --preset tiny" in report(found) or "warning" in report(found)

def test_an_old_python(look, monkeypatch):
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 9, 1), prefix="/old", executable=sys.executable))
    assert look("Python").level == FAILURE and "3.9.1" in look("Python").says and ">=3.11" in look("Python").remedy

def test_packages(look, monkeypatch):
    real = doctor.version
    def version(name):
        if name == "timm": raise PackageNotFoundError(name)
        return "1.0" if name == "pandas" else real(name)
    monkeypatch.setattr(doctor, "version", version)
    found = look("packages")
    assert found.level == FAILURE and "timm is not installed" in found.says and "pandas 1.0 is not >=" in found.says
    assert "pip install" in found.remedy

def test_an_extra_that_is_not_there_is_no_fault(look, monkeypatch):
    real = doctor.version
    def version(name):
        if name == "tensorboard": raise PackageNotFoundError(name)
        return real(name)
    monkeypatch.setattr(doctor, "version", version)
    assert look("extra tensorboard").level == OK and "pip install 'fer_bench[tensorboard]'" in look("extra tensorboard").remedy

def fake_torch(monkeypatch, free=None):
    cuda = SimpleNamespace(is_available=lambda: free is not None, device_count=lambda: 1, get_device_name=lambda i: "Fake 1",
                           mem_get_info=lambda i: (free * GIB, 16 * GIB))
    module = SimpleNamespace(__version__="9.9", get_num_threads=lambda: 1, cuda=cuda, version=SimpleNamespace(cuda="12.8"))
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: module)

@pytest.mark.parametrize("free, smi, level, says", [(15, True, OK, "15.0 of 16.0"), (3, True, WARNING, "Fake 1, 3.0"),
                                                    (None, True, WARNING, "none that torch"), (None, False, OK, "none that torch")])
def test_gpu(look, monkeypatch, free, smi, level, says):
    fake_torch(monkeypatch, free)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/nvidia-smi" if smi else None)
    assert look("GPU").level == level and says in look("GPU").says

def test_a_torch_that_cannot_be_imported(look, monkeypatch):
    def broken(name): raise OSError("libcudart.so.12: cannot open shared object file")
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert look("torch").level == FAILURE and "libcudart" in look("torch").says and "pip install" in look("torch").remedy
    assert look("GPU").level == FAILURE and "could not be looked at" in look("GPU").says

@pytest.mark.parametrize("free, level", [(8, OK), (1, WARNING), (0.1, FAILURE)])
def test_memory_and_disk(look, monkeypatch, free, level):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=free * GIB))
    assert {look(what).level for what in ("memory", "results", "cache")} == {level}

def test_places_that_cannot_be_written(look, tmp_path):
    (tmp_path/"file").touch()
    for what, name in (("results", "--results-dir"), ("cache", "FER_BENCH_CACHE")):
        found = look(what, **{f"{what}_dir": str(tmp_path/"file")})
        assert found.level == FAILURE and "is a file" in found.says and name in found.remedy

@pytest.mark.parametrize("kernel, says", [("/another/bin/python", "/another/bin/python"), (None, "no kernel python3")])
def test_a_kernel_of_another_environment(look, monkeypatch, kernel, says):
    def get(self, name):
        if kernel is None: raise NoSuchKernel(name)
        return SimpleNamespace(argv=[kernel, "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", get)
    assert look("kernel").level == FAILURE and says in look("kernel").says and "ipykernel install" in look("kernel").remedy

def test_data(look, tree, tmp_path):
    (tmp_path/"empty").mkdir()
    assert look("data", data_root=str(tree)).level == OK
    assert "is empty" in look("data", data_root=str(tmp_path/"empty")).says
    assert look("data", data_root=str(tmp_path/"nowhere")).level == FAILURE

def test_command(tmp_path):
    def call(*words):
        done = CliRunner().invoke(app, ["doctor", "--cache-dir", str(tmp_path), *words])
        return done.exit_code, done.output
    code, said = call("--results-dir", str(tmp_path))
    assert code == 0 and "[  ok  ] Python" in said
    code, said = call("--results-dir", str(tmp_path), "--data-root", str(tmp_path/"nowhere"))
    assert code == 1 and "[ FAIL ] data" in said and "→ Check the path" in said and "1 failure: mend" in said

def test_it_is_there_without_torch():
    subprocess.run([sys.executable, "-c", "import sys, fer_bench.doctor; assert not {'torch', 'pandas'} & set(sys.modules)"], check=True)

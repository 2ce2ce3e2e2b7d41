"""The doctor: each fault is found and named, and has a remedy. What is fine is left alone; no file stays behind."""
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
def check(tmp_path):
    "check(what) → the `Check` of `what`, with its remedy where it is not ok, and only there."
    def check(what, **places):
        places = {"results_dir": str(tmp_path/"results"), "cache_dir": str(tmp_path/"cache"), **places}
        found, = (line for line in examine(**places) if line.what == what)
        if not what.startswith("extra"): assert bool(found.remedy) == (found.level != OK)
        return found
    return check

def test_a_sound_place(tmp_path):
    found = examine(str(tmp_path/"results"), str(tmp_path/"cache"))
    assert [f for f in found if f.level == FAILURE] == [] and list(tmp_path.iterdir()) == []
    assert [f.what for f in found if not f.what.startswith("extra")] == [
        "system", "Python", "packages", "torch", "GPU", "memory", "results", "cache", "kernel", "data"]
    assert "fer-bench run --preset tiny" in report(found) or "warning" in report(found)

@pytest.mark.parametrize("system, level, says", [
    ("Linux", OK, "Linux"), ("Darwin", WARNING, "macOS"), ("", WARNING, "unknown")])
def test_system(check, monkeypatch, system, level, says):
    "Linux is tested; others are told that they are not, and nothing POSIX-only stops the checks there."
    monkeypatch.setattr(doctor.platform, "system", lambda: system)
    for name in ("fcntl", "resource"): monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert check("system").level == level and says in check("system").says
    assert check("torch").level == OK and check("results").level != FAILURE

def test_an_old_python(check, monkeypatch):
    old = SimpleNamespace(version_info=(3, 9, 1), prefix="/old", executable=sys.executable)
    monkeypatch.setattr(doctor, "sys", old)
    assert check("Python").level == FAILURE and "3.9.1" in check("Python").says and ">=3.11" in check("Python").remedy

def test_packages(check, monkeypatch):
    real = doctor.version
    def version(name):
        if name == "timm": raise PackageNotFoundError(name)
        return "1.0" if name == "pandas" else real(name)
    monkeypatch.setattr(doctor, "version", version)
    found = check("packages")
    assert found.level == FAILURE and "timm is not installed" in found.says and "pandas 1.0 is not >=" in found.says
    assert "pip install" in found.remedy

def test_an_extra_that_is_not_there_is_no_fault(check, monkeypatch):
    real = doctor.version
    def version(name):
        if name == "tensorboard": raise PackageNotFoundError(name)
        return real(name)
    monkeypatch.setattr(doctor, "version", version)
    found = check("extra tensorboard")
    assert found.level == OK and "pip install 'fer_bench[tensorboard]'" in found.remedy

def fake_torch(monkeypatch, free=None):
    cuda = SimpleNamespace(is_available=lambda: free is not None, device_count=lambda: 1,
                           get_device_name=lambda i: "Fake 1", mem_get_info=lambda i: (free * GIB, 16 * GIB))
    module = SimpleNamespace(__version__="9.9", get_num_threads=lambda: 1, cuda=cuda,
                             version=SimpleNamespace(cuda="12.8"))
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: module)

@pytest.mark.parametrize("free, smi, level, says", [
    (15, True, OK, "15.0 of 16.0"), (3, True, WARNING, "Fake 1, 3.0"),
    (None, True, WARNING, "none that torch"), (None, False, OK, "none that torch")])
def test_gpu(check, monkeypatch, free, smi, level, says):
    fake_torch(monkeypatch, free)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/nvidia-smi" if smi else None)
    assert check("GPU").level == level and says in check("GPU").says

def test_a_torch_that_cannot_be_imported(check, monkeypatch):
    def broken(name): raise OSError("libcudart.so.12: cannot open shared object file")
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = check("torch")
    assert found.level == FAILURE and "libcudart" in found.says and "pip install" in found.remedy
    assert check("GPU").level == FAILURE and "could not be checked" in check("GPU").says

@pytest.mark.parametrize("free, level", [(8, OK), (1, WARNING), (0.1, FAILURE)])
def test_memory_and_disk(check, monkeypatch, free, level):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=free * GIB))
    assert {check(what).level for what in ("memory", "results", "cache")} == {level}

def test_places_that_cannot_be_written(check, tmp_path):
    (tmp_path/"file").touch()
    for what, name in (("results", "--results-dir"), ("cache", "FER_BENCH_CACHE")):
        found = check(what, **{f"{what}_dir": str(tmp_path/"file")})
        assert found.level == FAILURE and "is a file" in found.says and name in found.remedy

@pytest.mark.parametrize("kernel, says", [("/another/bin/python", "/another/bin/python"),
                                          (None, "no notebook kernel python3")])
def test_a_kernel_of_another_environment(check, monkeypatch, kernel, says):
    def get(self, name):
        if kernel is None: raise NoSuchKernel(name)
        return SimpleNamespace(argv=[kernel, "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", get)
    found = check("kernel")
    assert found.level == FAILURE and says in found.says and "ipykernel install" in found.remedy

def test_data(check, tree, tmp_path):
    (tmp_path/"empty").mkdir()
    assert check("data", data_root=str(tree)).level == OK
    assert "is empty" in check("data", data_root=str(tmp_path/"empty")).says
    assert check("data", data_root=str(tmp_path/"nowhere")).level == FAILURE

def test_command(tmp_path):
    def call(*words):
        done = CliRunner().invoke(app, ["doctor", "--cache-dir", str(tmp_path), *words])
        return done.exit_code, done.output
    code, said = call("--results-dir", str(tmp_path))
    assert code == 0 and "[  ok  ] Python" in said
    code, said = call("--results-dir", str(tmp_path), "--data-root", str(tmp_path/"nowhere"))
    assert code == 1 and "[ FAIL ] data" in said and "→ Check the path" in said and "1 failure: fix" in said

def test_it_is_there_without_torch():
    code = "import sys, fer_bench.doctor; assert not {'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The package as others get it: what source distribution and wheel hold, and that the wheel works elsewhere."""
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "(source distribution, wheel made from it)"
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder/"clone",
                    ignore=shutil.ignore_patterns(".*", "results", "build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder/"clone"], check=True,
                   capture_output=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))

def tracked(*paths) -> set[str]:
    if not (ROOT/".git").exists(): pytest.skip("no git checkout")
    said = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout
    return {name for name in said.split("\0") if name and (ROOT/name).exists()}

def test_source_distribution_holds_what_is_tracked(built):
    with tarfile.open(built[0]) as tar: inside = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    wanted = tracked("fer_bench", "nbs", "tests", "README.md", "LICENSE", "CITATION.cff", "Makefile", "pyproject.toml",
                     "settings.ini")
    assert wanted - inside == set()

def test_wheel_works_outside_of_the_checkout(built, tmp_path):
    with zipfile.ZipFile(built[1]) as wheel: wheel.extractall(tmp_path/"site")
    assert {p for p in tracked("fer_bench") if not (tmp_path/"site"/p).exists()} == set()
    notebooks = {p.name for p in tmp_path.glob("site/*.data/data/share/fer_bench/nbs/*")}
    assert {"run_benchmark.ipynb", "compare_methods.ipynb", "paper_figures.ipynb", "throughput.ipynb",
            "index.ipynb"} <= notebooks
    code = "from fer_bench.report import published; print(published.__file__, len(published.published()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path/"site")})
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path/"site")), done.stderr

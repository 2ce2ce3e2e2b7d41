"""Shared by the tests: where the real faces are, a small FaceSet, tiny runs in a folder of their own."""
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    "FaceSets built by the tests go to a folder of the tests."
    os.environ["FER_BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))

@pytest.fixture(scope="session")
def ferplus(tmp_path_factory):
    "The folder FERPlus, unpacked once; skips where the real faces are not at hand."
    archive = Path(os.environ.get("FER_BENCH_DATA", ROOT.parent/"shared/data"))/"ferplus.tar.xz"
    if not archive.exists(): pytest.skip(f"no {archive}; FER_BENCH_DATA names the folder of the real faces")
    folder = tmp_path_factory.mktemp("ferplus")
    with tarfile.open(archive) as tar: tar.extractall(folder, filter="data")
    return folder/"FERPlus"

@pytest.fixture
def tree(tmp_path):
    "A folder data set: two classes that colour tells apart, 12 training and 4 test pictures each, of 32 px."
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("test", 4)):
        for c, name in enumerate(("fear", "happiness")):
            (tmp_path/"tree"/split/name).mkdir(parents=True)
            for i in range(n):
                picture = rng.integers(0, 60, (32, 32, 3)); picture[..., c] += 150
                Image.fromarray(picture.astype(np.uint8)).save(tmp_path/"tree"/split/name/f"{i}.png")
    return tmp_path/"tree"

@pytest.fixture
def tiny(tmp_path):
    "tiny(**fields) → a RunConfig of the preset tiny whose results go to the test's folder."
    from fer_bench.config import RunConfig
    return lambda **fields: RunConfig(**{"preset": "tiny", "device": "cpu", "results_dir": str(tmp_path/"results"), **fields})

"""Shared by the tests: one thread each, profiles of Hypothesis, faces drawn once, a small data set, tiny runs.

`make test` runs what is marked neither `nightly` nor `soak`, in two processes that share the drawn faces.
`make nightly` runs all but `soak`, with the Hypothesis profile `nightly`: ten times as many examples, other ones each
time."""
import os
import tarfile
import tempfile
from pathlib import Path

# before torch is imported, which reads them
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ.setdefault(variable, "1")

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).parent.parent
MORE = 10  # times as many examples in `nightly`

settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", deadline=None, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)

LONGEST = ("processes", "sweep", "ray", "semisupervised", "experiment", "faults", "pretraining", "look", "facemae",
           "explain")

def pytest_collection_modifyitems(items):
    "The longest files first, so that no process is left alone with one at the end."
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.module.__name__, len(place)))
    if PROFILE != "nightly": return
    seen = set()
    for test in (getattr(item, "function", None) for item in items):
        own = getattr(test, "_hypothesis_internal_use_settings", None)
        if own and test not in seen:
            test._hypothesis_internal_use_settings = settings(own, max_examples=MORE * own.max_examples)
        seen.add(test)

@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    "A folder that all processes of this test session have in common."
    own = tmp_path_factory.getbasetemp()
    (folder := (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)/"shared").mkdir(exist_ok=True)
    return folder

class DrawnOnce:
    "Stands for `portrait.pixels`: a face that was drawn before in this session is read from `folder`."
    def __init__(self, draw, folder: Path): self.draw, self.folder = draw, folder

    def __call__(self, faces: dict, seed: int, size: int) -> np.ndarray:
        paths = [self.folder/f"{seed}-{size}-{i}.npy" for i in faces["indices"]]
        new = [k for k, path in enumerate(paths) if not path.exists()]
        if new:
            images = self.draw({name: values[new] for name, values in faces.items()}, seed, size)
            for k, image in zip(new, images, strict=True): self.keep(paths[k], image)
        return np.stack([np.load(path) for path in paths])

    def keep(self, path: Path, image: np.ndarray) -> None:
        "Whole or not at all, for another process may read it."
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file: np.save(file, image)
        os.replace(file.name, path)

@pytest.fixture(scope="module", autouse=True)
def drawn_once(request, shared_folder):
    "Drawing takes most of the time of many tests; those of drawing itself draw."
    if request.module.__name__ == "test_drawn": yield; return
    from fer_bench.data.drawn import faces
    (folder := shared_folder/"drawn").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(faces, "pixels", DrawnOnce(faces.pixels, folder))
        yield

@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    "FaceSets built by the tests go to a folder of the tests."
    os.environ["FER_BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))

@pytest.fixture(scope="session")
def ferplus(shared_folder):
    "The folder FERPlus, unpacked once; skips where the real faces are not at hand."
    archive = Path(os.environ.get("FER_BENCH_DATA", ROOT.parent/"shared/data"))/"ferplus.tar.xz"
    if not archive.exists(): pytest.skip(f"no {archive}; FER_BENCH_DATA names the folder of the real faces")
    with FileLock(shared_folder/"ferplus.lock"):
        if not (done := shared_folder/"ferplus").exists():
            with tarfile.open(archive) as tar: tar.extractall(shared_folder/"ferplus.part", filter="data")
            (shared_folder/"ferplus.part").rename(done)
    return done/"FERPlus"

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
    return lambda **fields: RunConfig(**{"preset": "tiny", "device": "cpu", "results_dir": str(tmp_path/"results"),
                                         **fields})

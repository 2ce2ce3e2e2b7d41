"""Faults of machine and hand: nothing finished is lost, nothing half-made counts, and a sentence says what to do.

Kills of a run and of a sweep, two processes with one run, and one damaged checkpoint are in `test_experiment` and
`test_sweep`."""
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

import fer_bench.methods.base as base
from fer_bench import core
from fer_bench.core import BenchError, progress
from fer_bench.data.stamps import file_stamps, is_verified
from fer_bench.record import SEALED, Record, load_runs, read_runs, runs_folder, write_status
from fer_bench.runs.experiment import find_record, run
from fer_bench.runs.task import load_data
from fer_bench.store import verify
from fer_bench.train.checkpoint import checkpoints, save_checkpoint
from fer_bench.train.memory import fitting_batch


def logits(record): return np.stack(record.predictions["logits"])

def at(monkeypatch, when, what):
    "Have `what()` happen at the end of the epoch at which the progress of a run is `when`."
    def after_epoch(self, progress, labelled):
        if progress == when: what()
        return {}
    monkeypatch.setattr(base.Method, "after_epoch", after_epoch)

def stop(): raise KeyboardInterrupt

def interrupted(config, monkeypatch, when=1.0):
    "The folder of the run of `config`, stopped at the end of its last epoch (before that is kept)."
    with monkeypatch.context() as m:
        at(m, when, stop)
        with pytest.raises(KeyboardInterrupt): run(config)
    return find_record(config).folder

# being stopped, and a kernel that dies

def begun(process, folder, known=()):
    "Wait until the run in `folder` has a checkpoint that is not among `known`; → those there are."
    while not (found := set(folder.glob("runs/*/checkpoint*.pt"))) - set(known):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return found

def test_sigterm_in_a_program(tiny, tmp_path):
    config = tiny(epochs=300, steps_per_epoch=10)
    code = f"from fer_bench import run; run({config.model_dump()!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    begun(process, tmp_path/"results")
    process.terminate()
    assert (process.communicate()[1], process.returncode) == ("", 143)
    folder, = runs_folder(tmp_path/"results").iterdir()
    assert Record(folder).status["state"] == "interrupted" and checkpoints(folder)
    assert load_runs(tmp_path/"results") == []

PATIENT = """
import time
from pathlib import Path
from fer_bench.methods.supervised import Supervised

class Patient(Supervised):
    "Waits at the end of the epoch whose number is in the file `hold`: a test stops it there, however fast the machine."
    hold = Path({hold!r})

    def __init__(self, net, config, counts, n_unlabelled):
        super().__init__(net, config.ema)
        self.epochs = config.epochs

    def after_epoch(self, progress, labelled):
        while round(progress * self.epochs) == int(self.hold.read_text()): time.sleep(0.02)
        return {{}}
"""

def test_the_command_stopped_and_its_kernel_killed(tiny, tmp_path, monkeypatch):
    "Ctrl-C, then the same command, whose kernel dies, then to the end: the record is that of an undisturbed run."
    (hold := tmp_path/"hold").write_text("2")
    (tmp_path/"patient.py").write_text(PATIENT.format(hold=str(hold)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    fields = dict(method="patient.Patient", preset="tiny", epochs=4, steps_per_epoch=2, threads=1, device="cpu")
    words = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    results = tmp_path/"results"
    def command():
        return subprocess.Popen([sys.executable, "-m", "fer_bench.cli", "run", *words, "--compare-with", "",
                                 "--results-dir", str(results)],
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen)
    def listen():  # what a shell starts with & ignores Ctrl-C, and so do its children, these tests perhaps
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    def ended(process, patience=300):
        out, err = process.communicate(timeout=patience)
        assert "Traceback" not in out + err
        return process.returncode, err
    first = command()
    known = begun(first, results)
    first.send_signal(signal.SIGINT)
    code, said = ended(first)
    folder, = runs_folder(results).iterdir()
    assert code == 130 and "the same command goes on from there" in said
    assert Record(folder).status["state"] == "interrupted"
    hold.write_text("4")
    second = command()
    later = begun(second, results, known | set(checkpoints(folder)))
    assert max(later) > max(known), "it goes on, and does not begin again"
    kernel, = psutil.Process(second.pid).children()
    kernel.kill()
    code, said = ended(second)
    assert code == 1 and "kernel died" in said and "the same command goes on from there" in said
    assert load_runs(results) == []
    assert checkpoints(folder)
    hold.write_text("0")
    record, whole = (run(tiny(**fields, results_dir=str(place))) for place in (results, tmp_path/"whole"))
    assert record.folder == folder and np.array_equal(logits(record), logits(whole))

# the disk

@pytest.fixture
def disk(monkeypatch):
    "disk.room: writes that still fit, each of which `atomic_file` ends with an fsync; None: as many as one likes."
    class Disk: room = None
    real = os.fsync
    def fsync(handle):
        if Disk.room is not None:
            Disk.room -= 1
            if Disk.room < 0: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)
    monkeypatch.setattr(os, "fsync", fsync)
    return Disk

def test_full_disk_at_every_write(tiny, tmp_path, disk):
    "The disk fills up at the first, second, third ... write of a run, and stays full until there is room again."
    fields = dict(method="supervised", ema=0.9, threads=1)
    other, whole = run(tiny(**fields, seed=1)), run(tiny(**fields, results_dir=str(tmp_path/"whole")))
    for room in range(100):
        disk.room = room
        try: run(tiny(**fields))
        except BenchError as e: assert "No space left" in str(e) and "make room" in str(e)
        else: break
        folder = runs_folder(tmp_path/"results")/whole.id
        assert [r.id for r in load_runs(tmp_path/"results")] == [other.id] and not list(tmp_path.rglob("*.part"))
        disk.room = None
        assert np.array_equal(logits(run(tiny(**fields))), logits(whole))
        shutil.rmtree(folder)
    assert room >= 10  # config, status, environment, two checkpoints, metrics, history, predictions, weights, status
    assert {found.outcome for found in verify(tmp_path/"results")} == {"sound"}

SMALL_DISK = """
import os, subprocess, sys
import numpy as np
from fer_bench import RunConfig, run
from fer_bench.core import BenchError
place, tiny = sys.argv[1], dict(preset="tiny", device="cpu", threads=1)
def mount(options): return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]).returncode
if mount("size=64k"): sys.exit(77)
config = dict(tiny, results_dir=place + "/results", cache_dir=place + "/cache")
said = []
for size in ("64k", "256k", "640k", "1200k", "64m"):
    mount("remount,size=" + size)
    try: said.append(np.stack(run(config).predictions["logits"]).sum()); break
    except BenchError as e: said.append(str(e))
whole = run(dict(tiny, results_dir=sys.argv[2], cache_dir=sys.argv[2])).predictions["logits"]
assert said[-1] == np.stack(whole).sum() and len(said) > 2, said
for sentence in said[:-1]: assert "No space left" in sentence and "make room" in sentence, sentence
"""

def test_a_disk_that_is_too_small(tmp_path):
    "A tmpfs in its own namespace that grows until a run fits: pictures, then checkpoints, then weights find no room."
    if not shutil.which("unshare"): pytest.skip("no unshare here, so no disk of our own")
    (tmp_path/"disk").mkdir()
    done = subprocess.run(["unshare", "--map-root-user", "--mount", sys.executable, "-c", SMALL_DISK, tmp_path/"disk",
                           tmp_path/"whole"],
                          capture_output=True, text=True)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()[:80]}")
    assert done.returncode == 0, done.stderr

def test_a_folder_without_rights(tiny):
    "As a user without rights, also where the tests are run by root."
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        (locked := Path(place, "results")).mkdir(mode=0o555)
        root = os.geteuid() == 0
        if root: os.seteuid(65534)
        try:
            with pytest.raises(BenchError, match="Permission denied.*Choose another place"):
                run(tiny(results_dir=str(locked)))
        finally:
            if root: os.seteuid(0)

# checkpoints

def truncate(path): path.write_bytes(path.read_bytes()[:-1])
def empty(path): path.write_bytes(b"")
def flip(path): data = bytearray(path.read_bytes()); data[len(data) // 3] ^= 4; path.write_bytes(data)

@pytest.mark.parametrize("newest, older", [(truncate, None), (empty, None), (truncate, flip)])
def test_damaged_checkpoints(tiny, tmp_path, monkeypatch, newest, older):
    "The one before serves; without any the run begins again."
    fields = dict(epochs=4, steps_per_epoch=2)
    whole, config = run(tiny(**fields, results_dir=str(tmp_path/"whole"))), tiny(**fields)
    kept = checkpoints(interrupted(config, monkeypatch))
    for spoil, path in zip((newest, older), kept, strict=True):
        if spoil: spoil(path)
    with pytest.warns(UserWarning, match="damaged"): record = run(config)
    assert np.array_equal(logits(record), logits(whole))

def test_checkpoint_of_another_version(tiny, monkeypatch):
    config = tiny()
    folder = interrupted(config, monkeypatch)
    save_checkpoint(folder, 2, {"method": {"weight": torch.zeros(1)}, "optimizer": {}, "history": [], "best": None})
    with pytest.raises(BenchError, match="another version.*Delete the folder"): run(config)
    assert load_runs(config.results_dir) == []

def test_what_a_kill_left_is_swept_away(tiny, monkeypatch):
    config = tiny()
    folder = interrupted(config, monkeypatch)
    for name in (".checkpoint-00001.pt.abc.part", ".metrics.json.x.part"): (folder/name).write_text("half")
    run(config)
    assert not list(folder.glob(".*")) and not checkpoints(folder)

# faces that change under a run

def edit_pixels(folder):
    with open(folder/"images.npy", "r+b") as f:
        f.seek(-5, 2); byte = f.read(1); f.seek(-1, 1); f.write(bytes([byte[0] ^ 1]))
def edit_labels(folder):
    index = pd.read_parquet(folder/"index.parquet")
    index.loc[0, "label"] = "fear" if index.label[0] != "fear" else "anger"
    index.to_parquet(folder/"index.parquet")
def other_faces(folder):
    meta = (folder/"meta.json").read_text()
    (folder/"meta.json").write_text(meta.replace('"content_hash": "', '"content_hash": "0'))

@pytest.mark.parametrize("edit", [edit_pixels, edit_labels, other_faces])
@pytest.mark.parametrize("when", ["while it runs", "while it stands still"])
def test_faces_that_change(tiny, tmp_path, monkeypatch, edit, when):
    "Noticed before anything is recorded; with the right faces again the run goes on to the same bits."
    whole, config = run(tiny(results_dir=str(tmp_path/"whole"))), tiny(cache_dir=str(tmp_path/"cache"))
    folder = load_data(config).folder
    shutil.copytree(folder, tmp_path/"kept")
    if when == "while it runs": at(monkeypatch, 0.5, lambda: edit(folder))
    else: interrupted(config, monkeypatch, 0.5); edit(folder)
    with pytest.raises(BenchError, match="FaceSet .* is damaged.*build it again"): run(config)
    monkeypatch.undo()
    assert load_runs(config.results_dir) == []
    shutil.rmtree(folder); shutil.copytree(tmp_path/"kept", folder)
    assert np.array_equal(logits(run(config)), logits(whole))

def test_files_that_are_only_touched_or_copied_or_gone_are_no_fault(tiny, tmp_path, monkeypatch):
    config = tiny(cache_dir=str(tmp_path/"cache"))
    folder = load_data(config).folder
    at(monkeypatch, 0.5, (folder/"images.npy").touch)
    run(config)
    assert is_verified(folder, file_stamps(folder)), "verified once, and not again"
    at(monkeypatch, 0.5, lambda: shutil.rmtree(folder))
    assert run(config.model_copy(update={"seed": 1})).finished

# a record edited by hand

@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    from fer_bench.config import RunConfig
    return run(RunConfig(preset="tiny", device="cpu", results_dir=str(tmp_path_factory.mktemp("recorded"))))

@pytest.mark.parametrize("name", SEALED)
def test_every_file_of_a_record_is_sealed(recorded, tmp_path, name):
    copy = Record(shutil.copytree(recorded.folder, tmp_path/"runs"/recorded.id))
    flip(copy.folder/name)
    with pytest.raises(BenchError, match="changed afterwards.*run again"): getattr(copy, Path(name).stem)
    assert {found.outcome for found in verify(tmp_path)} == {"damaged"}

@pytest.mark.parametrize("status", ["", "[]", "3", '{"state": 3}', '{"state": "finished"}',
                                    '{"state": "finished", "files": null}', '{"state": "running", "files": []}',
                                    '{"state": "finished", "files": {"metrics.json": "0"}}'])
def test_a_status_that_no_run_wrote(recorded, tmp_path, status):
    copy = shutil.copytree(recorded.folder, tmp_path/"runs"/recorded.id)
    (copy/"status.json").write_text(status)
    found, left_out = read_runs(tmp_path)
    assert found == [] and re.search("status.json.*edited by hand.*delete", left_out[recorded.id])

def test_a_half_made_record_called_finished_by_hand(tiny, monkeypatch):
    config = tiny()
    folder = interrupted(config, monkeypatch)
    with pytest.raises(FileNotFoundError): write_status(folder, "finished")
    assert load_runs(config.results_dir) == [] and run(config).finished

# memory that runs out

OUT = ("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 16.00 GiB of which 1.00 GiB is "
       "free.")

def test_gpu_memory_that_runs_out(tiny, monkeypatch):
    "Injected, so that no GPU is needed: 2 GiB before the first step, 12 held and 3 more asked for, of 16."
    import fer_bench.runs.experiment as experiment
    config = tiny(batch_size=64, drawn_faces=256)
    with monkeypatch.context() as m:
        m.setattr("fer_bench.train.memory.gpu_memory", lambda: tuple(n * 2**30 for n in (2, 12, 16)))
        entered = experiment.oom_hint
        m.setattr(experiment, "oom_hint", lambda *args: entered(*args[:-1], "cuda"))
        m.setattr(experiment, "fit", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError(OUT)))
        numbers = r"12.0 GiB were in use, 3.0 GiB more were requested, and 16.0 GiB are available"
        with pytest.raises(BenchError, match=rf"batch_size = 64.*{numbers}.*batch_size=32 should fit"):
            run(config)
    status = find_record(config).status
    assert status["state"] == "failed" and "batch_size=32" in status["error"]
    assert run(config).finished

@pytest.mark.parametrize("needed, available", [(20, 16), (50, 16), (400, 16), (18, 17)])
def test_the_batch_that_fits_is_the_linear_one(needed, available):
    "A step holds 4 + needed · faces / 256 units: the suggested batch fits with a tenth to spare, a larger one not."
    fits, need = fitting_batch(256, 4, 4 + needed, available), lambda faces: 4 + needed * faces / 256
    assert need(fits) <= 0.9 * available and (fits == 128 or need(fits + 1) > 0.9 * available)
    assert fitting_batch(256, 4, 4 + needed, 4) == 0

# folders that take the place of others

STEPS = ("os.replace", "shutil.rmtree", "fer_bench.core._exchanged")

def killed_at(step: int, after: bool, place: Path, exchange: bool) -> bool:
    "Write a folder over another in a process that is killed before or after `step`; → whether it came to that step."
    if child := os.fork(): return os.waitpid(child, 0)[1] != 0
    count = iter(range(100))
    def counted(call):
        def here(*args, **kwargs):
            now = next(count) == step
            if now and not after: os._exit(9)
            found = call(*args, **kwargs)
            return os._exit(9) if now else found
        return here
    patch = pytest.MonkeyPatch()
    if not exchange: patch.setattr("fer_bench.core._exchanged", lambda a, b: False)
    for name in STEPS: patch.setattr(name, counted(attrgetter(name.partition(".")[2])(sys.modules[name.split(".")[0]])))
    with core.atomic_folder(place) as part: (part/"new").touch()
    os._exit(0)

@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_kill_never_loses_the_folder_that_was_there(tmp_path, exchange, after):
    for step in range(20):
        place = tmp_path/f"{step}"/"model"
        place.mkdir(parents=True)
        (place/"old").touch()
        reached = killed_at(step, after, place, exchange)
        if exchange: assert [p.name for p in place.iterdir()] in (["old"], ["new"])
        for path in place.parent.iterdir(): os.utime(path, (1e9, 1e9))
        core.write_text(place.parent/"other", "the next write beside it")
        assert sorted(p.name for p in place.parent.iterdir()) == ["model", "other"]
        assert [p.name for p in place.iterdir()] in (["old"], ["new"])
        if not reached: break
    assert 1 < step < 20 and (place/"new").exists()

def test_leftovers_go_when_their_process_is_gone_and_not_before(tmp_path):
    with core.atomic_file(tmp_path/"a") as mine:
        for path in (mine, dead := tmp_path/f".b.x1y2z3w4{core.PART}"): path.touch(); os.utime(path, (1e9, 1e9))
        (fresh := tmp_path/f".c.x1y2z3w4{core.PART}").touch()
        (other := tmp_path/".d.part").touch()
        core.write_text(tmp_path/"e", "")
        assert mine.exists() and fresh.exists() and other.exists() and not dead.exists()

def test_a_link_is_followed(tmp_path):
    (real := tmp_path/"there").mkdir()
    (real/"old").touch()
    (tmp_path/"link").symlink_to(real)
    (tmp_path/"note").symlink_to(real/"text")
    with core.atomic_folder(tmp_path/"link") as part: (part/"new").touch()
    core.write_text(tmp_path/"note", "said")
    assert (tmp_path/"link").is_symlink() and (tmp_path/"note").is_symlink() and (real/"text").read_text() == "said"
    assert sorted(p.name for p in real.iterdir()) == ["new", "text"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "note", "there"]

def test_only_regular_files_are_read_and_none_without_bounds(tmp_path):
    os.mkfifo(tmp_path/"pipe.json")
    (tmp_path/"deep.json").write_text("[" * 200_000 + "]" * 200_000)
    (tmp_path/"deeper.json").write_text("[" * 101 + "]" * 101)
    (tmp_path/"nan.json").write_text('{"WAR": NaN}')
    says = {"pipe": "no regular file", "deep": "nested too deeply", "deeper": "nested too deeply", "nan": "NaN is no"}
    for name, words in says.items():
        with pytest.raises(BenchError, match=words): core.read_json(tmp_path/f"{name}.json")
    with pytest.raises(BenchError, match="12 bytes; 11 is the limit"): core.read_json(tmp_path/"nan.json", 11)
    with pytest.raises(BenchError, match="no regular file"): core.read_file("/dev/zero")

# progress

def test_a_log_gets_few_whole_lines(capsys, monkeypatch):
    "Ten hours of a step a second, told something at each: a line soon, one a minute in the end, all of them whole."
    clock = [0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setenv("FER_BENCH_PROGRESS", "log")
    for _ in progress(range(2), desc="short"): pass
    with progress(total=36_000, desc="train", unit="step") as bar:
        for i in range(36_000): clock[0] += 1; bar.update(); bar.set_postfix(loss=i)
    *lines, end = capsys.readouterr().err.split("\n")
    assert all(re.fullmatch(r"train: .*% \(\d+/36000, .*step.*, .* left\), loss=.+", line) for line in lines)
    assert end == ""
    done = [int(re.search(r"(\d+)/36000", line)[1]) for line in lines]
    assert done[0] <= 10 and done[-1] == 36_000 and max(np.diff(done)) <= 60 and len(lines) < 800

def test_a_log_counts_each_step_once(capsys, monkeypatch):
    "An hour of an iterator of four steps a second, at each of which tqdm looks at the clock."
    clock = [0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setenv("FER_BENCH_PROGRESS", "log")
    for total in (14_400, None):
        for _ in progress(iter(range(14_400)), total=total, desc="try"): clock[0] += 0.25
        said = [int(re.search(r"(\d+)(?:/14400|,)", line)[1]) for line in capsys.readouterr().err.splitlines()]
        assert said == sorted(said) and said[-1] == 14_400 and 20 < len(said) < 120 and max(np.diff(said)) <= 270

def test_progress_of_an_unknown_kind(monkeypatch):
    monkeypatch.setenv("FER_BENCH_PROGRESS", "wigdet")
    with pytest.raises(BenchError, match="Did you mean 'widget'"): progress(range(3))

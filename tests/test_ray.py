"""Sweeps on a Ray cluster of two nodes on this machine: one dies, and no node learns the folder of the driver."""
import os
import re
import shutil
import socket
import sys
import threading
import time

import pytest
from test_sweep import TINY, same, states

import fer_bench.sweeps.ray as engine
import fer_bench.sweeps.scheduler as scheduler
from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import build_faceset
from fer_bench.record import Record, load_runs, runs_folder
from fer_bench.runs.task import load_data
from fer_bench.sweeps.sweep import sweep
from fer_bench.train.checkpoint import checkpoints

THREE = {**TINY, "epochs": 6, "steps_per_epoch": 20,
         "runs": [{"method": "supervised"}, {"method": "linear_probe", "init": {"method": "byol"}}]}

class Nodes:
    "A cluster whose nodes have caches of their own, as machines would."
    def __init__(self, folder):
        from ray.cluster_utils import Cluster
        self.folder, self.second = folder, None
        quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "worker_niceness": 0}
        self.cluster = Cluster()
        self.add("first", _system_config=quick)
        self.address = self.cluster.address
        self.second = self.add("second")

    def add(self, name, **more):
        before = os.environ["FER_BENCH_CACHE"]
        os.environ["FER_BENCH_CACHE"] = str(self.folder/name)
        try: return self.cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20, include_dashboard=False, **more)
        finally: os.environ["FER_BENCH_CACHE"] = before

    def kill_when_at_work(self):
        "In a thread: kill the second node once a worker on it has its faces, and so has begun a run."
        def kill():
            while not list((self.folder/"second").glob("[!.]*-shared-*")): time.sleep(0.05)
            time.sleep(1)
            self.cluster.remove_node(self.second, allow_graceful=False)
        shutil.rmtree(self.folder/"second", ignore_errors=True)
        threading.Thread(target=kill, daemon=True).start()

@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    for name, value in engine.RAY_ENVIRON.items(): os.environ.setdefault(name, value)
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.cluster.shutdown()

@pytest.fixture
def watched(monkeypatch):
    "What was sent to the nodes, as text, and what became of each record that came back."
    sent, kept, parcel, merge = [], [], engine.parcel, scheduler.merge
    def send(*args):
        sent.append(parcel(*args))
        return sent[-1]
    def keep(source, results):
        found = merge(source, results)
        if not isinstance(source, bytes): kept.extend(found)
        return found
    monkeypatch.setattr(engine, "parcel", send)
    monkeypatch.setattr(scheduler, "merge", keep)
    return sent, kept

def check(nodes, watched, grid, tmp_path):
    "A node dies: all records are there, none twice, no path of the driver is sent, numbers as with the local engine."
    sent, kept = watched
    nodes.kill_when_at_work()
    outcome = sweep(grid, tmp_path/"ray", engine="ray", address=nodes.address)
    assert outcome.exit_code == 0, outcome.summary()
    assert sum(n["Alive"] for n in _nodes(nodes)) == 1, "the node did not die"
    records = sorted(f.name for f in kept if not f.name.startswith("splits"))
    assert records == sorted(c.id for c in outcome.cells) and {f.outcome for f in kept} == {"added"}
    assert [s for s in sent if str(tmp_path) in repr(s)] == []
    assert sweep(grid, tmp_path/"local", workers=1).exit_code == 0
    same(tmp_path/"ray", tmp_path/"local")

def _nodes(nodes):
    import ray
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    try: return ray.nodes()
    finally: ray.shutdown()

@pytest.mark.nightly
def test_a_node_dies_and_nothing_is_lost(nodes, watched, tmp_path):
    check(nodes, watched, THREE, tmp_path)
    weights = {p.parent.name.split("-")[0] for p in (tmp_path/"ray").glob("runs/*/weights.safetensors")}
    assert weights == {"byol"}, "weights come back where another run starts from them"

def test_faces_that_are_not_what_their_hash_says_are_refused_by_name(nodes, tmp_path):
    "Here other faces lie in the nodes' caches under the hash of ours."
    config = RunConfig(**TINY, drawn_faces=72)
    name = f"drawn-shared-{load_data(config).meta['content_hash'][:12]}"
    for node in ("first", "second"): build_faceset(DrawnSource(64, 32), nodes.folder/node/name)
    outcome = sweep({**TINY, "drawn_faces": 72}, tmp_path, engine="ray", address=nodes.address)
    assert states(outcome) == ["failed"] and outcome.exit_code == 1
    says = r"On node \S+ the data set 'drawn' in .* has content .* Delete that folder there"
    assert re.search(says, outcome.summary())
    assert Record(runs_folder(tmp_path)/outcome.cells[0].id).status.state == "failed"

def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchError, match=r"pip install 'fer_bench\[ray\]'"): sweep(TINY, tmp_path, engine="ray")

def test_no_cluster_there(tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.raises(BenchError, match="No Ray cluster answers at '127.0.0.1:1'"):
        sweep(TINY, tmp_path, engine="ray", address="127.0.0.1:1")

@pytest.mark.parametrize("says", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_address_where_no_ray_answers(tmp_path, says):
    "What listens there accepts and never says a word, hangs up, or is a web server."
    pytest.importorskip("ray", reason="the extra ray is not installed")
    held = []
    def serve(server):
        held.append(server.accept()[0])
        if says is not None:
            held[0].sendall(says)
            held[0].shutdown(socket.SHUT_WR)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BenchError, match=f"No Ray cluster answers at '{address}' .*HOST:PORT"):
            sweep(TINY, tmp_path, engine="ray", address=address)
    for end in held: end.close()

@pytest.mark.soak
def test_many_runs_and_a_dying_node(nodes, watched, tmp_path):
    nodes.second = nodes.second if sum(n["Alive"] for n in _nodes(nodes)) == 2 else nodes.add("second")
    check(nodes, watched, {**THREE, "seed": list(range(8))}, tmp_path)
    assert len(load_runs(tmp_path/"ray")) == 24

@pytest.mark.soak
def test_a_sweep_is_stopped_and_the_checkpoint_comes_home(nodes, tmp_path, monkeypatch):
    "What a node had done of a run goes on elsewhere, here in the local engine, and ends with the same bits."
    grid = {**TINY, "epochs": 200, "steps_per_epoch": 10, "method": "dtm", "floor": 0.14}
    begun, poll = [], engine.RayEngine.poll
    def stopped(self, seconds):
        if self.ray.get(self.registry.read.remote()): begun.append(time.monotonic())
        if begun and begun[-1] - begun[0] > 8:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return poll(self, seconds)
    monkeypatch.setattr(engine.RayEngine, "poll", stopped)
    with pytest.raises(KeyboardInterrupt): sweep(grid, tmp_path/"a", engine="ray", address=nodes.address)
    folder, = runs_folder(tmp_path/"a").iterdir()
    assert Record(folder).status.state == "interrupted" and checkpoints(folder)
    assert sweep(grid, tmp_path/"a", workers=1).exit_code == 0 and sweep(grid, tmp_path/"b", workers=1).exit_code == 0
    same(tmp_path/"a", tmp_path/"b")

"Shards, orders and feeds: one array whatever the files, each face once per lap, prefetched bits equal, little memory."
import os
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_bench.core import BenchError
from fer_bench.data.faceset import build_faceset
from fer_bench.data.feed import BalancedOrder, BlockOrder, Feed, Order, Prefetcher, batch_rows
from fer_bench.data.shards import ConcatImages, ShardedImages, ShardWriter, open_images
from fer_bench.data.sources.folders import FolderSource
from fer_bench.speed.data import feed_benchmark, image_folder_batches
from fer_bench.speed.device import PeakMemory

NOISE = np.random.default_rng(0).integers(0, 256, (23, 5, 7, 3), np.uint8)

def write(folder, images, each):
    with ShardWriter(folder, each * images[0].nbytes) as writer:
        for i, image in enumerate(images): writer.append(image, str(i))
    return open_images(folder)

# shards

@pytest.mark.parametrize("each", [1, 4, 22, 23, 100])
def test_shards_read_as_one(tmp_path, each):
    images = write(tmp_path, NOISE, each)
    names = sorted(p.name for p in tmp_path.iterdir())
    count = -(-23 // each)
    assert names == (["images.npy"] if count == 1 else [f"images-{i:05d}.npy" for i in range(count)])
    assert all(len(np.load(tmp_path/name)) <= each for name in names)
    assert (images.shape, images.dtype, images.nbytes, len(images)) == (NOISE.shape, NOISE.dtype, NOISE.nbytes, 23)
    assert np.array_equal(np.asarray(images), NOISE) and np.array_equal(list(images), NOISE)

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_joined_is_indexed_as_numpy_would(sizes, data):
    n = sum(sizes)
    joined = ConcatImages(np.split(NOISE[:min(n, 23)], np.cumsum(sizes)[:-1])) if n <= 23 else ConcatImages([NOISE])
    n = len(joined)
    rows = data.draw(st.one_of(
        st.lists(st.integers(-n, n - 1), max_size=12).map(lambda v: np.array(v, int)), st.integers(-n, n - 1),
        st.slices(n), st.lists(st.booleans(), min_size=n, max_size=n).map(np.array)))
    assert np.array_equal(joined[rows], NOISE[:n][rows])

@pytest.mark.parametrize("rows", [23, -24, [0, 23], (0, 1), [0.5], "a", [True, False]])
def test_joined_refuses(rows):
    with pytest.raises(IndexError): ConcatImages([NOISE[:9], NOISE[9:]])[rows]

def test_only_the_shards_concerned_are_read():
    class Never:
        shape, dtype = (5, *NOISE.shape[1:]), NOISE.dtype
        def __len__(self): return 5
        def __getitem__(self, rows): raise AssertionError("read")
    assert np.array_equal(ConcatImages([NOISE[:9], Never(), NOISE[9:]])[[3, 14, 27]], NOISE[[3, 9, 22]])

@pytest.mark.parametrize("spoil, says", [
    (lambda f: (f/"images-00001.npy").unlink(), "lacks images-00001.npy"),
    (lambda f: [p.unlink() for p in f.iterdir()], "holds no"),
    (lambda f: (f/"images-00001.npy").write_bytes(b"rubbish"), "damaged"),
    (lambda f: (f/"images-00001.npy").write_bytes(b""), "damaged"),
    (lambda f: np.save(f/"images-00001.npy", np.zeros((4, 9, 9, 3), np.uint8)), "damaged"),
    (lambda f: np.save(f/"images-00001.npy", np.array([{}])), "damaged"),
    (lambda f: os.truncate(f/"images-00001.npy", 200), "damaged")])
def test_damaged_shards(tmp_path, spoil, says):
    write(tmp_path, NOISE, 4)
    spoil(tmp_path)
    with pytest.raises(BenchError, match=says): ShardedImages(tmp_path)

def test_pictures_of_another_size_are_refused(tmp_path):
    with pytest.raises(BenchError, match="'b' has"), ShardWriter(tmp_path) as writer:
        writer.append(NOISE[0], "a")
        writer.append(NOISE[0, 1:], "b")

# orders

ORDERS = {"Order": Order, "BlockOrder": partial(BlockOrder, block=4, buffer=3),
          "BalancedOrder": lambda rows, seed: BalancedOrder(rows, np.arange(len(rows)) % min(3, len(rows)), seed)}

@pytest.mark.parametrize("kind", ORDERS)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.lists(st.integers(0, 500), max_size=20), st.integers(0, 3))
def test_an_order_is_a_function_of_position_alone(kind, n, positions, seed):
    rows = np.arange(n) * 2 + 7
    order, fresh = ORDERS[kind](rows, seed), ORDERS[kind](rows, seed)
    one_by_one = [int(fresh.take([p])[0]) for p in reversed(positions)][::-1]
    assert order.take(positions).tolist() == one_by_one and set(one_by_one) <= set(rows)

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 9), st.integers(1, 5), st.integers(1, 17), st.integers(0, 3))
def test_block_order(n, block, buffer, batch, seed):
    "Each face once per lap; laps differ; a batch mixes at most `buffer` blocks, and those of the next group."
    order = BlockOrder(range(100, 100 + n), seed, block=block, buffer=buffer)
    seen = np.concatenate([batch_rows(order, s, batch) for s in range(-(-3 * n // batch))])
    for lap in range(3): assert sorted(seen[lap * n:(lap + 1) * n]) == list(range(100, 100 + n))
    if n > 20: assert seen[:n].tolist() != seen[n:2 * n].tolist()
    blocks = (seen[:n] - 100) // block
    sizes = np.bincount(blocks)
    start = 0
    while start < n:  # a group begins where the one before has given all its faces
        length = next(m for m in range(1, n - start + 1) if m == sizes[np.unique(blocks[start:start + m])].sum()
                      and (len(np.unique(blocks[start:start + m])) == buffer or start + m == n))
        start += length

def test_seeds_and_laps_are_unlike():
    first = BlockOrder(range(500), 0).take(range(1000)).reshape(2, 500)
    other = BlockOrder(range(500), 1).take(range(500))
    for a, b in [(first[0], first[1]), (first[0], other)]:
        assert (a == b).mean() < 0.05 and abs(np.corrcoef(a, b)[0, 1]) < 0.2

def test_blocks_mix_well():
    "Of 64 000 faces a batch of 256 comes from about as many blocks as 256 draws out of the 64 of a group."
    order = BlockOrder(range(64_000), 0)
    for step in (0, 7, 40): assert len(np.unique(batch_rows(order, step, 256) // 256)) > 55

@pytest.mark.parametrize("kind", ["Order", "BlockOrder"])
def test_no_rows(kind):
    with pytest.raises(BenchError, match="no faces to shuffle"): ORDERS[kind]([], 0)

# feeds

STEPS = st.lists(st.integers(0, 30), max_size=12)

@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(0, 4), st.sampled_from([None, 0, 5, 31]), st.integers(1, 9))
def test_ahead_gives_the_same_bits(steps, depth, stop, batch):
    feed = Feed(ConcatImages([NOISE[:9], NOISE[9:]]))
    rows_of = partial(batch_rows, BlockOrder(range(23), 0, block=4, buffer=2), batch_size=batch)
    ahead = Prefetcher(feed, rows_of, depth, stop)
    for step in steps: assert torch.equal(ahead(step), feed(rows_of(step)))

def test_ahead_fetches_in_another_thread_and_stops():
    fetched = []
    def rows_of(step):
        fetched.append((step, threading.current_thread()))
        return [step]
    ahead = Prefetcher(Feed(NOISE), rows_of, depth=3, stop=6)
    for step in range(6): ahead(step)
    assert [step for step, _ in fetched] == list(range(6))
    assert threading.main_thread() not in {thread for _, thread in fetched}

def test_ahead_hands_on_errors():
    ahead = Prefetcher(Feed(NOISE), lambda step: [step * 20])
    ahead(0)
    with pytest.raises(IndexError): ahead(2)
    assert torch.equal(ahead(1), Feed(NOISE)([20]))

def test_resident_and_sharded_feeds_agree(tmp_path):
    "The set copied to the device, here the CPU, gives what the shards on disk give."
    shards = write(tmp_path, NOISE, 4)
    assert torch.equal(Feed(shards, resident=True)([22, 0, 5]), Feed(shards)([22, 0, 5]))
    assert np.array_equal(Feed(shards)([22, 0, 5]).permute(0, 2, 3, 1), NOISE[[22, 0, 5]])

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_ahead_on_a_gpu():
    feed = Feed(NOISE, "cuda", resident=False)
    ahead = Prefetcher(feed, lambda step: np.arange(step, step + 8) % 23)
    total = sum(ahead(step).float() for step in range(200))  # a stream that overtook would read what has not arrived
    assert torch.equal(total.cpu(), sum(Feed(NOISE)(np.arange(s, s + 8) % 23).float() for s in range(200)))

def test_feed_benchmark(tmp_path):
    for i in range(40): Image.fromarray(NOISE[i % 23]).resize((16, 16)).save(tmp_path/f"{i:02d}.png")
    table = feed_benchmark(tmp_path, batch_size=8, workers=1, epochs=2)
    assert list(table.columns) == ["images_a_second", "ratio"] and table.ratio.iloc[0] == 1
    assert (table > 0).all(axis=None)
    with pytest.raises(BenchError, match="fewer than two batches"): feed_benchmark(tmp_path, batch_size=32)

def test_the_benchmark_compares_the_same_pixels(tmp_path):
    (tmp_path/"tree"/"faces").mkdir(parents=True)
    for i in range(9): Image.fromarray(NOISE[i]).save(tmp_path/"tree"/"faces"/f"{i}.png")
    faces = build_faceset(FolderSource(tmp_path/"tree"), tmp_path/"faces", require_labels=False)
    theirs = torch.cat(list(image_folder_batches(tmp_path/"tree", None, 4, 1)))
    pictures = lambda batch: sorted(picture.numpy().tobytes() for picture in batch)
    assert pictures(theirs) == pictures(Feed(faces.images)(range(9)).contiguous(memory_format=torch.contiguous_format))

# memory

@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured through /proc")
@pytest.mark.parametrize("count", [12_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_faces(tmp_path, count):
    "Written to shards and read back block-shuffled, each face once; 12 000 of 112x112 are 451 MB."
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    with PeakMemory() as peak:
        with ShardWriter(tmp_path, 100_000_000) as writer:
            for i in range(count):
                face.reshape(-1)[:4] = np.frombuffer(np.uint32(i).tobytes(), np.uint8)
                writer.append(face, str(i))
        images = open_images(tmp_path)
        rows_of, seen = partial(batch_rows, BlockOrder(range(count), 0), batch_size=250), np.zeros(count, bool)
        ahead = Prefetcher(Feed(images), rows_of)
        for step in range(count // 250):
            first = ahead(step).permute(0, 2, 3, 1).reshape(250, -1)[:, :4].contiguous()
            seen[first.numpy().view(np.uint32)[:, 0]] = True
    print(f"{count} faces, {images.nbytes / 1e6:.0f} MB of pixels: at most {peak.mebibytes:.0f} MB of anonymous memory")
    assert seen.all() and images.nbytes == count * 112 * 112 * 3 and peak.mebibytes < 150

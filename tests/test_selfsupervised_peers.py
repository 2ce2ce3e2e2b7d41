"""DINO, Barlow Twins, VICReg, SupCon, SimMIM, landmark patches, and SimFLE's soft mask: losses and steps against plain
versions in float64, and against lightly's where it is installed (`pip install --no-deps lightly`)."""
import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selfsupervised import batch_for, make, optimiser_of, update

from fer_bench.config import RunConfig
from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import DrawnSource
from fer_bench.data.faceset import build_faceset
from fer_bench.data.landmarks import flip_order
from fer_bench.data.pools import Pool
from fer_bench.data.views import VIEWS, apply_view, make_view, seeded, view_map, warp
from fer_bench.evaluate.features import effective_rank, spread
from fer_bench.methods.contrast import nt_xent, sup_con
from fer_bench.methods.dino import dino_loss, sharpened, warmed_up
from fer_bench.methods.landmark_patches import patch_windows
from fer_bench.methods.redundancy import barlow_twins, vicreg_terms
from fer_bench.methods.simmim import masked_l1, square_mask
from fer_bench.models.facemae import keep_highest
from fer_bench.models.grouping import straight_through
from fer_bench.runs.experiment import run
from fer_bench.train.points import PoolPoints

many = settings(max_examples=30, deadline=None)
shapes = given(st.integers(3, 7), st.integers(1, 6), st.integers(0, 9999))

def pair(batch, dim, seed): return np.random.default_rng(seed).normal(size=(2, batch, dim))

def close(found, wanted, **how):
    "Equal in float64 to 1e-9, and in float32 to 1e-5."
    assert float(found(torch.float64)) == pytest.approx(wanted, rel=1e-9, abs=1e-9, **how)
    assert float(found(torch.float32)) == pytest.approx(wanted, rel=1e-4, abs=1e-5, **how)

# ---- losses

def plain_barlow(a, b):
    "(invariance, redundancy), a correlation at a time."
    on = off = 0.0
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            c = sum(x * y) / math.sqrt(sum(x * x) * sum(y * y))
            if i == j: on += (1 - c) ** 2
            else: off += c * c
    return on, off

@many
@shapes
def test_barlow_twins_against_plain_loops(batch, dim, seed):
    z = pair(batch, dim, seed)
    for k, wanted in enumerate(plain_barlow(*z)):
        close(lambda dtype, k=k: barlow_twins(*torch.tensor(z, dtype=dtype))[k], wanted)

def plain_vicreg(a, b):
    (n, d), variance, covariance = a.shape, 0.0, 0.0
    for z in (a, b):
        mean = z.mean(0)
        for i in range(d):
            var = sum((z[:, i] - mean[i]) ** 2) / (n - 1)
            variance += max(0.0, 1 - math.sqrt(var + 1e-4)) / d
            for j in range(d):
                if i != j: covariance += (sum((z[:, i] - mean[i]) * (z[:, j] - mean[j])) / (n - 1)) ** 2 / d
    return ((a - b) ** 2).mean(), variance, covariance

@many
@shapes
def test_vicreg_against_plain_loops(batch, dim, seed):
    z = pair(batch, dim, seed)
    for k, wanted in enumerate(plain_vicreg(*z)):
        close(lambda dtype, k=k: vicreg_terms(*torch.tensor(z, dtype=dtype))[k], wanted)

@many
@given(st.integers(2, 5), st.integers(2, 4), st.sampled_from([0.1, 0.5]), st.integers(0, 9999))
def test_supcon_against_plain_loops(batch, dim, t, seed):
    z, labels = pair(batch, dim, seed), np.random.default_rng(seed).integers(0, 3, batch)
    v = np.concatenate(z)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    both, total = [*labels, *labels], 0.0
    for i in range(2 * batch):
        others = [j for j in range(2 * batch) if j != i]
        log_sum = math.log(sum(math.exp(v[i] @ v[j] / t) for j in others))
        positives = [j for j in others if both[j] == both[i]]
        total -= sum(v[i] @ v[j] / t - log_sum for j in positives) / len(positives) / (2 * batch)
    close(lambda dtype: sup_con(*torch.tensor(z, dtype=dtype), torch.from_numpy(labels), t), total)

def test_supcon_of_different_labels_is_nt_xent():
    z = torch.from_numpy(pair(6, 4, 0))
    torch.testing.assert_close(sup_con(*z, torch.arange(6), 0.3), nt_xent(*z, 0.3))

@many
@given(st.integers(2, 4), st.integers(1, 4), st.integers(2, 5), st.integers(0, 9999))
def test_dino_loss_against_plain_loops(views, batch, k, seed):
    rng = np.random.default_rng(seed)
    student, teacher, centre = rng.normal(size=(views, batch, k)), rng.normal(size=(2, batch, k)), rng.normal(size=k)
    def softmax(row): return np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    total, pairs = 0.0, 0
    for t in range(2):
        for v in range(views):
            if v == t: continue
            pairs += 1
            for b in range(batch):
                p = softmax((teacher[t, b] - centre) / 0.2)
                total -= sum(p * np.log(softmax(student[v, b] / 0.5))) / batch
    def found(dtype):
        s, t, c = (torch.tensor(x, dtype=dtype) for x in (student, teacher, centre))
        return dino_loss(s, sharpened(t, c, 0.2), 0.5)
    close(found, total / pairs)

def test_temperature_of_the_teacher():
    assert [warmed_up(p, 0.04, 0.08, 0.5) for p in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.04, 0.06, 0.08, 0.08])
    assert warmed_up(0.0, 0.04, 0.07, 0.0) == 0.07

@many
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9999))
def test_masked_l1_against_plain_loops(batch, patches, pixels, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, batch, patches, pixels))
    mask = rng.integers(0, 2, (batch, patches))
    mask[0, 0] = 1
    cells = [(i, j) for i in range(batch) for j in range(patches) if mask[i, j]]
    wanted = sum(abs(a[i, j] - b[i, j]).mean() for i, j in cells) / len(cells)
    close(lambda dtype: masked_l1(*(torch.tensor(x, dtype=dtype) for x in (a, b, mask))), wanted)

LIGHTLY = {  # ours and theirs, of two (B, D)
    "barlow_twins_loss": (lambda a, b: sum(w * v for w, v in zip((1, 0.005), barlow_twins(a, b), strict=True)),
                          lambda m, a, b: m.BarlowTwinsLoss(lambda_param=0.005)(a, b)),
    "vicreg_loss": (lambda a, b: sum(w * v for w, v in zip((25, 12.5, 1), vicreg_terms(a, b), strict=True)),
                    lambda m, a, b: m.VICRegLoss()(a, b)),  # it takes the mean of both variances, the paper their sum
    "dino_loss": (lambda a, b: dino_loss(torch.stack([a, b]), sharpened(torch.stack([b, a]), 0 * a[0], 0.04), 0.1),
                  lambda m, a, b: m.DINOLoss(a.shape[1])([b, a], [a, b], teacher_temp=0.04)),
    "ntx_ent_loss": (lambda a, b: nt_xent(a, b, 0.2), lambda m, a, b: m.NTXentLoss(0.2)(a, b)),
}

@pytest.mark.parametrize("name", LIGHTLY)
def test_losses_against_lightly(name):
    module = pytest.importorskip(f"lightly.loss.{name}", reason="needs lightly: pip install --no-deps lightly")
    ours, theirs = LIGHTLY[name]
    a, b = torch.from_numpy(pair(64, 16, 0)).float()
    a, b = a + 0.5 * b, b + 0.5 * a
    torch.testing.assert_close(ours(a, b), theirs(module, a, b), rtol=1e-4, atol=1e-5)

def test_losses_are_float32_under_autocast():
    a, b = (torch.randn(8, 32, generator=seeded(i)).bfloat16() for i in range(2))
    losses = (lambda a, b: sum(barlow_twins(a, b)), lambda a, b: sum(vicreg_terms(a, b)),
              lambda a, b: sup_con(a, b, torch.arange(8) % 3, 0.1),
              lambda a, b: dino_loss(torch.stack([a, b]), sharpened(torch.stack([b, a]), a[0].float(), 0.04), 0.1))
    for loss in losses:
        with torch.autocast("cpu", torch.bfloat16): found = loss(a, b)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(a.float(), b.float()), rtol=1e-5, atol=1e-6)

# ---- steps

def test_three_steps_of_dino_against_a_plain_version():
    "Teacher, centre and temperature included; no local views."
    method = make("dino", local_views=0)
    student, teacher, centre = copy.deepcopy(method), copy.deepcopy(method.target), torch.zeros(24)
    ours, theirs = optimiser_of(method), optimiser_of(student)
    for step in range(3):
        views = batch_for(method, step)["unlabelled"]
        s = [student.projector(student.net.encode(x)) / 0.5 for x in views]
        with torch.no_grad(): t = [teacher(x) for x in views]
        sharp = 0.04 + 0.03 * min(step / 10 / 0.5, 1)
        p = [((v - centre) / sharp).softmax(1) for v in t]
        wanted = -sum((p[i] * s[1 - i].log_softmax(1)).sum(1).mean() for i in (0, 1)) / 2
        loss, parts = method(batch_for(method, step))
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        assert parts.keys() == {"distillation"}
        update(ours, loss)
        update(theirs, wanted)
        method.after_step(step)
        with torch.no_grad():
            for slow, fast in ((teacher.net, student.net), (teacher.projector, student.projector)):
                for a, b in zip(slow.parameters(), fast.parameters(), strict=True): a.copy_(0.9 * a + 0.1 * b)
        centre = 0.9 * centre + 0.1 * torch.cat(t).mean(0)
        torch.testing.assert_close(method.centre, centre, rtol=1e-4, atol=1e-6)

def test_prototypes_stand_still_for_a_share_of_the_training():
    "Three of ten steps with a gradient of zeros, under weight decay; the rest of the network learns; then they move."
    method, cosine = make("dino", frozen_share=0.3), torch.nn.functional.cosine_similarity
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2, weight_decay=0.1)
    first, encoder = (v.detach().clone() for v in (method.projector.prototypes, next(method.net.backbone.parameters())))
    for step in range(4):
        loss = method(batch_for(method, step))[0]
        loss.backward()
        grad = method.projector.prototypes.grad
        assert (grad == 0).all() if step < 3 else grad.abs().sum() > 0
        if step == 3: torch.testing.assert_close(cosine(method.projector.prototypes, first), torch.ones(24))
        optimizer.step()
        optimizer.zero_grad()
    assert (cosine(method.projector.prototypes, first) < 1 - 1e-5).any()
    assert not torch.equal(next(method.net.backbone.parameters()), encoder)
    free, frozen = make("dino"), make("dino", frozen_share=1.0)
    assert free(batch_for(free))[0].item() == frozen(batch_for(frozen))[0].item()

def test_local_views_leave_the_running_statistics_to_whole_faces():
    with_local, without = make("dino"), make("dino", local_views=0)
    loss, other = with_local(batch_for(with_local))[0], without(batch_for(without))[0]
    assert loss.item() != other.item()
    mean = lambda m: [b for n, b in m.net.named_buffers() if n.endswith("running_mean")]
    assert all(torch.equal(a, b) for a, b in zip(mean(with_local), mean(without), strict=True))

def test_local_views_are_crops_drawn_for_the_step():
    method = make("dino", local_views=3)
    one, again, other = (method.local_views(batch_for(method, step)) for step in (0, 0, 1))
    assert len(one) == 3 and all(v.shape == (8, 3, 32, 32) for v in one)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True)) and not torch.equal(one[0], other[0])
    flat = torch.full((8, 3, 32, 32), 0.25)
    torch.testing.assert_close(method.crop(flat, seeded(0)), flat)

@pytest.mark.parametrize("name, weights", [("barlow", (1, 0.005)), ("vicreg", (25, 25, 1))])
def test_a_step_of_the_methods_without_redundancy(name, weights):
    method = make(name)
    twin = copy.deepcopy(method)
    z = [twin.projector(twin.net.encode(x)).detach().double().numpy() for x in batch_for(method)["unlabelled"]]
    wanted = [w * v for w, v in zip(weights, {"barlow": plain_barlow, "vicreg": plain_vicreg}[name](*z), strict=True)]
    loss, parts = method(batch_for(method))
    np.testing.assert_allclose([v.item() for v in parts.values()], wanted, rtol=1e-3, atol=1e-5)
    assert loss.item() == pytest.approx(sum(wanted), rel=1e-4)

def test_supcon_sees_labels_and_refuses_shares():
    method, batch = make("supcon"), batch_for(make("supcon"))
    assert method.views == {"labelled": ["ssl", "ssl"]}
    other = {**batch, "targets": torch.arange(8)}
    assert copy.deepcopy(method)(batch)[0].item() != copy.deepcopy(method)(other)[0].item()
    with pytest.raises(BenchError, match="Use targets='hard'"): make("supcon", targets="soft")

# ---- SimMIM

def test_square_masks():
    for unit, ratio, removed in ((1, 0.6, 22), (2, 0.6, 24), (3, 0.5, 18)):
        mask = square_mask(50, 6, unit, ratio, seeded(0))
        cells = mask.view(50, 6 // unit, unit, 6 // unit, unit)
        assert (mask.sum(1) == removed).all() and torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))
        assert len({tuple(m) for m in mask.tolist()}) > 1
    assert torch.equal(square_mask(4, 6, 2, 0.5, seeded(1)), square_mask(4, 6, 2, 0.5, seeded(1)))

def test_simmim_hides_what_it_masks():
    "No pixel of a masked patch reaches the tokens; those of others do; the loss is that of the masked ones."
    method = make("simmim", mask_ratio=0.6)
    x = method.net.normalise(torch.rand(2, 3, 32, 32))
    mask = square_mask(2, 4, 1, 0.6, seeded(0))
    loss, tokens, predicted = method.predict(x, mask)
    changed = x.clone()
    row, column = divmod(int(mask[0].argmax()), 4)
    changed[0, :, 8 * row:8 * row + 8, 8 * column:8 * column + 8] += 1
    torch.testing.assert_close(method.masked_tokens(changed, mask), tokens)
    row, column = divmod(int(mask[0].argmin()), 4)
    changed[0, :, 8 * row:8 * row + 8, 8 * column:8 * column + 8] += 1
    assert not torch.allclose(method.masked_tokens(changed, mask)[0], tokens[0], atol=1e-3)
    pixels = torch.stack([x[:, :, 8 * r:8 * r + 8, 8 * c:8 * c + 8].flatten(1) for r in range(4) for c in range(4)], 1)
    torch.testing.assert_close(loss, (pixels - predicted).abs().mean(2)[mask.bool()].mean())

def test_simmim_without_a_mask_is_the_encoder():
    method, x = make("simmim"), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(method.masked_tokens(x, torch.zeros(2, 16)), method.net.backbone.tokens(x))

# ---- landmark patches

@many
@given(st.integers(1, 5), st.sampled_from([8, 12]), st.sampled_from([2, 4]), st.integers(0, 9999))
def test_windows_against_plain_loops(n, size, patch, seed):
    points = np.random.default_rng(seed).uniform(-0.2, 1.2, (2, n, 2))
    found = patch_windows(torch.from_numpy(points), size, patch)
    assert found.shape == (2, 1, size, size)
    for b in range(2):
        for y in range(size):
            for x in range(size):
                centre = (np.array([x, y]) + 0.5) / size
                assert bool(found[b, 0, y, x]) == any((abs(centre - p) < patch / size / 2).all() for p in points[b])

def test_the_student_sees_landmarks_and_grey():
    method = make("landmark_patches", landmark_noise=0.0, landmark_share=1.0, patch_size=4)
    batch = batch_for(method)
    local = method.local_views(batch)
    for i, view in enumerate(local):
        seen = patch_windows(batch["landmarks"][i], 32, 4)
        assert 0 < seen.float().mean() < 1
        assert torch.equal(view, torch.where(seen, batch["unlabelled"][i], method.net.mean))
    few = make("landmark_patches", landmark_noise=0.0, landmark_share=0.1)
    drawn = few.drawn(batch["landmarks"][0], seeded(0))
    assert drawn.shape == (8, 7, 2) and (drawn[:, :, None] == batch["landmarks"][0][:, None]).all(3).any(2).all()

@pytest.fixture(scope="module")
def faces(tmp_path_factory): return build_faceset(DrawnSource(12, 64), tmp_path_factory.mktemp("drawn")/"faces")

@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [64, 112])
def test_points_stay_on_what_they_point_at(faces, name, size):
    "A dot at a landmark is where the moved landmark says, in every view that does not cut it off."
    points, view, seed = PoolPoints(Pool([faces]), "mine"), make_view(name, 0.5), (3, 4)
    moved = points(np.arange(12), [view], size, [seed])[0] * size  # (N, 68, 2)
    mirrored, found = view_map(view, 12, size, *seed)[:, :2, :2].det() < 0, 0
    for k in (30, 36, 45, 54):
        dots = torch.zeros(12, 1, 64, 64, dtype=torch.uint8)
        for i, (x, y) in enumerate(np.int64(points.all[:, k] * 64)): dots[i, 0, y - 1:y + 2, x - 1:x + 2] = 255
        if name in ("strong", "erased"): seen = warp(dots.float(), view_map(view, 12, size, *seed), size)
        else: seen = apply_view(view, dots, size, *seed)[:, :1]
        for i in range(12):
            if seen[i].max() - seen[i].median() < 0.2: continue
            there = moved[i, list(flip_order(68)).index(k) if mirrored[i] else k]
            y, x = (seen[i, 0] > 0.7 * seen[i].max()).nonzero().float().mean(0) + 0.5
            assert torch.dist(there, torch.stack([x, y])) < size / 20, (k, i)
            found += 1
    assert found > 24

def test_points_of_two_processes_are_parts_of_those_of_one(faces):
    view, n = make_view("ssl"), 12
    whole = view_map(view, n, 64, 1, 2)
    halves = [view_map(view, n // 2, 64, 1, 2, part=(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole)
    assert torch.equal(view_map(make_view("plain"), 2, 64, 0), torch.eye(2, 3).expand(2, -1, -1))

def test_faces_without_landmarks_are_refused_in_a_sentence(faces, tmp_path, tiny):
    class Bare(DrawnSource):
        def rows(self): return super().rows().drop(columns="landmarks")
    bare = build_faceset(Bare(64, 32), tmp_path/"bare")
    with pytest.raises(BenchError, match="have no landmarks"):
        run(tiny(method="landmark_patches", dataset="faceset", data_root=str(tmp_path/"bare")))
    half = copy.copy(faces)
    half.index = faces.index.copy()
    half.index["landmarks"] = [None, *half.index["landmarks"][1:]]
    with pytest.raises(BenchError, match="'landmark_patches' needs the same landmarks of every unlabelled face"):
        PoolPoints(Pool([half]), "landmark_patches")
    assert len(bare) == 64

# ---- the soft mask of SimFLE

@many
@given(st.integers(1, 4), st.integers(4, 16), st.sampled_from([0.25, 0.5, 0.7]), st.integers(0, 9999))
def test_straight_through_is_hard_forwards_and_soft_backwards(batch, patches, ratio, seed):
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.normal(size=(batch, patches)), requires_grad=True)
    ids, mask, gate = straight_through(scores, ratio)
    hard_ids, hard = keep_highest(scores.detach(), ratio)
    assert torch.equal(ids, hard_ids) and torch.equal(mask.detach(), hard) and (gate == 1).all()
    weight, worth = torch.tensor(rng.normal(size=(batch, patches))), torch.tensor(rng.normal(size=ids.shape))
    ((mask * weight).sum() + (gate * worth).sum()).backward()
    for b in range(batch):
        order, kept = sorted(scores[b].tolist(), reverse=True), ids.shape[1]
        cut = (order[kept - 1] + order[kept]) / 2
        for j in range(patches):
            s = 1 / (1 + math.exp(-(scores[b, j].item() - cut) / scores[b].std().item()))
            own = [worth[b, k].item() for k in range(kept) if ids[b, k] == j]
            slope = s * (1 - s) / scores[b].std().item() * (sum(own) - weight[b, j].item())
            assert scores.grad[b, j].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)

def moved_by(method, part) -> set:
    method.zero_grad(set_to_none=True)
    method(batch_for(method))[1][part].backward()
    moved = [n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return {".".join(n.split(".")[:2]) for n in moved}

def test_the_reconstruction_reaches_groups_and_backbone_where_the_mask_is_soft():
    assert moved_by(make("simfle", masking="semantic"), "reconstruction") == {"ffl.facemae"}
    assert moved_by(make("simfle", masking="soft"), "reconstruction") == {"ffl.facemae", "ffl.grouping", "net.backbone"}
    assert moved_by(make("simfle", masking="soft"), "grouping") == {"ffl.grouping"}, "g never moves the backbone"

def test_a_soft_mask_changes_no_value():
    soft, hard = make("simfle", masking="soft"), make("simfle")
    batch = batch_for(soft)
    (_, ours), (_, theirs) = soft(batch), hard(batch)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    buffers = dict(hard.named_buffers())
    assert all(torch.equal(b, buffers[n]) for n, b in soft.named_buffers() if not n.endswith("num_batches_tracked"))
    images, group = torch.rand(3, 3, 32, 32), torch.arange(3)
    a, b = (m.eval().explain(images, group) for m in (soft, hard))
    assert torch.equal(a["mask"], b["mask"])

# ---- features, view strength, bad input

def test_spread_and_rank():
    rng = np.random.default_rng(0)
    gauss = rng.normal(size=(2000, 16))
    assert spread(gauss) == pytest.approx(1, abs=0.02) and effective_rank(gauss) == pytest.approx(16, abs=0.2)
    assert spread(np.ones((9, 4))) == 0 and effective_rank(np.ones((9, 4))) == 0
    assert effective_rank(gauss[:, :1] * np.arange(1.0, 9)) == pytest.approx(1)
    assert effective_rank(gauss + 5) == pytest.approx(effective_rank(gauss)), "the mean does not count"

def test_strength_of_the_view():
    "At 1 the published view; below, larger crops, less jitter, less blur; the same flips and the same grey faces."
    usual, mild, hard = (make_view("ssl", s).sample(seeded(0), 2000) for s in (1.0, 0.25, 2.0))
    assert all(torch.equal(v, make_view("ssl").sample(seeded(0), 2000)[k]) for k, v in usual.items())
    area = lambda p: (p["theta"][:, 0, 0, 0] * p["theta"][:, 0, 1, 1]).abs()
    assert area(mild).min() > 0.98 * 0.2**0.25 and area(usual).min() < 0.25 and area(hard).min() < 0.1
    for p, s in ((usual, 1), (mild, 0.25)):
        assert (p["jitter"][:, :3] - 1).abs().max() == pytest.approx(0.8 * s, rel=0.02)
        assert p["sigma"].max() == pytest.approx(0.1 + 1.9 * s, rel=0.02)
    assert (hard["jitter"][:, :3] >= 0).all() and torch.equal(usual["grey"], mild["grey"])
    faces = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, generator=seeded(1))
    assert apply_view(make_view("ssl", 2.0), faces, 48, 0).isfinite().all()

@pytest.mark.parametrize("method", ["byol", "dino", "supcon", "landmark_patches"])
def test_which_methods_have_a_strength(method): assert RunConfig(method=method, view_strength=0.5).view_strength == 0.5

@pytest.mark.parametrize("method", ["mae", "simmim", "supervised", "dtm"])
def test_which_have_none(method):
    with pytest.raises(BenchError, match="view_strength = 0.5 is for"): RunConfig(method=method, view_strength=0.5)
    assert RunConfig(method=method, view="ssl", view_strength=0.5).view_strength == 0.5

@pytest.mark.parametrize("words, name, given", [
    ("must be lower than temperature", "dino", {"teacher_temperature": 0.5}),
    ("must be lower than temperature", "landmark_patches", {"teacher_start": 0.6}),
    ("mask_unit = 3 does not divide the 4 patches", "simmim", {"mask_unit": 3}),
    ("keeps none", "simmim", {"mask_ratio": 0.99}),
    ("is the encoder of a FaceMAE", "simmim", {"backbone": "test_resnet"}),
])
def test_errors_before_training(words, name, given):
    with pytest.raises(BenchError, match=words) as caught: make(name, **given)
    assert str(caught.value).rstrip().endswith(".")

RECIPES = {  # optimizer, lr, weight decay, warm-up epochs of the preset `paper`; of `standard`
    "dino": ("adamw", 5e-4, 0.04, 10, "adamw"), "barlow": ("lars", 0.2, 1.5e-6, 10, "adamw"),
    "vicreg": ("lars", 0.2, 1e-6, 10, "adamw"), "supcon": ("lars", 0.3, 1e-6, 10, "adamw"),
    "simmim": ("adamw", 1e-4, 0.05, 10, "adamw"), "landmark_patches": ("adamw", 5e-4, 0.04, 10, "adamw"),
}

@pytest.mark.parametrize("name", RECIPES)
def test_each_method_has_a_recipe_of_its_own_and_takes_a_common_one(name):
    paper, usual = RunConfig(method=name, preset="paper"), RunConfig(method=name, preset="standard")
    found = (paper.optimizer, paper.lr, paper.weight_decay, paper.warmup_epochs, usual.optimizer)
    assert found == RECIPES[name] and paper.batch_size == 256 and paper.epochs == 100
    common = dict(optimizer="momentum", lr=0.05, weight_decay=1e-4, warmup_epochs=0, clip_grad=0.0)
    assert RunConfig(method=name, preset="standard", **common).lr == 0.05

"""SimFLE and the other self-supervised methods: losses, steps and gradients against plain versions; resume; errors."""
import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms.v2 import functional as V

from fer_bench.catalogue import find_method, method_entry, methods_of
from fer_bench.core import BenchError
from fer_bench.data.views import make_view, seeded, warp
from fer_bench.methods.contrast import nt_xent
from fer_bench.methods.eac import class_activation, mirror_disagreement
from fer_bench.methods.selfsupervised import (
    COLLAPSED_BELOW,
    feature_std,
    in_groups,
    momentum_at,
    projector,
    similarity_loss,
)
from fer_bench.methods.simfle import distillation_loss, face_size
from fer_bench.methods.thresholds import fairness_loss
from fer_bench.models.backbones import create_classifier
from fer_bench.models.facemae import create_facemae, random_mask
from fer_bench.models.grouping import channel_grouping_loss, semantic_mask

SELF = methods_of("self-supervised")

CONFIG = dict(momentum=0.9, momentum_schedule="constant", temperature=0.5, groups=8, mask_ratio=0.75, patch_size=None,
              facemae="tiny", masking="semantic", lambda_d=0.3, lambda_g=0.03, proj_hidden=32, proj_dim=16,
              grouping_init="kaiming", x0_statistics="frozen", joint_views=False, queue=20, ema=0.999, image_size=32,
              backbone="test_resnet", epochs=2, steps_per_epoch=5, seed=0, batch_size=8, mu=1,
              bn_groups=1, prototypes=24, teacher_start=0.04, teacher_temperature=0.07, teacher_warmup=0.5,
              frozen_share=0.0, centre_momentum=0.9, local_views=2, landmark_share=0.25, landmark_noise=0.02,
              lambda_r=0.005, lambda_i=25.0, lambda_v=25.0, lambda_c=1.0, mask_unit=1, targets="hard")
ENCODERS = ("mae", "simmim")  # methods whose backbone is a face encoder

def make(name, seed=0, min_map=4, **given):
    torch.manual_seed(seed)
    fields = CONFIG | ({"temperature": 0.2} if name == "mocov2" else {})
    fields["masking"] = method_entry(name).defaults.get("masking", "semantic")
    config = SimpleNamespace(**fields | {"backbone": "facemae_tiny" if name in ENCODERS else "test_resnet"} | given)
    min_map = 0 if config.backbone.startswith("facemae") else min_map
    net = create_classifier(config.backbone, 8, config.image_size, min_map=min_map)[0]
    return find_method(name)(net, config, np.full(8, 4), 100).train()

def batch_for(method, step=0, n=8):
    draw = torch.Generator().manual_seed(1000 + step)
    size, (role, names) = method.config.image_size, *method.views.items()
    views = [torch.rand(n, 3, size, size, generator=draw) for _ in names]
    landmarks = torch.rand(len(names), n, 68, 2, generator=draw)
    return {role: views, "index": torch.arange(n), "targets": torch.arange(n) % 3, "landmarks": landmarks, "step": step,
            "progress": step / 10}

def optimiser_of(method):
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05, momentum=0.9)

def update(optimiser, loss):
    "One step of `optimiser` along the gradient of `loss`."
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

def train(method, steps, optimiser=None) -> list:
    optimiser, losses = optimiser or optimiser_of(method), []
    for step in steps:
        loss, _ = method(batch_for(method, step))
        update(optimiser, loss)
        method.after_step(step)
        losses.append(loss.item())
    return losses

def weights(net) -> dict:
    "Parameters and running statistics, without torch's batch counters: nothing reads them, and the pass of x0 counts."
    return {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}

def same(a, b): return all(torch.equal(v, w) for v, w in zip(weights(a).values(), weights(b).values(), strict=True))

# ---- losses against slow plain versions

def softmax(row):
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]

many = settings(max_examples=40, deadline=None)

@many
@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.5, 1.0, 4.0]), st.floats(0.1, 5), st.integers(0, 9999))
def test_distillation_against_plain_loops(batch, dim, t, scale, seed):
    z = np.random.default_rng(seed).normal(0, scale, (3, batch, dim))
    total = 0.0
    for b in range(batch):
        p = softmax([sum(z[k][b][i] for k in range(3)) / 3 / t for i in range(dim)])
        for k in range(3):
            q = softmax([v / t for v in z[k][b]])
            total += t**2 * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0) / batch
    assert distillation_loss(torch.from_numpy(z), t).item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert distillation_loss(torch.from_numpy(z).float(), t).item() == pytest.approx(total, rel=1e-5, abs=1e-5)

@many
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 9999))
def test_similarity_against_plain_loops(batch, dim, seed):
    p, t = np.random.default_rng(seed).normal(size=(2, batch, dim))
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
    wanted = sum(2 - 2 * dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for a, b in zip(p, t, strict=True)) / batch
    assert similarity_loss(torch.from_numpy(p), torch.from_numpy(t)).item() == pytest.approx(wanted, abs=1e-9)
    single = similarity_loss(torch.from_numpy(p).float(), torch.from_numpy(t).float())
    assert single.item() == pytest.approx(wanted, abs=1e-5)

def test_the_teacher_gets_no_gradient_and_is_the_mean_of_three():
    "The gradient of T² KL(p ‖ softmax(z_k / T)) in z_k is T (q_k − p) / B, with p fixed."
    z = torch.randn(3, 4, 5, dtype=torch.double, requires_grad=True)
    distillation_loss(z, 4.0).backward()
    p, q = (z.detach().mean(0) / 4).softmax(1), (z.detach() / 4).softmax(2)
    torch.testing.assert_close(z.grad, 4 * (q - p) / 4)

def test_feature_std():
    torch.manual_seed(0)
    assert feature_std(torch.randn(4000, 64)).item() == pytest.approx(1, abs=0.02)
    assert feature_std(torch.ones(8, 64)).item() < 1e-6 and feature_std(torch.randn(8, 1) * torch.ones(64)).item() > 0.5
    assert feature_std(1 + 0.01 * torch.randn(64, 32)) < COLLAPSED_BELOW < feature_std(torch.randn(64, 32))

def test_momentum():
    assert {momentum_at(s, 10, 0.99) for s in range(10)} == {0.99}
    rising = [momentum_at(s, 10, 0.99, "cosine") for s in range(11)]
    assert rising == sorted(rising) and rising[10] == 1
    assert rising[0] == pytest.approx(0.99) and rising[5] == pytest.approx(0.995)

# ---- BYOL, GFL

class PlainByol:
    "BYOL as one would write it down without the library."
    def __init__(self, method, lr=0.05):
        parts = method.net.backbone, method.projector, method.predictor
        self.f, self.projector, self.predictor = (copy.deepcopy(part) for part in parts)
        self.slow_f, self.slow_projector = copy.deepcopy(self.f), copy.deepcopy(self.projector)
        self.mean, self.std = method.net.mean, method.net.std
        learned = [*self.f.parameters(), *self.projector.parameters(), *self.predictor.parameters()]
        self.optimiser = torch.optim.SGD(learned, lr=lr, momentum=0.9)

    def step(self, x1, x2, m=0.9) -> float:
        x1, x2 = (x1 - self.mean) / self.std, (x2 - self.mean) / self.std
        h1, h2 = self.f(x1), self.f(x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1 = self.slow_projector(self.slow_f(x1))
            t2 = self.slow_projector(self.slow_f(x2))
        cos = nn.CosineSimilarity(dim=1)
        loss = (2 - 2 * cos(p1, t2).mean()) + (2 - 2 * cos(p2, t1).mean())
        update(self.optimiser, loss)
        with torch.no_grad():
            for slow, fast in ((self.slow_f, self.f), (self.slow_projector, self.projector)):
                for a, b in zip(slow.parameters(), fast.parameters(), strict=True): a.lerp_(b, 1 - m)
        return loss.item()

def against_plain_byol(method, optimiser):
    plain = PlainByol(method)
    for step in range(3):
        batch = batch_for(method, step)
        loss, parts = method(batch)
        update(optimiser, loss)
        method.after_step(step)
        assert parts["similarity"].item() == plain.step(*batch["unlabelled"][:2])
    for ours, theirs in ((method.net.backbone, plain.f), (method.projector, plain.projector),
                         (method.predictor, plain.predictor), (method.target.net.backbone, plain.slow_f),
                         (method.target.projector, plain.slow_projector)):
        assert same(ours, theirs)

def test_three_steps_of_byol_are_a_plain_byol_to_the_bit():
    method = make("byol")
    against_plain_byol(method, optimiser_of(method))

@pytest.mark.parametrize("name", ["simfle", "simfle_random"])
def test_simfle_without_distillation_leaves_gfl_to_the_bit(name):
    "Draws, statistics and gradients of FFL do not touch GFL: all that reaches the backbone is the distillation."
    method = make(name, lambda_d=0.0)
    learned = [p for p in method.parameters() if p.requires_grad]
    state = torch.get_rng_state()
    against_plain_byol(method, torch.optim.SGD(learned, lr=0.05, momentum=0.9))
    method(batch_for(method))
    assert torch.equal(torch.get_rng_state(), state)

def test_simfle_starts_from_the_weights_of_byol():
    simfle, byol = make("simfle"), make("byol")
    batch = batch_for(simfle)
    ours, theirs = simfle(batch)[1], byol({**batch, "unlabelled": batch["unlabelled"][:2]})[1]
    assert torch.equal(ours["similarity"], theirs["similarity"])
    # running statistics too, after the pass of x0
    assert all(torch.equal(v, weights(simfle)[k]) for k, v in weights(byol).items())

def test_byol_builds_no_facemae_and_asks_for_no_x0():
    method = make("byol")
    assert method.views == {"unlabelled": ["ssl", "ssl"]} and not any("ffl" in name for name in method.state_dict())
    assert make("simfle").views == {"unlabelled": ["ssl", "ssl", "plain"]}

@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_target_moves_after_the_step(schedule):
    method = make("byol", momentum_schedule=schedule)
    before = copy.deepcopy(method.target)
    loss, _ = method(batch_for(method))
    loss.backward()
    optimiser_of(method).step()
    assert all(torch.equal(a, b) for a, b in zip(method.target.parameters(), before.parameters(), strict=True))
    seen = [b.clone() for b in method.target.buffers()]
    method.after_step(4)
    m = 0.9 if schedule == "constant" else 1 - 0.1 * (math.cos(0.4 * math.pi) + 1) / 2
    online = dict(method.named_parameters())
    for name, p in method.target.named_parameters():
        torch.testing.assert_close(p, m * before.get_parameter(name) + (1 - m) * online[name])
    assert all(torch.equal(a, b) for a, b in zip(method.target.buffers(), seen, strict=True)), "buffers are its own"
    assert method.target.training and not any(p.requires_grad for p in method.target.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(seen, before.buffers(), strict=True)), "it works in training mode"

# ---- FFL: what learns from what

def gradients(method, part) -> set:
    "The first two words of the names of all parameters that `part` of the loss moves."
    method.zero_grad(set_to_none=True)
    method(batch_for(method))[1][part].backward()
    moved = [n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return {".".join(name.split(".")[:2]) for name in moved}

def test_each_part_of_the_loss_moves_its_own():
    method = make("simfle")
    # not the backbone, and not the grouping: an argsort has no gradient
    assert gradients(method, "reconstruction") == {"ffl.facemae"}
    assert gradients(method, "grouping") == {"ffl.grouping"}
    heads = {f"{m}.{i}" for m in ("projector", "predictor") for i in (0, 1, 3)}
    assert gradients(method, "similarity") == {"net.backbone"} | heads
    assert gradients(method, "distillation") == {"net.backbone", "ffl.head_g", "ffl.head_f", "ffl.facemae"}

def test_ffl_reaches_the_backbone_as_a_third_of_the_teacher_alone():
    "The backbone's gradient is the one that two students get from a teacher (z1 + z2 + z3) / 3 that is a constant."
    torch.manual_seed(0)
    h = torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True)
    z3 = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    got, = torch.autograd.grad(distillation_loss(torch.stack([*h, z3])), h)
    teacher = ((h[0] + h[1] + z3) / 3).detach()
    students = sum(16 * F.kl_div((v / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean") for v in h)
    torch.testing.assert_close(got, torch.autograd.grad(students, h)[0])

def plain_simfle(method, batch) -> dict:
    "All parts of the loss, from the method's modules, written down from the description."
    c, ffl = method.config, method.ffl
    x1, x2, x0 = ((x - method.net.mean) / method.net.std for x in batch["unlabelled"])
    h1, h2 = method.net.backbone(x1), method.net.backbone(x2)
    p1, p2 = (method.predictor(method.projector(h)) for h in (h1, h2))
    with torch.no_grad():
        t1, t2 = (method.target.projector(method.target.net.backbone(x)) for x in (x1, x2))
        features = method.net.backbone.forward_features(x0)
    activation = F.relu(F.batch_norm(F.conv2d(features, ffl.grouping.conv.weight), None, None, training=True))
    n, channels = activation.shape[:2]
    a = F.normalize((activation + 0.001).flatten(2), dim=2)
    cosines = (a @ a.transpose(1, 2)).mean(0)
    group = torch.arange(channels) // (channels // c.groups)
    g = 0.001 * (cosines - (group[:, None] == group).float()).square().sum() / (channels / 512) ** 2
    drawn = torch.randint(c.groups, (n,), generator=method.generator(batch["step"]))
    ids_keep, mask = semantic_mask(activation, c.groups, drawn, c.image_size, 8, c.mask_ratio)
    reconstruction, tokens, _ = ffl.facemae(x0, ids_keep, mask)
    z = torch.stack([ffl.head_g(h1), ffl.head_g(h2), ffl.head_f(tokens.mean(1))])
    similarity = 4 - 2 * F.cosine_similarity(p1, t2).mean() - 2 * F.cosine_similarity(p2, t1).mean()
    return {"similarity": similarity, "reconstruction": reconstruction, "distillation": 0.3 * distillation_loss(z, 4.0),
            "grouping": 0.03 * g**2}

def test_the_parts_of_simfle_against_a_plain_version():
    method = make("simfle")
    batch = batch_for(method, 3)
    wanted = plain_simfle(copy.deepcopy(method), batch)
    loss, parts = method(batch)
    assert parts.keys() == wanted.keys()
    for name, value in wanted.items(): torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-5)
    facts = method.after_epoch(0.1, None)
    assert 0.03 * facts["g"] ** 2 == pytest.approx(parts["grouping"].item(), rel=1e-5)
    assert 0.1 < facts["feature_std"] < 1.5

def test_masks_change_with_step_and_seed_and_repeat():
    method, kept = make("simfle_random"), []
    method.ffl.facemae.register_forward_pre_hook(lambda m, given: kept.append(given[1].tolist()))
    for step in (0, 1, 0): method(batch_for(method, step))
    other = make("simfle_random")
    other.config.seed = 1
    other.ffl.facemae.register_forward_pre_hook(lambda m, given: kept.append(given[1].tolist()))
    other(batch_for(other, 0))
    assert kept[0] == kept[2] != kept[1] and kept[3] != kept[0]

@pytest.mark.parametrize("given, moves", [({}, False), ({"x0_statistics": "mixed"}, True)])
def test_statistics_of_x0(given, moves):
    simfle, byol = make("simfle", **given), make("byol")
    batch = batch_for(simfle)
    simfle(batch)
    byol({**batch, "unlabelled": batch["unlabelled"][:2]})
    mean = lambda m: [b for n, b in m.net.named_buffers() if n.endswith("running_mean")]
    assert all(torch.equal(a, b) for a, b in zip(mean(simfle), mean(byol), strict=True)) is not moves

def test_official_start_and_sizes_of_x0():
    assert make("simfle", grouping_init="official").ffl.grouping.conv.weight.unique().tolist() == [1.0]
    assert [face_size(s) for s in (32, 112, 192, 224, 256)] == [32, 112, 192, 112, 128]
    with torch.device("meta"): patches = create_facemae("base", 112).encoder.n_patches
    assert patches == 49

def test_at_224_px_x0_is_112():
    method = make("simfle", image_size=224, min_map=0)
    x0, features = method.encode_x0(torch.rand(2, 3, 224, 224))
    assert x0.shape == (2, 3, 112, 112) and features.shape[2:] == (4, 4) and method.ffl.facemae.encoder.patch_size == 16
    loss, _ = method(batch_for(method, n=2))
    assert loss.isfinite()

def test_views_joint_or_apart():
    method = make("byol")
    x1, x2 = batch_for(method)["unlabelled"]
    apart = copy.deepcopy(method).encode_views([x1, x2])
    method.config.joint_views = True
    joint = copy.deepcopy(method).encode_views([x1, x2])
    both = copy.deepcopy(method).net.encode(torch.cat([x1, x2]))
    assert torch.equal(torch.cat(joint), both) and not torch.allclose(torch.cat(apart), both, atol=1e-3)

def test_explain_shows_what_the_step_does():
    method, images = make("simfle").eval(), torch.rand(3, 3, 32, 32)
    seen = method.explain(images, torch.tensor([0, 1, 7]))
    assert seen["activation"].shape[2:] == (4, 4) and seen["ids_keep"].shape == (3, 4)
    assert seen["mask"].sum(1).tolist() == [12] * 3
    kept = (1 - seen["mask"]).view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(seen["reconstructed"] * kept, images * kept, rtol=0, atol=1e-5)
    assert not torch.allclose(seen["reconstructed"], images, atol=0.05)

@pytest.mark.parametrize("name", ["simfle_random", "mae"])
def test_explain_of_random_masks(name):
    "The same masks at every call, not those of the groups, and the reconstruction error under them."
    method, images = make(name).eval(), torch.rand(5, 3, 32, 32)
    one, two = (method.explain(images, torch.full((5,), group)) for group in (0, 1))
    assert torch.equal(one["mask"], two["mask"]) and len({tuple(m) for m in one["mask"].tolist()}) > 1
    predicted, target = (cut(v, 8) for v in (one["reconstructed"], one["face"]))
    assert one["reconstruction"].item() > 0 and (predicted - target).abs()[one["mask"].bool()].mean() > 0.01
    torch.testing.assert_close(predicted[~one["mask"].bool()], target[~one["mask"].bool()], rtol=0, atol=1e-5)

def cut(pictures, p):
    "(B, L, C, p, p) of pictures (B, C, S, S), patch by patch."
    side = pictures.shape[2] // p
    return torch.stack([pictures[:, :, r*p:(r+1)*p, c*p:(c+1)*p] for r in range(side) for c in range(side)], 1)

# ---- the others against plain versions

def test_simclr_against_plain_loops():
    method = make("simclr", temperature=0.3)
    x1, x2 = batch_for(method)["unlabelled"]
    twin = copy.deepcopy(method)
    z = torch.cat([twin.projector(twin.net.encode(x)) for x in (x1, x2)]).double().tolist()
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
    cos = lambda a, b: dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
    total = 0.0
    for i in range(16):
        scores = {j: math.exp(cos(z[i], z[j]) / 0.3) for j in range(16) if j != i}
        total -= math.log(scores[(i + 8) % 16] / sum(scores.values())) / 16
    assert method(batch_for(method))[0].item() == pytest.approx(total, abs=1e-5)

def test_mocov2_against_a_plain_version():
    method = make("mocov2", temperature=0.3)
    plain, queue, place = copy.deepcopy(method), method.queue.clone(), 0
    ours, theirs = (torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05) for m in (method, plain))
    for step in range(4):  # 32 keys go round the queue of 20
        x1, x2 = batch_for(method, step)["unlabelled"]
        q = F.normalize(plain.projector(plain.net.encode(x1)), dim=1)
        with torch.no_grad(): k = F.normalize(plain.target.projector(plain.target.net.encode(x2)), dim=1)
        wanted = 0.0
        for i in range(8):
            scores = torch.stack([q[i] @ k[i], *(q[i] @ old for old in queue.clone())]) / 0.3
            wanted = wanted - scores.log_softmax(0)[0] / 8
        loss, _ = method(batch_for(method, step))
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        for i in range(8): queue[(place + i) % 20] = k[i]
        place = (place + 8) % 20
        torch.testing.assert_close(method.queue, queue, rtol=1e-4, atol=1e-5)
        update(ours, loss)
        update(theirs, wanted)
        method.after_step(step)
        with torch.no_grad():
            for a, b in ((plain.target.net, plain.net), (plain.target.projector, plain.projector)):
                for slow, fast in zip(a.parameters(), b.parameters(), strict=True): slow.copy_(0.9 * slow + 0.1 * fast)
    assert method.pointer.item() == place

def test_groups_of_mocov2_against_a_plain_version():
    """Four groups of two faces: a query is normalised with its own group, a key with the group that it is shuffled
    into, which is another at the next step."""
    method, one = make("mocov2", bn_groups=4), make("mocov2")
    x1, x2 = batch_for(method, 3)["unlabelled"]
    order = torch.randperm(8, generator=method.generator(3)).tolist()
    wanted_q, wanted_k = [None] * 8, [None] * 8
    with torch.no_grad():
        for i in range(0, 8, 2):
            for n, q in zip((i, i + 1), one.net.encode(x1[i:i + 2]), strict=True): wanted_q[n] = q
            for n, k in zip(order[i:i + 2], one.target(x2[order[i:i + 2]]), strict=True): wanted_k[n] = k
        q, k = in_groups(method.net.encode, x1, 4), method.keys(x2, 3)
        torch.testing.assert_close(q, torch.stack(wanted_q))
        torch.testing.assert_close(k, torch.stack(wanted_k))
        assert not torch.allclose(k, method.keys(x2, 4)) and torch.equal(k, method.keys(x2, 3))
        assert not torch.allclose(k, one.keys(x2, 3)), "a batch as a whole has other statistics"
    loss, _ = method(batch_for(method, 3))
    loss.backward()
    assert loss.isfinite() and method.pointer.item() == 8

def test_simsiam_against_a_plain_version():
    method = make("simsiam")
    twin = copy.deepcopy(method)
    x1, x2 = batch_for(method)["unlabelled"]
    z1, z2 = (twin.projector(twin.net.encode(x)) for x in (x1, x2))
    D = lambda p, z: -(F.normalize(p, dim=1) * F.normalize(z.detach(), dim=1)).sum(1).mean()
    wanted = D(twin.predictor(z1), z2) / 2 + D(twin.predictor(z2), z1) / 2
    loss, _ = method(batch_for(method))
    loss.backward()
    wanted.backward()
    assert loss.item() == pytest.approx(1 + wanted.item(), abs=1e-5)
    for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad: torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)

def test_mae_is_a_facemae_around_the_backbone():
    method = make("mae")
    batch = batch_for(method, 2)
    whole = create_facemae("tiny", 32, 8)
    whole.encoder, whole.decoder = method.net.backbone, method.decoder
    masks = random_mask(8, 16, 0.75, method.generator(batch["step"]))
    assert torch.equal(method(batch)[0], whole(batch["unlabelled"][0] * 2 - 1, *masks)[0])
    assert method.views == {"unlabelled": ["weak"]}

# ---- the view

def by_torchvision(face, theta, jitter, grey, sigma, size):
    "One face (C, H, W) in [0, 1] under torchvision's own functions, a step at a time."
    out = warp(face[None], theta[None], size)[0]
    brightness, contrast, saturation, turn = jitter.tolist()
    out = V.adjust_contrast(V.adjust_brightness(out, brightness), contrast)
    if len(out) == 3:
        out = V.adjust_hue(V.adjust_saturation(out, saturation), turn)
        if grey: out = V.rgb_to_grayscale(out, 3)
    kernel = {32: 5, 48: 5, 64: 7, 96: 11, 224: 23}[size]
    return V.gaussian_blur(out, [kernel] * 2, [sigma.item() * size / 224] * 2).expand(3, -1, -1)

@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size, which", [(32, 0), (64, 0), (96, 1), (224, 1)])
def test_the_view_against_torchvision_face_by_face(size, which, channels):
    faces = torch.randint(0, 256, (12, channels, size, size), dtype=torch.uint8, generator=seeded(0))
    params = make_view("ssl").sample(seeded(1), 12)
    got = make_view("ssl")(faces, size, **params)
    assert params["grey"].any() and (params["jitter"][:, 3] == 0).any() and not params["grey"].all()
    for i, face in enumerate(faces.float() / 255):
        jitter, grey, sigma = (params[k][i] for k in ("jitter", "grey", "sigma"))
        wanted = by_torchvision(face, params["theta"][i, which], jitter, grey, sigma, size)
        torch.testing.assert_close(got[i], wanted, rtol=0, atol=2e-3)  # torchvision's grey has other fourth digits

def test_draws_of_the_view():
    params = make_view("ssl").sample(seeded(2), 4000)
    jittered = params["jitter"][:, 3] != 0
    for draws, share in ((jittered, 0.8), (params["grey"], 0.2)):
        assert draws.float().mean().item() == pytest.approx(share, abs=0.03)
    assert torch.equal(params["jitter"][~jittered], torch.tensor([1.0, 1, 1, 0]).expand((~jittered).sum(), -1))
    for column, (low, high) in enumerate([(0.2, 1.8)] * 3 + [(-0.2, 0.2)]):
        drawn = params["jitter"][jittered, column]
        assert low <= drawn.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < drawn.max() <= high
    for theta, least in zip(params["theta"].unbind(1), (0.2, 0.08), strict=True):
        width, height = theta[:, 0, 0].abs(), theta[:, 1, 1]
        assert least * 0.99 <= (width * height).min() < least + 0.02 and (width * height).max() <= 1
        assert 0.45 < (theta[:, 0, 0] < 0).float().mean() < 0.55  # flipped
        assert not theta[:, [0, 1], [1, 0]].any()  # not turned
        assert (theta[:, 0, 2].abs() + width).max() <= 1.0001 and (theta[:, 1, 2].abs() + height).max() <= 1.0001
    assert 0.1 <= params["sigma"].min() < 0.11 and 1.99 < params["sigma"].max() <= 2

# ---- contracts of all

@pytest.fixture(params=SELF)
def method(request): return make(request.param)

def test_contract(method):
    "Parts add up, all that can learn gets a gradient, the head does not, facts come once an epoch."
    loss, parts = method(batch_for(method))
    loss.backward()
    assert loss.isfinite() and loss.item() == sum(parts.values()).item() and all(v.ndim == 0 for v in parts.values())
    for name, p in method.named_parameters():
        target, head = name.startswith("target."), name.startswith("net.head")
        assert p.requires_grad is not (target or head) and (p.grad is None) is not p.requires_grad, name
    method(batch_for(method, 1))
    facts = method.after_epoch(0.1, None)
    assert all(type(v) is float for v in facts.values()) and facts["feature_std"] > 0
    assert method.after_epoch(0.2, None) == {}
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(method.eval().encode(images), method.net.encode(images))

# not mocov2: its queue gets harder before it gets easier
@pytest.mark.parametrize("name", [name for name in SELF if name != "mocov2"])
def test_training_lowers_the_loss(name):
    method = make(name)
    optimiser, losses = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01), []
    for _ in range(8):
        loss, _ = method(batch_for(method))
        update(optimiser, loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0]

def test_bf16(method):
    kinds = []
    method.net.backbone.register_forward_hook(lambda m, i, out: kinds.append(out.dtype))
    if method.net.backbone.__class__.__name__ == "FaceEncoder": kinds = [torch.bfloat16]  # its forward is not called
    with torch.autocast("cpu", torch.bfloat16): loss, parts = method(batch_for(method))
    loss.backward()
    assert torch.bfloat16 in kinds and loss.isfinite()
    assert {loss.dtype, *(v.dtype for v in parts.values())} == {torch.float32}
    for name, p in method.named_parameters():
        if not p.requires_grad: continue
        assert p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all(), name

LOSSES = {
    "NT-Xent": lambda a, b: nt_xent(a, b, 0.07),
    "similarity": similarity_loss,
    "distillation": lambda a, b: distillation_loss(torch.stack([a, b, -a])),
    "class activation": lambda a, b: mirror_disagreement(*(class_activation(x.view(8, 16, 2, 2), a[:4, :16])
                                                           for x in (a, b))),
    "channel grouping": lambda a, b: channel_grouping_loss(a.abs().view(8, 16, 2, 2), 4),
    "fairness": lambda a, b: fairness_loss(a, torch.arange(8) < 5, *b[:2].float().softmax(1)),
}

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_are_float32_under_autocast(loss, dtype):
    "Features come in bf16; what is computed from them is what float32 gives, to the last bits."
    a, b = (torch.randn(8, 64, generator=seeded(i)).to(dtype) for i in range(2))
    with torch.autocast("cpu", torch.bfloat16): found = loss(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(a.float(), b.float()), rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize("name", SELF)
def test_a_state_dict_goes_on_to_the_same_bits(name):
    method, twin = make(name, momentum_schedule="cosine"), make(name, seed=7, momentum_schedule="cosine")
    optimiser, other = optimiser_of(method), optimiser_of(twin)
    train(method, range(2), optimiser)
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert train(method, range(2, 4), optimiser) == train(twin, range(2, 4), other) and same(method, twin)

# ---- bad input

@pytest.mark.parametrize("words, name, given", [
    ("96 channels cannot be divided into 7 groups", "simfle", {"groups": 7}),
    ("mask_ratio=0.99 keeps none", "simfle", {"mask_ratio": 0.99}),
    ("mask_ratio=0.0 keeps all", "simfle_random", {"mask_ratio": 0.0}),
    ("mask_ratio=1.0 keeps none", "mae", {"mask_ratio": 1.0}),
    ("32 px cannot be cut into patches of 10", "simfle", {"patch_size": 10}),
    ("36 px cannot be cut into patches of 8", "mae", {"image_size": 36}),
    ("patch_size = 4, but backbone 'facemae_tiny' has patches of 8 px", "mae", {"patch_size": 4}),
    ("map of 1 × 1 cells from a face of 32 px; 4 × 4 are needed", "simfle", {"min_map": 0}),
    ("'test_vit' makes no map of channels", "simfle", {"backbone": "test_vit", "min_map": 0}),
    ("backbone is the encoder of a FaceMAE, and 'test_resnet' is none", "mae", {"backbone": "test_resnet"}),
    ("queue = 4 is shorter than a batch of 8", "mocov2", {"queue": 4}),
    ("queue = 20 is shorter than a batch of 24", "mocov2", {"mu": 3}),
    ("bn_groups = 3: 8 faces", "mocov2", {"bn_groups": 3}),
    ("bn_groups = 8: 8 faces", "mocov2", {"bn_groups": 8}),
    ("no start of the grouping convolution 'ones'", "simfle", {"grouping_init": "ones"}),
    ("no FaceMAE size 'huge'", "simfle", {"facemae": "huge"}),
    *[("batch_size = 1", name, {"batch_size": 1}) for name in SELF],
])
def test_errors_before_training(words, name, given):
    with pytest.raises(BenchError, match=words) as caught: make(name, **given)
    assert str(caught.value).rstrip().endswith(".")

def test_layers_of_the_projector():
    assert [type(m) for m in projector(4, 8, 2)] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]

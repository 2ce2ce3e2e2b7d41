"""FaceMAE: grouping, masks, patches, the autoencoder, against slow plain versions."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench.core import BenchError
from fer_bench.models.backbones import create_backbone, create_classifier, create_cnn, map_size
from fer_bench.models.facemae import (
    SIZES,
    create_facemae,
    keep_highest,
    n_kept,
    patch_targets,
    patchify,
    random_mask,
    reconstruct,
    reconstruction_loss,
    unpatchify,
)
from fer_bench.models.grouping import (
    Grouping,
    block_loss,
    channel_cosines,
    channel_grouping_loss,
    check_groups,
    group_scores,
    semantic_mask,
)

many = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 9999)


def relu_maps(seed, *shape) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(0, 1, shape), 0)

# ---- grouping

def slow_cosines(a) -> np.ndarray:
    batch, channels, height, width = a.shape
    co = np.zeros((channels, channels))
    for b in range(batch):
        rows = []
        for c in range(channels):
            row = [a[b, c, y, x] + 0.001 for y in range(height) for x in range(width)]
            norm = math.sqrt(sum(v * v for v in row))
            rows.append([v / norm for v in row])
        for i in range(channels):
            for j in range(channels): co[i, j] += sum(p * q for p, q in zip(rows[i], rows[j], strict=True)) / batch
    return co

def slow_grouping_loss(a, n_groups) -> float:
    co, channels = slow_cosines(a), a.shape[1]
    size, total = channels // n_groups, 0.0
    for i in range(channels):
        for j in range(channels): total += (co[i, j] - (1.0 if i // size == j // size else 0.0)) ** 2
    return 0.001 * total / (channels / 512) ** 2

@many
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), seeds)
def test_cosines_and_g_against_plain_loops(batch, n_groups, per_group, height, width, seed):
    a = relu_maps(seed, batch, n_groups * per_group, height, width)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        activation = torch.from_numpy(a).to(dtype)
        got = channel_cosines(activation).double().numpy()
        torch.testing.assert_close(got, slow_cosines(a), rtol=0, atol=tolerance)
        g = channel_grouping_loss(activation, n_groups).item()
        assert g == pytest.approx(slow_grouping_loss(a, n_groups), rel=1e-5, abs=1e-9)

def saddle(channels, groups) -> float: return 0.001 * (channels**2 - channels**2 / groups) / (channels / 512) ** 2

def test_identical_channels_at_the_papers_size_cost_253_952_without_gradient():
    one = torch.from_numpy(relu_maps(0, 1, 1, 4, 4))
    activation = one.expand(1, 2048, 4, 4).clone().requires_grad_()
    g = channel_grouping_loss(activation, 32)
    g.backward()
    assert g.item() == pytest.approx(253.952, abs=1e-6) and activation.grad.abs().max() < 1e-6

def grouping_gradient(init) -> tuple[float, torch.Tensor]:
    torch.manual_seed(1)
    grouping = Grouping(64, init).double()
    g = channel_grouping_loss(grouping(torch.from_numpy(relu_maps(2, 16, 64, 4, 4))), 8)
    (g**2).backward()
    return g.item(), grouping.conv.weight.grad

def test_the_official_start_is_the_saddle_and_kaiming_is_not():
    g, gradient = grouping_gradient("official")
    assert g == pytest.approx(saddle(64, 8), rel=1e-9) and gradient.abs().max() < 1e-6
    g, gradient = grouping_gradient("kaiming")
    assert g < saddle(64, 8) / 2 and gradient.abs().max() > 1e-2

def test_kaiming_falls_to_a_quarter():
    torch.manual_seed(0)
    grouping, maps = Grouping(32), torch.from_numpy(relu_maps(3, 32, 32, 4, 4)).float()
    optimiser, curve = torch.optim.SGD(grouping.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(60):
        g = channel_grouping_loss(grouping(maps), 4)
        optimiser.zero_grad(); (0.03 * g**2).backward(); optimiser.step()
        curve.append(g.item())
    assert curve[-1] < curve[0] / 4

def test_perfect_groups_cost_nothing_but_the_thousandth():
    activation = torch.eye(4).repeat_interleave(3, 0).view(1, 12, 2, 2).double() * 1e6  # four groups, at a cell each
    assert channel_grouping_loss(activation, 4).item() == pytest.approx(0, abs=1e-9)

def test_cosines_of_faces_can_be_averaged_in_parts():
    activation = torch.from_numpy(relu_maps(4, 6, 8, 4, 4))
    halves = (channel_cosines(activation[:3]) + channel_cosines(activation[3:])) / 2
    assert block_loss(halves, 4).item() == pytest.approx(channel_grouping_loss(activation, 4).item(), rel=1e-12)

def test_cosines_keep_float32_under_autocast():
    activation = torch.from_numpy(relu_maps(5, 4, 16, 4, 4)).float()
    with torch.autocast("cpu", torch.bfloat16): got = channel_cosines(activation)
    assert torch.equal(got, channel_cosines(activation))
    assert channel_cosines(activation.bfloat16()).dtype == torch.float32

def test_grouping_module():
    maps = torch.randn(4, 6, 5, 5)
    grouping = Grouping(6, "official")
    a = grouping(maps)
    assert a.shape == maps.shape and a.min() >= 0 and torch.equal(grouping.conv.weight, torch.ones(6, 6, 1, 1))
    x = torch.einsum("oc,bchw->bohw", (w := Grouping(6)).conv.weight[:, :, 0, 0], maps)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(w(maps), ((x - mean) / (var + 1e-5).sqrt()).clamp(min=0), rtol=1e-4, atol=1e-5)
    assert grouping.conv.bias is None

# ---- masks

def slow_scores(a, n_groups, group, image_size, patch) -> np.ndarray:
    batch, channels, height, width = a.shape
    size, side = channels // n_groups, image_size // patch
    scores = np.zeros((batch, side * side))
    for b in range(batch):
        total = sum(a[b, c] for c in range(group[b] * size, (group[b] + 1) * size))

        def near(position, cells, pixels):  # two neighbours and the share of the second, corners not aligned
            at = max((position + 0.5) * cells / pixels - 0.5, 0.0)
            low = min(int(at), cells - 1)
            return low, min(low + 1, cells - 1), at - low
        for y in range(image_size):
            for x in range(image_size):
                y0, y1, fy = near(y, height, image_size)
                x0, x1, fx = near(x, width, image_size)
                top = total[y0, x0] * (1 - fx) + total[y0, x1] * fx
                bottom = total[y1, x0] * (1 - fx) + total[y1, x1] * fx
                scores[b, y // patch * side + x // patch] += (top * (1 - fy) + bottom * fy) / patch**2
    return scores

@many
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(4, 6),
       st.sampled_from([(2, 2), (3, 2), (4, 3), (3, 5)]), st.floats(0.1, 0.9), seeds)
def test_semantic_mask_against_plain_loops(batch, n_groups, per_group, cells, grid, mask_ratio, seed):
    side, patch = grid
    if not 0 < int(side**2 * (1 - mask_ratio)) < side**2: mask_ratio = 0.5
    a = relu_maps(seed, batch, n_groups * per_group, cells, cells + seed % 2)
    group = np.random.default_rng(seed).integers(0, n_groups, batch)
    scores = slow_scores(a, n_groups, group, side * patch, patch)
    asked = (n_groups, torch.from_numpy(group), side * patch, patch)
    got = group_scores(torch.from_numpy(a).float(), *asked)
    torch.testing.assert_close(got.double().numpy(), scores, rtol=1e-5, atol=1e-5)
    ids_keep, mask = semantic_mask(torch.from_numpy(a), *asked, mask_ratio)
    kept = int(side**2 * (1 - mask_ratio))
    assert ids_keep.shape == (batch, kept) and mask.shape == (batch, side**2)
    for b in range(batch):
        ids = ids_keep[b].tolist()
        assert len(set(ids)) == kept
        assert scores[b, ids].min() >= np.delete(scores[b], ids).max() - 1e-9  # the highest-scoring ones
        assert [i for i in range(side**2) if mask[b, i] == 0] == sorted(ids) and set(mask[b].tolist()) == {0.0, 1.0}

def test_the_papers_mask_keeps_12_of_49():
    activation = torch.rand(2, 64, 4, 4)
    ids_keep, mask = semantic_mask(activation, 32, torch.tensor([0, 31]), 112, 16, 0.75)
    assert ids_keep.shape == (2, 12) and mask.sum(1).tolist() == [37, 37]

def test_no_gradient_passes_the_mask():
    activation = torch.rand(2, 8, 4, 4, requires_grad=True)
    assert not any(t.requires_grad for t in semantic_mask(activation, 4, torch.tensor([0, 3]), 16, 4, 0.75))
    ids_keep, mask = semantic_mask(activation, 4, torch.tensor([0, 3]), 16, 4, 0.75)
    images = torch.rand(2, 3, 16, 16)
    create_facemae("tiny", 16, 4)(images, ids_keep, mask)[0].backward()
    assert activation.grad is None

def test_equal_scores_keep_their_order():
    assert keep_highest(torch.zeros(1, 8), 0.5)[0].tolist() == [[0, 1, 2, 3]]

def test_random_masks_are_reproducible_differ_between_faces_and_favour_no_patch():
    ids_keep, mask = random_mask(4000, 9, 0.67, torch.Generator().manual_seed(3))
    again, _ = random_mask(4000, 9, 0.67, torch.Generator().manual_seed(3))
    assert torch.equal(ids_keep, again) and ids_keep.shape == (4000, 2)
    assert torch.equal(mask, torch.ones(4000, 9).scatter(1, ids_keep, 0.0))
    assert len({tuple(row) for row in ids_keep.tolist()}) == 72
    assert (1 - mask).mean(0).sub(2 / 9).abs().max() < 0.035  # five standard deviations

# ---- patches

@many
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
def test_patchify_counts_row_by_row_and_comes_back(batch, channels, rows, columns, patch, seed):
    images = torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, channels, rows * patch, columns * patch)))
    patches = patchify(images, patch)
    assert patches.shape == (batch, rows * columns, channels * patch**2)
    for i in range(rows):
        for j in range(columns):
            cut = images[:, :, i * patch:(i + 1) * patch, j * patch:(j + 1) * patch]
            assert torch.equal(patches[:, i * columns + j], cut.reshape(batch, -1))
    assert torch.equal(unpatchify(patches, patch, rows), images)
    if rows == columns: assert torch.equal(unpatchify(patches, patch), images)

def test_patches_count_as_the_encoder_counts_them():
    net, images = create_facemae("tiny", 16, 4), torch.rand(2, 3, 16, 16)
    projection = net.encoder.embed.proj
    wanted = patchify(images, 4) @ projection.weight.flatten(1).T + projection.bias  # the weight as (D, P)
    torch.testing.assert_close(net.encoder.embed(images), wanted)

@many
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.floats(0.01, 10), seeds)
def test_targets_against_plain_loops(batch, side, patch, contrast, seed):
    images = np.random.default_rng(seed).normal(3, contrast, (batch, 3, side * patch, side * patch))
    got = patch_targets(torch.from_numpy(images).float(), patch)
    for b in range(batch):
        for n, row in enumerate(patchify(torch.from_numpy(images), patch)[b].tolist()):
            mean = sum(row) / len(row)
            var = sum((v - mean) ** 2 for v in row) / (len(row) - 1)
            wanted = torch.tensor([(v - mean) / math.sqrt(var + 1e-6) for v in row])
            torch.testing.assert_close(got[b, n], wanted, rtol=0, atol=1e-5 * max(1, 3 / contrast))

def test_a_flat_patch_has_finite_targets():
    assert patch_targets(torch.full((1, 3, 8, 8), 0.7), 4).abs().max() < 1e-2

# ---- the autoencoder

@many
@given(st.integers(1, 3), st.integers(2, 6), st.integers(1, 5), seeds)
def test_the_loss_against_plain_loops(batch, n_patches, pixels, seed):
    rng = np.random.default_rng(seed)
    predicted, targets = rng.normal(size=(2, batch, n_patches, pixels))
    mask = rng.permuted(np.tile([0.0] + [1.0] * (n_patches - 1), (batch, 1)), axis=1)
    errors = [sum((predicted[b, n, i] - targets[b, n, i]) ** 2 for i in range(pixels)) / pixels
              for b in range(batch) for n in range(n_patches) if mask[b, n]]
    got = reconstruction_loss(*map(torch.from_numpy, (predicted, targets, mask)))
    assert got.item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)

def test_the_loss_knows_removed_patches_only():
    targets, (_, mask) = torch.randn(2, 9, 5), random_mask(2, 9, 0.5)
    removed = mask[..., None].bool()
    noise = torch.randn_like(targets)
    assert reconstruction_loss(targets + noise * ~removed, targets, mask) == 0  # wrong where kept: costs nothing
    assert reconstruction_loss(targets + noise * removed, targets, mask) > 0.5

def test_forward_scores_its_predictions_and_kept_pixels_move_no_target():
    torch.manual_seed(0)
    net, images = create_facemae("tiny", 32, 8), torch.rand(3, 3, 32, 32)
    ids_keep, mask = random_mask(3, 16, 0.75)
    loss, _, predicted = net(images, ids_keep, mask)
    assert loss.item() == pytest.approx(reconstruction_loss(predicted, patch_targets(images, 8), mask).item(), rel=1e-6)
    kept = 1 - mask[..., None]
    other = unpatchify(patchify(images, 8) + kept * torch.rand(3, 16, 192), 8)
    targets, others = patch_targets(images, 8), patch_targets(other, 8)
    assert torch.equal(targets * (1 - kept), others * (1 - kept)) and not torch.equal(targets, others)

def test_the_encoder_sees_no_removed_pixel():
    torch.manual_seed(0)
    net, images = create_facemae("tiny", 32, 8), torch.rand(2, 3, 32, 32)
    ids_keep, mask = random_mask(2, 16, 0.75)
    other = unpatchify(torch.where(mask[..., None].bool(), torch.rand(2, 16, 192), patchify(images, 8)), 8)
    _, tokens, predicted = net(images, ids_keep, mask)
    _, tokens_other, predicted_other = net(other, ids_keep, mask)
    assert torch.equal(tokens, tokens_other) and torch.equal(predicted, predicted_other)

def test_the_order_of_the_kept_patches_changes_nothing():
    torch.manual_seed(0)
    net, images = create_facemae("tiny", 32, 8), torch.rand(2, 3, 32, 32)
    ids_keep, mask = random_mask(2, 16, 0.5)
    loss, tokens, predicted = net(images, ids_keep, mask)
    loss_back, tokens_back, predicted_back = net(images, ids_keep.flip(1), mask)
    torch.testing.assert_close(tokens.flip(1), tokens_back, rtol=0, atol=1e-5)
    torch.testing.assert_close(predicted, predicted_back, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, loss_back)

def test_encode_without_a_mask_takes_all_patches():
    torch.manual_seed(0)
    net, images = create_facemae("tiny", 32, 8), torch.rand(2, 3, 32, 32)
    tokens = net.encoder.tokens(images)
    assert torch.equal(tokens, net.encoder.tokens(images, torch.arange(16).expand(2, -1)))
    assert tokens.shape == (2, 16, net.encoder.num_features)

@pytest.mark.parametrize(("size", "patch_size"), [(48, 8), (112, 16)])
def test_the_encoder_is_a_backbone(size, patch_size):
    torch.manual_seed(0)
    net, _ = create_classifier("facemae_tiny", 8, size)
    images = torch.rand(2, 3, size, size)
    assert net.backbone.patch_size == patch_size and net(images).shape == (2, 8)
    torch.testing.assert_close(net.encode(images), net.backbone.tokens(images * 2 - 1).mean(1))  # from -1 to 1
    twin = create_backbone("facemae_tiny", size)
    twin.load_state_dict(net.backbone.state_dict())
    assert torch.equal(twin(images), net.backbone(images))

def test_decode_puts_tokens_in_their_places():
    torch.manual_seed(0)
    net = create_facemae("tiny", 16, 4)
    decoder = net.decoder
    decoder.blocks, decoder.to_pixels = torch.nn.Identity(), torch.nn.Identity()
    tokens, ids_keep = torch.randn(1, 3, 128), torch.tensor([[7, 0, 12]])
    got = decoder(tokens, ids_keep) - decoder.positions
    wanted = decoder.mask_token.expand(1, 16, -1).clone()
    for k, n in enumerate(ids_keep[0].tolist()): wanted[0, n] = decoder.embed(tokens)[0, k]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)

@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize(("image_size", "patch_size"), [(48, 8), (112, 16)])
def test_shapes_and_gradients_over_the_sizes(size, image_size, patch_size):
    net, n = create_facemae(size, image_size, patch_size), (image_size // patch_size) ** 2
    ids_keep, mask = random_mask(2, n, 0.75)
    loss, tokens, predicted = net(torch.rand(2, 3, image_size, image_size), ids_keep, mask)
    loss.backward()
    assert loss.shape == () and loss.isfinite() and net.encoder.n_patches == n
    assert tokens.shape == (2, n // 4, SIZES[size][0]["width"]) and predicted.shape == (2, n, 3 * patch_size**2)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())

def test_base_has_the_parameters_of_the_paper():
    with torch.device("meta"): net = create_facemae("base", 112, 16)
    vit = 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 768 * 769  # blocks, last norm, patch embedding
    decoder = 769 * 512 + 8 * (12 * 512**2 + 13 * 512) + 2 * 512 + 512 + 513 * 768  # embedding, blocks, ...
    assert sum(p.numel() for p in net.parameters()) == vit + decoder and 111e6 < vit + decoder < 112e6

def test_bf16_autocast():
    torch.manual_seed(0)
    net, images = create_facemae("tiny", 32, 8), torch.rand(4, 3, 32, 32)
    ids_keep, mask = random_mask(4, 16, 0.75)
    loss, _, _ = net(images, ids_keep, mask)
    with torch.autocast("cpu", torch.bfloat16): low, _, predicted = net(images, ids_keep, mask)
    low.backward()
    assert low.dtype == predicted.dtype == torch.float32 and low.item() == pytest.approx(loss.item(), rel=0.05)
    assert all(p.grad.isfinite().all() for p in net.parameters())

def test_positions_are_fixed_sines_and_cosines():
    net = create_facemae("tiny", 32, 8)
    for positions, dim in ((net.encoder.positions, 128), (net.decoder.positions, 64)):
        wanted = []
        for y in range(4):
            for x in range(4):
                angles = [p / 10000 ** (k / (dim // 4)) for p in (y, x) for k in range(dim // 4)]
                wanted.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        torch.testing.assert_close(positions, torch.tensor(wanted), rtol=0, atol=1e-5)
        assert not positions.requires_grad and len(positions.unique(dim=0)) == 16
    assert not any("positions" in name for name, _ in net.named_parameters())

def test_training_learns_a_pattern_that_all_patches_share():
    torch.manual_seed(0)
    net, levels = create_facemae("tiny", 32, 8), torch.rand(4, 1, 4, 4).expand(-1, 3, -1, -1)
    images = levels.repeat_interleave(8, 2).repeat_interleave(8, 3) * torch.linspace(0.5, 1, 8).repeat(4)  # a ramp
    optimiser, (ids_keep, mask), losses = torch.optim.AdamW(net.parameters(), lr=1e-3), random_mask(4, 16, 0.75), []
    for _ in range(30):
        loss, _, _ = net(images, ids_keep, mask)
        optimiser.zero_grad(); loss.backward(); optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3

def test_reconstruct_paints_removed_patches_alone():
    images, (_, mask) = torch.rand(2, 3, 16, 16), random_mask(2, 16, 0.75)
    perfect = reconstruct(images, patch_targets(images, 4), mask, 4)
    torch.testing.assert_close(perfect, images, rtol=0, atol=1e-6)
    flat = patchify(reconstruct(images, torch.zeros(2, 16, 48), mask, 4), 4)
    removed = mask.bool()
    assert torch.equal(flat[~removed], patchify(images, 4)[~removed])
    torch.testing.assert_close(flat[removed], patchify(images, 4)[removed].mean(1, keepdim=True).expand(-1, 48))

# ---- maps of small faces

@pytest.mark.parametrize(("name", "size", "cells"), [("resnet18", 112, 4), ("resnet18", 64, 4), ("resnet18", 48, 6),
                                                     ("test_convnext", 48, 6), ("test_resnet", 32, 4)])
def test_the_coarsest_map_of_at_least_4_by_4(name, size, cells):
    backbone = create_cnn(name, size)
    assert backbone.training and map_size(backbone, name, size) == (cells, cells) and backbone.training
    assert backbone(torch.zeros(2, 3, size, size)).shape == (2, backbone.num_features)
    backbone.load_state_dict(create_backbone(name, size).state_dict())  # the stride changes no weight's shape
    assert backbone.pretrained_cfg["mean"]

def test_a_classifier_with_a_map_of_a_size():
    def shape(**given):
        net, _ = create_classifier("test_resnet", 8, 64, **given)
        return net.backbone.forward_features(torch.rand(1, 3, 64, 64)).shape
    assert shape()[2:] == (2, 2) and shape(min_map=4)[2:] == (4, 4)

def test_a_finer_map_on_request():
    assert map_size(create_cnn("test_resnet", 64, min_map=8), "test_resnet", 64) == (8, 8)

# ---- errors

@pytest.mark.parametrize(("words", "call"), [
    ("50 px cannot be cut into patches of 8", lambda: create_facemae("tiny", 50, 8)),
    ("48 px cannot be cut into patches of 0", lambda: create_facemae("tiny", 48, 0)),
    ("10 px cannot be cut into patches of 4", lambda: patchify(torch.rand(1, 3, 8, 10), 4)),
    ("10 px cannot be cut", lambda: semantic_mask(torch.rand(1, 4, 4, 4), 2, torch.tensor([0]), 10, 4, 0.5)),
    ("no FaceMAE size 'bas'.*'base'", lambda: create_facemae("bas")),
    ("12 channels cannot be divided into 5 groups.*4", lambda: channel_grouping_loss(torch.rand(1, 12, 4, 4), 5)),
    ("12 channels cannot be divided into 0 groups", lambda: check_groups(12, 0)),
    ("4 channels cannot be divided into 8 groups",
     lambda: semantic_mask(torch.rand(1, 4, 4, 4), 8, torch.tensor([0]), 16, 4, 0.5)),
    ("mask_ratio=0.99 keeps none of the 36", lambda: n_kept(36, 0.99)),
    ("mask_ratio=1.0 keeps none", lambda: random_mask(1, 36, 1.0)),
    ("mask_ratio=0 keeps all", lambda: keep_highest(torch.rand(1, 36), 0)),
    ("mask_ratio=-0.5 keeps all", lambda: n_kept(36, -0.5)),
    ("mask_ratio=nan", lambda: n_kept(36, math.nan)),
    ("map of 3 × 4 cells is too coarse",
     lambda: semantic_mask(torch.rand(1, 4, 3, 4), 2, torch.tensor([0]), 16, 4, 0.5)),
    ("no start of the grouping convolution 'kaimin'.*'kaiming'", lambda: Grouping(8, "kaimin")),
    ("'test_vit' makes no map of channels", lambda: create_cnn("test_vit", 32)),
    ("'swin_tiny_patch4_window7_224' makes no map of channels", lambda: create_cnn("swin_tiny_patch4_window7_224", 64)),
    ("no backbone 'resnet81'.*'resnet18'", lambda: create_cnn("resnet81", 48)),
    ("'mobilenetv3_small_050' makes a map of 2 × 2 cells from a face of 48 px",
     lambda: create_cnn("mobilenetv3_small_050", 48)),
    ("no backbone 'facemae_bas'.*'facemae_base'", lambda: create_backbone("facemae_bas", 48)),
    ("50 px cannot be cut into patches of 8", lambda: create_backbone("facemae_tiny", 50)),
    ("'facemae_tiny' makes no map of channels", lambda: create_cnn("facemae_tiny", 48)),
    ("no pretrained weights for 'facemae_tiny'", lambda: create_backbone("facemae_tiny", 48, pretrained=True)),
    ("'test_vit' makes no map of channels", lambda: create_classifier("test_vit", 8, 32, min_map=4)),
    ("'vgg11' makes a map of 1 × 1 cells", lambda: create_cnn("vgg11", 48)),
    ("3 × 3 cells from a face of 24 px, even at output stride 8", lambda: create_cnn("test_resnet", 24)),
])
def test_errors_name_the_thing_and_the_remedy(words, call):
    with pytest.raises(BenchError, match=words) as caught: call()
    assert str(caught.value).rstrip().endswith((".", "?"))

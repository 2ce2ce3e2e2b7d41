"""The strong view: operations against PIL, the combined map against single steps, cutout, independence of faces.

What holds for every view (shape, range, same seed same view) is in test_data."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from fer_bench.data.drawn.faces import draw_faces
from fer_bench.data.transforms import OPS, PHOTOMETRIC, apply_photometric, cutout, geometric_maps
from fer_bench.data.views import VIEWS, WEAK, affine, apply_view, crop_sides, make_view, resample, seeded, warp

STRONG = make_view("strong")

@pytest.fixture(scope="module")
def faces():
    """Eight drawn faces (8, 3, 48, 48) uint8. Half of them lack black and white, so that autocontrast has something to
    do, and one has hardly any blue, so that its luma is not the mean of its channels."""
    images = draw_faces(range(8))["images"]
    images[::2] = images[::2] // 2 + 40
    images[1, ..., 2] //= 4
    return torch.from_numpy(images).permute(0, 3, 1, 2)

def floats(images): return images.float() / 255

def grey_of(images): return images.float().mean(1, keepdim=True).to(torch.uint8)

def row_of(params, i): return {k: v[i:i + 1] for k, v in params.items()}

# light

PIL = {
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(m),
    "color": lambda image, m: ImageEnhance.Color(image).enhance(m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(m),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "posterize": lambda image, m: ImageOps.posterize(image, min(8, int(m))),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(m),
    "solarize": lambda image, m: ImageOps.solarize(image, round(255 * m)),
}
# In levels of 255. PIL rounds its result down to a level, which loses up to 1. If it blends with a picture, that was
# rounded too, by up to 0.5. The mean for contrast comes from a rounded grey picture, the same level for these faces.
# The last three work on whole levels and are exact.
LEVELS = {"autocontrast": 1, "brightness": 1, "contrast": 1, "color": 1.5, "sharpness": 1.5,
          "equalize": 0, "posterize": 0, "solarize": 0}

@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_light_is_as_in_pil(faces, name, channels):
    faces = faces if channels == 3 else grey_of(faces)
    low, high = PHOTOMETRIC[name][1:]
    magnitude = torch.linspace(low, high, len(faces))
    if name == "solarize": magnitude = (255 * magnitude).round() / 255  # PIL's threshold is a level
    op = torch.full((len(faces), 1), OPS.index(name))
    found = apply_photometric(floats(faces), op, magnitude[:, None]).mul(255).permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(face.permute(1, 2, 0).squeeze(-1).numpy()) for face in faces]
    wanted = np.stack([np.asarray(PIL[name](p, m), float) for p, m in zip(pictures, magnitude.tolist(), strict=True)])
    assert np.abs(found - wanted.reshape(found.shape)).max() <= LEVELS[name] + 1e-3
    if (name, channels) != ("color", 1):
        assert np.abs(found / 255 - floats(faces).permute(0, 2, 3, 1).numpy()).max() > 0.05

def test_grey_has_no_colour_to_lose(faces):
    grey, op = floats(grey_of(faces)), torch.full((8, 1), OPS.index("color"))
    assert torch.equal(apply_photometric(grey.clone(), op, torch.full((8, 1), 0.3)), grey)

@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_flat_pictures(name):
    "Without any contrast there is no division by zero."
    flat = torch.tensor([0, 0.5, 1]).view(3, 1, 1, 1).expand(3, 3, 48, 48).clone()
    out = apply_photometric(flat, torch.full((3, 1), OPS.index(name)), torch.full((3, 1), float(PHOTOMETRIC[name][1])))
    assert out.isfinite().all() and out.std(dim=(1, 2, 3)).max() < 1e-6

def test_the_order_of_operations_is_the_order_drawn(faces):
    pair = [OPS.index("solarize"), OPS.index("posterize")]
    magnitude = torch.tensor([[0.4, 4.0]]).expand(8, 2)
    both = apply_photometric(floats(faces), torch.tensor([pair]).expand(8, 2), magnitude)
    steps = PHOTOMETRIC["posterize"][0](PHOTOMETRIC["solarize"][0](floats(faces), 0.4), torch.tensor(4.0))
    turned = apply_photometric(floats(faces), torch.tensor([pair[::-1]]).expand(8, 2), magnitude.flip(1))
    assert torch.equal(both, steps) and not torch.equal(both, turned)

# motion

def step_back(name, m, points):
    "Where points (N, 2) of the result of operation `name` came from, by hand; coordinates from -1 to 1."
    (x, y), a = points.T, np.radians(m)
    moved = {"rotate": (np.cos(a) * x - np.sin(a) * y, np.sin(a) * x + np.cos(a) * y), "shear_x": (x + m * y, y),
             "shear_y": (x, y + m * x), "translate_x": (x + 2 * m, y), "translate_y": (x, y + 2 * m)}
    return np.stack(moved.get(name, (x, y)), 1)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_one_map_is_all_steps(seed):
    """Points of the view are mapped back through the second operation, then the first. The rest of `theta` must be a
    crop of `weak`: sides at right angles, rotated by up to 10°, with its area and ratio, inside the picture."""
    params = STRONG.sample(seeded(seed), 16)
    points = np.random.default_rng(seed).uniform(-1, 1, (16, 2))
    for theta, op, m in zip(params["theta"].double().numpy(), params["op"], params["magnitude"].tolist(), strict=True):
        at = step_back(OPS[op[0]], m[0], step_back(OPS[op[1]], m[1], points))
        crop = np.linalg.lstsq(np.c_[at, np.ones(16)], np.c_[points, np.ones(16)] @ theta.T, rcond=None)[0]  # (3, 2)
        width, height = np.linalg.norm(crop[:2], axis=1)
        assert abs(crop[0] @ crop[1]) < 1e-5 and abs(np.degrees(np.arctan2(crop[1, 0], crop[1, 1]))) < 10.001
        assert 0.7999 < width * height < 1.0001 and 0.899 < width / height < 1.101
        assert abs(crop[2, 0]) <= 1.0001 - width and abs(crop[2, 1]) <= 1.0001 - height

def waves(n):
    "Smooth pictures (n, 1, 96, 96), so that resampling them thrice loses little."
    at = (torch.arange(96) + 0.5) / 96
    pictures = [0.5 + 0.25 * torch.sin(4 * at + i)[:, None] + 0.25 * torch.cos(5 * at - i) for i in range(n)]
    return torch.stack(pictures)[:, None]

def test_one_resampling_shows_what_three_show():
    "The product of the maps equals crop, first and second operation in turn, where no step sampled beyond the border."
    n, crop, params = 200, affine(seeded(3), 200, **WEAK), STRONG.sample(seeded(3), 200)
    first, second = (geometric_maps(params["op"][:, k], params["magnitude"][:, k]) for k in (0, 1))
    slowly = waves(n)
    for theta in (crop, first[:, :2], second[:, :2]): slowly = warp(slowly, theta, 96)
    at = (torch.arange(96) * 2 + 1) / 96 - 1
    grid = torch.stack([at.expand(96, 96), at[:, None].expand(96, 96), torch.ones(96, 96)]).view(3, -1)
    looked = [(m @ grid)[:, :2].abs().amax(1) for m in (second, first @ second, crop @ first @ second)]
    inside = (torch.stack(looked) < 0.97).all(0).view(n, 1, 96, 96)
    assert inside.float().mean() > 0.5
    assert (warp(waves(n), crop @ first @ second, 96) - slowly).abs()[inside].max() < 0.01

def test_shrinking_is_antialiased():
    "Stripes of one pixel become grey, and no cutout of zero width or operation that does nothing changes it."
    stripes = (torch.arange(96) % 2 * 255).to(torch.uint8).expand(20, 1, 96, 96)
    params = {**STRONG.sample(seeded(0), 20), "op": torch.zeros(20, 2, dtype=torch.long), "square": torch.zeros(20, 3)}
    assert OPS[0] == "identity" and STRONG(stripes, 24, **params).std(dim=-1).max() < 0.1

# draws

MOVE, BLEND, NONE = (-0.3, 0.3), (0.05, 0.95), (0, 0)
RANGES = {"identity": NONE, "autocontrast": NONE, "equalize": NONE, "brightness": BLEND, "color": BLEND,
          "contrast": BLEND, "sharpness": BLEND, "posterize": (4, 9), "solarize": (0, 1), "rotate": (-30, 30),
          "shear_x": MOVE, "shear_y": MOVE,
          "translate_x": MOVE, "translate_y": MOVE}

def test_draws():
    "Fourteen operations equally often, twice, and magnitudes spread evenly over FixMatch's ranges."
    n = 42_000
    assert set(OPS) == set(RANGES) and len(OPS) == 14
    params = STRONG.sample(seeded(0), n)
    op, magnitude = params["op"], params["magnitude"]
    counts = torch.stack([torch.bincount(op[:, k], minlength=14) for k in (0, 1)])
    sigma = (n * 1 / 14 * 13 / 14) ** 0.5
    assert (counts - n / 14).abs().max() < 5 * sigma  # a seventh of the faces over both rounds
    assert abs((op[:, 0] == op[:, 1]).sum() - n / 14) < 5 * sigma  # the second draw knows nothing of the first
    for i, name in enumerate(OPS):
        (low, high), values = RANGES[name], magnitude[op == i].double()
        assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
        tenths = torch.histc((values - low) / (high - low or 1), 10, 0, 1) / len(values)
        if high > low: assert (tenths - 0.1).abs().max() < 5 * (0.09 / len(values)) ** 0.5, name
    assert (magnitude[:, 0] != magnitude[:, 1]).float().mean() > 0.9
    assert torch.equal(magnitude[op == OPS.index("posterize")].floor().unique(), torch.arange(4.0, 9))

def test_draws_leave_torchs_own_generator_alone(faces):
    torch.manual_seed(0)
    first, state = apply_view(STRONG, faces, 48, 5), torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(0).get_state())
    torch.manual_seed(1)
    assert torch.equal(first, apply_view(STRONG, faces, 48, 5))

# crops and sizes

@pytest.mark.parametrize("scale, ratio, mean", [
    ((0.2, 1), (3 / 4, 4 / 3), 0.539), ((0.08, 1), (3 / 4, 4 / 3), 0.477), ((0.8, 1), (0.9, 1.1), 0.8785)])
def test_crops_are_those_of_torchvision(scale, ratio, mean):
    """Drawn again where they do not fit, and not cut off (.593 for a least area of .2): the mean area is that of
    `RandomResizedCrop` on a large square, and so are the deciles of width and height."""
    torch.manual_seed(0)
    square = torch.empty(1, 2000, 2000)
    theirs = torch.tensor([RandomResizedCrop.get_params(square, list(scale), list(ratio))[2:] for _ in range(6000)])
    theirs = theirs.T / 2000  # (2, n), height and width
    width, height = crop_sides(seeded(0), 60_000, scale, ratio)
    assert max(width.max(), height.max()) <= 1 and (width * height).min() >= scale[0] - 1e-6
    assert ((width / height).log().abs() <= math.log(max(ratio[1], 1 / ratio[0])) + 1e-5).all()
    assert (width * height).mean().item() == pytest.approx(mean, abs=0.003)
    assert theirs.prod(0).mean().item() == pytest.approx(mean, abs=0.012)
    deciles = torch.linspace(0.1, 0.9, 9)
    for ours, other in zip((height, width), theirs, strict=True):
        torch.testing.assert_close(ours.quantile(deciles), other.quantile(deciles), atol=0.02, rtol=0)

def test_a_crop_that_never_fits_is_the_whole_picture():
    width, height = crop_sides(seeded(0), 50, (1, 1), (0.5, 0.9))
    assert (width == 1).all() and (height == 1).all()

NEUTRAL = {"weak": {"gain": torch.ones(4), "lift": torch.zeros(4)}, "erased": {"box": torch.zeros(4, 4)},
           "strong": {"op": torch.full((4, 2), OPS.index("identity")), "magnitude": torch.zeros(4, 2),
                      "square": torch.zeros(4, 3)},
           "ssl": {"jitter": torch.tensor([1.0, 1, 1, 0]).repeat(4, 1), "grey": torch.zeros(4, dtype=torch.bool),
                   "sigma": torch.full((4,), 1e-3)}}
NEUTRAL["erased"] |= NEUTRAL["weak"]
NEUTRAL["geometric"] = NEUTRAL["weak"]

@pytest.mark.parametrize("side", [48, 50, 64, 72, 95, 96])
@pytest.mark.parametrize("name", NEUTRAL)
def test_a_view_that_moves_nothing_is_the_test_view(name, side):
    "The whole face, unchanged: the pixels of `plain`, however much larger the face is, up to twice."
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=seeded(side))
    theta = torch.eye(3)[:2].repeat(4, 1, 1)
    params = NEUTRAL[name] | {"theta": theta[:, None].repeat(1, 2, 1, 1) if name == "ssl" else theta}
    plain = make_view("plain")(images, 48)
    torch.testing.assert_close(make_view(name)(images, 48, **params), plain, atol=2e-5, rtol=0)

@pytest.mark.parametrize("side", [60, 72, 96, 140])
def test_no_crop_shows_waves_that_it_cannot_hold(side):
    """Waves of 2.2 pixels in a face that is made smaller. A crop shows no more of them than torchvision's antialiased
    crop of the same size does, and far less than without antialiasing."""
    wave = (0.5 + 0.5 * torch.cos(torch.arange(side) * 2 * math.pi / 2.2)).mul(255).round().to(torch.uint8)
    faces = wave.expand(32, 1, side, side)
    theta = affine(seeded(1), 32, (0.9, 1.0), (1, 1), 0.0)
    left = resample(floats(faces), theta, 48).std(dim=(1, 2, 3))
    crop = round(0.975 * side)
    published = resized_crop(floats(faces[:1]), 0, 0, crop, crop, [48, 48], antialias=True).std()
    aliased = warp(floats(faces), theta, 48).std(dim=(1, 2, 3))
    assert left.max() < 1.25 * published + 0.02 and left.mean() < 0.5 * aliased.mean()

# the geometric view

@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_one_number_scales_the_geometric_view(strength):
    """Rotation to 30°, shift to a fifth of the side, shear to .2, zoom ± 20 %, read from the maps: theta = rotation ·
    shear · zoom. The same draws at another strength are that multiple of them."""
    params = make_view("geometric", strength).sample(seeded(3), 20_000)
    theta = params["theta"].double()
    mirrored = theta[:, :, :2].det() < 0
    first = torch.where(mirrored, -1.0, 1.0)[:, None] * theta[:, :, 0]  # (n, 2): rotation's first column · zoom
    angle, width = torch.atan2(first[:, 1], first[:, 0]), first.norm(dim=1)
    across = torch.stack([-angle.sin(), angle.cos()], 1)
    height = (theta[:, :, 1] * across).sum(1)
    shear = (theta[:, :, 1] * torch.stack([angle.cos(), angle.sin()], 1)).sum(1) / height
    found = {"rotation": angle * 180 / math.pi / 30, "shift": theta[:, :, 2].flatten() / 0.4, "shear": shear / 0.2,
             "width": (width - 1) / 0.2, "height": (height - 1) / 0.2, "gain": (params["gain"] - 1) / 0.3,
             "lift": params["lift"] / 0.2}
    for name, values in found.items():
        spread = values / strength
        assert spread.abs().max() <= 1 + 1e-4 and spread.abs().max() > 0.99, name
        assert abs(spread.mean()) < 0.02 and abs(spread.square().mean() - 1 / 3) < 0.01, name  # uniform in [-1, 1]
    assert abs(mirrored.float().mean() - 0.5) < 0.02

def test_the_geometric_view_fills_with_the_nearest_pixel():
    "A face with a black mark in its middle and a white border: moved by up to a fifth, no second mark comes in."
    face = torch.full((1, 1, 48, 48), 255, dtype=torch.uint8)
    face[..., 20:28, 20:28] = 0
    params = make_view("geometric").sample(seeded(0), 64) | {"gain": torch.ones(64), "lift": torch.zeros(64)}
    dark = 1 - make_view("geometric")(face.expand(64, -1, -1, -1), 48, **params)[:, 0]  # (64, 48, 48)
    area = params["theta"][:, :, :2].det().abs()
    assert (dark.sum((1, 2)) * area == pytest.approx(64, rel=0.1)) and dark[:, 0].max() < 1e-3

# cutout

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40),
       st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=4))
def test_cutout_pixel_by_pixel(size, squares):
    squares = torch.tensor(squares, dtype=torch.float32)
    found = cutout(torch.ones(len(squares), 2, size, size), squares)
    for picture, (x, y, side) in zip(found, squares.numpy(), strict=True):
        for i, j in np.ndindex(size, size):
            away = max(abs((j + 0.5) / size - x), abs((i + 0.5) / size - y))
            if abs(away - side / 2) > 1e-6: assert (picture[:, i, j] == (0.5 if away < side / 2 else 1)).all()

def test_share_that_cutout_hides():
    """A side s at a random place covers s − s²/4 of an axis; the rest lies beyond the border. The mean of its square
    over s from 0 to 1/2 is 2 (s³/3 − s⁴/8 + s⁵/80) at 1/2 = 6.849 %."""
    square = STRONG.sample(seeded(1), 8000)["square"]
    hidden = (cutout(torch.ones(8000, 1, 48, 48), square) == 0.5).float().mean((1, 2, 3))
    assert abs(hidden.mean() - 0.06849) < 5 * hidden.std() / 8000 ** 0.5
    assert 0.2 < hidden.max() <= 0.26  # a quarter, give or take a row of pixels

# the whole view

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3]), st.sampled_from([(48, 48), (48, 112), (112, 48), (47, 33)]))
def test_a_face_has_no_neighbours(seed, channels, sides):
    "A face's view is made from its own pixels and its own row of draws alone."
    images = torch.randint(0, 256, (6, channels, sides[0], sides[0]), dtype=torch.uint8, generator=seeded(seed))
    params = STRONG.sample(seeded(seed, 1), 6)
    whole = STRONG(images, sides[1], **params)
    assert whole.shape == (6, 3, sides[1], sides[1]) and whole.min() >= 0 and whole.max() <= 1
    alone = torch.cat([STRONG(images[i:i + 1], sides[1], **row_of(params, i)) for i in range(6)])
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=0)

@pytest.mark.parametrize("size", [48, 112])
def test_grey_is_rgb_of_repeated_grey(faces, size):
    grey = grey_of(faces).repeat(12, 1, 1, 1)
    out = apply_view(STRONG, grey, size, 2)
    torch.testing.assert_close(out, apply_view(STRONG, grey.expand(-1, 3, -1, -1), size, 2), atol=1e-6, rtol=0)

def test_the_same_share_of_the_face_at_any_size(faces):
    "The same parameters at 48 and 96 px give the same view, except for operations that `counts` lists."
    params = STRONG.sample(seeded(4), 64)
    counts = torch.tensor([OPS.index(name) for name in ("equalize", "posterize", "sharpness", "solarize")])
    whole = ~torch.isin(params["op"], counts).any(1)
    params = {k: v[whole] for k, v in params.items()}
    # the square's edges between pixels at both sizes
    params["square"][:, :2] = (params["square"][:, :2] * 48).round() / 48
    params["square"][:, 2] = (params["square"][:, 2] * 24).floor() / 24
    images = floats(faces).repeat(8, 1, 1, 1)[whole]
    smooth = torch.nn.functional.avg_pool2d(images, 9, 1, 4).mul(255).to(torch.uint8)
    halved = torch.nn.functional.avg_pool2d(STRONG(smooth, 96, **params), 2)
    assert (halved - STRONG(smooth, 48, **params)).abs().max() < 0.1
    assert len(images) > 20

@pytest.mark.parametrize("name", VIEWS)
def test_no_device_is_asked_for_a_value(name):
    "Tensors on the device `meta` have shapes and no values: code that reads one, and would wait for a GPU, fails."
    for channels in (1, 3):
        images = torch.zeros(20, channels, 48, 48, dtype=torch.uint8, device="meta")
        out = apply_view(make_view(name), images, 112, 0)
        assert out.device.type == "meta" and out.shape == (20, 3, 112, 112) and out.dtype == torch.float32

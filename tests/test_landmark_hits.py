"""Landmark hits: small cases by hand, borders, and a plain loop over faces and points."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_bench.core import BenchError
from fer_bench.data.landmarks import REGIONS
from fer_bench.evaluate.attention import centre_maps, centre_masks, hits_and_centre
from fer_bench.evaluate.landmarks import patch_hits

EYES = {"eyes": (0, 1), "contour": (2,)}


def mask_of(*kept, side=4):
    "(1, side²): `kept` are (row, column) of the patches that stay."
    mask = np.ones((side, side), int)
    for row, column in kept: mask[row, column] = 0
    return mask.reshape(1, -1)


def hit(mask, x, y): return patch_hits(mask, [[[x, y]]], {"one": (0,)})["one"]


def test_rows_are_y_and_columns_are_x():
    mask = mask_of((0, 3), (2, 1))
    assert [hit(mask, 0.9, 0.1), hit(mask, 0.1, 0.9), hit(mask, 0.3, 0.6), hit(mask, 0.6, 0.3)] == [1, 0, 1, 0]


def test_shares_by_region_over_all_faces_and_all_without_the_contour():
    mask = np.concatenate([mask_of((0, 0), (1, 1)), mask_of((3, 3))])
    points = [[[.1, .1], [.3, .3], [.4, .4]], [[.9, .9], [.1, .1], [.1, .1]]]
    found = patch_hits(mask, points, EYES | {"nose": (1,)})
    expected = {"eyes": 3 / 4, "contour": 1 / 2, "nose": 1 / 2, "all": 3 / 4, "chance": 3 / 32}
    assert found == expected, "a point twice counts once"
    assert list(found) == ["eyes", "contour", "nose", "all", "chance"] and {type(v) for v in found.values()} == {float}


@pytest.mark.parametrize("x, column", [(0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1, 3), (np.nextafter(0.25, 0), 0),
                                       (np.nextafter(1, 0), 3), (-0.0, 0)])
def test_a_point_on_a_border_lies_in_the_right_or_lower_patch_and_at_one_in_the_last(x, column):
    across = [hit(mask_of((0, c)), x, 0.1) for c in range(4)]
    down = [hit(mask_of((c, 0)), 0.1, x) for c in range(4)]
    assert across == down == [float(c == column) for c in range(4)]


@pytest.mark.parametrize("x", [-0.01, np.nextafter(1, 2), -1e300, 7, np.inf, -np.inf])
def test_a_point_outside_hits_nothing_and_counts(x):
    whole = np.zeros((1, 16))
    assert hit(whole, x, 0.5) == hit(whole, 0.5, x) == 0
    assert patch_hits(whole, [[[x, 0.5], [0.5, 0.5]]], {"eyes": (0, 1)}) == {"eyes": 0.5, "all": 0.5, "chance": 1}


def test_tensors_floats_and_bools_say_the_same():
    rng = np.random.default_rng(0)
    mask, points = rng.integers(0, 2, (5, 16)), rng.random((5, 68, 2))
    expected = patch_hits(mask, points, REGIONS)
    assert 0 < expected["eyes"] < 1
    for other in (mask.astype(bool), mask.astype(np.float32), torch.from_numpy(mask), torch.from_numpy(mask).float()):
        assert patch_hits(other, torch.from_numpy(points), REGIONS) == expected


def test_a_random_mask_hits_as_much_as_chance_wherever_the_points_are():
    rng = np.random.default_rng(0)
    mask = (np.argsort(rng.random((4000, 36)), axis=1) >= 9).astype(int)
    for corner in (0.05, 0.5):
        found = patch_hits(mask, np.full((4000, 3, 2), corner), {"eyes": (0, 1), "nose": (2,)})
        assert found["chance"] == 0.25 and abs(found["all"] - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


@st.composite
def cases(draw):
    b, side, p = (draw(st.integers(1, n)) for n in (3, 5, 4))
    share = st.one_of(st.integers(-2, side + 2).map(lambda i: i / side), st.floats(-0.5, 1.5))
    mask = draw(st.lists(st.lists(st.integers(0, 1), min_size=side**2, max_size=side**2), min_size=b, max_size=b))
    points = [[[draw(share), draw(share)] for _ in range(p)] for _ in range(b)]
    numbers = st.lists(st.integers(0, p - 1), min_size=1, unique=True)
    regions = draw(st.dictionaries(st.sampled_from(["eyes", "nose", "contour"]), numbers))
    return mask, points, regions | {"mouth": draw(numbers)}


@settings(deadline=None, max_examples=150)
@given(cases())
def test_against_a_plain_loop(case):
    mask, points, regions = case
    side = math.isqrt(len(mask[0]))

    def lies_in_kept(face, i):
        x, y = points[face][i]
        if not (0 <= x <= 1 and 0 <= y <= 1): return False
        return mask[face][min(math.floor(y * side), side - 1) * side + min(math.floor(x * side), side - 1)] == 0

    inner = {i for name, numbers in regions.items() if name != "contour" for i in numbers}
    for name, numbers in (regions | {"all": inner}).items():
        found = [lies_in_kept(face, i) for face in range(len(mask)) for i in numbers]
        assert patch_hits(*case)[name] == pytest.approx(sum(found) / len(found))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.data())
def test_centre_masks_keep_where_the_gaussian_is_highest_and_draw_among_ties(side, data):
    kept = data.draw(st.integers(0, side**2))
    masks = centre_masks(60, side**2, kept)
    assert masks.shape == (60, side**2) and ((masks == 0).sum(1) == kept).all() and set(masks.ravel()) <= {0, 1}
    gaussian = centre_maps(1, side)[0].ravel().astype(float)
    for mask in masks[:5]:
        if 0 < kept < side**2: assert gaussian[mask == 0].min() >= gaussian[mask == 1].max() - 1e-6
    assert np.array_equal(masks, centre_masks(60, side**2, kept)), "the same at every call"

def test_ties_are_drawn_evenly_and_a_grid_that_is_no_square_is_refused():
    often = (centre_masks(4000, 9, 3) == 0).mean(0)  # the middle, and two of its four neighbours
    np.testing.assert_allclose(often, [0, .5, 0, .5, 1, .5, 0, .5, 0], atol=0.04)
    with pytest.raises(BenchError, match="n_patches = 12"): centre_masks(2, 12, 3)

def test_hits_and_those_of_as_many_patches_at_the_centre():
    mask = mask_of((0, 0), (0, 1), (1, 0), (1, 1))  # a quarter of 4 × 4, as are the four in the middle
    found = hits_and_centre(mask, [[[.1, .1], [.6, .6], [.9, .1]]], EYES)
    assert found == {"hit_eyes": .5, "hit_contour": 0, "hit_all": .5, "hit_chance": .25, "centre_hit_eyes": .5,
                     "centre_hit_contour": 0, "centre_hit_all": .5}

MASK, POINTS = np.zeros((2, 16)), np.full((2, 3, 2), 0.5)

@pytest.mark.parametrize("mask, points, regions, message", [
    (np.zeros((2, 12)), POINTS, EYES, r"side² patches .* this one is \(2, 12\)"),
    (np.zeros(16), POINTS, EYES, r"this one is \(16,\)"),
    (np.zeros((2, 4, 4)), POINTS, EYES, r"this one is \(2, 4, 4\)"),
    (np.zeros((0, 16)), POINTS[:0], EYES, r"this one is \(0, 16\)"),
    (np.zeros((2, 0)), POINTS, EYES, r"this one is \(2, 0\)"),
    (MASK, POINTS[:1], EYES, r"the B = 2 faces of the mask; these are \(1, 3, 2\)"),
    (MASK, POINTS[..., :1], EYES, r"these are \(2, 3, 1\)"),
    (MASK, POINTS[0], EYES, r"these are \(3, 2\)"),
    (MASK, POINTS, {"eyes": (0, 3)}, "'eyes' wants point 3, and there are 3"),
    (MASK, POINTS, {}, "At least one region besides the contour"),
    (MASK, POINTS, {"contour": (0,)}, "At least one region besides the contour"),
    (MASK, POINTS, {"eyes": (0,), "nose": ()}, "points in every region"),
    (MASK, POINTS, {"all": (0,)}, "'all' is the name of a result"),
    (MASK, POINTS, {"eyes": (0,), "chance": (1,)}, "'chance' is the name of a result"),
    (MASK, np.where(np.arange(2)[:, None, None] == 1, np.nan, POINTS), EYES, "face 1 are unknown"),
])
def test_what_does_not_fit_is_said(mask, points, regions, message):
    with pytest.raises(BenchError, match=message): patch_hits(mask, points, regions)

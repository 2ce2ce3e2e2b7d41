"""Landmark scores of maps: by hand, against plain loops, what must not change them; intervals, baselines, ROAD."""
import math

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fer_bench.core import BenchError
from fer_bench.data.drawn.faces import draw_faces
from fer_bench.data.landmarks import FLIP68, REGIONS
from fer_bench.evaluate.attention import centre_maps, mean_map, randomised, road, uniform_maps
from fer_bench.evaluate.landmarks import (
    RADIUS,
    inter_ocular,
    map_scores,
    paired_difference,
    patch_hits,
    patch_scores,
    score_intervals,
)

THREE = {"eyes": (0, 1), "mouth": (2,), "contour": (3,)}
FACE = np.array([[.305, .405], [.705, .405], [.505, .755], [.505, .955]])  # middles of pixels of a picture of 100
SCORES = ["share", "lift", "hit", "distance", "area"]


def of(scores, region, face=0): return scores[(scores.region == region) & (scores.face == face)].iloc[0]


def one(bright, shape=(100, 100), value=1.0):
    "A map (1, H, W) that is `value` at the pixels (row, column) and 0 elsewhere."
    picture = np.zeros((1, *shape))
    for row, column in bright: picture[0, row, column] = value
    return picture


@pytest.fixture(scope="module")
def faces():
    "Points (40, 68, 2) of drawn faces, as fractions."
    return draw_faces(range(40), size=32)["landmarks"].astype(float) / 32


# Scores of single maps

def test_a_point_on_an_eye():
    scores = map_scores(one([(40, 30)]), FACE[None], THREE)
    eyes, mouth, everything = (of(scores, name) for name in ("eyes", "mouth", "all"))
    disc = sum(x * x + y * y <= 36 for x in range(-6, 7) for y in range(-6, 7)) / 100**2  # radius 0.15 · 40 pixels
    assert [r.area for r in (eyes, mouth, everything)] == pytest.approx([2 * disc, disc, 3 * disc])
    assert (eyes.share, eyes.hit, mouth.share, mouth.hit, mouth.lift) == (1, 1, 0, 0, 0) and everything.share == 1
    assert eyes.lift == pytest.approx(1 / (2 * disc))
    assert eyes.distance == pytest.approx(0, abs=1e-9) and mouth.distance == pytest.approx(math.hypot(.2, .35) / .4)
    assert everything.distance == pytest.approx(0, abs=1e-9) and not scores["empty"].any()


def test_off_the_face_and_the_contour_is_not_in_all():
    corner = map_scores(one([(0, 0)]), FACE[None], THREE)
    assert not corner[["share", "hit"]].any().any()
    assert of(corner, "all").distance == pytest.approx(math.hypot(.3, .4) / .4)
    chin = map_scores(one([(95, 50)]), FACE[None], THREE)
    assert of(chin, "contour").share == 1 and of(chin, "all").share == 0


def test_uniform_has_lift_one_and_hits_its_area(faces):
    scores = map_scores(uniform_maps(40, 48), faces, REGIONS)
    np.testing.assert_allclose(scores.lift, 1, rtol=1e-12)
    np.testing.assert_allclose(scores.hit, scores.area, rtol=1e-12)
    assert not scores["empty"].any() and scores.area.min() > 0


def test_an_empty_map_counts_as_uniform_and_is_marked(faces):
    maps = np.zeros((3, 48, 48))
    maps[1] = -1  # below 0 counts as 0
    maps[2] = 5
    scores = map_scores(maps, faces[[0, 0, 0]], REGIONS)
    assert scores["empty"].tolist() == [True] * 12 + [False] * 6
    np.testing.assert_allclose(scores[SCORES][:6], scores[SCORES][12:], rtol=1e-12)
    np.testing.assert_allclose(scores[SCORES][6:12], scores[SCORES][12:], rtol=1e-12)


def test_tied_peaks_count_alike_and_rounding_ties():
    peaks = one([(40, 30), (75, 50), (0, 0), (75, 51)])
    peaks[0, 40, 30] *= 1 - 1e-7  # what an interpolation makes of equal values
    scores = map_scores(peaks, FACE[None], THREE)
    assert of(scores, "eyes").hit == 1 / 4 and of(scores, "mouth").hit == 1 / 2 and of(scores, "all").hit == 3 / 4
    ways = [math.hypot(.2, .35), 0, math.hypot(.5, .75), .01]
    assert of(scores, "mouth").distance == pytest.approx(sum(ways) / 4 / .4)


def test_a_region_outside_of_the_picture_has_no_lift():
    away = FACE.copy()
    away[2] = 1.8, 2.5
    scores = map_scores(one([(40, 30)]), away[None], THREE)
    mouth = of(scores, "mouth")
    assert (mouth.share, mouth.hit, mouth.area) == (0, 0, 0) and math.isnan(mouth.lift) and mouth.distance > 1
    assert of(scores, "all").share == 1


def test_rows_and_columns_and_what_goes_in(faces):
    maps = np.random.default_rng(0).random((9, 48, 48)).astype(np.float32)
    scores = map_scores(maps, faces[:9], REGIONS)
    assert list(scores) == ["face", "region", "share", "lift", "hit", "distance", "area", "empty"]
    assert scores.region.tolist() == [*REGIONS, "all"] * 9 and scores.face.tolist() == np.repeat(range(9), 6).tolist()
    assert ((scores[["share", "hit", "area"]] >= 0) & (scores[["share", "hit", "area"]] <= 1 + 1e-12)).all().all()
    pd.testing.assert_frame_equal(scores, map_scores(torch.from_numpy(maps), torch.from_numpy(faces[:9]), REGIONS))
    for i in (0, 5, 8):  # a face does not depend on its neighbours
        single = map_scores(maps[[i]], faces[[i]], REGIONS)
        expected = scores[scores.face == i].reset_index(drop=True)
        pd.testing.assert_frame_equal(single.drop(columns="face"), expected.drop(columns="face"))


def test_a_picture_that_is_wider_than_high():
    points = np.array([[[.25, .4], [.75, .4], [.5, .8]]])  # eyes 50 pixels apart in a picture of 100 × 60
    scores = map_scores(one([(24, 25)], (60, 100)), points, {"eyes": (0, 1), "mouth": (2,)})
    assert of(scores, "mouth").distance == pytest.approx(math.hypot(24.5, 23.5) / 50)
    assert inter_ocular(points * (100, 60), {"eyes": (0, 1)}) == pytest.approx(50)


@pytest.mark.parametrize("roll", [-0.7, 0, 0.7])
def test_inter_ocular_of_eyes_of_several_points_that_are_turned(roll):
    eye = np.array([[-.1, 0], [0, .05], [.1, 0], [0, -.05]])
    turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
    points = np.concatenate([eye, eye + (.4, 0), [[.2, .3]]]) @ turn.T
    order = np.random.default_rng(0).permutation(8)
    assert inter_ocular(points[None], {"eyes": order})[0] == pytest.approx(.4)


def plain(picture, points, regions, radius):
    "Region -> scores, one pixel and point after the other."
    height, width = picture.shape
    points = [(x * width, y * height) for x, y in points]
    eyes = [points[i] for i in regions["eyes"]]
    middle_x = sum(x for x, _ in eyes) / len(eyes)
    sides = [[p for p in eyes if p[0] < middle_x], [p for p in eyes if p[0] >= middle_x]]
    middles = [(sum(x for x, _ in side) / len(side), sum(y for _, y in side) / len(side)) for side in sides]
    unit = math.dist(*middles)
    pixels = [(r, c) for r in range(height) for c in range(width)]
    value = {(r, c): max(float(picture[r, c]), 0) for r, c in pixels}
    if not any(value.values()): value = dict.fromkeys(pixels, 1.0)
    top = [p for p in pixels if value[p] >= max(value.values()) * (1 - 1e-6)]
    inner = tuple(i for name, numbers in regions.items() if name != "contour" for i in numbers)
    found = {}
    for name, numbers in (regions | {"all": inner}).items():
        gap = {(r, c): min(math.dist((c + .5, r + .5), points[i]) for i in numbers) / unit for r, c in pixels}
        inside = {p for p in pixels if gap[p] <= radius}
        share, area = sum(value[p] for p in inside) / sum(value.values()), len(inside) / len(pixels)
        found[name] = (share, share / area if area else math.nan, sum(p in inside for p in top) / len(top),
                       sum(gap[p] for p in top) / len(top), area)
    return found


@st.composite
def small_faces(draw):
    height, width, p = draw(st.integers(3, 7)), draw(st.integers(3, 7)), draw(st.integers(0, 3))
    place = st.floats(-.2, 1.2)
    points = [[draw(st.floats(-.1, .35)), draw(place)], [draw(st.floats(.65, 1.1)), draw(place)],
              *([draw(place), draw(place)] for _ in range(p + 1))]
    levels = st.lists(st.integers(-1, 3), min_size=height * width, max_size=height * width)
    regions = {"eyes": (0, 1), "mouth": (2,)} | ({"contour": tuple(range(3, 3 + p))} if p else {})
    return np.reshape(draw(levels), (1, height, width)), np.array([points]), regions, draw(st.floats(1.2, 2.5))


@settings(deadline=None, max_examples=50)
@given(small_faces())
def test_against_a_plain_loop(case):
    maps, points, regions, radius = case
    scores = map_scores(maps, points, regions, radius)
    for name, expected in plain(maps[0], points[0], regions, radius).items():
        np.testing.assert_allclose(of(scores, name)[SCORES].astype(float), expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(small_faces(), st.floats(1e-300, 1e300))
def test_the_scale_of_a_map_changes_nothing(case, scale):
    maps, points, regions, radius = case
    first, second = (map_scores(m, points, regions, radius) for m in (maps, maps * scale))
    pd.testing.assert_frame_equal(first, second, rtol=1e-9)


def test_faces_and_maps_flipped_together_score_the_same(faces):
    maps = np.random.default_rng(1).random((40, 48, 48))
    mirrored = faces * (-1, 1) + (1, 0)
    expected = map_scores(maps, faces, REGIONS)
    for points in (mirrored, mirrored[:, FLIP68]):  # with the points' places in the list swapped, or not
        pd.testing.assert_frame_equal(map_scores(maps[..., ::-1], points, REGIONS), expected, rtol=1e-9)


def test_a_larger_picture_of_the_same_face_scores_nearly_the_same(faces):
    small, large = (map_scores(centre_maps(40, size), faces, REGIONS) for size in (56, 224))
    for name, close in (("share", .01), ("area", .01), ("distance", .05)):
        np.testing.assert_allclose(small[name], large[name], atol=close)


MAPS, POINTS = np.ones((2, 50, 50)), np.stack([FACE, FACE])
BESIDE = np.stack([FACE, FACE * (0, 1) + (.5, 0)])

@pytest.mark.parametrize("maps, points, regions, radius, message", [
    (MAPS[0], POINTS, THREE, RADIUS, r"Maps \(N, H, W\) .* these are \(50, 50\)\."),
    (MAPS[:0], POINTS[:0], THREE, RADIUS, r"at least one; these are \(0, 50, 50\)"),
    (np.where(np.eye(50) == 1, np.nan, MAPS), POINTS, THREE, RADIUS, "not finite"),
    (np.where(np.eye(50) == 1, np.inf, MAPS), POINTS, THREE, RADIUS, "not finite"),
    (MAPS, POINTS[:1], THREE, RADIUS, r"the B = 2 faces of the maps; these are \(1, 4, 2\)"),
    (MAPS, POINTS[..., :1], THREE, RADIUS, r"these are \(2, 4, 1\)"),
    (MAPS, np.where(np.arange(2)[:, None, None] == 1, np.nan, POINTS), THREE, RADIUS,
     "face 1 are unknown .* of the maps too"),
    (MAPS, np.where(np.arange(2)[:, None, None] == 1, np.inf, POINTS), THREE, RADIUS, "face 1 are unknown"),
    (MAPS, POINTS, {"mouth": (2,)}, RADIUS, "region 'eyes'"),
    (MAPS, POINTS, {"eyes": (0, 4)}, RADIUS, "wants point 4, and there are 4"),
    (MAPS, POINTS, {"eyes": (0, 1), "all": (2,)}, RADIUS, "'all' is the name of a result"),
    (MAPS, POINTS, {"contour": (3,)}, RADIUS, "At least one region besides the contour"),
    (MAPS, POINTS, {"eyes": (0,)}, RADIUS, "Face 0 has no left and right eye"),
    (MAPS, BESIDE, THREE, RADIUS, "Face 1 has no left and right eye"),
    (MAPS[:, :7, :7], POINTS, THREE, RADIUS, "less than a pixel of maps 7 × 7, for face 0"),
    (MAPS, POINTS, THREE, 0, "radius = 0 "),
    (MAPS, POINTS, THREE, math.nan, "radius = nan "),
])
def test_maps_that_do_not_fit_are_said(maps, points, regions, radius, message):
    with pytest.raises(BenchError, match=message): map_scores(maps, points, regions, radius)


def test_patch_scores_are_patch_hits_by_face(faces):
    mask = np.random.default_rng(0).integers(0, 2, (40, 36))
    scores, hits = patch_scores(mask, faces, REGIONS), patch_hits(mask, faces, REGIONS)
    means = scores.groupby("region", sort=False)[["hit", "gain"]].mean()
    assert list(means.index) == [name for name in hits if name != "chance"] and len(scores) == 40 * 6
    for name, row in means.iterrows(): assert row.tolist() == pytest.approx([hits[name], hits[name] - hits["chance"]])
    pd.testing.assert_frame_equal(patch_scores(mask[[3]], faces[[3]], REGIONS).drop(columns="face"),
                                  scores[scores.face == 3].drop(columns="face").reset_index(drop=True))
    with pytest.raises(BenchError, match="of the mask"): patch_scores(mask[:1], faces, REGIONS)


# Intervals and differences

def table(values, region="eyes", **others):
    return pd.DataFrame({"face": range(len(values)), "region": region, "lift": values, **others})


def test_means_counts_and_order_by_hand():
    scores = pd.concat([table([1., 2, 3, 6], empty=[True, False, False, True], area=.1),
                        table([4., np.nan, 4, np.nan], "brows", empty=False, area=.1)])
    found = score_intervals(scores)
    assert list(found) == ["region", "score", "mean", "low", "high", "faces", "empty"]
    expected = [["eyes", "lift", 3, 4, 2], ["brows", "lift", 4, 2, 0]]
    assert found[["region", "score", "mean", "faces", "empty"]].values.tolist() == expected
    assert 1 <= found.low[0] < 3 < found.high[0] <= 6
    assert found[["low", "high"]].iloc[1].isna().all(), "0.5⁴ of the draws know none"
    mixed = scores.sample(frac=1, random_state=0)
    assert score_intervals(mixed).set_index("region")["low"]["eyes"] == found.low[0]


def test_intervals_agree_with_drawing_faces_one_by_one():
    values = np.random.default_rng(0).exponential(size=60)
    drawn = np.random.default_rng(1).integers(0, 60, (20_000, 60))
    expected = np.quantile(values[drawn].mean(1), [.05, .95])
    found = score_intervals(table(values), n_resamples=8000, confidence=.9).iloc[0]
    np.testing.assert_allclose([found.low, found.high], expected, atol=.012)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    samples = rng.normal(2, 1, (100, 200))  # 200 experiments of 100 faces, as 200 scores of one table
    frame = pd.concat([table(samples[:, 0]).drop(columns="lift"), pd.DataFrame(samples).add_prefix("s")], axis=1)
    found = score_intervals(frame, n_resamples=600)
    assert .89 <= ((found.low < 2) & (found.high > 2)).mean() <= .99


def test_the_seed_fixes_the_interval_and_confidence_widens_it():
    scores = table(np.random.default_rng(0).random(50))
    same, again, other = (score_intervals(scores, seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(same, again)
    assert other.low[0] != same.low[0] and other["mean"][0] == same["mean"][0]
    wide = score_intervals(scores, confidence=.999, seed=3)
    assert wide.low[0] < same.low[0] < same.high[0] < wide.high[0]


def test_scores_of_two_layers_are_never_compared():
    "The layer is no score, and is passed on; two in one table, or on the two sides of a difference, are refused."
    two, four = (table([1, 2, 3]).assign(layer=layer) for layer in ("layer2 (6 x 6)", "layer4 (6 x 6)"))
    plain, named = score_intervals(table([1, 2, 3])), score_intervals(two)
    pd.testing.assert_frame_equal(named.drop(columns="layer"), plain)
    assert set(named["layer"]) == set(paired_difference(two, two)["layer"]) == {"layer2 (6 x 6)"}
    for compare in (lambda: score_intervals(pd.concat([two, four.assign(face=four["face"] + 3)])),
                    lambda: paired_difference(two, four)):
        with pytest.raises(BenchError, match=r"different layers .*layer2 \(6 x 6\).*layer4"): compare()


def test_a_single_face_has_an_interval_of_no_width():
    assert score_intervals(table([2.5]))[["mean", "low", "high", "faces"]].values.tolist() == [[2.5, 2.5, 2.5, 1]]


def test_paired_is_tighter_where_faces_are_hard_for_both():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 300)
    a, b = table(hard + .1 + rng.normal(0, .1, 300)), table(hard + rng.normal(0, .1, 300))
    paired, apart = paired_difference(a, b).iloc[0], [score_intervals(x).iloc[0] for x in (a, b)]
    assert paired["mean"] == pytest.approx(apart[0]["mean"] - apart[1]["mean"])
    assert 0 < paired.low < .1 < paired.high and paired.high - paired.low < .3 * (apart[0].high - apart[0].low)
    assert paired_difference(b, a).iloc[0]["mean"] == pytest.approx(-paired["mean"])


def test_pairs_are_found_by_face_and_region_not_by_row():
    a = pd.concat([table([1., 5, 9], empty=False), table([2., 2, 2], "mouth", empty=[True, False, False])])
    b = a.assign(lift=a.lift - [1, 1, 1, 4, 4, 4], empty=[False, True, True, True, False, False])
    b = b.sample(frac=1, random_state=1)
    found = paired_difference(a, b)
    expected = [["eyes", 1, 1, 1, 2], ["mouth", 4, 4, 4, 1]]
    assert found[["region", "mean", "low", "high", "empty"]].values.tolist() == expected


def test_scores_that_cannot_be_averaged_or_compared_are_said():
    good = table([1., 2])
    for wrong in (good[:0], good[["face", "region"]], good.drop(columns="face"), good.drop(columns="region")):
        with pytest.raises(BenchError, match="A table of scores needs rows"): score_intervals(wrong)
    with pytest.raises(BenchError, match="Face 1 has two rows for one region"):
        score_intervals(pd.concat([good, good[1:]]))
    with pytest.raises(BenchError, match="n_resamples = 0"): score_intervals(good, n_resamples=0)
    for confidence in (0, 1, 95):
        with pytest.raises(BenchError, match=f"confidence = {confidence}"): score_intervals(good, confidence=confidence)
    for other in (table([1., 2, 3]), table([1.]), table([1., 2], "mouth"), good.assign(face=[1, 2]),
                  good.assign(hit=1.), good.rename(columns={"lift": "hit"})):
        with pytest.raises(BenchError, match="differ in their faces"): paired_difference(good, other)


# Baselines

def test_baseline_maps_by_hand():
    assert uniform_maps(5, 7).shape == (5, 7, 7) and (uniform_maps(5, 7) == 1).all()
    centre = centre_maps(2, 101, sigma=.1)
    assert centre.shape == (2, 101, 101) and centre[0, 50, 50] == 1 and centre.dtype == np.float32
    assert centre[1, 50, 60] == pytest.approx(math.exp(-(10 / 101 / .1) ** 2 / 2)), "a standard deviation away"
    assert np.array_equal(centre, centre[:, ::-1]) and np.array_equal(centre, centre.swapaxes(1, 2))
    maps = np.array([[[0, 8.]], [[1, 1]], [[0, 0]], [[3, 0]]])
    np.testing.assert_allclose(mean_map(maps), np.repeat([[[(0 + .5 + .5 + 1) / 4, .5]]], 4, axis=0))
    big = uniform_maps(100_000, 224)
    assert big.base is not None and big.strides[0] == 0, "repeated, not copied"


@pytest.mark.parametrize("sigma", [0, -1, math.nan])
def test_a_centre_map_without_width_is_said(sigma):
    with pytest.raises(BenchError, match="sigma"): centre_maps(2, 8, sigma)


@pytest.mark.parametrize("maps", [np.ones((4, 4)), np.ones((0, 4, 4))])
def test_a_mean_of_no_maps_is_said(maps):
    with pytest.raises(BenchError, match="Maps"): mean_map(maps)


def trained(name):
    "A timm network whose every parameter and statistic differs from a fresh one's."
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **({"img_size": 32} if "vit" in name else {}))
    with torch.no_grad():
        running = (value for name, value in model.named_buffers() if "running" in name)
        for value in (*model.parameters(), *running): value.add_(torch.rand_like(value) + .1)
    return model


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout",
                                  "convnextv2_atto"])
def test_every_weight_is_drawn_anew_and_the_network_itself_stays(name):
    model = trained(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state, mode = torch.get_rng_state(), model.training
    copy, again, other = randomised(model, 1), randomised(model, 1), randomised(model, 2)
    assert torch.equal(torch.get_rng_state(), state) and model.training == mode == copy.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    parameters = copy.named_parameters(), again.parameters(), other.parameters()
    for (key, value), same, another in zip(*parameters, strict=True):
        assert not torch.isclose(value, before[key]).any() or value.ndim > 1, key
        assert not torch.allclose(value, before[key]) and torch.equal(value, same), key
        assert value.ndim < 2 or not torch.equal(value, another), key
    for key, value in copy.named_buffers():
        if key.endswith("running_mean"): assert not value.any()
        if key.endswith("running_var"): assert (value == 1).all()
    logits = copy.eval()(torch.rand(3, 3, 32, 32))
    assert logits.isfinite().all() and logits.std(0).max() > 1e-4, "the signal reaches the end"


def test_own_buffers_and_frozen_weights():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((3,), .5))
            self.scale, self.linear = nn.Parameter(torch.ones(3)), nn.Linear(3, 3).requires_grad_(False)
            self.attention = nn.MultiheadAttention(4, 2)  # which has no reset_parameters

    model = Own().eval()
    copy = randomised(model)
    assert torch.equal(copy.mean, model.mean) and not copy.training
    assert not torch.isclose(copy.scale, model.scale).any()
    assert not torch.isclose(copy.attention.in_proj_weight, model.attention.in_proj_weight).any()
    assert not torch.isclose(copy.linear.weight, model.linear.weight).any() and not copy.linear.weight.requires_grad


# ROAD

class Corner(nn.Module):
    "Two classes by how bright the upper left of the picture is; counts what it is asked, and knows its mode."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.))

    def forward(self, x):
        assert not self.training
        bright = self.scale * x[..., :6, :6].mean((1, 2, 3)) - 4
        return torch.stack([bright, -bright], -1)


@pytest.fixture(scope="module")
def corners():
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * .3
    images[..., :6, :6] += .6
    right = np.zeros((8, 16, 16))
    right[:, :6, :6] = 1
    return images, right


def test_road_knows_the_right_map_from_the_wrong_and_from_none(corners):
    images, right = corners
    model = Corner().train()
    by_map = {name: road(model, images, maps, removed=(.15, .5)) for name, maps in
              dict(right=right, wrong=1 - right, none=np.zeros_like(right)).items()}
    means = {name: frame.road.mean() for name, frame in by_map.items()}
    assert means["right"] > .3 > .05 > abs(means["none"]) and means["wrong"] < -.3
    assert by_map["none"]["empty"].all() and not by_map["right"]["empty"].any() and model.training
    assert list(by_map["right"]) == ["face", "removed", "most", "least", "road", "empty"] and len(by_map["right"]) == 16
    intervals = paired_difference(by_map["right"], by_map["none"], by="removed")
    assert intervals["removed"].unique().tolist() == [.15, .5] and (intervals.query("score == 'road'").low > .3).all()


def test_road_removes_exactly_what_it_says_and_keeps_the_rest(corners):
    images, right = corners
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 2)

    falling = -np.arange(1., 257).reshape(1, 16, 16)  # what is below 0 is all 0, whose order is random
    road(Watch(), images[:1], np.where(right[:1] > 0, 1, falling), removed=(.1, .5))
    changed = (seen[0][1:] != seen[0][0]).any(1)       # (4, 16, 16)
    assert torch.equal(seen[0][0], images[0]) and changed.sum((1, 2)).tolist() == [26, 128, 26, 128]
    corner = torch.zeros(16, 16, dtype=bool)
    corner[:6, :6] = True
    assert not (changed[0] & ~corner).any() and (changed[1] & corner).sum() == 36 and not (changed[2:] & corner).any()
    assert changed[2, :8].any() and changed[2, 8:].any()


def test_road_is_fixed_by_its_seed_and_takes_targets(corners):
    images, right = corners
    state = torch.get_rng_state()
    first = road(Corner(), images, right, removed=(.3,))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again, other = (road(Corner(), images, right, removed=(.3,), seed=s) for s in (0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first.most, other.most, atol=1e-12)
    opposite = road(Corner(), images, right, targets=[1] * 8, removed=(.3,))
    np.testing.assert_allclose(opposite.road, -first.road, atol=1e-6)


@pytest.mark.parametrize("change, message", [
    (dict(maps=np.ones((8, 16, 15))), r"these are \(8, 16, 15\) for images \(8, 3, 16, 16\)"),
    (dict(maps=np.full((8, 16, 16), np.nan)), "finite map"),
    (dict(targets=[0]), "1 targets for 8 images"),
    (dict(targets=[2] * 8), "Target 2 is not a class: the model has 2"),
    (dict(targets=[-1] * 8), "Target -1 is not a class"),
    (dict(removed=()), "removed = "),
    (dict(removed=(.5, 1.)), "removed = "),
    (dict(removed=(0,)), "removed = "),
    (dict(removed=(20,)), "removed = "),
])
def test_what_road_cannot_use_is_said(corners, change, message):
    arguments = {"model": Corner(), "images": corners[0], "maps": corners[1]} | change
    with pytest.raises(BenchError, match=message): road(**arguments)

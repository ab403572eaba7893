"""The materials of the training images: true maps, one scale, light that can be told from colour."""

from __future__ import annotations

import numpy as np
import pytest

from training.compose import compose
from training.data import close_up
from training.looks import METALS, Look, any_look
from training.patterns import TABLE, UNIT, VARIANTS, Points
from training.samples import RELIEF, make_material, views
from training.scene import around
from training.shading import (
    Light,
    cast_shadow,
    height_normals,
    irradiance,
    occlusion,
    shade,
    to_linear,
    to_srgb,
)
from training.vocabulary import MATERIALS


def _points(count: int = 64) -> Points:
    u, v = (a.ravel().astype(np.float32) / 8 for a in np.meshgrid(np.arange(count), np.arange(count)))
    return Points(u, v, np.full_like(u, 3.3), u, v)


@pytest.mark.parametrize("name", [*TABLE, *VARIANTS])
def test_a_pattern_gives_maps_in_range(name: str) -> None:
    palette = np.array([[0.6, 0.4, 0.3], [0.2, 0.2, 0.2], [0.9, 0.8, 0.7]], np.float32)
    pattern = TABLE.get(name) or VARIANTS[name]
    s, again = pattern(_points(), palette, 5), pattern(_points(), palette, 5)
    assert s.albedo.shape == (3, 64 * 64) and s.albedo.dtype == np.float32
    assert np.array_equal(s.albedo, again.albedo)
    for a in (s.albedo, s.roughness, s.metalness):
        assert np.isfinite(a).all() and a.min() >= 0 and a.max() <= 1
    assert np.isfinite(s.height).all() and np.ptp(s.height) < 3
    if s.emissive is not None:
        assert s.emissive.shape == s.albedo.shape


@pytest.mark.parametrize("name", list(MATERIALS))
def test_metals_are_metals_and_nothing_else_is(name: str) -> None:
    p = close_up(name, 4)
    metal = p.metalness.mean()
    if name in ("gold", "metal", "copper"):
        assert p.metalness.min() > 0.99 and p.roughness.max() < 0.5
    elif name == "rust":
        assert 0.0 < metal < 0.7
    else:
        assert p.metalness.max() == 0
    if name in ("brick", "knit", "moss", "snow", "fur", "camouflage"):
        assert p.roughness.min() > 0.6
    if name in ("plastic", "marble", "water"):
        assert p.roughness.max() < 0.4


def test_copper_has_patina_only_where_it_is_said() -> None:
    for i in range(1500):
        c = compose(21, i)
        patterns = {slot.pattern for slot in c.scene.slots.values()}
        if c.thing == 0 or "patina" in c.caption:
            assert ("copper with patina" in patterns) == ("patina" in c.caption), c.caption
    plain = close_up("copper", 2, look=Look("copper", "", -1, any_look(np.random.default_rng(1), "copper", 0).palette))
    r, g, b = np.moveaxis(plain.albedo, -1, 0)
    assert (r > g).all() and (g > b).all()


def _period(image: np.ndarray, axis: int, shortest: float, longest: float) -> float:
    """Length in pixels of what repeats along an axis: the strongest autocorrelation of the brightness."""
    line = image.mean(-1)
    line = line - line.mean()
    power = np.abs(np.fft.rfft(line, 2 * line.shape[axis], axis=axis)) ** 2
    counts = np.arange(line.shape[axis], 0, -1)
    shape = [1, 1]
    shape[axis] = -1
    correlation = np.fft.irfft(power, axis=axis).take(range(line.shape[axis]), axis) / counts.reshape(shape)
    correlation = correlation.mean(1 - axis)
    low, high = int(shortest), int(longest) + 1
    at = low + int(np.argmax(correlation[low:high]))
    a, b, c = correlation[at - 1 : at + 2]
    return at + 0.5 * (a - c) / (a - 2 * b + c)


#: Material, axis along which it repeats, pixels.
_PERIODS = [("brick", 0, 16.0), ("planks", 0, 32.0), ("checker", 0, 32.0), ("stripes", 0, 32.0), ("tiles", 1, 21.3)]


@pytest.mark.parametrize(("name", "axis", "pixels"), _PERIODS)
def test_close_ups_have_one_scale(name: str, axis: int, pixels: float) -> None:
    """The same words always mean the same number of courses, whatever the size of the picture."""
    found = []
    for seed in range(20):
        size = 192 if seed % 2 else 128
        found.append(_period(close_up(name, 50 + seed, size).albedo, axis, pixels * 0.75, pixels * 1.35))
    assert max(found) / min(found) <= 1.25
    assert np.median(found) == pytest.approx(pixels, rel=0.06)


@pytest.mark.parametrize(("name", "axis", "pixels"), _PERIODS)
@pytest.mark.parametrize(("word", "factor"), [("fine", 0.6), ("large", 1.7)])
def test_scale_words_mean_what_they_say(name: str, axis: int, pixels: float, word: str, factor: float) -> None:
    found = [
        _period(close_up(name, 80 + s, 192, word).albedo, axis, pixels * factor * 0.75, pixels * factor * 1.35)
        for s in range(6)
    ]
    assert np.median(found) / pixels == pytest.approx(factor, rel=0.08)


def test_captions_say_the_scale_of_close_ups() -> None:
    seen = {"fine": 0, "large": 0, "": 0}
    for i in range(800):
        c = compose(14, i)
        if c.camera is not None:
            assert "fine" not in c.caption.split() and "large" not in c.caption.split()
            continue
        word = next((w for w in ("fine", "large") if w in c.caption.split()), "")
        unit = 1 / c.scene.slots[0].frequency / UNIT
        assert unit == pytest.approx({"fine": 0.6, "large": 1.7, "": 1.0}[word], rel=0.07)
        seen[word] += 1
    assert min(seen.values()) > 15


@pytest.mark.parametrize("name", METALS[:3])
def test_close_ups_of_metals_have_no_highlights(name: str) -> None:
    for seed in range(12):
        light = close_up(name, 100 + seed).lit @ np.array([0.2126, 0.7152, 0.0722], np.float32)
        assert np.percentile(light, 99.9) < 1.75 * np.median(light)
        assert np.std(light) > 0.02  # and yet something mirrors


def test_gold_is_not_yellow_plastic() -> None:
    gold, plastic = [], []
    for seed in range(8):
        gold.append(np.std(close_up("gold", seed).lit @ (0.3, 0.59, 0.11)))
        palette = np.tile([0.95, 0.85, 0.2], (3, 1))
        plastic.append(
            np.std(close_up("plastic", seed, look=Look("plastic", "yellow", 2, palette)).lit @ (0.3, 0.59, 0.11))
        )
    assert min(gold) > 2 * max(plastic)


@pytest.mark.parametrize("name", ["brick", "stone", "wood", "knit", "tiles", "leather", "gold", "copper"])
def test_close_ups_of_the_prior_keep_the_base_colour(name: str) -> None:
    """The colour that words name is what the picture shows; light only models it."""
    for seed in range(6):
        p = close_up(name, 30 + seed)
        assert np.abs(p.lit.mean((0, 1)) - p.albedo.mean((0, 1))).max() < 0.12


def test_varied_light_hides_the_base_colour() -> None:
    soft, varied = [], []
    for i in range(24):
        s = make_material(3, i, 64)
        seen = s.maps[..., 5] > 0
        change = np.abs(s.lit.astype(float) - s.albedo)[seen].mean()
        (soft if np.random.default_rng([3, i, 2]).random() >= 0.7 else varied).append(change)
    assert np.mean(varied) > 1.3 * np.mean(soft)


def test_what_glows_is_brighter_than_its_surroundings() -> None:
    p = close_up("lava", 3)
    crack = p.albedo[..., 0] > 0.9
    assert crack.any()
    assert p.lit[crack].mean() > 2 * p.lit[~crack].mean()


# ---------------------------------------------------------------------------------------------- shading


def _even(level: float = 1.0) -> Light:
    return Light(np.full(3, level), np.full(3, level), np.array([0.0, 1.0, 0.0]))


def _sphere(count: int = 500) -> np.ndarray:
    g = np.random.default_rng(1)
    n = g.normal(size=(count, 3))
    n[:, 2] = np.abs(n[:, 2])
    return (n / np.linalg.norm(n, axis=1, keepdims=True)).astype(np.float32)


def _shaded(albedo: float, rough: float, metal: float, light: Light, n: np.ndarray) -> np.ndarray:
    full = [np.full(len(n), v, np.float32) for v in (rough, metal, 1, 1)]
    view = np.broadcast_to(np.array([0, 0, 1], np.float32), n.shape).copy()
    return shade(np.full(n.shape, albedo, np.float32), n, view, *full, light)


@pytest.mark.parametrize("rough", [0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("metal", [0.0, 1.0])
def test_no_surface_reflects_more_than_it_gets(rough: float, metal: float) -> None:
    """In a white room nothing is brighter than the room, and a white matt ball is nearly as bright."""
    out = _shaded(1.0, rough, metal, _even(), _sphere())
    assert out.max() < 1.06
    assert out[_sphere()[:, 2] > 0.5].min() > 0.7


def test_light_is_linear_and_dark_surfaces_stay_dark() -> None:
    n = _sphere()
    light = Light(np.array([1.0, 0.9, 0.8]), np.array([0.2, 0.2, 0.3]), np.array([0.0, 1.0, 0.0]))
    light.key = np.array([0.3, 0.6, 0.74, 0.5, 0.5, 0.5])
    twice = Light(light.sky * 2, light.ground * 2, light.up, light.blend, light.boxes, light.key * [1, 1, 1, 2, 2, 2])
    np.testing.assert_allclose(_shaded(0.5, 0.4, 0, twice, n), 2 * _shaded(0.5, 0.4, 0, light, n), rtol=1e-4)
    assert _shaded(0.0, 1.0, 0, _even(), n).max() < 0.25
    assert _shaded(0.5, 0.5, 1, light, n).mean() < _shaded(1.0, 0.5, 1, light, n).mean()


def test_lamps_obey_lambert_and_rough_highlights_are_broad() -> None:
    dark = Light(np.zeros(3), np.zeros(3), np.array([0.0, 1.0, 0.0]))
    dark.key = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    n = _sphere()
    matt = _shaded(0.8, 1.0, 0, dark, n)[:, 0]
    expected = 0.8 * 0.96 * n[:, 2]
    assert np.abs(matt - expected).max() < 0.05
    sharp, broad = (_shaded(0.8, r, 1, dark, n)[:, 0] for r in (0.25, 0.6))
    assert sharp.max() > 3 * broad.max()
    assert (sharp > 0.2 * sharp.max()).sum() < (broad > 0.2 * broad.max()).sum()


def test_exposure_is_what_a_white_matt_surface_sends() -> None:
    light = Light(np.full(3, 0.7), np.full(3, 0.7), np.array([0.0, 1.0, 0.0]))
    assert irradiance(light, np.array([0.0, 0.0, 1.0])) == pytest.approx(np.full(3, 0.7), rel=0.08)


def test_srgb_and_back() -> None:
    c = np.linspace(0, 0.9, 50, dtype=np.float32)
    assert to_linear(to_srgb(to_linear(c))) == pytest.approx(to_linear(c), abs=2e-3)


def test_a_bump_on_paper_is_a_bump_in_the_normals() -> None:
    y, x = np.mgrid[0:64, 0:64].astype(np.float32)
    height = 8 * np.exp(-((x - 32) ** 2 + (y - 32) ** 2) / 200).astype(np.float32)
    n = height_normals(height, 1.0)
    # x right, y up the picture: right of the middle the surface falls to the right, above it upwards.
    assert n[32, 42, 0] > 0.3 and n[32, 22, 0] < -0.3
    assert n[22, 32, 1] > 0.3 and n[42, 32, 1] < -0.3
    hollow = occlusion(-height / 16, 1 / 16)
    assert hollow[32, 32] < 0.9 and hollow[2, 2] > 0.97
    shadow = cast_shadow(height * 2, 1.0, np.array([-0.9, 0.0, 0.3]))
    assert shadow[32, 50] < 0.3 < 0.9 < shadow[32, 8]


# ---------------------------------------------------------------------------------------------- several views


def _first_object(seed: int, size: int) -> int:
    return next(i for i in range(50) if (c := compose(seed, i, size)).camera is not None and c.material >= 0)


def test_views_show_one_object_with_depth_and_normals() -> None:
    index = _first_object(5, 64)
    cameras = around(1.2, np.arange(4) * np.pi / 2)
    shown = views(5, index, cameras, 64)
    assert len(shown) == 4
    for p, cam in zip(shown, cameras, strict=True):
        inside = p.coverage > 0.99
        assert inside.sum() > 200
        far = np.linalg.norm(cam[:3])
        assert (np.abs(p.depth[inside] - far) < 1.4).all() and (p.depth[p.coverage == 0] == 0).all()
        assert np.linalg.norm(p.normal[inside], axis=-1) == pytest.approx(np.ones(inside.sum()), abs=1e-3)
        assert p.normal[inside][:, 2].mean() > 0.2  # towards the camera
    again = views(5, index, cameras[:1], 64)[0]
    assert np.array_equal(again.lit, shown[0].lit)


def test_a_point_has_the_same_base_colour_in_every_view() -> None:
    index = _first_object(5, 64)
    cameras = around(1.3, np.array([0.0, 0.25]))
    a, b = views(5, index, cameras, 64)
    size, found = 64, []
    cam, other = cameras
    for j in range(8, 56):
        for i in range(8, 56):
            if a.coverage[j, i] < 1 or (a.coverage[j - 1 : j + 2, i - 1 : i + 2] < 1).any():
                continue
            u, v = (2 * (i + 0.5) / size - 1) * cam[12], (1 - 2 * (j + 0.5) / size) * cam[12]
            ray = cam[9:12] + cam[3:6] * u + cam[6:9] * v
            point = cam[:3] + ray / np.linalg.norm(ray) * a.depth[j, i] - other[:3]
            depth = point @ other[9:12]
            x = (point @ other[3:6] / depth / other[12] + 1) * size / 2
            y = (1 - point @ other[6:9] / depth / other[12]) * size / 2
            if 1 <= x < size - 1 and 1 <= y < size - 1:
                q = int(y), int(x)
                if abs(b.depth[q] - np.linalg.norm(point)) < 0.03:
                    found.append(np.abs(a.albedo[j, i] - b.albedo[q]).mean())
    assert len(found) > 100
    assert np.median(found) < 0.06


def test_flat_pieces_have_no_other_views() -> None:
    index = next(i for i in range(50) if compose(5, i).camera is None)
    with pytest.raises(ValueError, match="flat piece"):
        views(5, index, around(1.2, np.zeros(1)), 32)


def test_material_samples_hold_what_the_network_is_to_learn() -> None:
    for i in range(30):
        s = make_material(6, i, 48)
        assert s.lit.shape == s.albedo.shape == (48, 48, 3) and s.maps.shape == (48, 48, 6)
        assert s.lit.dtype == s.maps.dtype == np.uint8
        covered = s.maps[..., 5] == 255
        if compose(6, i, 48).camera is None:
            assert covered.all()
            relief = (s.maps[..., 2].astype(float) - 128) / RELIEF
            assert abs(relief.mean()) < 0.6
        x, y = ((s.maps[..., k].astype(float) - 128) / 127 for k in (3, 4))
        assert (x * x + y * y)[covered].max() <= 1.03 if covered.any() else True

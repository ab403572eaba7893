"""Painting with a material: tileable samples, and how they are laid over surfaces."""

from __future__ import annotations

import numpy as np
import pytest
from meshes import cube
from scipy.ndimage import gaussian_filter

from pipeline.bake.material import bake_material
from pipeline.core.job import Job
from pipeline.painting.tiling import prepare_exemplar, projectors, regularity, shade_surface
from pipeline.prior.tile import sample_tile, wrap_step
from pipeline.prior.words import names_material_alone
from pipeline.recipes.paint import Paint
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.uv.unwrap import unwrap


@pytest.fixture(scope="module")
def prior():
    from pipeline.prior.load import load_prior

    return load_prior("embedded", device="cpu")


def noise(side=64, seed=0):
    """A stochastic picture that wraps around."""
    image = gaussian_filter(np.random.default_rng(seed).random((side, side, 3)), (1.5, 1.5, 0), mode="wrap")
    return ((image - image.min()) / np.ptp(image)).astype(np.float32)


def checks(side=64, cells=8):
    rows, columns = np.mgrid[:side, :side] * cells // side
    return np.repeat(((rows + columns) % 2)[..., None], 3, axis=-1).astype(np.float32)


def sphere_points(count=50_000, seed=1):
    normal = np.random.default_rng(seed).normal(size=(count, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return 0.6 * normal, normal


def test_blending_keeps_contrast_and_colours_of_the_sample():
    image, (position, normal) = noise(), sphere_points()
    colours = shade_surface(prepare_exemplar(image, "hexagonal"), position, normal, 0.3, seed=3)
    np.testing.assert_allclose(colours.mean(axis=0), image.mean(axis=(0, 1)), atol=0.02)
    np.testing.assert_allclose(colours.std(axis=0), image.std(axis=(0, 1)), rtol=0.06)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    np.testing.assert_allclose(
        np.quantile(colours, levels, axis=0), np.quantile(image.reshape(-1, 3), levels, axis=0), atol=0.03
    )


def test_hexagonal_tiles_do_not_repeat_and_periodic_ones_do():
    x = np.linspace(-4, 4, 4001)
    position = np.stack([x, np.full_like(x, 0.1), np.zeros_like(x)], axis=1)
    normal = np.tile([0.0, 0.0, 1.0], (len(x), 1))
    period = 500  # samples of x to one tile of side 1
    for layout, repeats in (("periodic", True), ("hexagonal", False)):
        colours = shade_surface(prepare_exemplar(noise(), layout), position, normal, 1.0, seed=0)
        difference = np.abs(colours[period:] - colours[:-period]).mean()
        assert (difference < 1e-3) == repeats, (layout, difference)


def test_patterns_are_told_from_noise():
    assert regularity(checks()) > 0.9 and prepare_exemplar(checks()).layout == "periodic"
    assert regularity(noise()) < 0.3 and prepare_exemplar(noise()).layout == "hexagonal"
    assert regularity(np.full((32, 32, 3), 0.5, np.float32)) == 0


@pytest.mark.parametrize("layout", ["periodic", "hexagonal"])
def test_no_direction_mirrors_or_turns_the_sample(layout):
    directions = projectors(layout, 5)
    # Seen from outside, right x down points into the surface; sides have the sample's bottom below.
    np.testing.assert_allclose(np.cross(directions.right, directions.down), -directions.normal, atol=1e-6)
    upright = np.abs(directions.normal[:, 1]) < 0.9
    assert (directions.down[upright, 1] < -0.6).all()
    np.testing.assert_allclose(directions.right[upright, 1], 0, atol=1e-7)


def test_courses_run_round_a_column():
    """Rows of a regular sample lie at the same height whatever side of an upright column one looks at."""
    rows = np.repeat(np.repeat((np.arange(64) // 8 % 2)[:, None, None], 64, 1), 3, 2).astype(np.float32)
    azimuth = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    normal = np.stack([np.sin(azimuth), np.zeros(720), np.cos(azimuth)], axis=1)
    exemplar = prepare_exemplar(rows, "periodic")
    for height in (0.03, 0.11):
        position = 0.4 * normal + [0, height, 0]
        colours = shade_surface(exemplar, position, normal, 0.64, seed=2)
        assert np.ptp(colours) < 1e-4


def test_the_scale_is_in_units_of_the_surface():
    uvmesh = unwrap(cube(2.0), texture_size=256)
    vertices = uvmesh.mesh.vertices
    fine = bake_material(uvmesh, vertices, checks(cells=2), 0.5, 256, seed=0)
    coarse = bake_material(uvmesh, vertices, checks(cells=2), 1.0, 256, seed=0)
    crossings = [
        np.abs(np.diff(baked.maps["base_colour"][..., 0].astype(int), axis=1)).sum() for baked in (fine, coarse)
    ]
    assert 1.7 < crossings[0] / crossings[1] < 2.3
    assert coarse.notes["texels_unreached"] == 0 and coarse.notes["layout"] == "periodic"
    assert set(np.unique(coarse.maps["base_colour"])) >= {0, 255}


def test_a_sample_wraps_around(prior):
    for prompt in ("red brick surface, close up", "green scales surface, close up"):
        tile = sample_tile(prior, prompt, seed=1, size=32, steps=12)
        assert tile.image.shape == (128, 128, 3) and tile.image.std() > 0.05
        # The borders meet as well as rows inside do; of an ordinary sample they do not.
        assert tile.wrap < 1.1 and wrap_step(np.ascontiguousarray(tile.image[5:-7, 3:-9])) > tile.wrap
    # The prior is as it was: padding, and so ordinary samples.
    modules = [m for m in (*prior.unet.modules(), *prior.vae.modules()) if hasattr(m, "padding_mode")]
    assert {m.padding_mode for m in modules} == {"zeros"}


def test_the_same_seed_gives_the_same_sample(prior):
    one, same, other = (sample_tile(prior, "gold surface", seed=seed, size=16, steps=4).image for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize(
    ("prompt", "material"),
    [("a red brick object", True), ("an oak wood chair", True), ("mossy stone", True), ("a brick house", False),
     ("a wooden barrel with iron bands", False), ("a red object", False), ("a polka dot mushroom", False)],
)  # fmt: skip
def test_a_prompt_that_names_a_material_and_nothing_with_parts_is_painted_with_it(prior, prompt, material):
    assert names_material_alone(prior.folder, prompt) == material


def test_settings_that_do_not_suit_a_material_are_refused():
    wrong = (
        {"distillation": "material", "refine": True},
        {"distillation": "score", "tile_size": 0.5},
        {"refine": True, "tile_size": 0.5},
    )
    for values in wrong:
        with pytest.raises(ValueError, match="allowed"):
            PaintOptions(**values)


def test_a_tile_without_size_is_refused():
    position, normal = sphere_points(10)
    with pytest.raises(ValueError, match="must be positive"):
        shade_surface(prepare_exemplar(noise()), position, normal, 0.0, seed=0)


@pytest.mark.parametrize(
    ("prompt", "settings", "way"),
    [("a red brick object", {}, "material"), ("a brick house", {}, "patches"),
     ("a brick house", {"tile_size": 0.5}, "material"), ("a red brick object", {"patch_height": 0.8}, "patches"),
     ("a red brick object", {"base_colour": "#c04020"}, "patches"), ("a red brick object", {"refine": True}, "patches"),
     ("a red brick object", {"distillation": "score"}, "score")],
)  # fmt: skip
def test_no_setting_of_a_row_is_dropped_by_the_way_that_is_chosen(prior, prompt, settings, way):
    job = Job("a", "paint", prompt, "", 0, None, PaintOptions(**settings).model_dump(mode="json"))
    assert Paint().resolve(job, prior).distillation == way

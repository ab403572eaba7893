"""Views laid on a texture: what they show, what the start shows where there are none, and what later views find."""

from __future__ import annotations

import meshes
import numpy as np
from numpy.typing import NDArray

from pipeline.bake.bake import BASE_COLOUR
from pipeline.bake.view_canvas import ViewCanvas
from pipeline.raster.camera import Cameras, orbit
from pipeline.uv.unwrap import unwrap

SIZE = 64
START, RED, BLUE = (0.2, 0.6, 0.2), (0.8, 0.1, 0.1), (0.1, 0.1, 0.9)


def canvas(start: tuple[float, float, float] | None = START) -> ViewCanvas:
    sheet = unwrap(meshes.plane(4, 1.0), texture_size=SIZE, mode="input")
    filled = None if start is None else np.full((SIZE, SIZE, 3), start, np.float32)
    return ViewCanvas(sheet, sheet.mesh.vertices, SIZE, filled)


def look_at_half(x: float) -> Cameras:
    """A view, from in front, of half of the sheet and a little more."""
    return orbit(np.pi / 2, 0.0, 1.0, 2 * np.arctan(0.3), target=(x, 0.0, 0.0))


def plain(colour: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.broadcast_to(np.float32(colour)[:, None, None], (1, 3, 32, 32)).copy()


def everywhere() -> NDArray[np.float32]:
    return np.ones((1, 8, 8), np.float32)


def test_views_colour_what_they_show_and_the_start_remains_elsewhere() -> None:
    texture_canvas = canvas()
    texture_canvas.add(look_at_half(-0.3), plain(RED), everywhere())
    rgb, quality = texture_canvas.texture()[:3], texture_canvas.texture()[3]
    np.testing.assert_allclose(rgb[:, 32, 10], RED, atol=0.01)
    np.testing.assert_allclose(rgb[:, 32, 60], START, atol=0.01)
    assert quality[32, 10] > 0.9 and quality[32, 60] == 0
    baked = texture_canvas.bake()
    assert baked.maps[BASE_COLOUR].shape == (SIZE, SIZE, 3)
    assert baked.notes["unreached_share"] == 0 and 0.6 < baked.notes["unpainted_share"] < 0.8
    assert baked.notes["views"] == 1 and baked.notes["texels_per_radius"] == round(SIZE * 0.5**0.5, 1)


def test_without_a_start_the_gaps_are_filled_from_around() -> None:
    texture_canvas = canvas(None)
    texture_canvas.add(look_at_half(-0.3), plain(RED), everywhere())
    baked = texture_canvas.bake()
    np.testing.assert_allclose(baked.maps[BASE_COLOUR][32, 60] / 255, RED, atol=0.05)
    assert 0.6 < baked.notes["unreached_share"] < 0.8


def test_the_view_that_counts_more_decides() -> None:
    texture_canvas = canvas()
    texture_canvas.add(look_at_half(0.0), plain(RED), 0.4 * everywhere())
    texture_canvas.add(look_at_half(0.0), plain(BLUE), everywhere())
    # Tints are blended broadly, by 0.4 to 1; a plain picture is all tint.
    red, _, blue = texture_canvas.texture()[:3, 32, 32]
    assert blue > red


def test_cleared_it_is_as_at_first() -> None:
    texture_canvas = canvas()
    texture_canvas.add(look_at_half(0.0), plain(RED), everywhere())
    texture_canvas.start_layer()
    texture_canvas.clear()
    np.testing.assert_array_equal(texture_canvas.texture(), canvas().texture())


def test_reopened_the_material_is_the_starts_and_other_colours_stay() -> None:
    texture_canvas = canvas()
    sample = np.full((16, 16, 3), RED, np.float32)
    texture_canvas.add(look_at_half(-0.3), plain(RED), everywhere())
    texture_canvas.add(look_at_half(0.3), plain(BLUE), everywhere())
    texture_canvas.start_layer(sample)
    texture = texture_canvas.texture()
    np.testing.assert_allclose(texture[:3, 32, 8], START, atol=0.02)
    np.testing.assert_allclose(texture[:3, 32, 56], BLUE, atol=0.02)
    # Later views may paint over the material, and less so over the rest.
    assert texture[3, 32, 8] == 0 and 0.2 < texture[3, 32, 56] < 0.5

"""The contact sheet: something is seen from every side, in its own colours, the right way round."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.export.gltf import BASE_COLOUR
from pipeline.export.preview import VIEWS, preview_png, render_views
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.mesh.normalise import normalise

FRONT, RIGHT, BACK, LEFT, _, _, ABOVE, BELOW = range(len(VIEWS))


def cube(size=(2.0, 2.0, 2.0), centre=(5.0, -3.0, 9.0)) -> UVMesh:
    """A box of which every side shows the whole texture upright, as someone in front of it reads it."""
    vertices = (np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) - 0.5) * size + centre
    # Each side: bottom left, bottom right, top right, top left, seen from outside.
    sides = [(1, 5, 7, 3), (5, 4, 6, 7), (4, 0, 2, 6), (0, 1, 3, 2), (3, 7, 6, 2), (0, 4, 5, 1)]
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    faces = np.array([t for a, b, c, d in sides for t in ((a, b, c), (a, c, d))])
    uv_faces = np.array([[0, 1, 2], [0, 2, 3]] * 6)
    return UVMesh(Mesh(vertices, faces), uv, uv_faces, "input", "", np.zeros(12, np.int32))


def plain(*colour: int, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def tiles(mesh: UVMesh, image: np.ndarray, size: int = 96, **options) -> np.ndarray:
    return render_views(mesh, image, normalise(mesh.mesh.vertices), size=size, **options).astype(int)


def object_mask(mesh: UVMesh, size: int = 96) -> np.ndarray:
    """Pixels that are not background: where two differently coloured meshes differ."""
    return np.abs(tiles(mesh, plain(250, 0, 0), size) - tiles(mesh, plain(0, 0, 250), size)).sum(axis=-1) > 60


def test_every_view_shows_the_object_whole_and_in_the_middle():
    for mesh in (cube(), cube((0.2, 3, 0.2)), cube((4, 0.3, 1))):
        mask = object_mask(mesh)
        for view in mask:
            assert 0.02 < view.mean() < 0.8
            rows, columns = np.flatnonzero(view.any(axis=1)), np.flatnonzero(view.any(axis=0))
            for axis in (rows, columns):
                assert axis[0] >= 4
                assert axis[-1] <= 91
                assert abs(axis[0] + axis[-1] - 95) <= 4
        # The largest view fills its tile.
        extent = max(np.ptp(np.flatnonzero(v.any(axis=a))) for v in mask for a in (0, 1))
        assert extent > 0.8 * 96


def test_a_red_mesh_is_red_and_its_colour_recognisable():
    mesh = cube()
    mask = object_mask(mesh)
    for colour in ((200, 30, 30), (128, 128, 128), (240, 235, 225), (40, 60, 30)):
        seen = tiles(mesh, plain(*colour))
        for view in (FRONT, RIGHT, BACK, LEFT):
            middle = np.median(seen[view][mask[view]], axis=0)
            # Lit, so a little darker or lighter; the same hue.
            np.testing.assert_allclose(middle, colour, atol=26)
        shade = np.median(seen[BELOW][mask[BELOW]], axis=0)
        assert (shade > 0.5 * np.array(colour)).all()


def test_light_shows_the_shape():
    seen = tiles(cube(), plain(160, 160, 160))[4]
    levels = np.unique(np.round(seen[object_mask(cube())[4]][:, 0] / 4))
    assert np.ptp(levels) * 4 > 30


def letter_image(size: int = 128) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    image[:half, :half, 0] = 255
    image[:half, half:, 1] = 255
    image[half:, :half, 2] = 255
    image[half:, half:] = 255
    return image


@pytest.mark.parametrize("view", [FRONT, RIGHT, BACK, LEFT])
def test_an_asymmetric_texture_is_neither_mirrored_nor_upside_down(view):
    seen = tiles(cube(), letter_image())[view]
    mask = seen.max(axis=-1) - seen.min(axis=-1) > 80
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # The front side is the lower three quarters of what is seen from slightly above.
    top, bottom = rows[0] + 0.35 * np.ptp(rows), rows[0] + 0.85 * np.ptp(rows)
    left, right = columns[0] + 0.25 * np.ptp(columns), columns[0] + 0.75 * np.ptp(columns)
    corner = {(y, x): seen[int(y), int(x)] for y in (top, bottom) for x in (left, right)}
    assert corner[top, left].argmax() == 0
    assert corner[top, left][1] < 80
    assert corner[top, right].argmax() == 1
    assert corner[bottom, left].argmax() == 2
    assert corner[bottom, right].min() > 150


def test_views_look_from_where_they_say():
    """Each side of the box in its own colour: +Z, +X, -Z, -X, +Y, -Y."""
    mesh = cube()
    mesh.uv = np.array([[(side + 0.5) / 6, 0.5] for side in range(6)], np.float32)
    mesh.uv_faces = np.repeat(np.arange(6), 2)[:, None].repeat(3, axis=1)
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 250, 250], [250, 0, 250]], np.uint8)
    image = np.repeat(np.repeat(colours[None], 16, axis=0), 16, axis=1)
    seen = tiles(mesh, image)
    for view, side in ((FRONT, 0), (RIGHT, 1), (BACK, 2), (LEFT, 3), (ABOVE, 4), (BELOW, 5)):
        middle = seen[view, 48, 48]
        assert ((middle > 100) == (colours[side] > 100)).all(), (view, middle)


def test_fine_patterns_come_out_grey_not_speckled():
    """A chequer of single texels, four to a pixel and more: every pixel is near the mean."""
    image = (np.indices((1024, 1024)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    mesh = cube()
    seen = tiles(mesh, image, size=64)[FRONT]
    flat = tiles(mesh, plain(188, 188, 188, size=1024), size=64)[FRONT]
    # 188 is the sRGB value of half the light.
    assert np.abs(seen - flat)[8:56, 12:52].max() <= 6


def test_edges_are_smooth():
    seen = tiles(cube(), plain(255, 255, 255))[4][..., 0]
    background = tiles(cube(), plain(0, 0, 0))[4][..., 0]
    cover = (seen - background) / np.maximum(seen.max() - 0, 1)
    assert ((cover > 0.1) & (cover < 0.4)).sum() > 40


def test_open_surfaces_are_lit_from_behind():
    """A sheet seen from its back is as bright as from its front."""
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    sheet = UVMesh(Mesh(vertices, faces), uv, faces, "input", "", np.zeros(2, np.int32))
    seen = tiles(sheet, plain(200, 100, 50))
    np.testing.assert_allclose(seen[FRONT, 48, 48], seen[BACK, 48, 48], atol=2)


def test_the_sheet_has_the_views_in_order_and_the_same_bytes_each_time(tmp_path):
    mesh, image = cube(), letter_image()
    frame = normalise(mesh.mesh.vertices)
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    preview_png(first, mesh, {BASE_COLOUR: image}, frame, size=64)
    preview_png(second, mesh, {BASE_COLOUR: image}, frame, size=64)
    assert first.read_bytes() == second.read_bytes()
    sheet = np.asarray(Image.open(first))
    assert sheet.shape == (128, 256, 3)
    singly = tiles(mesh, image, size=64)
    np.testing.assert_array_equal(sheet[:64, 64:128], singly[RIGHT])
    np.testing.assert_array_equal(sheet[64:, 192:], singly[BELOW])
    preview_png(first, mesh, {BASE_COLOUR: image}, frame, size=64, views=6)
    sheet = np.asarray(Image.open(first))
    np.testing.assert_array_equal(sheet[:64, 64:128], singly[RIGHT])
    assert np.ptp(sheet[64:, 128:].astype(int), axis=-1).max() == 0  # empty places are background


@pytest.mark.parametrize("shape", [(64, 192), (63, 65), (1, 1), (1, 64), (2048, 2048)])
def test_textures_of_any_shape(shape):
    image = np.broadcast_to(np.array([200, 30, 30], np.uint8), (*shape, 3))
    seen = tiles(cube(), np.ascontiguousarray(image), size=32, views=1)[0]
    np.testing.assert_allclose(seen[18, 16], [200, 30, 30], atol=26)

"""Baking: which texels are surface, what fills the others, decoding in pieces, and seams, on a mesh of many charts."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from scipy.ndimage import distance_transform_edt, laplace
from scipy.sparse.csgraph import connected_components

from pipeline.bake import bake, decode, seams
from pipeline.bake.atlas import along_edges, edge_points, shared_edges, texel_map
from pipeline.bake.inpainting import dilate, extend_nearest, inpaint, surface_graph
from pipeline.core.rng import numpy_generator
from pipeline.mesh.mesh import Mesh, UVMesh

PARTS, CELLS = 2, 5  # patches a side of each cube face; cells a side of the atlas


def quilt(steps=6, padding=0.03):
    """A cube blown up to a ball, 24 patches of it as charts, each turned by a quarter more than the last."""
    vertices, faces, uv, uv_faces, charts = [], [], [], [], []
    grid = np.arange(steps + 1) / steps
    chart = 0
    for axis in range(3):
        for side in (-1, 1):
            for row in range(PARTS):
                for column in range(PARTS):
                    b, a = np.meshgrid(grid, grid, indexing="ij")
                    point = np.zeros((steps + 1, steps + 1, 3))
                    point[..., axis] = side
                    point[..., (axis + 1) % 3] = (2 * (column + a) / PARTS - 1) * side
                    point[..., (axis + 2) % 3] = 2 * (row + b) / PARTS - 1
                    place = np.stack([a, b], axis=-1) - 0.5
                    for _ in range(chart % 4):
                        place = np.stack([-place[..., 1], place[..., 0]], axis=-1)
                    cell = np.array([chart % CELLS, chart // CELLS])
                    start, uv_start = sum(map(len, vertices)), sum(map(len, uv))
                    vertices.append(point.reshape(-1, 3))
                    uv.append((cell + 0.5 + place * (1 - 2 * padding * CELLS)).reshape(-1, 2) / CELLS)
                    i = (np.arange(steps)[:, None] * (steps + 1) + np.arange(steps)).ravel()
                    quads = np.stack([i, i + 1, i + steps + 2, i + steps + 1], axis=1)
                    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
                    faces.append(triangles + start)
                    uv_faces.append(triangles + uv_start)
                    charts.append(np.full(len(triangles), chart, np.int32))
                    chart += 1
    points, index = np.unique(np.concatenate(vertices).round(9), axis=0, return_inverse=True)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    mesh = Mesh(points, index.ravel()[np.concatenate(faces)])
    return UVMesh(
        mesh, np.concatenate(uv).astype(np.float32), np.concatenate(uv_faces), "input", "", np.concatenate(charts)
    )


def pattern(position):
    """Smooth colours (..., 3) of points on the ball: what a texture without seams shows."""
    x, y, z = np.moveaxis(position, -1, 0)
    return np.stack(
        [0.5 + 0.2 * np.sin(4 * x + 2 * y), 0.5 + 0.2 * np.cos(5 * y - z), 0.5 + 0.2 * np.sin(3 * z + x * y)],
        axis=-1,
    ).astype(np.float32)


def on_texels(texels):
    """(3, S, S) of ``pattern`` on the surface, 0 elsewhere."""
    return np.where(texels.mask[..., None], pattern(texels.position), 0).transpose(2, 0, 1).copy()


MESH = quilt()


def test_texels_know_their_place_on_the_surface():
    texels = texel_map(MESH, 128)
    assert 0.4 < texels.mask.mean() < 0.75
    assert (texels.mask == (texels.face >= 0)).all()
    radius = np.linalg.norm(texels.position[texels.mask], axis=1)
    assert 0.97 < radius.min() <= radius.max() < 1.001  # chords of the unit ball
    outward = np.einsum("yxc,yxc->yx", texels.normal, texels.position)[texels.mask]
    assert np.abs(outward).min() > 0.9
    assert (texels.chart[texels.mask] == MESH.charts[texels.face[texels.mask]]).all()
    assert (texels.chart[~texels.mask] == -1).all()
    assert set(np.unique(texels.chart)) == set(range(-1, 24))


def test_positions_stay_exact_far_from_the_origin():
    mesh = Mesh(MESH.mesh.vertices + np.array([4e6, -7e6, 1e6]), MESH.mesh.faces)
    far = texel_map(UVMesh(mesh, MESH.uv, MESH.uv_faces, "input", "", MESH.charts), 64)
    near = texel_map(MESH, 64)
    np.testing.assert_allclose(far.position, near.position, atol=1e-6)


def test_every_bilinear_lookup_on_the_surface_finds_a_texel_of_its_chart():
    texels = texel_map(MESH, 96)
    rng = numpy_generator(0, "points")
    face = rng.integers(0, len(MESH.uv_faces), 4000)
    weights = rng.dirichlet([0.3] * 3, 4000)
    uv = (MESH.uv[MESH.uv_faces[face]] * weights[..., None]).sum(axis=1)
    cell = (uv * 96).astype(int)
    assert (texels.chart[cell[:, 1], cell[:, 0]] == MESH.charts[face]).all()


def test_edges_are_told_apart_and_matched_by_vertex():
    borders, interior = shared_edges(MESH)
    assert len(borders) == 12 * PARTS * 6 + 6 * 2 * (PARTS - 1) * PARTS * 6
    assert len(borders) + len(interior) == 3 * len(MESH.mesh.faces) // 2
    corner = {
        tuple(uv): v for uv, v in zip(MESH.uv[MESH.uv_faces.ravel()].tolist(), MESH.mesh.faces.ravel(), strict=True)
    }
    for edges in (borders, interior):
        for uv in edges.uv.astype(np.float32).tolist():
            ends = [[corner[tuple(end)] for end in side] for side in uv]
            assert ends[0] == ends[1]
            assert ends[0][0] != ends[0][1]
    inside = edge_points(borders, np.arange(len(borders)), np.full(len(borders), 0.5), 0.002)
    texels = texel_map(MESH, 1024, margin=0)
    cell = (inside * 1024).astype(int)
    assert (texels.chart[cell[..., 1], cell[..., 0]] == borders.chart).all()


def test_points_along_edges_are_about_a_texel_apart():
    borders, _ = shared_edges(MESH)
    edge, t = along_edges(borders, 256)
    span = np.linalg.norm(borders.uv[:, 0, 1] - borders.uv[:, 0, 0], axis=1) * 256
    count = np.bincount(edge, minlength=len(borders))
    assert (count >= span - 1e-6).all()
    assert (count <= span + 1).all()
    assert 0 < t.min() < t.max() < 1


def test_a_mesh_without_borders_has_none():
    square = Mesh(np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]]), np.array([[0, 1, 2], [0, 2, 3]]))
    uv = np.array([[0.1, 0.9], [0.9, 0.9], [0.9, 0.1], [0.1, 0.1]], np.float32)
    flat = UVMesh(square, uv, square.faces, "input", "", np.zeros(2, np.int32))
    borders, interior = shared_edges(flat)
    assert len(borders) == 0
    assert len(interior) == 1
    image = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    assert (seams.level_seams(image, flat) == image).all()
    assert seams.seam_step(image, flat)[0] == 0


def test_dilate_takes_the_nearest_texel():
    mask = np.zeros((9, 9), bool)
    mask[4, 2], mask[4, 6] = True, True
    texture = np.zeros((1, 9, 9), np.float32)
    texture[0, 4, 2], texture[0, 4, 6] = 1, 2
    full = extend_nearest(texture, mask)
    assert (full[0, :, :4] == 1).all()
    assert (full[0, :, 5:] == 2).all()
    near = extend_nearest(texture, mask, radius=1)
    assert (near != 0).sum() == 10
    assert (extend_nearest(texture, np.zeros_like(mask)) == texture).all()


def test_the_surface_graph_hangs_together_over_borders():
    texels = texel_map(MESH, 96)
    borders, _ = shared_edges(MESH)
    assert connected_components(surface_graph(texels, None)[0])[0] == 24
    graph, number = surface_graph(texels, borders)
    assert connected_components(graph)[0] == 1
    assert graph.shape == (texels.mask.sum(),) * 2
    assert (number >= 0).sum() == texels.mask.sum()
    assert graph.data.min() > 0
    assert graph.data.max() < 0.3  # no link leaps across the ball


def test_unreached_texels_take_colours_from_nearby():
    texels = texel_map(MESH, 96)
    borders, _ = shared_edges(MESH)
    truth = on_texels(texels)
    reached = texels.mask & (numpy_generator(0, "holes").uniform(size=texels.mask.shape) > 0.3)
    noisy = np.where(reached, truth, 9).astype(np.float32)
    filled = inpaint(noisy, texels, reached, borders)
    assert (filled[:, reached] == truth[:, reached]).all()
    assert (filled[:, ~texels.mask] == noisy[:, ~texels.mask]).all()
    assert np.abs(filled - truth)[:, texels.mask].mean() < 0.02
    assert filled[:, texels.mask].max() < 1


def test_a_large_unreached_area_gets_texture_and_no_smear():
    """Stripes in the texture go on as stripes in the filled area, with their contrast."""
    texels = texel_map(MESH, 160)
    borders, _ = shared_edges(MESH)
    stripes = ((np.indices(texels.mask.shape).sum(axis=0) // 3) % 2).astype(np.float32)[None]
    reached = texels.mask & (texels.position[..., 1] > -0.5)
    filled = inpaint(np.where(reached, stripes, 7).astype(np.float32), texels, reached, borders)
    new = filled[0][texels.mask & ~reached]
    assert set(np.unique(new)) == {0, 1}
    assert 0.35 < new.mean() < 0.65
    gone = texels.mask & ~reached
    inner = gone[:, 1:] & gone[:, :-1]
    changes = (filled[0, :, 1:] != filled[0, :, :-1])[inner].mean()
    assert 0.2 < changes < 0.5  # a third in the stripes themselves


def test_thin_walls_do_not_bleed_through():
    """Two sheets back to back: the unreached part of one takes its own colour, though the other is nearer."""
    n = 8
    y, x = np.meshgrid(np.arange(n + 1) / n, np.arange(n + 1) / n, indexing="ij")
    sheet = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    i = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    quads = np.stack([i, i + 1, i + n + 2, i + n + 1], axis=1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    vertices = np.concatenate([sheet, sheet - np.array([0, 0, 0.01])])
    faces = np.concatenate([triangles, triangles[:, ::-1] + len(sheet)])
    flat = sheet[:, :2] * 0.45
    uv = np.concatenate([flat + 0.02, flat + np.array([0.52, 0.02])]).astype(np.float32)
    charts = np.repeat(np.arange(2, dtype=np.int32), len(triangles))
    walls = UVMesh(Mesh(vertices, faces), uv, faces, "input", "", charts)
    texels = texel_map(walls, 64)
    colour = (texels.chart == 1).astype(np.float32)[None]
    reached = texels.mask & ((texels.chart == 1) | (texels.position[..., 0] < -0.2))
    for borders in (None, shared_edges(walls)[0]):
        filled = inpaint(np.where(reached, colour, 5).astype(np.float32), texels, reached, borders)
        assert (filled == colour)[:, texels.mask].all()
    # A sheet that nothing connects to reached texels takes what is nearest in space.
    reached = texels.mask & (texels.chart == 1)
    filled = inpaint(np.where(reached, 3, 5).astype(np.float32)[None], texels, reached, None)
    assert (filled[0][texels.mask] == 3).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing_reached_changes_nothing(share):
    texels = texel_map(MESH, 48)
    texture = on_texels(texels)
    assert (inpaint(texture, texels, np.full(texels.mask.shape, bool(share))) == texture).all()


def test_gutters_show_what_lies_across_the_border():
    size = 240
    texels = texel_map(MESH, size)
    borders, _ = shared_edges(MESH)
    gutter, known = dilate(on_texels(texels), texels, borders, 4)
    new = known & ~texels.mask
    assert new.sum() > 0.2 * texels.mask.sum() * 0.3
    assert (gutter[:, texels.mask] == on_texels(texels)[:, texels.mask]).all()
    # Each texel beyond a border goes on smoothly where the nearest chart texel would stand still.
    smear = extend_nearest(on_texels(texels), texels.mask)
    straight = extrapolated(size)
    close = new & np.isfinite(straight).all(axis=0)
    assert close.sum() > 1000
    error = np.abs(gutter - straight)[:, close].mean()
    assert error < 0.4 * np.abs(smear - straight)[:, close].mean()


def extrapolated(size):
    """(3, S, S): the pattern at points of the ball beyond each chart's border, by the cube's own map; else NaN."""
    result = np.full((3, size, size), np.nan)
    padding = 0.03
    y, x = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size, indexing="ij")
    chart = 0
    for axis in range(3):
        for side in (-1, 1):
            for row in range(PARTS):
                for column in range(PARTS):
                    cell = np.array([chart % CELLS, chart // CELLS])
                    place = (np.stack([x, y], axis=-1) * CELLS - cell - 0.5) / (1 - 2 * padding * CELLS)
                    for _ in range(chart % 4):
                        place = np.stack([place[..., 1], -place[..., 0]], axis=-1)
                    a, b = np.moveaxis(place + 0.5, -1, 0)
                    # Only inside the cube face, where the map goes on straight into the next patch.
                    u, v = (column + a) / PARTS, (row + b) / PARTS
                    ok = (np.maximum(abs(a - 0.5), abs(b - 0.5)) < 0.62) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
                    ok &= np.minimum(abs(a - 0.5), abs(b - 0.5)) < 0.5
                    point = np.zeros((size, size, 3))
                    point[..., axis] = side
                    point[..., (axis + 1) % 3] = (2 * u - 1) * side
                    point[..., (axis + 2) % 3] = 2 * v - 1
                    point /= np.linalg.norm(point, axis=-1, keepdims=True)
                    result[:, ok] = pattern(point)[ok].T
                    chart += 1
    return result


def surface_image(size):
    texels = texel_map(MESH, size, seams.LEVEL_MARGIN)
    return texels, extend_nearest(on_texels(texels), texels.mask).transpose(1, 2, 0).copy()


def test_a_texture_without_seams_measures_alike_across_and_inside():
    _, image = surface_image(256)
    across, inside = seams.seam_step(image, MESH)
    assert 0.7 < across / inside < 1.3
    eight_bits = seams.seam_step((image * 255).round().astype(np.uint8), MESH)
    np.testing.assert_allclose(eight_bits, (across, inside), rtol=0.2)


def painted_seams(size, strength):
    """The pattern with a tint of its own on every chart, and noise finer than any tint."""
    texels, image = surface_image(size)
    rng = numpy_generator(1, "tints")
    tint = rng.uniform(-strength, strength, (24, 3)).astype(np.float32)
    noise = rng.normal(0, 0.01, image.shape).astype(np.float32)
    spread = extend_nearest(texels.chart[None].astype(np.float32), texels.mask)[0].astype(int)
    return texels, image, np.clip(image + tint[spread] + noise, 0, 1)


@pytest.mark.parametrize("strength", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("size", [128, 512])
def test_painted_seams_are_seen_and_levelled(size, strength):
    texels, _, image = painted_seams(size, strength)
    across, inside = seams.seam_step(image, MESH)
    assert across > 1.5 * inside
    levelled = seams.level_seams(image, MESH, texels)
    across, inside_after = seams.seam_step(levelled, MESH)
    assert across <= 1.5 * inside_after
    # Nor is there a hard line a little farther in, where a correction that only met on the border would end.
    across, inside_there = seams.seam_step(levelled, MESH, inset=1.5)
    assert across <= 1.5 * inside_there
    # Nothing inside was blurred away to get there.
    assert inside_after > 0.85 * inside


def test_levelling_keeps_detail_and_the_middle_of_charts():
    texels, _, faulty = painted_seams(512, 0.05)
    levelled = seams.level_seams(faulty, MESH, texels)
    assert (levelled[~texels.mask] == faulty[~texels.mask]).all()
    deep = distance_transform_edt(texels.mask) > 24
    assert deep.any()
    np.testing.assert_allclose(levelled[deep], faulty[deep], atol=1e-6)
    shallow = distance_transform_edt(texels.mask) > 4
    sharpness = [
        np.abs(np.stack([laplace(c) for c in i.transpose(2, 0, 1)]))[:, shallow].mean() for i in (levelled, faulty)
    ]
    assert sharpness[0] > 0.98 * sharpness[1]


def test_levelling_leaves_a_clean_texture_alone():
    texels, image = surface_image(256)
    levelled = seams.level_seams(image, MESH, texels)
    assert np.abs(levelled - image).mean() < 2e-3


def test_levelling_is_the_same_every_time():
    texels, _, image = painted_seams(128, 0.1)
    assert (seams.level_seams(image, MESH, texels) == seams.level_seams(image, MESH, texels)).all()


class ConvPrior:
    """A randomly initialised AutoencoderTiny: enough of a prior to bake with."""

    def __init__(self, blocks=2, width=8):
        torch.manual_seed(0)
        self.network = AutoencoderTiny(
            encoder_block_out_channels=(width,) * 3,
            decoder_block_out_channels=(width,) * 3,
            num_encoder_blocks=(1,) * 3,
            num_decoder_blocks=(blocks, 1, 1),
            latent_channels=4,
        ).eval()
        self.vae_scale_factor = 4

    @torch.no_grad()
    def decode(self, latents):
        return self.network.decode(latents).sample / 2 + 0.5


class GlobalPrior(ConvPrior):
    """Every pixel depends on every latent, as with attention or group norms."""

    def decode(self, latents):
        return 0.5 + 0.1 * torch.tanh(super().decode(latents)) + 0.05 * latents.mean()


def test_pieces_decode_like_the_whole():
    prior = ConvPrior()
    latent = torch.randn(4, 70, 90, generator=torch.Generator().manual_seed(1))
    whole = prior.decode(latent[None])[0].clamp(0, 1)
    pieces = decode.decode_texture(latent, prior, piece=128)
    assert pieces.shape == whole.shape == (3, 280, 360)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)
    # The test would notice an overlap that is too small.
    assert whole.std() > 1e-3
    torch.testing.assert_close(decode.decode_texture(latent, prior, piece=4096), whole)


def test_the_receptive_field_is_measured():
    small, large = ConvPrior(blocks=1), ConvPrior(blocks=3)
    one, two = decode.receptive_radius(small, 4), decode.receptive_radius(large, 4)
    assert one is not None and two is not None
    assert 4 <= one < two <= 20
    assert decode.receptive_radius(GlobalPrior(), 4) is None


def test_a_decoder_that_sees_everything_fades_from_piece_to_piece():
    prior = GlobalPrior()
    latent = torch.randn(4, 80, 80, generator=torch.Generator().manual_seed(1))
    latent[:, :, 40:] += 1.0
    whole = prior.decode(latent[None])[0].clamp(0, 1)
    pieces = decode.decode_texture(latent, prior, piece=224)
    difference = pieces - whole
    assert 0.01 < difference.abs().max() < 0.1
    steps = torch.cat([difference.diff(dim=1).abs().flatten(), difference.diff(dim=2).abs().flatten()])
    assert steps.max() < 0.005  # cut hard, pieces would differ by 0.02


def test_resampling_keeps_colours_and_range():
    image = np.zeros((3, 64, 64), np.float32)
    image[:, :, 32:] = 1
    for size in (24, 64, 100):
        resized = bake.resize(image, size)
        assert resized.shape == (3, size, size)
        assert resized.min() >= 0
        assert resized.max() <= 1
        assert resized.mean() == pytest.approx(0.5, abs=0.02)
        assert resized[0, :, : size // 3].max() < 0.05


def test_visible_texels_do_not_depend_on_what_was_never_reached():
    """Whatever stands in gutters and unreached texels at the start, the asset is the same."""
    texels = texel_map(MESH, 64)
    reached = texels.mask & (texels.position[..., 1] > -0.8)
    results = []
    for seed in (0, 1):
        latent = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(seed))
        latent[:, torch.from_numpy(reached)] = 0.5
        results.append(bake.bake_base_colour(latent, reached, MESH, ConvPrior(), 256))
    assert (results[0].maps[bake.BASE_COLOUR] == results[1].maps[bake.BASE_COLOUR]).all()
    assert results[0].notes["texels_unreached"] > 0


@pytest.mark.parametrize("texture_size", [192, 256, 320])
def test_baking_end_to_end(texture_size):
    prior = ConvPrior()
    size = 64
    texels = texel_map(MESH, size)
    latent = np.concatenate([on_texels(texels), on_texels(texels)[:1]]) * 4 - 2
    stages = []
    baked = bake.bake_base_colour(
        torch.from_numpy(latent.astype(np.float32)),
        texels.mask,
        MESH,
        prior,
        texture_size,
        lambda *a: stages.append(a),
    )
    image = baked.maps[bake.BASE_COLOUR]
    assert image.shape == (texture_size, texture_size, 3)
    assert image.dtype == np.uint8
    assert image.std() > 1
    assert baked.notes["seam_ratio"] <= 1.5
    assert seams.seam_ratio(*seams.seam_step(image, MESH)) <= 1.5
    assert stages[0] == ("bake", 0, 4)
    assert stages[-1] == ("bake", 4, 4)
    # Empty texels were spread to: neighbours off the charts carry on the nearest chart's colour.
    fine = texel_map(MESH, texture_size, seams.LEVEL_MARGIN)
    spread = extend_nearest(image.transpose(2, 0, 1).astype(np.float32), fine.mask)
    assert (spread.transpose(1, 2, 0) == image).all()


def test_a_grey_texture_has_no_seam_however_small_the_step():
    assert seams.seam_ratio(0.001, 0.0) == 1.0
    assert seams.seam_ratio(0.01, 0.004) == pytest.approx(2.5)


@pytest.mark.parametrize(("side", "sizes"), [(8, [16, 4]), (32, [4] * 5), (64, [1] * 20)])
def test_views_are_decoded_together_as_far_as_their_pixels_allow(side, sizes):
    """Stable Diffusion's are large: sixteen of them at once would take most of a GPU."""
    seen = []

    class Decoder:
        vae_scale_factor = 8

        def decode(self, latents):
            seen.append(len(latents))
            return latents[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)

    images = decode.decode_views(torch.rand(20, 4, side, side), Decoder())
    assert seen == sizes and images.shape == (20, 3, 8 * side, 8 * side)

"""Maps laid over a mesh: they agree with the colour, dents are dents from every side, and occlusion is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import meshes
import numpy as np
import pytest
import trimesh
from gltf_shading import Glb, Surface, lit
from real.validator import validate_glbs

from pipeline.bake.atlas import texel_map
from pipeline.bake.bake import BASE_COLOUR, EMISSIVE, METALLIC_ROUGHNESS, NORMAL, OCCLUSION
from pipeline.bake.exemplar_maps import ExemplarMaps, ExemplarSettings, exemplar_maps, flat_images, slopes_of
from pipeline.bake.map_images import MeshFrame
from pipeline.bake.material import ExtraMaps, bake_material
from pipeline.bake.occlusion import measure_occlusion
from pipeline.bake.seams import LEVEL_MARGIN, seam_step
from pipeline.export.gltf import write_glb
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.mesh.normalise import normalise
from pipeline.mesh.normals import smooth_normals
from pipeline.mesh.tangents import corner_tangents
from pipeline.prior.material_estimator import MaterialMaps
from pipeline.raster.rasterise import interpolate
from pipeline.uv.unwrap import unwrap

SIDE, SIZE = 64, 256
EVERY = (NORMAL, METALLIC_ROUGHNESS, OCCLUSION, EMISSIVE, "height")


class Told:
    """An estimator that says what it was told."""

    identity = "told"

    def __init__(self, height: np.ndarray, *, roughness: float = 0.5, metalness: float = 0.0) -> None:
        self.height, self.roughness, self.metalness = height.astype(np.float32), roughness, metalness

    def estimate(self, pictures: np.ndarray, *, tileable: bool = False) -> MaterialMaps:
        assert tileable
        plane = np.ones((1, 1, *pictures.shape[2:]), np.float32)
        darker = pictures * np.float32(0.5)
        sure = np.ones((1, 3, *pictures.shape[2:]), np.float32)
        return MaterialMaps(darker, plane * self.roughness, plane * self.metalness, self.height[None, None], sure)


def bump(side: int = SIDE) -> np.ndarray:
    """One round bump a tile, in pixels."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    return side * 0.15 * np.exp(-(x**2 + y**2) / 0.03)


def grey(side: int = SIDE) -> np.ndarray:
    return np.full((side, side, 3), 0.5, np.float32)


def told_maps(height: np.ndarray, image: np.ndarray, options: ExemplarSettings, **told: float) -> ExemplarMaps:
    return exemplar_maps(image, options, Told(height, **told))


def baked_glb(
    path: Path,
    uvmesh: UVMesh,
    height: np.ndarray,
    tile: float,
    names: tuple[str, ...] = (NORMAL,),
    image: np.ndarray | None = None,
) -> Glb:
    """``uvmesh`` under an exemplar (grey) with that height, written and read back; ``tile`` in units of the mesh."""
    image = grey() if image is None else image
    frame = normalise(uvmesh.mesh.vertices, radius=0.6)
    options = ExemplarSettings(names)
    extra = ExtraMaps(
        told_maps(height, image, options), options, MeshFrame(frame.matrix[:3, :3] / frame.scale, frame.scale)
    )
    vertices = frame.apply(uvmesh.mesh.vertices)
    baked = bake_material(uvmesh, vertices, image, tile * frame.scale, SIZE, seed=3, layout="periodic", extra=extra)
    write_glb(path, uvmesh, baked.maps, name="thing", provenance={})
    return Glb(path)


def turned_cube(mirrored: bool) -> UVMesh:
    """A cube of side 1 about the origin; ``mirrored``: every other chart runs backwards in the texture."""
    uvmesh = unwrap(meshes.cube(1.0), texture_size=SIZE)
    vertices = uvmesh.mesh.vertices - uvmesh.mesh.vertices.mean(axis=0)
    uv = uvmesh.uv.astype(np.float64)
    if mirrored:
        for chart in range(0, int(uvmesh.charts.max()) + 1, 2):
            own = np.unique(uvmesh.uv_faces[uvmesh.charts == chart])
            uv[own, 0] = uv[own, 0].min() + uv[own, 0].max() - uv[own, 0]
    mesh = Mesh(vertices=vertices, faces=uvmesh.mesh.faces)
    return replace(uvmesh, mesh=mesh, uv=uv.astype(np.float32))


def by_derivatives(glb: Glb, towards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points on the faces that look ``towards``: shaded normals (P, 3), and how the base colour changes (P,) to the
    right and up. From the faces' own derivatives: uses neither TANGENT nor three.js' formulas."""
    points, uv = (glb.attributes[k].astype(np.float64)[glb.faces] for k in ("POSITION", "TEXCOORD_0"))
    edges = points[:, 1:] - points[:, :1]
    out = np.cross(edges[:, 0], edges[:, 1])
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    chosen = out @ towards > 0.9
    edges, out, flat = edges[chosen], out[chosen], (uv[:, 1:] - uv[:, :1])[chosen]
    along = np.einsum("fij,fjc->fic", np.linalg.inv(flat), edges)  # d position / d u and / d v: (F, 2, 3)
    unit = along / np.linalg.norm(along, axis=2, keepdims=True)
    share = np.random.default_rng(8).dirichlet(np.ones(3), (len(out), 2000))
    at = np.einsum("fsk,fkc->fsc", share, uv[chosen])
    said = _nearest(glb.image(glb.material["normalTexture"]), at) * 2 - 1
    # v runs down the texture, and green means up.
    normal = said[..., :1] * unit[:, None, 0] - said[..., 1:2] * unit[:, None, 1] + said[..., 2:] * out[:, None]
    base = glb.image(glb.material["pbrMetallicRoughness"]["baseColorTexture"])
    changes = []
    for direction in (np.cross([0.0, 1.0, 0.0], towards), np.array([0.0, 1.0, 0.0])):
        step = np.einsum("fcu,c->fu", np.linalg.pinv(along.transpose(0, 2, 1)).transpose(0, 2, 1), direction) * 0.03
        change = _nearest(base, at + step[:, None]) - _nearest(base, at - step[:, None])
        changes.append(change[..., 0].reshape(-1))
    return normal.reshape(-1, 3), changes[0], changes[1]


def _nearest(image: np.ndarray | None, uv: np.ndarray) -> np.ndarray:
    assert image is not None
    column, row = ((uv[..., k] * len(image)).astype(int).clip(0, len(image) - 1) for k in (0, 1))
    return image[row, column]


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_bump_lit_from_above_is_bright_on_top(tmp_path: Path, mirrored: bool) -> None:
    """On each upright side of a cube, whose colour is the brighter the higher the surface: as three.js would shade it,
    and by the faces' own derivatives."""
    picture = np.repeat((bump() / bump().max())[..., None], 3, axis=2).astype(np.float32)
    glb = baked_glb(tmp_path / "a.glb", turned_cube(mirrored), bump(), 1.0, image=picture)
    up = np.array([0.0, 1.0, 0.0])
    for towards in np.array([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]], float):
        surface = glb.seen(3 * towards, up, 96, 0.5)
        image = np.zeros(96 * 96)
        image[surface.pixel] = surface.base[:, 0] ** (1 / 2.4)
        down, right = np.gradient(image.reshape(96, 96))
        inside = np.zeros((96, 96), bool)
        inside[3:-3, 3:-3] = True
        seen = inside.reshape(-1)[surface.pixel]
        changes = (x.reshape(-1)[surface.pixel][seen] for x in (right, -down))
        brightness = lit(surface, up + towards).mean(axis=1) / (surface.base.mean(axis=1) + 0.02)
        _assert_raised(surface.normal[seen], brightness[seen], towards, *changes)
        normal, right_change, up_change = by_derivatives(glb, towards)
        _assert_raised(normal, np.clip(normal @ (up + towards), 0, None), towards, right_change, up_change)


def _assert_raised(
    normal: np.ndarray, brightness: np.ndarray, towards: np.ndarray, rightward: np.ndarray, upward: np.ndarray
) -> None:
    """Where the height falls towards the right or the top, the normal leans there, and the lamp above shows it."""
    right = np.cross([0.0, 1.0, 0.0], towards)
    assert np.corrcoef(normal @ right, rightward)[0, 1] < -0.85
    assert np.corrcoef(normal[:, 1], upward)[0, 1] < -0.85
    steep = np.abs(upward) > 0.5 * np.abs(upward).max()
    assert brightness[steep & (upward < 0)].mean() > 2 * brightness[steep & (upward > 0)].mean()


def test_normals_are_those_of_the_height_at_the_textures_scale(tmp_path: Path) -> None:
    """A wave of known slope on a sphere: the angle between the shaded and the smooth normal is the slope's."""
    uvmesh = unwrap(meshes.uv_sphere(48, 96), texture_size=SIZE)
    y, _ = np.mgrid[:SIDE, :SIDE]
    slope, period = 0.5, SIDE / 2
    height = slope * period / (2 * np.pi) * np.sin(2 * np.pi * y / period)
    glb = baked_glb(tmp_path / "a.glb", uvmesh, height, 1.0)
    surface = glb.seen(np.array([0, 0.2, 3]), np.array([0, 1.0, 0]), 128, 0.4)
    tilt = np.tan(np.arccos((surface.normal * surface.geometric).sum(axis=1).clip(-1, 1)))
    assert 0.42 < np.quantile(tilt, 0.97) < 0.56
    # Courses lie level: normals lean up and down, not aside.
    lean = surface.normal - surface.geometric
    assert np.abs(lean[:, 0]).mean() < 0.2 * np.abs(lean[:, 1]).mean()


def test_normals_meet_at_chart_borders() -> None:
    uvmesh = unwrap(meshes.uv_sphere(24, 48), texture_size=SIZE)
    frame = normalise(uvmesh.mesh.vertices, radius=0.6)
    options, rng = ExemplarSettings((NORMAL,)), np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] * 2 * np.pi / SIDE
    height = 2 * np.sin(2 * x + 1) * np.cos(3 * y) + rng.normal(size=(SIDE, SIDE)) * 0.02
    extra = ExtraMaps(told_maps(height, grey(), options), options, MeshFrame(frame.matrix[:3, :3] / frame.scale))
    baked = bake_material(
        uvmesh, frame.apply(uvmesh.mesh.vertices), grey(), 0.4, SIZE, seed=3, layout="periodic", extra=extra
    )
    texels = texel_map(uvmesh, SIZE, LEVEL_MARGIN)
    mesh = uvmesh.mesh
    normals, index = smooth_normals(mesh.vertices, mesh.faces)
    corners = corner_tangents(mesh.vertices, mesh.faces, normals, index, uvmesh.uv, uvmesh.uv_faces)
    every = np.arange(mesh.faces.size).reshape(-1, 3)
    n = interpolate(texels.face, texels.bary, normals, index)
    t = interpolate(texels.face, texels.bary, np.ascontiguousarray(corners.reshape(-1, 4)[:, :3]), every)
    b = np.cross(n, t) * corners[texels.face[texels.mask], 0, 3:]
    said = baked.maps[NORMAL][texels.mask] / 127.5 - 1
    world = np.zeros((SIZE, SIZE, 3), np.float32)
    world[texels.mask] = 0.5 + 0.5 * (said[:, :1] * t + said[:, 1:2] * b + said[:, 2:] * n)
    across, inside = seam_step(world, uvmesh)
    assert across < 1.3 * inside + 0.004


@pytest.mark.parametrize("layout", ["periodic", "hexagonal"])
def test_maps_lie_where_the_colour_lies(layout: str) -> None:
    """A roughness that is the picture's red channel is found where the red of the base colour is."""
    rng = np.random.default_rng(4)
    image = np.repeat(rng.random((SIDE // 8, SIDE // 8)), 8, 0).repeat(8, 1).astype(np.float32)
    image = np.stack([image] * 3, axis=2)
    uvmesh = unwrap(meshes.uv_sphere(24, 48), texture_size=SIZE)
    options = ExemplarSettings((METALLIC_ROUGHNESS,))
    exemplar = replace(told_maps(bump(), image, options), base_colour=image, roughness=image[..., 0])
    baked = bake_material(
        uvmesh,
        0.6 * uvmesh.mesh.vertices,
        image,
        0.5,
        SIZE,
        seed=5,
        layout=layout,  # type: ignore[arg-type]
        extra=ExtraMaps(exemplar, options, MeshFrame(np.eye(3))),
    )
    mask = texel_map(uvmesh, SIZE).mask
    red, rough = (baked.maps[k][mask][:, c].astype(float) for k, c in ((BASE_COLOUR, 0), (METALLIC_ROUGHNESS, 1)))
    if layout == "periodic":
        assert np.abs(red - rough).max() <= 1
    else:
        assert np.corrcoef(red, rough)[0, 1] > 0.9
    assert (baked.maps[METALLIC_ROUGHNESS][..., 0] == 255).all() and (baked.maps[METALLIC_ROUGHNESS][..., 2] == 0).all()


def test_the_row_overrides_estimates() -> None:
    both = ExemplarSettings((NORMAL, METALLIC_ROUGHNESS), metallic=1.0, roughness=0.3)
    maps = told_maps(bump(), grey(), both, roughness=0.8)
    assert (maps.metalness == 1).all() and np.allclose(maps.roughness, 0.3)
    assert maps.notes["map_sources"] == {
        "base_colour": "estimated",
        "normal": "estimated",
        "metallic_roughness": "given",
    }
    assert maps.notes["confidence"] == {"base_colour": 1.0, "roughness_and_metalness": 1.0, "height": 1.0}
    assert np.allclose(maps.base_colour, 0.25)
    lit_left_in = told_maps(bump(), grey(), replace(both, delight=False))
    assert np.allclose(lit_left_in.base_colour, 0.5) and lit_left_in.notes["map_sources"]["base_colour"] == "sampled"
    twice = told_maps(bump(), grey(), replace(both, normal_strength=2.0))
    np.testing.assert_allclose(twice.height, 2 * maps.height)
    given = ExemplarSettings((METALLIC_ROUGHNESS,), metallic=1.0, roughness=0.3)
    assert not given.needs_estimator and exemplar_maps(grey(), given, None).notes == {
        "map_sources": {"base_colour": "sampled", "metallic_roughness": "given"}
    }
    with pytest.raises(ValueError, match="no network"):
        exemplar_maps(grey(), both, None)


def test_a_range_of_roughness_keeps_the_contrast() -> None:
    options = ExemplarSettings((METALLIC_ROUGHNESS,), roughness_min=0.2, roughness_max=0.6)

    class Sloping(Told):
        def estimate(self, pictures: np.ndarray, *, tileable: bool = False) -> MaterialMaps:
            maps = super().estimate(pictures, tileable=tileable)
            ramp = np.linspace(0.5, 0.9, SIDE, dtype=np.float32)
            return replace(maps, roughness=np.broadcast_to(ramp, (1, 1, SIDE, SIDE)))

    rough = exemplar_maps(grey(), options, Sloping(bump())).roughness
    assert rough.min() == pytest.approx(0.2, abs=1e-4) and rough.max() == pytest.approx(0.6, abs=1e-4)


def test_flat_images_are_of_an_upright_plane() -> None:
    maps = told_maps(bump(), grey(), ExemplarSettings(EVERY), roughness=0.4)
    images = flat_images(maps, EVERY)
    assert set(images) == {NORMAL, METALLIC_ROUGHNESS, EMISSIVE}
    top, right = images[NORMAL][SIDE // 4, SIDE // 2], images[NORMAL][SIDE // 2, 3 * SIDE // 4]
    # Above the bump's middle the surface faces up: green; to the right of it, red.
    assert top[1] > 160 and abs(int(top[0]) - 128) < 6 and right[0] > 160
    assert images[METALLIC_ROUGHNESS][0, 0].tolist() == [255, 102, 0]
    assert images[NORMAL][0, 0].tolist()[2] > 250
    assert np.abs(slopes_of(maps.height)).max() < 4


def test_a_convex_body_sees_all_of_the_sky_and_a_cave_little() -> None:
    ball = meshes.uv_sphere(32, 64)
    normals, index = smooth_normals(ball.vertices, ball.faces)
    middle, flat = ball.vertices[ball.faces].mean(axis=1), _face_normals(ball)
    assert measure_occlusion(ball.vertices, ball.faces, middle, flat, normals[index].mean(axis=1)).min() > 0.97
    ring = trimesh.creation.torus(1.0, 0.45, major_sections=64, minor_sections=32)
    points, face = trimesh.sample.sample_surface(ring, 300, seed=1)
    normal = ring.face_normals[face]
    found = measure_occlusion(ring.vertices, np.asarray(ring.faces), points, normal, normal)
    rng = np.random.default_rng(0)
    rays = rng.normal(size=(300, 256, 3))
    rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    cosine = (rays * normal[:, None]).sum(axis=2)
    rays, cosine = np.where(cosine[..., None] < 0, -rays, rays), np.abs(cosine)
    origins = np.broadcast_to(points[:, None] + 1e-3 * normal[:, None], rays.shape)
    hit = ring.ray.intersects_any(origins.reshape(-1, 3), rays.reshape(-1, 3)).reshape(300, 256)
    true = ((~hit) * cosine).sum(axis=1) / cosine.sum(axis=1)
    assert np.abs(found - true).mean() < 0.03 and np.corrcoef(found, true)[0, 1] > 0.95


def _face_normals(mesh: Mesh) -> np.ndarray:
    corner = mesh.vertices[mesh.faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def test_the_validator_has_nothing_to_say_to_any_choice_of_maps(tmp_path: Path) -> None:
    uvmesh = turned_cube(True)
    choices = [(NORMAL,), (OCCLUSION,), (METALLIC_ROUGHNESS,), (EMISSIVE,), EVERY, (NORMAL, OCCLUSION)]
    paths = []
    for number, names in enumerate(choices):
        glb = baked_glb(tmp_path / f"{number}.glb", uvmesh, bump(), 1.0, names)
        paths.append(tmp_path / f"{number}.glb")
        assert ("TANGENT" in glb.attributes) == (NORMAL in names)
        assert ("occlusionTexture" in glb.material) == (OCCLUSION in names)
        assert ("emissiveTexture" in glb.material) == (EMISSIVE in names)
    validate_glbs(paths)
    whole = Glb(tmp_path / "4.glb").material
    packed = whole["pbrMetallicRoughness"]["metallicRoughnessTexture"]["index"]
    assert whole["occlusionTexture"]["index"] == packed


def test_mirrored_charts_keep_their_handedness(tmp_path: Path) -> None:
    glb = baked_glb(tmp_path / "a.glb", turned_cube(True), bump(), 1.0)
    assert set(np.unique(glb.attributes["TANGENT"][:, 3])) == {-1.0, 1.0}
    assert isinstance(glb.seen(np.array([0, 0, 3.0]), np.array([0, 1.0, 0]), 8, 0.5), Surface)

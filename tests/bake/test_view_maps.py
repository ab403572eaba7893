"""Maps estimated in pictures of a mesh: they lie where the pictures show them, in the mesh's own frame."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import meshes
import numpy as np
from gltf_shading import Glb

from pipeline.bake.atlas import texel_map
from pipeline.bake.bake import BASE_COLOUR, METALLIC_ROUGHNESS, NORMAL
from pipeline.bake.exemplar_maps import ExemplarSettings
from pipeline.bake.map_images import MeshFrame
from pipeline.bake.projection import covering_cameras
from pipeline.bake.view_maps import bake_view_maps, draw_unlit
from pipeline.export.gltf import write_glb
from pipeline.mesh.mesh import UVMesh
from pipeline.prior.material_estimator import MaterialMaps
from pipeline.raster.rasterise import interpolate
from pipeline.uv.unwrap import unwrap

SIZE, SIDE = 128, 96


class ByColour:
    """Says that red is metal, green is rough and blue is high, and that the picture is twice as bright as its base."""

    identity = "by colour"

    def estimate(self, pictures: np.ndarray, *, tileable: bool = False) -> MaterialMaps:
        assert not tileable
        red, green, blue = (pictures[:, k : k + 1] for k in range(3))
        return MaterialMaps(pictures / 2, green, red, 8 * blue, np.full_like(pictures, 0.7))


def ball() -> tuple[UVMesh, np.ndarray]:
    """A ball of radius 0.6, and a base colour that is smooth in space."""
    uvmesh = unwrap(meshes.uv_sphere(32, 64), texture_size=SIZE)
    vertices = 0.6 * uvmesh.mesh.vertices / np.linalg.norm(uvmesh.mesh.vertices, axis=1).max()
    uvmesh = replace(uvmesh, mesh=replace(uvmesh.mesh, vertices=vertices))
    texels = texel_map(uvmesh, SIZE)
    colour = np.zeros((SIZE, SIZE, 3), np.uint8)
    at = interpolate(texels.face, texels.bary, vertices, uvmesh.mesh.faces)
    colour[texels.mask] = np.rint(255 * (0.5 + 0.4 * np.sin(5 * at)))
    return uvmesh, colour


def test_they_lie_where_the_pictures_show_them(tmp_path: Path) -> None:
    uvmesh, colour = ball()
    cameras = covering_cameras(14, radius=2.2, fov=math.radians(35))
    images = draw_unlit(uvmesh, uvmesh.mesh.vertices, colour, cameras, SIDE)
    options = ExemplarSettings((NORMAL, METALLIC_ROUGHNESS, "height"))
    baked = bake_view_maps(
        uvmesh, uvmesh.mesh.vertices, cameras, images, colour, options, ByColour(), MeshFrame(np.eye(3))
    )
    mask = texel_map(uvmesh, SIZE).mask
    true, packed = (a[mask].astype(float) for a in (colour, baked.maps[METALLIC_ROUGHNESS]))
    assert np.abs(packed[:, 2] - true[:, 0]).mean() < 12 and np.abs(packed[:, 1] - true[:, 1]).mean() < 12
    assert np.abs(baked.maps[BASE_COLOUR][mask] - true / 2).mean() < 8
    assert baked.height is not None
    assert np.corrcoef(baked.height[mask], true[:, 2])[0, 1] > 0.95
    assert baked.notes["confidence"]["height"] == 0.7 and baked.notes["map_sources"]["normal"] == "estimated"
    write_glb(tmp_path / "a.glb", uvmesh, baked.maps, name="ball", provenance={})
    surface = Glb(tmp_path / "a.glb").seen(np.array([0, 0, 3.0]), np.array([0, 1.0, 0]), 64, 0.45)
    # Blue, the height, falls along z as the cosine: on the front, off its middle, it falls outwards or inwards.
    z = surface.position[:, 2]
    fall = np.cos(5 * z)[:, None] * (np.array([0, 0, 1.0]) - surface.geometric * surface.geometric[:, 2:])
    lean = surface.normal - surface.geometric
    aside = np.linalg.norm(surface.position[:, :2], axis=1) > 0.15
    assert np.corrcoef(lean[aside].ravel(), -fall[aside].ravel())[0, 1] > 0.9


def test_what_no_picture_shows_takes_what_is_near() -> None:
    uvmesh, colour = ball()
    cameras = covering_cameras(14, radius=2.2, fov=math.radians(35))[:3]
    images = draw_unlit(uvmesh, uvmesh.mesh.vertices, colour, cameras, SIDE)
    options = ExemplarSettings((METALLIC_ROUGHNESS,))
    baked = bake_view_maps(
        uvmesh, uvmesh.mesh.vertices, cameras, images, colour, options, ByColour(), MeshFrame(np.eye(3))
    )
    mask = texel_map(uvmesh, SIZE).mask
    rough = baked.maps[METALLIC_ROUGHNESS][mask][:, 1]
    assert rough.min() >= 10 and rough.max() <= 235

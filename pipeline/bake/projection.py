"""Bakes by projection: each texel takes its colour from the views that see its point of the surface best.

N views, S the texture's side, M texels on the surface, H the side of the (square) images. Positions are in the
cameras' world, which is the working frame; ``u, v`` are image coordinates in [0, 1] from the top left.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter, minimum_filter

from pipeline.bake.atlas import TexelMap, shared_edges, surface_share, texel_map
from pipeline.bake.bake import BASE_COLOUR, BakedMaps, level_and_dilate
from pipeline.bake.inpainting import inpaint_smoothly
from pipeline.bake.seams import LEVEL_MARGIN, seam_ratio
from pipeline.bake.texture_quality import pixels_per_radius
from pipeline.core.arrays import Float32Array
from pipeline.core.errors import SettingError
from pipeline.core.job import Reporter, no_report
from pipeline.mesh.mesh import UVMesh, face_normals
from pipeline.mesh.normals import is_closed, smooth_normals
from pipeline.raster.bilinear import bilinear_weights, sample_bilinear
from pipeline.raster.camera import Cameras, orbit
from pipeline.raster.rasterise import interpolate, rasterise

# Visibility is tested with at least this many pixels a side, because small images would give coarse shadows.
_LEAST_DEPTH_SIDE = 512
# The depth test clamps slopes (tangents) to this. Views at steeper angles have almost no weight.
_STEEPEST = 6.0
# A bilinear lookup within this many pixels of an outline mixes in colours from beyond it.
_MARGIN_PIXELS = 1.5
_GOLDEN = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True)
class ProjectionSettings:
    """How views are blended.

    A blur inside the object's outline splits colours into two bands. The low band is blended broadly, because views
    differ in tint and shade. The high band comes almost only from the best view, because blending views that do not
    agree to the pixel would blur it. Weights are powers of the cosine between the normal and the view.
    """

    sharp: float = 12.0
    broad: float = 3.0
    # Power of a view's weight in the high band. A larger power makes the transitions between views narrower.
    decisive: float = 1.0
    # Views at a steeper angle are not used.
    least_cosine: float = 0.15
    # Shares of the image's side: standard deviation of the blur; width over which a view fades in from the outlines
    # that it sees (a decoder mixes colours within a latent pixel); margin along outlines that is never used.
    band: float = 1 / 40
    feather: float = 1 / 20
    margin: float = 1 / 250
    # A depth step over this share of the mesh's radius is an outline.
    outline_step: float = 0.06


def covering_cameras(
    count: int,
    *,
    radius: float,
    fov: float,
    elevation_min: float = math.radians(-55),
    elevation_max: float = math.radians(80),
) -> Cameras:
    """``count`` cameras around the origin, evenly spaced by area (a Fibonacci spiral), looking at it. Radians.

    The first is the highest. Elevations lie in the given range.
    """
    low, high = math.sin(elevation_min), math.sin(elevation_max)
    height = high + (low - high) * (np.arange(count) + 0.5) / count
    near, far = 0.05 * radius, 4 * radius
    return orbit(np.arccos(height), _GOLDEN * np.arange(count), radius, fov, near=near, far=far)


def bake_projected(
    uvmesh: UVMesh,
    vertices: NDArray[np.floating],
    cameras: Cameras,
    images: NDArray[np.floating],
    texture_size: int,
    report: Reporter = no_report,
    *,
    near_depths: NDArray[np.floating] | None = None,
    shares: NDArray[np.floating] | None = None,
    settings: ProjectionSettings | None = None,
    otherwise: NDArray[np.floating] | None = None,
) -> BakedMaps:
    """The base colour map of ``uvmesh`` from pictures of it.

    Args:
        vertices: (V, 3) positions of ``uvmesh.mesh`` in the cameras' world.
        images: (N, 3, H, H), one per camera; values outside [0, 1] are clamped.
        texture_size: S, side of the map.
        near_depths: (N, h, h) of any side h: depth along the view axis of the surface in the images, inf for
            background. A pixel is not used if its image does not show the mesh there: a floater that the mesh lacks
            stands in front, or the field has nothing.
        shares: (N, h, h) of any side h, in [0, 1]: weight of each pixel relative to the other images.
        otherwise: (3,) in [0, 1], the colour of a mesh that no view sees; None makes that an error.

    The rasterised depth decides which cameras see a texel. Texels that no view sees become a smooth membrane between
    those that are seen. Then levels chart borders and spreads colours over the gutters, as for painted textures.
    Raises SettingError if the shapes do not fit, or if no view sees the mesh and ``otherwise`` is None.
    """
    started = time.perf_counter()
    settings = settings or ProjectionSettings()
    _check(cameras, images, near_depths, shares)
    positions: NDArray[np.float64] = np.asarray(vertices, np.float64)
    borders, _ = shared_edges(uvmesh)
    texels = texel_map(uvmesh, texture_size, LEVEL_MARGIN)
    surface = SurfaceTexels.of(uvmesh, positions, texels)
    blend = BlendedViews.empty(len(surface.position))
    for n in range(len(cameras)):
        depths = None if near_depths is None else np.asarray(near_depths[n], np.float32)
        counts = None if shares is None else np.asarray(shares[n], np.float32)
        add_view(blend, surface, cameras[n : n + 1], np.asarray(images[n], np.float32), depths, counts, settings)
        report("project", n + 1, len(cameras))
    painted = blend.broad > 0
    if not painted.any() and otherwise is None:
        raise SettingError("no view sees the mesh: the cameras must stand around it and look at it", stage="bake")
    colours = np.zeros((texture_size, texture_size, 3), np.float32)
    colours[texels.mask] = blend.colours() if painted.any() else otherwise
    reached = np.zeros(texels.mask.shape, bool)
    reached[texels.mask] = painted
    filled = inpaint_smoothly(np.ascontiguousarray(colours.transpose(2, 0, 1)), texels, reached, borders)
    pixels, before, after = level_and_dilate(filled, uvmesh, borders, report)
    notes = {
        "texture_size": texture_size,
        "views": len(cameras),
        "view_size": int(images.shape[-1]),
        "prior_pixels_per_radius": round(pixels_per_radius(cameras, int(images.shape[-1]), positions), 1),
        "texels_on_surface": int(texels.mask.sum()),
        "texels_unreached": int((~painted).sum()),
        "unreached_share": round(surface_share(uvmesh, texels, ~reached), 4),
        "chart_borders": len(borders),
        "seam_ratio_decoded": round(seam_ratio(*before), 3),
        "seam_ratio": round(seam_ratio(*after), 3),
        "seconds": round(time.perf_counter() - started, 2),
    }
    return BakedMaps({BASE_COLOUR: pixels}, notes)


def _check(
    cameras: Cameras,
    images: NDArray[np.floating],
    near_depths: NDArray[np.floating] | None,
    shares: NDArray[np.floating] | None,
) -> None:
    count = len(cameras)
    if images.ndim != 4 or images.shape[:2] != (count, 3) or images.shape[2] != images.shape[3]:
        raise SettingError(f"projection needs {count} square RGB images (N, 3, H, H), got {images.shape}", stage="bake")
    if near_depths is not None and (near_depths.ndim != 3 or len(near_depths) != count):
        raise SettingError(f"projection needs {count} depth images (N, h, h), got {near_depths.shape}", stage="bake")
    if shares is not None and (shares.ndim != 3 or len(shares) != count or shares.shape[1] != shares.shape[2]):
        raise SettingError(f"projection needs {count} square shares (N, h, h), got {shares.shape}", stage="bake")


@dataclass(frozen=True)
class SurfaceTexels:
    """The texels' points in the cameras' world, and the mesh they lie on."""

    position: NDArray[np.float64]  # (M, 3)
    flat: Float32Array  # (M, 3) unit normal of the face
    smooth: Float32Array  # (M, 3) unit normal interpolated over faces, so that weights do not jump at edges
    vertices: NDArray[np.float64]  # (V, 3)
    faces: NDArray[np.int64]  # (F, 3)
    radius: float
    closed: bool  # if not, cameras see both sides of a face

    @classmethod
    def of(cls, uvmesh: UVMesh, vertices: NDArray[np.float64], texels: TexelMap) -> SurfaceTexels:
        faces = uvmesh.mesh.faces
        normals, normal_faces = smooth_normals(vertices, faces, math.radians(75))
        flat = face_normals(vertices, faces)
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
        smooth = interpolate(texels.face, texels.bary, normals, normal_faces)
        smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
        centre = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        return cls(
            interpolate(texels.face, texels.bary, vertices, faces),
            flat.astype(np.float32)[texels.face[texels.mask]],
            smooth,
            vertices,
            faces,
            float(np.linalg.norm(vertices - centre, axis=1).max()),
            is_closed(uvmesh.mesh),
        )


@dataclass
class BlendedViews:
    """Weighted sums of both bands over the views so far, of C channels."""

    low: Float32Array  # (M, C)
    high: Float32Array  # (M, C)
    broad: NDArray[np.float64]  # (M,) sum of the low band's weights
    sharp: NDArray[np.float64]  # (M,)

    @classmethod
    def empty(cls, count: int, channels: int = 3) -> BlendedViews:
        low, high = (np.zeros((count, channels), np.float32) for _ in range(2))
        return cls(low, high, np.zeros(count), np.zeros(count))

    def colours(self) -> Float32Array:
        """(M, C) in [0, 1]; 0 for texels to which no view has added anything."""
        low = self.low / np.maximum(self.broad, 1e-30)[:, None]
        high = self.high / np.maximum(self.sharp, 1e-30)[:, None]
        return np.clip(low + high, 0, 1).astype(np.float32)


def add_view(
    blend: BlendedViews,
    surface: SurfaceTexels,
    camera: Cameras,
    image: Float32Array,
    near_depth: Float32Array | None,
    counts: Float32Array | None,
    settings: ProjectionSettings,
) -> tuple[NDArray[np.int64], Float32Array]:
    """Adds one view, ``image`` (C, H, H), to ``blend``. Returns the texels it shows (K,), and how well, (K,): the
    share that counts, times the cosine."""
    side = image.shape[-1]
    fine = side * max(1, -(-_LEAST_DEPTH_SIDE // side))
    depth = rasterise(surface.vertices, surface.faces, camera, fine, fine).depth[0]
    in_image = np.isfinite(depth)
    if near_depth is not None:
        in_image &= _visible(near_depth, depth, settings.outline_step * surface.radius)
    chosen, uv, distance, cosine, flat = _facing_texels(surface, camera, settings.least_cosine)
    if len(chosen) == 0:
        return chosen, np.zeros(0, np.float32)
    # A pixel's size at the texel's depth, and how much deeper the surface may be at the pixel's border.
    pixel = 2 * math.tan(float(camera.fov[0]) / 2) * distance / fine
    slope = np.minimum(np.sqrt(1 - flat**2) / np.maximum(flat, 1e-3), _STEEPEST)
    index, weight = bilinear_weights(uv, fine)
    lit = depth.ravel()[index] + (pixel * (1 + slope))[:, None] >= distance[:, None]
    visible = (weight * lit).sum(axis=1)
    nearest = index[np.arange(len(index)), weight.argmax(axis=1)]
    margin = max(settings.margin, _MARGIN_PIXELS / side)
    visible *= _fade(depth, in_image, settings, margin, surface.radius).ravel()[nearest]
    if counts is not None:
        visible *= sample_bilinear(np.ascontiguousarray(counts[..., None]), uv)[:, 0]
    used = visible > 1e-6
    chosen, uv, cosine, visible = chosen[used], uv[used], cosine[used], visible[used]
    inside = in_image.reshape(side, fine // side, side, fine // side).all(axis=(1, 3))
    picture = np.ascontiguousarray(np.clip(image, 0, 1).transpose(1, 2, 0))
    blurred = _blurred(picture, inside, settings.band * side)
    low, full_band = sample_bilinear(blurred, uv), sample_bilinear(picture, uv)
    for share, band, band_sum, weights in (
        (visible * cosine**settings.broad, low, blend.low, blend.broad),
        (visible**settings.decisive * cosine**settings.sharp, full_band - low, blend.high, blend.sharp),
    ):
        weights[chosen] += share
        band_sum[chosen] += share[:, None].astype(np.float32) * band
    return chosen, (visible * cosine).astype(np.float32)


def _facing_texels(
    surface: SurfaceTexels, camera: Cameras, least_cosine: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Texels in the image that face the camera: their numbers (K,), uv (K, 2), depth (K,), and the cosines (K,) of
    the angles to the smooth and to the flat normal."""
    towards = camera.eye[0] - surface.position
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
    flat, cosine = (np.einsum("mi,mi->m", towards, normal) for normal in (surface.flat, surface.smooth))
    if not surface.closed:
        flat, cosine = np.abs(flat), np.abs(cosine)
    chosen = np.flatnonzero((cosine > least_cosine) & (flat > 0.5 * least_cosine))
    matrix = camera.clip_from_world[0]
    clip = surface.position[chosen] @ matrix[:, :3].T + matrix[:, 3]
    depth = clip[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        uv = np.stack([(clip[:, 0] / depth + 1) / 2, (1 - clip[:, 1] / depth) / 2], axis=1)
    in_view = (depth > 0) & ((uv > 0) & (uv < 1)).all(axis=1)
    chosen = chosen[in_view]
    return chosen, uv[in_view], depth[in_view], np.minimum(cosine[chosen], 1.0), np.minimum(flat[chosen], 1.0)


def _fade(
    depth: Float32Array, visible: NDArray[np.bool_], settings: ProjectionSettings, margin: float, radius: float
) -> Float32Array:
    """(fine, fine) factor of each pixel: 0 beside outlines and the image's border, rising smoothly to 1 inwards.

    Pixels that are not ``visible`` (fine, fine) count as outside.
    """
    fine = len(depth)
    finite = np.where(np.isfinite(depth), depth, np.float32(1e6))
    outline = maximum_filter(finite, 3) - minimum_filter(finite, 3) > settings.outline_step * radius
    outline |= ~visible
    outline[[0, -1]] = True
    outline[:, [0, -1]] = True
    away = distance_transform_edt(~outline) / fine
    ramp = np.clip((away - margin) / settings.feather, 0, 1)
    # A small positive factor, so that texels which only such pixels see still take their colour from them.
    return np.where(away > margin, np.maximum(ramp * ramp * (3 - 2 * ramp), 1e-3), 0).astype(np.float32)


def _visible(near_depth: Float32Array, depth: Float32Array, slack: float) -> NDArray[np.bool_]:
    """(fine, fine) bool: whether the image shows the mesh (of rasterised ``depth``) and not background or a floater.

    ``near_depth`` (h, h) is usually coarser. So the test tolerates the mesh's own range of depth within a pixel of it,
    up to a few times ``slack``, because at outlines that range is unbounded.
    """
    fine = len(depth)
    cell = (np.arange(fine) * len(near_depth)) // fine
    visible = near_depth[cell][:, cell]
    cell_width = max(3, -(-fine // len(near_depth)))
    finite = np.where(np.isfinite(depth), depth, np.float32(1e6))
    spread = np.minimum(finite - minimum_filter(finite, cell_width), 4 * slack)
    result: NDArray[np.bool_] = np.isfinite(visible) & (visible >= finite - spread - slack)
    return result


def _blurred(picture: Float32Array, inside: NDArray[np.bool_], sigma: float) -> Float32Array:
    """(H, H, C) Gaussian mean over the pixels ``inside`` (H, H) only; the picture itself where none is near."""
    weight = gaussian_filter(inside.astype(np.float32), sigma, truncate=3.0)
    total = gaussian_filter(picture * inside[..., None], (sigma, sigma, 0), truncate=3.0)
    near = weight > 1e-3
    return np.where(near[..., None], total / np.maximum(weight, 1e-3)[..., None], picture).astype(np.float32)

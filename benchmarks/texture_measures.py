"""Measures the visible quality of a textured asset in unlit pictures of the finished GLB.

trimesh (with embreex if installed) renders the pictures: it reads the GLB, intersects rays with the surface and samples
the texture without code of latentkiln. Pictures have H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion, gaussian_filter, laplace, uniform_filter

# Pixels per radius of the object, and samples along a side of a pixel.
RADIUS, SAMPLES = 160, 2
# Directions of the pictures: azimuth and elevation in degrees.
DIRECTIONS = ((0, 15), (90, 15), (180, 15), (270, 15), (45, -10), (225, 50))
_LUMA = np.array([0.299, 0.587, 0.114])
# Pixels within this distance of an outline are left out, because the outline dominates their differences.
_MARGIN = 3
# Side in pixels of the window for local contrast.
_WINDOW = 24


@dataclass(frozen=True)
class Pictures:
    """N orthographic pictures: luminance (N, H, W) in 8-bit steps, and the surface's mask (N, H, W)."""

    rgb: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @property
    def luminance(self) -> NDArray[np.float64]:
        return self.rgb @ _LUMA


def cast(path: Path) -> Pictures:
    """Unlit orthographic pictures of the GLB at ``path`` from ``DIRECTIONS``."""
    mesh = trimesh.load(path, force="mesh", process=False)
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"), np.float64)
    uv = np.asarray(mesh.visual.uv)
    centre = mesh.bounds.mean(axis=0)
    radius = float(np.linalg.norm(mesh.vertices - centre, axis=1).max())
    side = 2 * RADIUS * SAMPLES
    steps = ((np.arange(side) + 0.5) / side * 2 - 1) * radius
    images, masks = [], []
    for azimuth, elevation in np.radians(DIRECTIONS):
        towards = np.array(
            [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)]
        )
        right = np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
        up = np.cross(towards, right)
        grid = steps[None, :, None] * right - steps[:, None, None] * up + centre + 2 * radius * towards
        origins = grid.reshape(-1, 3)
        where, ray, face = mesh.ray.intersects_location(
            origins, np.broadcast_to(-towards, origins.shape), multiple_hits=False
        )
        weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], where)
        looked_up = np.einsum("ni,nic->nc", weights, uv[mesh.faces[face]])
        colours = np.zeros((side * side, 3))
        colours[ray] = _look_up(texture, looked_up)
        hit_mask = np.zeros(side * side, bool)
        hit_mask[ray] = True
        small = _shrink(colours.reshape(side, side, 3))
        covered = _shrink(hit_mask.reshape(side, side, 1).astype(float))[..., 0]
        images.append(small / np.maximum(covered, 1e-9)[..., None] * (covered > 0)[..., None])
        masks.append(covered > 0.999)
    return Pictures(np.stack(images), np.stack(masks))


def _look_up(texture: NDArray[np.float64], uv: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear lookups. trimesh has the origin of texture coordinates at the bottom left."""
    height, width = texture.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1.001)
    y = np.clip((1 - uv[:, 1]) * height - 0.5, 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    upper = texture[top, left] * (1 - fx) + texture[top, left + 1] * fx
    lower = texture[top + 1, left] * (1 - fx) + texture[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def _shrink(image: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width, channels = image.shape
    return image.reshape(height // SAMPLES, SAMPLES, width // SAMPLES, SAMPLES, channels).mean(axis=(1, 3))


def sample_pictures(image: NDArray[np.float32], pixels_per_radius: float) -> Pictures:
    """The prior's sample (H, W, 3) in [0, 1], scaled to its size on the asset."""
    side = max(32, round(len(image) * RADIUS / pixels_per_radius))
    resized = Image.fromarray(np.rint(image * 255).astype(np.uint8)).resize((side, side), Image.Resampling.LANCZOS)
    rgb = np.asarray(resized, np.float64)[None]
    return Pictures(rgb, np.ones(rgb.shape[:3], bool))


def measures(pictures: Pictures) -> dict[str, float]:
    """Sharpness and evenness.

    gradient: mean length of the luminance gradient, 8-bit steps a pixel; laplacian: variance of the Laplacian;
    contrast: standard deviation of luminance within windows, mean; faded: share of the surface whose local contrast is
    below half of the median; scale_spread: largest over smallest dominant wavelength among well-filled windows.
    """
    gradient, laplacian, local = [], [], []
    for luminance, mask in zip(pictures.luminance, pictures.mask, strict=True):
        inside = binary_erosion(mask, iterations=_MARGIN, border_value=1)
        if not inside.any():
            continue
        rows, columns = np.gradient(luminance)
        gradient.append(np.hypot(rows, columns)[inside])
        laplacian.append(laplace(luminance)[inside])
        local.append(_local_contrast(luminance, mask)[inside])
    contrast = np.concatenate(local)
    return {
        "gradient": float(np.concatenate(gradient).mean()),
        "laplacian": float(np.concatenate(laplacian).var()),
        "contrast": float(contrast.mean()),
        "faded": float((contrast < 0.5 * np.median(contrast)).mean()),
        "scale_spread": scale_spread(pictures),
    }


def _local_contrast(luminance: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Standard deviation over a window, of surface pixels only."""
    share = uniform_filter(mask.astype(float), _WINDOW)
    mean = uniform_filter(luminance * mask, _WINDOW) / np.maximum(share, 1e-6)
    square = uniform_filter(luminance**2 * mask, _WINDOW) / np.maximum(share, 1e-6)
    return np.sqrt(np.maximum(square - mean**2, 0))


def scale_spread(pictures: Pictures, side: int = 64) -> float:
    """Ratio of the 90th to the 10th percentile of the mean wavelength, over windows (side x side) that the surface
    fills.

    1 if there are too few windows.
    """
    window = np.hanning(side)[:, None] * np.hanning(side)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    band = (frequency > 2 / side) & (frequency < 0.35)
    wavelengths = []
    for luminance, mask in zip(pictures.luminance, pictures.mask, strict=True):
        for top in range(0, len(mask) - side + 1, side // 2):
            for left in range(0, len(mask) - side + 1, side // 2):
                part = slice(top, top + side), slice(left, left + side)
                if not mask[part].all():
                    continue
                detail = luminance[part] - gaussian_filter(luminance[part], side / 4)
                power = np.abs(np.fft.fft2(detail * window)) ** 2 * band
                if power.sum() > 1e-6:
                    wavelengths.append(power.sum() / (power * frequency).sum())
    if len(wavelengths) < 4:
        return 1.0
    low, high = np.quantile(wavelengths, [0.1, 0.9])
    return float(high / low)

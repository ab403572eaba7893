"""Cameras on orbits around an object, the view words for prompts, and random cameras for painting.

N is the number of cameras. World and camera space are right-handed; a camera looks along its own -Z, with +Y
up and +X right (OpenGL). Angles are radians: ``theta`` from +Y (0 = straight above), ``phi`` from +Z towards
+X. Clip space is OpenGL's: visible points have -w <= x, y, z <= w, and w is the distance along the view axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.core.arrays import Float64Array
from pipeline.core.errors import SettingError

# A direction on the border between two view words, up to rounding, gets the more specific word.
_BORDER = 1e-9


@dataclass(frozen=True)
class Cameras:
    """N cameras; float64 arrays. ``theta`` and ``phi`` are the direction from the target to the eye."""

    eye: Float64Array  # (N, 3) world
    view: Float64Array  # (N, 4, 4) world -> camera
    projection: Float64Array  # (N, 4, 4) camera -> clip
    theta: Float64Array  # (N,)
    phi: Float64Array  # (N,) in [0, 2 pi)
    fov: Float64Array  # (N,) vertical
    close: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))  # (N,) looks at a detail

    def __post_init__(self) -> None:
        if len(self.close) != len(self.eye):
            object.__setattr__(self, "close", np.zeros(len(self.eye), bool))

    def __len__(self) -> int:
        return len(self.eye)

    def __getitem__(self, index: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Cameras:
        """The cameras of a slice, mask or index array (not of one integer: N stays the first axis)."""
        return Cameras(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def clip_from_world(self) -> Float64Array:
        """(N, 4, 4) float64: maps homogeneous world points (columns) to clip space."""
        return self.projection @ self.view

    def words(self, angle_front: float = math.radians(70)) -> list[str]:
        """One view word per camera."""
        return view_words(self.theta, self.phi, angle_front)


def directions(theta: ArrayLike, phi: ArrayLike) -> Float64Array:
    """Unit vectors (..., 3) from the target towards a camera at polar angle theta and azimuth phi."""
    theta, phi = np.broadcast_arrays(np.asarray(theta, np.float64), np.asarray(phi, np.float64))
    sine: Float64Array = np.sin(theta)
    return np.stack([sine * np.sin(phi), np.cos(theta), sine * np.cos(phi)], axis=-1)


def angles(direction: ArrayLike) -> tuple[Float64Array, Float64Array]:
    """(theta, phi) of vectors (..., 3) of any length; phi in [0, 2 pi), 0 on the vertical axis."""
    direction = np.asarray(direction, np.float64)
    x, y, z = np.moveaxis(direction, -1, 0)
    theta = np.arctan2(np.hypot(x, z), y)
    return theta, _wrapped(np.arctan2(x, z))


def orbit(
    theta: ArrayLike,
    phi: ArrayLike,
    radius: ArrayLike,
    fov: ArrayLike,
    target: ArrayLike = (0.0, 0.0, 0.0),
    aspect: float = 1.0,
    near: float = 0.05,
    far: float = 10.0,
) -> Cameras:
    """Cameras at ``radius`` from ``target`` ((3,) or (N, 3)) that look at it, with +Y up in the image.

    Arguments broadcast to N. ``aspect`` is width / height; ``fov`` is vertical. At the poles, where "up" is undefined,
    the camera keeps the heading of its azimuth: from above, +X is to the right at phi = 0.
    """
    target = np.atleast_2d(np.asarray(target, np.float64))
    shape = np.broadcast_shapes(*(np.shape(np.atleast_1d(a)) for a in (theta, phi, radius, fov)), target.shape[:1])
    theta, phi, radius, fov = (
        np.array(np.broadcast_to(np.atleast_1d(np.asarray(a, np.float64)), shape)) for a in (theta, phi, radius, fov)
    )
    if np.any(radius <= 0) or np.any(fov <= 0) or np.any(fov >= math.pi):
        raise SettingError("camera: radius must be above 0, field of view between 0 and 180 degrees")
    if not 0 < near < far:
        raise SettingError(f"camera: needs 0 < near < far, got near {near} and far {far}")
    backward = directions(theta, phi)
    right = np.stack([np.cos(phi), np.zeros_like(phi), -np.sin(phi)], axis=-1)
    up = np.cross(backward, right)
    eye = target + radius[:, None] * backward
    view = np.zeros((*shape, 4, 4))
    view[:, :3, :3] = np.stack([right, up, backward], axis=1)
    view[:, :3, 3] = -np.einsum("nij,nj->ni", view[:, :3, :3], eye)
    view[:, 3, 3] = 1
    focal = 1 / np.tan(fov / 2)
    projection = np.zeros((*shape, 4, 4))
    projection[:, 0, 0] = focal / aspect
    projection[:, 1, 1] = focal
    projection[:, 2, 2] = (far + near) / (near - far)
    projection[:, 2, 3] = 2 * far * near / (near - far)
    projection[:, 3, 2] = -1
    return Cameras(eye, view, projection, theta, _wrapped(phi), fov)


def view_words(
    theta: ArrayLike,
    phi: ArrayLike,
    angle_front: float = math.radians(70),
    angle_overhead: float = math.radians(30),
) -> list[str]:
    """The view word of each direction.

    ``overhead`` within ``angle_overhead`` of straight above and ``bottom`` within it of straight below; else
    ``front`` within half of ``angle_front`` of phi = 0, ``back`` within the same of pi, ``side`` otherwise.
    A direction on a border gets the more specific word, not ``side``. phi may be any real number.
    """
    if not 0 < angle_front <= math.pi or not 0 <= angle_overhead < math.pi / 2:
        raise SettingError("camera: angle_front must lie in (0, 180] and angle_overhead in [0, 90) degrees")
    theta, phi = np.broadcast_arrays(
        np.atleast_1d(np.asarray(theta, np.float64)), np.atleast_1d(np.asarray(phi, np.float64))
    )
    from_front = np.abs(phi - 2 * math.pi * np.round(phi / (2 * math.pi)))  # 0 .. pi, whatever the turn
    half = angle_front / 2 + _BORDER
    word = np.full(theta.shape, "side", dtype=object)
    word[from_front >= math.pi - half] = "back"
    word[from_front <= half] = "front"
    word[theta >= math.pi - angle_overhead - _BORDER] = "bottom"
    word[theta <= angle_overhead + _BORDER] = "overhead"
    return [str(w) for w in word]


@dataclass(frozen=True)
class CameraSettings:
    """Cameras for painting an object whose farthest vertex lies at ``object_radius``. Radians."""

    elevation_min: float = math.radians(-60)
    elevation_max: float = math.radians(80)
    fov: float = math.radians(60)
    object_radius: float = 0.6
    # Overviews: the bounding sphere fills this share of the image's height.
    fill: tuple[float, float] = (0.85, 1.1)
    # Close-ups: share of the views, and the height of the image at the target, in object radii.
    close_up: float = 0.5
    close_height: tuple[float, float] = (0.45, 0.9)
    # Close-ups stand within this angle of the surface normal, where normals are given.
    close_angle: float = math.radians(40)
    # Distance of the near plane.
    near: float = 0.02

    def __post_init__(self) -> None:
        if not -math.pi / 2 <= self.elevation_min <= self.elevation_max <= math.pi / 2:
            raise SettingError("camera: needs -90 <= elevation_min <= elevation_max <= 90 degrees")
        if not 0 <= self.close_up <= 1:
            raise SettingError(f"camera: close_up is a share in [0, 1], got {self.close_up}")


def sample_paint_cameras(
    rng: np.random.Generator,
    n: int,
    settings: CameraSettings,
    targets: ArrayLike | None = None,
    normals: ArrayLike | None = None,
    near: float = 0.02,
) -> Cameras:
    """``n`` cameras for one step: overviews, which show the full object at the origin, and close-ups of points on it.

    Directions are uniform by *area* inside the elevation range (uniform angles would crowd the poles) and stratified
    over the batch: each camera's distribution is exactly uniform, but the cameras of a batch spread out. Close-ups look
    at surface points ``targets`` (M, 3), with ``normals`` (M, 3) if known. Without targets there are only overviews.
    The number of close-ups is n * close_up, rounded at random so that the share holds on average. The count of random
    numbers drawn depends only on the shapes of the arguments.
    """
    low, high = math.sin(settings.elevation_min), math.sin(settings.elevation_max)
    height = low + (high - low) * _stratified(rng, n)
    theta = np.arccos(np.clip(height, -1, 1))
    phi = 2 * math.pi * _stratified(rng, n)
    fill = rng.uniform(*settings.fill, size=n)
    radius = settings.object_radius / np.sin(settings.fov / 2) / fill
    target = np.zeros((n, 3))
    close = rng.permutation(n) < math.floor(n * settings.close_up + rng.uniform())
    picks = rng.uniform(size=n)
    image_height = settings.object_radius * rng.uniform(*settings.close_height, size=n)
    cone = np.arccos(1 - rng.uniform(size=n) * (1 - math.cos(settings.close_angle)))
    turn = rng.uniform(0, 2 * math.pi, size=n)
    if targets is None or len(np.atleast_2d(np.asarray(targets))) == 0:
        close = np.zeros(n, bool)
    else:
        points = np.atleast_2d(np.asarray(targets, np.float64))
        chosen = np.minimum((picks * len(points)).astype(np.int64), len(points) - 1)
        target[close] = points[chosen][close]
        radius[close] = (image_height / (2 * math.tan(settings.fov / 2)))[close]
        if normals is not None:
            facing = np.atleast_2d(np.asarray(normals, np.float64))[chosen]
            looking = _tilted(facing, cone, turn)
            close_theta, close_phi = angles(looking)
            close_theta = np.clip(
                close_theta, math.pi / 2 - settings.elevation_max, math.pi / 2 - settings.elevation_min
            )
            theta[close] = close_theta[close]
            phi[close] = close_phi[close]
    cameras = orbit(theta, phi, radius, settings.fov, target, near=near)
    return replace(cameras, close=close)


@dataclass(frozen=True)
class OrbitSettings:
    """Cameras that look at the origin (docs/method.md, section 3). Radians; (least, most) each."""

    elevation: tuple[float, float] = (math.radians(-60), math.radians(80))
    radius: tuple[float, float] = (1.0, 1.5)
    fov: tuple[float, float] = (math.radians(40), math.radians(70))


def sample_orbit_cameras(rng: np.random.Generator, n: int, settings: OrbitSettings, near: float = 0.02) -> Cameras:
    """``n`` cameras for one step: directions uniform by area and stratified, radius and field of view uniform."""
    low, high = math.sin(settings.elevation[0]), math.sin(settings.elevation[1])
    theta = np.arccos(np.clip(low + (high - low) * _stratified(rng, n), -1, 1))
    phi = 2 * math.pi * _stratified(rng, n)
    return orbit(theta, phi, rng.uniform(*settings.radius, size=n), rng.uniform(*settings.fov, size=n), near=near)


def sample_surface(
    rng: np.random.Generator, vertices: ArrayLike, faces: ArrayLike, n: int
) -> tuple[Float64Array, Float64Array]:
    """``n`` points uniform by area on a triangle mesh and their unit face normals, (n, 3) each.

    For a mesh without area, returns its corners, with normals that point away from their mean.
    """
    corners = np.asarray(vertices, np.float64)[np.asarray(faces)]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    twice_area = np.linalg.norm(cross, axis=1)
    total = np.cumsum(twice_area)
    a, b, pick = rng.uniform(size=(3, n))
    if not total[-1] > 0:
        points = corners[np.minimum((pick * len(corners)).astype(np.int64), len(corners) - 1), 0]
        away = points - corners.mean(axis=(0, 1))
        return points, away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-30)
    face = np.minimum(np.searchsorted(total, pick * total[-1], side="right"), len(total) - 1)
    flip = a + b > 1
    a, b = np.where(flip, 1 - a, a), np.where(flip, 1 - b, b)
    origin, first, second = np.moveaxis(corners[face], 1, 0)
    points = origin + a[:, None] * (first - origin) + b[:, None] * (second - origin)
    return points, cross[face] / np.maximum(twice_area[face], 1e-300)[:, None]


def _wrapped(phi: Float64Array) -> Float64Array:
    """phi in [0, 2 pi). np.mod alone may round a tiny negative angle up to 2 pi."""
    wrapped = np.mod(phi, 2 * math.pi)
    return np.where(wrapped >= 2 * math.pi, 0.0, wrapped)


def _stratified(rng: np.random.Generator, n: int) -> Float64Array:
    """n numbers in [0, 1), one in each n-th, in random order; each alone is uniform."""
    return (rng.permutation(n) + rng.uniform(size=n)) / max(n, 1)


def _tilted(axis: Float64Array, angle: Float64Array, turn: Float64Array) -> Float64Array:
    """Unit vectors at ``angle`` from each unit ``axis`` (N, 3), rotated about it by ``turn``."""
    helper = np.where(np.abs(axis[:, 1:2]) < 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
    first = np.cross(helper, axis)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-30)
    second = np.cross(axis, first)
    sideways = np.cos(turn)[:, None] * first + np.sin(turn)[:, None] * second
    tilted: Float64Array = np.cos(angle)[:, None] * axis + np.sin(angle)[:, None] * sideways
    return tilted


def ray_directions(cameras: Cameras, height: int, width: int) -> np.ndarray:
    """(N, height, width, 3) unit vectors through the pixel centres, working frame; row 0 is the top."""
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = 1 - (np.arange(height) + 0.5) / height * 2
    focal = cameras.projection[:, [0, 1], [0, 1]]  # (N, 2)
    ray = np.empty((len(cameras), height, width, 3))
    ray[..., 0] = x[None, None, :] / focal[:, 0, None, None]
    ray[..., 1] = y[None, :, None] / focal[:, 1, None, None]
    ray[..., 2] = -1
    # The rows of the view's rotation are the camera's axes in the world, so its transpose maps rays to the world.
    ray = np.einsum("nji,nhwj->nhwi", cameras.view[:, :3, :3], ray)
    result: np.ndarray = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    return result

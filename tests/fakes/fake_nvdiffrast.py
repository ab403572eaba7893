"""A stand-in for ``nvdiffrast.torch`` that checks each argument against the library's contract and then answers
with our plain twin, in the library's own layout. Written from its sources (v0.4.0): the checks are those of its
C++ entry points, which end a program with an exception, and those of its documentation.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import CudaTensor, marked, plain
from torch import Tensor

from pipeline.raster.rasterise import torch_backend

calls: list[tuple[str, dict[str, Any]]] = []


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in where ``import nvdiffrast.torch`` finds it, and forgets earlier calls."""
    calls.clear()
    package = types.ModuleType("nvdiffrast")
    module = types.ModuleType("nvdiffrast.torch")
    package.__spec__ = importlib.machinery.ModuleSpec("nvdiffrast", None, is_package=True)
    package.__path__ = []
    for function in (RasterizeCudaContext, rasterize, interpolate, texture, antialias):
        setattr(module, function.__name__, function)
    package.torch = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)


def check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def check_tensor(name: str, tensor: Any, dtype: torch.dtype, *shape: int | None) -> None:
    """On the device, contiguous, of ``dtype``, not empty, and of ``shape`` (None: any size above 0)."""
    check(isinstance(tensor, Tensor), f"{name} must be a tensor")
    check(isinstance(tensor, CudaTensor), f"{name} must reside on the GPU")
    check(plain(tensor).is_contiguous(), f"{name} must be contiguous")
    check(tensor.dtype == dtype, f"{name} must be {dtype}, is {tensor.dtype}")
    check(tensor.dim() == len(shape), f"{name} must have {len(shape)} dimensions, has {tuple(tensor.shape)}")
    for size, wanted in zip(tensor.shape, shape, strict=True):
        check(size > 0 and wanted in (None, size), f"{name} must have shape {shape}, has {tuple(tensor.shape)}")


class RasterizeCudaContext:
    """A context belongs to one device."""

    def __init__(self, device: Any = None):
        check(device is None or torch.device(device).type == "cuda", f"a context on {device}")
        calls.append(("context", {"device": device}))


def rasterize(
    glctx: Any, pos: Tensor, tri: Tensor, resolution: Any, ranges: Tensor | None = None, grad_db: bool = True
) -> tuple[Tensor, Tensor]:
    """(N, H, W, 4) of (u, v, z/w, id + 1), bottom-up, and the derivatives (zeros: nobody here reads them)."""
    assert isinstance(glctx, RasterizeCudaContext)
    assert grad_db is True or grad_db is False
    instanced = pos.dim() == 3
    check_tensor("pos", pos, torch.float32, *((None, None, 4) if instanced else (None, 4)))
    check_tensor("tri", tri, torch.int32, None, 3)
    height, width = tuple(resolution)
    check(type(height) is int and type(width) is int and height > 0 and width > 0, "resolution must be [>0, >0]")
    calls.append(("rasterize", {"pos": pos, "tri": tri, "resolution": (height, width), "ranges": ranges}))
    positions, triangles = plain(pos), plain(tri)
    check(int(triangles.min()) >= 0 and int(triangles.max()) < positions.shape[-2], "tri: indices beyond pos")
    if instanced:
        parts = [(p, triangles, 0) for p in positions]
    else:
        check(isinstance(ranges, Tensor) and not isinstance(ranges, CudaTensor), "ranges must reside on the CPU")
        assert ranges is not None
        check(ranges.dtype == torch.int32 and ranges.is_contiguous(), "ranges must be contiguous int32")
        check(ranges.dim() == 2 and len(ranges) > 0 and ranges.shape[1] == 2, "ranges must have shape [>0, 2]")
        parts = []
        for start, count in ranges.tolist():
            check(start >= 0 and count > 0 and start + count <= len(triangles), "ranges: beyond tri")
            parts.append((positions, triangles[start : start + count], start))
    out = torch.stack([_draw(p, t, height, width, first) for p, t, first in parts])
    return marked(out), marked(torch.zeros_like(out))


def _draw(clip: Tensor, triangles: Tensor, height: int, width: int, first: int) -> Tensor:
    """One image. Who is seen is found by the plain twin, which wants points and a matrix: (x, y, w) as points, z as
    a w + b; a perspective projection's z is that, and whatever lies beyond the far plane would be clipped, which is not
    ours. Corners in sight are snapped to the library's 1/16 pixel. The values are those of the corners as they were.
    """
    corners = clip.double().numpy()
    used = corners[triangles.unique().long()]
    check(bool((used[:, 2] <= used[:, 3]).all()), "a vertex beyond the far plane: its face would be cut")
    (a, b), *_ = np.linalg.lstsq(np.stack([used[:, 3], np.ones(len(used))], axis=1), used[:, 2], rcond=None)
    check(np.abs(a * used[:, 3] + b - used[:, 2]).max() < 1e-5, "z is not linear in w")
    matrix = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, a, b], [0, 0, 1, 0]], np.float64)
    snapped = np.ascontiguousarray(corners[:, [0, 1, 3]])
    ahead = corners[:, 2] > -corners[:, 3]
    w, steps = snapped[ahead, 2:], np.array([width, height]) * 8.0
    snapped[ahead, :2] = np.rint(snapped[ahead, :2] / w * steps) / steps * w
    face = torch_backend.rasterise(snapped, triangles.numpy(), matrix[None], height, width, False)[0][0]
    row, column = np.nonzero(face >= 0)
    place = np.stack([(column + 0.5) / width * 2 - 1, 1 - (row + 0.5) / height * 2], axis=1)
    p = corners[triangles.numpy()[face[row, column]]]  # (M, 3, 4)
    q = p[..., :2] - place[:, None] * p[..., 3:]
    one, two = np.roll(q, -1, axis=1), np.roll(q, -2, axis=1)
    areas = one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.nan_to_num(areas[:, :2] / areas.sum(axis=1, keepdims=True)).clip(0, 1)
        depth = np.nan_to_num((areas * p[..., 2]).sum(axis=1) / (areas * p[..., 3]).sum(axis=1)).clip(-1, 1)
    image = np.zeros((height, width, 4), np.float32)
    image[row, column, :2] = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
    image[row, column, 2] = depth
    image[row, column, 3] = face[row, column] + 1 + first
    return torch.from_numpy(image[::-1].copy())  # row 0 is the lowest


def interpolate(attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Any = None, diff_attrs: Any = None) -> Any:
    """Attributes (V, A) in range mode or (N, V, A) at the pixels of ``rast``: (N, H, W, A), zero where nothing is."""
    check_tensor("rast", rast, torch.float32, None, None, None, 4)
    check_tensor("tri", tri, torch.int32, None, 3)
    check_tensor("attr", attr, torch.float32, *([None] * attr.dim()))
    check(attr.dim() in (2, 3), "attr must have shape [>0, >0, >0] or [>0, >0]")
    check(attr.dim() == 2 or len(attr) in (1, len(rast)), "minibatch size mismatch between inputs rast, attr")
    calls.append(("interpolate", {"attr": attr, "rast": rast, "tri": tri}))
    values, image, corners = plain(attr), plain(rast), plain(tri).long()
    seen = image[..., 3] > 0
    weights = torch.cat([image[..., :2], 1 - image[..., :2].sum(-1, keepdim=True)], -1)
    index = corners[(image[..., 3].long() - 1).clamp(min=0)]
    view = torch.arange(len(image))[:, None, None, None] % (len(values) if values.dim() == 3 else 1)
    picked = values[view, index] if values.dim() == 3 else values[index]
    result = (picked * weights[..., None]).sum(-2) * seen[..., None]
    return marked(result), marked(result.new_zeros(*result.shape[:3], 0))


def texture(tex: Tensor, uv: Tensor, *, filter_mode: str = "auto", boundary_mode: str = "wrap") -> Tensor:
    """Texels (N or 1, H, W, C) at ``uv`` (N, h, w, 2): (N, h, w, C). Row 0 of ``tex`` is at v = 0."""
    from pipeline.raster.texture.torch_backend import gather_texture

    check_tensor("tex", tex, torch.float32, None, None, None, None)
    check_tensor("uv", uv, torch.float32, None, None, None, 2)
    check(len(tex) in (1, len(uv)), "minibatch size mismatch between inputs tex, uv")
    check(filter_mode in ("auto", "linear", "nearest"), f"filter_mode {filter_mode} is not imitated")
    check(boundary_mode == "clamp", f"boundary_mode {boundary_mode} is not imitated")
    calls.append(("texture", {"tex": tex, "uv": uv, "filter_mode": filter_mode, "boundary_mode": boundary_mode}))
    mode = "nearest" if filter_mode == "nearest" else "bilinear"
    images, places = plain(tex), plain(uv)
    rows = [
        gather_texture(images[i % len(images)].permute(2, 0, 1), place.reshape(-1, 2), mode)  # type: ignore[arg-type]
        for i, place in enumerate(places)
    ]
    return marked(torch.stack(rows).reshape(*uv.shape[:3], tex.shape[3]))


def antialias(
    color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, topology_hash: Any = None, pos_gradient_boost: float = 1.0
) -> Tensor:
    """``color`` (N, H, W, C) with its silhouettes smoothed; instanced. Additions come in another order each time."""
    check_tensor("color", color, torch.float32, None, None, None, None)
    check_tensor("rast", rast, torch.float32, *color.shape[:3], 4)
    check_tensor("pos", pos, torch.float32, len(color), None, 4)
    check_tensor("tri", tri, torch.int32, None, 3)
    check(topology_hash is None and pos_gradient_boost == 1.0, "not imitated")
    calls.append(("antialias", {"color": color, "rast": rast, "pos": pos, "tri": tri}))
    image, pixels, triangles = plain(color), plain(rast).double().numpy(), plain(tri).numpy()
    wings = _wings(triangles)
    found: list[tuple[int, int, float]] = []
    height, width = pixels.shape[1:3]
    for view, (raster, corners) in enumerate(zip(pixels, plain(pos).double().numpy(), strict=True)):
        for down in (0, 1):
            first, second = (raster[:-1], raster[1:]) if down else (raster[:, :-1], raster[:, 1:])
            for y, x in zip(*np.nonzero(first[..., 3] != second[..., 3]), strict=True):
                alpha = _alpha(raster, corners, triangles, wings, int(x), int(y), down)
                place = (view * height + y) * width + x
                found.append((int(place), int(place + (width if down else 1)), alpha))
    _order.shuffle(found)
    flat = image.reshape(-1, image.shape[-1])
    total = flat
    for one, other, alpha in found:
        if alpha:
            target = torch.tensor([one if alpha > 0 else other])
            total = total.index_add(0, target, (alpha * (flat[other] - flat[one]))[None])
    return marked(total.reshape(image.shape))


_order = np.random.default_rng()


def _wings(triangles: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """The third vertices at each edge, by its vertices in ascending order."""
    found: dict[tuple[int, int], list[int]] = {}
    for triangle in triangles.tolist():
        for k in range(3):
            a, b = sorted((triangle[k - 2], triangle[k - 1]))
            found.setdefault((a, b), []).append(triangle[k])
    return found


def _alpha(raster: Any, clip: Any, triangles: Any, wings: Any, x: int, y: int, down: int) -> float:
    """Of pixel (x, y) and the one to its right, or with ``down`` the one in the next row: how they mix."""
    height, width = raster.shape[:2]
    (z0, id0), (z1, id1) = raster[y, x, 2:], raster[y + down, x + 1 - down, 2:]
    first = id1 == 0 or (id0 != 0 and z0 < z1)
    px, py = (x, y) if first else (x + 1 - down, y + down)
    triangle = triangles[int(id0 if first else id1) - 1].tolist()

    def project(vertex: int) -> tuple[float, float]:
        cx, cy, _, w = clip[vertex]
        return (cx / w + 1) * width / 2 - px - 0.5, (cy / w + 1) * height / 2 - py - 0.5

    def area(a: Any, b: Any, c: Any) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])

    corner = [project(v) for v in triangle]
    own = area(*corner)
    sign = 1.0 if first else -1.0
    best: tuple[float, bool] = (-np.inf, False)
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        others = list(wings[tuple(sorted((triangle[i], triangle[j])))])
        others.remove(triangle[k])
        wing = project(others[0]) if len(others) == 1 else corner[k]
        outline = np.signbit(area(*(wing if n == k else corner[n] for n in range(3)))) == np.signbit(own)
        (x1, y1), (x2, y2) = (corner[i][::-1], corner[j][::-1]) if down else (corner[i], corner[j])
        if np.signbit(y1) != np.signbit(y2):
            cut = sign * (x1 * (y2 - y1) - y1 * (x2 - x1)) / (y2 - y1)
            best = max(best, (cut, bool(outline and abs(y2 - y1) >= abs(x2 - x1))))
    cut, good = best
    if not good or not -0.0625 < cut < 1.0625:
        return 0.0
    return float(sign * (0.5 - min(max(cut, 0.0), 1.0)))

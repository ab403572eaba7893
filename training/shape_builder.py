"""Builds shapes from primitives: rows of a float64 array (P, ROW) as `render` reads them."""

from __future__ import annotations

import math

import numpy as np

from training import render as r


def rotation(ax: float, ay: float, az: float) -> np.ndarray:
    """Rotation matrix (3, 3) from Euler angles in radians, world = Rz Ry Rx local."""
    cx, sx, cy, sy, cz, sz = (f(t) for t in (ax, ay, az) for f in (math.cos, math.sin))
    mx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    my = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    mz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return mz @ my @ mx


class Shape:
    """Collects primitives; `array()` centres them and scales them into the unit ball."""

    def __init__(self, blend: float = 0.0) -> None:
        self.rows: list[np.ndarray] = []
        self.blend = blend

    def add(
        self,
        kind: int,
        dims: tuple[float, ...],
        at: tuple[float, float, float] = (0, 0, 0),
        rot: tuple[float, float, float] = (0, 0, 0),
        slot: int = 0,
        blend: float | None = None,
    ) -> Shape:
        """Append a primitive; ``dims`` as in `render._primitive`, ``rot`` in radians."""
        row = np.zeros(r.ROW)
        row[r.KIND] = kind
        row[r.POS : r.POS + 3] = at
        row[r.ROT : r.ROT + 9] = rotation(*rot).T.ravel()
        row[r.DIM : r.DIM + len(dims)] = dims
        row[r.SLOT] = slot
        row[r.BLEND] = self.blend if blend is None else blend
        a, b, c, d = row[r.DIM : r.DIM + 4]
        row[r.BOUND] = {
            r.ELLIPSOID: max(a, b, c),
            r.BOX: math.sqrt(a * a + b * b + c * c),
            r.CYLINDER: math.hypot(a, b),
            r.CONE: math.hypot(max(a, c), b) + d,
            r.TORUS: a + b,
            r.CAPSULE: a + b,
        }[kind]
        self.rows.append(row)
        return self

    def ball(self, radius, at=(0, 0, 0), slot=0, blend=None):
        """Append a sphere, or an ellipsoid if radius is a triple."""
        dims = tuple(radius) if isinstance(radius, tuple) else (radius, radius, radius)
        return self.add(r.ELLIPSOID, dims, at, slot=slot, blend=blend)

    def box(self, half, at=(0, 0, 0), slot=0, round_=0.03, rot=(0, 0, 0), blend=None):
        """Append a rounded box with half extents `half`."""
        return self.add(r.BOX, (*half, min(round_, 0.9 * min(half))), at, rot, slot, blend)

    def rod(self, radius, half, at=(0, 0, 0), slot=0, rot=(0, 0, 0), round_=0.02, blend=None):
        """Append a cylinder along y."""
        return self.add(r.CYLINDER, (radius, half, 0, min(round_, 0.8 * min(radius, half))), at, rot, slot, blend)

    def cone(self, bottom, half, top=0.0, at=(0, 0, 0), slot=0, rot=(0, 0, 0), blend=None):
        """Append a (truncated) cone along y."""
        return self.add(r.CONE, (bottom, half, top, 0.01), at, rot, slot, blend)

    def ring(self, major, minor, at=(0, 0, 0), slot=0, rot=(0, 0, 0), blend=None):
        """Append a torus around y."""
        return self.add(r.TORUS, (major, minor), at, rot, slot, blend)

    def pill(self, radius, half, at=(0, 0, 0), slot=0, rot=(0, 0, 0), blend=None):
        """Append a capsule along y."""
        return self.add(r.CAPSULE, (radius, half), at, rot, slot, blend)

    def limb(self, p, q, radius, slot=0, blend=None):
        """Append a capsule from p to q."""
        p, q = np.asarray(p, float), np.asarray(q, float)
        d = q - p
        n = float(np.linalg.norm(d)) + 1e-9
        # Rz Rx turns +y onto d.
        return self.pill(
            radius,
            n / 2,
            tuple((p + q) / 2),
            slot,
            (math.asin(max(-1.0, min(1.0, d[2] / n))), 0.0, -math.atan2(d[0], d[1] + 1e-12)),
            blend,
        )

    def array(self, fit: float = 1.0) -> np.ndarray:
        """All primitives, with their bounding box centred and scaled so that its farthest bound lies at `fit`."""
        a = np.stack(self.rows)
        low, high = np.full(3, 9.0), np.full(3, -9.0)
        for row in a:
            m = row[r.ROT : r.ROT + 9].reshape(3, 3).T
            d = row[r.DIM : r.DIM + 4]
            kind = int(row[r.KIND])
            if kind in (r.ELLIPSOID, r.BOX):
                half = d[:3]
            elif kind == r.CYLINDER:
                half = np.array([d[0], d[1], d[0]])
            elif kind == r.CONE:
                half = np.array([max(d[0], d[2]), d[1], max(d[0], d[2])]) + d[3]
            elif kind == r.TORUS:
                half = np.array([d[0] + d[1], d[1], d[0] + d[1]])
            else:
                half = np.array([d[0], d[0] + d[1], d[0]])
            if kind == r.ELLIPSOID or kind == r.CAPSULE:
                ext = np.sqrt(((m * half) ** 2).sum(1)) if kind == r.ELLIPSOID else np.abs(m[:, 1]) * d[1] + d[0]
            else:
                ext = np.abs(m) @ half
            low = np.minimum(low, row[r.POS : r.POS + 3] - ext)
            high = np.maximum(high, row[r.POS : r.POS + 3] + ext)
        centre = (low + high) / 2
        a[:, r.POS : r.POS + 3] -= centre
        # Half the diagonal overestimates round objects, so average it with the largest half side.
        half = (high - low) / 2
        scale = fit / (0.45 * float(np.linalg.norm(half)) + 0.55 * float(half.max()))
        if len(a) == 1:  # rays end 1.35 from the centre, so a cube keeps its corners
            scale = min(scale, 1.33 / float(a[0, r.BOUND]))
        a[:, r.POS : r.POS + 3] *= scale
        a[:, r.DIM : r.DIM + 4] *= scale
        a[:, r.BLEND] *= scale
        a[:, r.BOUND] *= scale
        return a

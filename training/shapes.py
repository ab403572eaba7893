"""Shapes of the training images: named objects, and arbitrary assemblies.

A shape is a float64 array of primitives (P, ROW) (`render`). Slot 0 has the material of the caption; slots 1 to 3 have
the object's own materials (`parts`). Objects with a front face +Z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training import render as r

Rng = np.random.Generator


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


def _sphere(g: Rng) -> Shape:
    return Shape().ball(1.0)


def _cube(g: Rng) -> Shape:
    return Shape().box((1, 1, 1), round_=g.uniform(0.02, 0.12))


def _cylinder(g: Rng) -> Shape:
    return Shape().rod(g.uniform(0.5, 0.8), 1.0)


def _cone(g: Rng) -> Shape:
    return Shape().cone(g.uniform(0.7, 0.95), 1.0)


def _torus(g: Rng) -> Shape:
    tilt = g.choice([0.0, math.pi / 2, g.uniform(0, math.pi)])
    return Shape().ring(1.0, g.uniform(0.25, 0.42), rot=(float(tilt), 0, 0))


def _capsule(g: Rng) -> Shape:
    return Shape().pill(0.5, 0.6, rot=(0, 0, float(g.choice([0.0, 0.0, g.uniform(0, 3)]))))


def _vase(g: Rng) -> Shape:
    b = g.uniform(0.45, 0.65)
    s = Shape(0.25).ball((b, b * 1.1, b), (0, -0.2, 0))
    s.cone(0.22, 0.35, g.uniform(0.28, 0.42), (0, 0.55, 0)).rod(b * 0.6, 0.08, (0, -0.8, 0))
    return s.ring(0.36, 0.06, (0, 0.92, 0), blend=0.05)


def _mug(g: Rng) -> Shape:
    s = Shape().rod(0.62, 0.75, round_=0.05).ring(0.36, 0.1, (0.66, 0, 0), rot=(math.pi / 2, 0, 0), blend=0.05)
    return s.rod(0.53, 0.02, (0, 0.745, 0), slot=1)


def _house(g: Rng) -> Shape:
    w, d, h = g.uniform(0.6, 0.75), g.uniform(0.55, 0.75), g.uniform(0.42, 0.55)
    s = Shape().box((w, h, d))
    # The roof: two leaning slabs over a gable of stacked boxes.
    pitch = g.uniform(0.65, 0.85)
    slab = (w + 0.12) / math.cos(pitch) / 2
    top = h + (w + 0.1) * math.tan(pitch) / 2
    for side in (-1, 1):
        s.box((slab, 0.06, d + 0.1), (side * (w + 0.06) / 2, top, 0), slot=1, rot=(0, 0, -side * pitch))
    for k in range(8):
        f = (k + 0.5) / 8
        s.box(
            (w * (1 - f) + 0.015, w * math.tan(pitch) / 16 + 0.01, d), (0, h + f * w * math.tan(pitch), 0), round_=0.005
        )
    s.box((0.15, 0.3, 0.035), (0, -h + 0.3, d + 0.01), slot=3)
    for x in (-0.6, 0.6):
        s.box((0.17, 0.18, 0.03), (x * w, 0.1, d), slot=3, round_=0.01)
        for k in (-1, 1):
            s.box((0.055, 0.13, 0.03), (x * w + 0.067 * k, 0.1, d + 0.02), slot=2, round_=0.005)
    for z in (-0.45, 0.45):
        for x in (-1, 1):
            s.box((0.03, 0.17, 0.16), (x * w, 0.08, z * d), slot=3, round_=0.01)
            for k in (-1, 1):
                s.box((0.03, 0.12, 0.05), (x * (w + 0.02), 0.08, z * d + 0.062 * k), slot=2, round_=0.005)
    s.box((0.1, 0.25, 0.1), (w * 0.5, top + 0.22, -d * 0.4))
    return s


def _castle(g: Rng) -> Shape:
    s = Shape().box((0.7, 0.42, 0.7), (0, -0.1, 0))
    for x in (-0.7, 0.7):
        for z in (-0.7, 0.7):
            s.rod(0.23, 0.66, (x, 0.1, z)).cone(0.3, 0.25, 0.0, (x, 1.0, z), slot=1)
    s.rod(0.28, 0.75, (0, 0.2, 0)).cone(0.36, 0.28, 0.0, (0, 1.22, 0), slot=1)
    s.box((0.23, 0.28, 0.04), (0, -0.24, 0.72), slot=3).rod(0.23, 0.04, (0, 0.04, 0.72), 3, (math.pi / 2, 0, 0))
    for k in (-0.37, 0.37):
        s.box((0.08, 0.12, 0.03), (k, 0.1, 0.72), slot=2)
        for x in (-0.7, 0.7):
            s.box((0.03, 0.12, 0.08), (x * 1.03, 0.1, k), slot=2)
    # Battlements between the towers.
    for k in (-0.3, -0.1, 0.1, 0.3):
        for side in (-0.66, 0.66):
            s.box((0.06, 0.07, 0.05), (k, 0.37, side)).box((0.05, 0.07, 0.06), (side, 0.37, k))
    return s


def _tree(g: Rng) -> Shape:
    s = Shape().cone(0.17, 0.5, 0.12, (0, -0.65, 0), slot=1)
    if g.random() < 0.4:
        for k in range(3):
            s.cone(0.72 - 0.17 * k, 0.36, 0.05, (0, -0.05 + 0.38 * k, 0))
    else:
        s.ball(0.55, (0, 0.3, 0), blend=0.1)
        for _ in range(5):
            p = g.uniform(-0.42, 0.42, 3)
            s.ball(float(g.uniform(0.3, 0.42)), (p[0], 0.3 + p[1], p[2]), blend=0.08)
    return s


def _car(g: Rng) -> Shape:
    s = Shape(0.03).box((0.48, 0.2, 1.0), (0, 0, 0), round_=0.1)
    s.box((0.4, 0.2, 0.5), (0, 0.32, -0.28), round_=0.12)
    for z in (0.225, -0.78):
        s.box((0.34, 0.13, 0.02), (0, 0.33, z), slot=2, blend=0)
    for x in (-0.4, 0.4):
        s.box((0.02, 0.12, 0.36), (x, 0.33, -0.28), slot=2, blend=0)
        for z in (-0.6, 0.6):
            s.rod(0.23, 0.1, (x * 1.1, -0.18, z), 1, (0, 0, math.pi / 2), blend=0)
        s.ball(0.12, (x * 0.75, 0.04, 0.98), slot=3, blend=0)
    # Front and back differ: lamps and a radiator, and more bonnet than boot.
    return s.box((0.18, 0.09, 0.02), (0, -0.02, 1.0), slot=1, blend=0)


def _rocket(g: Rng) -> Shape:
    s = Shape(0.05).rod(0.33, 0.6, (0, 0, 0), round_=0.05).cone(0.33, 0.35, 0.02, (0, 0.93, 0), slot=1, blend=0)
    for k in range(4):
        t = k * math.pi / 2 + math.pi / 4
        s.box((0.24, 0.28, 0.04), (0.42 * math.cos(t), -0.55, -0.42 * math.sin(t)), 1, rot=(0, t, 0), blend=0)
    s.rod(0.15, 0.04, (0, 0.25, 0.32), 2, (math.pi / 2, 0, 0), blend=0)
    return s.cone(0.3, 0.12, 0.2, (0, -0.7, 0), slot=3, blend=0)


def _robot(g: Rng) -> Shape:
    s = Shape().box((0.45, 0.45, 0.3), (0, 0, 0), round_=0.06).box((0.33, 0.27, 0.27), (0, 0.78, 0), round_=0.06)
    s.rod(0.1, 0.1, (0, 0.5, 0), 1)
    for x in (-1, 1):
        s.ball(0.09, (x * 0.14, 0.84, 0.27), slot=2).box((0.1, 0.4, 0.12), (x * 0.58, -0.02, 0), round_=0.05)
        s.ball(0.13, (x * 0.58, -0.46, 0), slot=1).box((0.15, 0.35, 0.16), (x * 0.22, -0.75, 0), round_=0.04)
        s.box((0.17, 0.08, 0.25), (x * 0.22, -1.08, 0.06), 1)
    s.box((0.18, 0.04, 0.02), (0, 0.64, 0.275), slot=3).box((0.24, 0.18, 0.02), (0, 0.08, 0.305), slot=3)
    return s.rod(0.03, 0.15, (0, 1.15, 0), 1).ball(0.07, (0, 1.3, 0), slot=2)


def _teddy(g: Rng) -> Shape:
    s = Shape(0.06).ball((0.46, 0.5, 0.4), (0, -0.2, 0)).ball(0.4, (0, 0.52, 0.02))
    for x in (-1, 1):
        s.ball(0.16, (x * 0.32, 0.84, 0)).ball((0.17, 0.32, 0.17), (x * 0.5, -0.05, 0.12))
        s.ball((0.2, 0.2, 0.36), (x * 0.3, -0.62, 0.3)).ball(0.06, (x * 0.15, 0.62, 0.37), slot=2, blend=0)
        s.ball((0.13, 0.13, 0.06), (x * 0.3, -0.62, 0.63), slot=1, blend=0)
    s.ball((0.18, 0.14, 0.14), (0, 0.44, 0.36), slot=1, blend=0.02).ball(0.06, (0, 0.5, 0.5), slot=2, blend=0)
    return s.ball((0.3, 0.34, 0.1), (0, -0.2, 0.35), slot=1, blend=0)


def _chair(g: Rng) -> Shape:
    s = Shape().box((0.5, 0.06, 0.5), (0, 0, 0))
    for x in (-0.43, 0.43):
        for z in (-0.43, 0.43):
            s.box((0.06, 0.5, 0.06), (x, -0.5, z))
        s.box((0.06, 0.55, 0.05), (x, 0.55, -0.44))
    if g.random() < 0.5:
        return s.box((0.42, 0.38, 0.05), (0, 0.66, -0.44))
    for y in (0.4, 0.7, 1.0):
        s.box((0.42, 0.09, 0.05), (0, y, -0.44))
    return s


def _table(g: Rng) -> Shape:
    w, d, h = g.uniform(0.75, 1.0), g.uniform(0.55, 0.8), g.uniform(0.4, 0.55)
    s = Shape().rod(w, 0.07, (0, h, 0)) if g.random() < 0.3 else Shape().box((w, 0.07, d), (0, h, 0))
    for x in (-0.62, 0.62):
        for z in (-0.62, 0.62):
            s.box((0.07, h, 0.07), (x * w, 0, z * d))
    return s


def _mushroom(g: Rng) -> Shape:
    s = Shape(0.05).cone(0.26, 0.45, 0.18, (0, -0.45, 0), slot=1)
    w = g.uniform(0.65, 0.85)
    s.ball((w, 0.42, w), (0, 0.18, 0)).rod(w * 0.8, 0.05, (0, 0.02, 0), 1, blend=0)
    return s


def _snowman(g: Rng) -> Shape:
    s = Shape(0.03).ball(0.52, (0, -0.55, 0)).ball(0.39, (0, 0.12, 0)).ball(0.29, (0, 0.66, 0))
    s.cone(0.07, 0.17, 0.01, (0, 0.66, 0.42), 3, (math.pi / 2, 0, 0), blend=0)
    for x in (-0.1, 0.1):
        s.ball(0.045, (x, 0.76, 0.26), slot=2, blend=0)
    for y in (0.0, 0.16, 0.3):
        s.ball(0.05, (0, y, 0.385 - 0.12 * abs(y - 0.12)), slot=2, blend=0)
    s.rod(0.2, 0.15, (0, 1.0, 0), 2, blend=0).rod(0.34, 0.03, (0, 0.87, 0), 2, blend=0)
    return s.limb((0.3, 0.2, 0), (0.8, 0.45, 0), 0.035, 1, 0).limb((-0.3, 0.2, 0), (-0.8, 0.45, 0), 0.035, 1, 0)


def _fish(g: Rng) -> Shape:
    s = Shape(0.08).ball((0.32, 0.46, 0.8), (0, 0, 0.1)).ball((0.2, 0.22, 0.4), (0, 0, -0.55))
    for k in (-1, 1):
        s.box((0.04, 0.34, 0.14), (0, k * 0.24, -1.0), 0, 0.03, (k * 0.6, 0, 0))
        s.box((0.2, 0.03, 0.12), (k * 0.36, -0.1, 0.25), 0, 0.02, (0, k * 0.5, -k * 0.5))
        s.ball(0.1, (k * 0.22, 0.14, 0.62), slot=2, blend=0).ball(0.05, (k * 0.29, 0.15, 0.66), slot=3, blend=0)
    return s.box((0.04, 0.2, 0.3), (0, 0.45, 0.0), 0, 0.03, (-0.3, 0, 0))


def _cow(g: Rng) -> Shape:
    s = Shape(0.1).ball((0.4, 0.4, 0.7), (0, 0, 0)).ball((0.25, 0.28, 0.3), (0, 0.42, 0.72))
    s.ball((0.19, 0.17, 0.2), (0, 0.32, 0.96), slot=1, blend=0.04).limb((0, 0.15, 0.5), (0, 0.4, 0.66), 0.2)
    for x in (-1, 1):
        for z in (-0.42, 0.42):
            s.limb((x * 0.24, -0.1, z), (x * 0.26, -0.8, z), 0.11)
            s.rod(0.12, 0.07, (x * 0.26, -0.84, z), 2, blend=0)
        s.ball((0.17, 0.07, 0.09), (x * 0.34, 0.54, 0.62), blend=0.03).ball(0.06, (x * 0.19, 0.5, 0.9), slot=2, blend=0)
        s.limb((x * 0.13, 0.66, 0.66), (x * 0.2, 0.84, 0.68), 0.045, 3, 0)
        s.ball(0.035, (x * 0.08, 0.34, 1.15), slot=2, blend=0)
    return s.limb((0, 0.15, -0.68), (0, -0.35, -0.82), 0.05)


def _person(g: Rng) -> Shape:
    up = g.uniform(-0.2, 0.9)
    s = Shape(0.06).ball((0.27, 0.4, 0.18), (0, 0.2, 0)).ball((0.17, 0.21, 0.18), (0, 0.83, 0), slot=1)
    s.ball((0.18, 0.17, 0.19), (0, 0.9, -0.04), slot=3, blend=0)
    for x in (-1, 1):
        s.limb((x * 0.14, -0.1, 0), (x * 0.17, -0.95, 0), 0.125).ball(
            (0.11, 0.07, 0.2), (x * 0.17, -1.05, 0.08), slot=2
        )
        hand = (x * (0.3 + 0.42 * math.cos(up - 0.9)), 0.45 + 0.55 * math.sin(up - 0.9), 0.06)
        s.limb((x * 0.27, 0.47, 0), hand, 0.085).ball(0.1, hand, slot=1, blend=0)
        s.ball(0.035, (x * 0.07, 0.85, 0.17), slot=2, blend=0)
    return s


def _boot(g: Rng) -> Shape:
    s = Shape(0.12).rod(0.33, 0.5, (0, 0.4, -0.25), round_=0.06).ball((0.34, 0.3, 0.62), (0, -0.32, 0.12))
    s.box((0.33, 0.08, 0.72), (0, -0.56, 0.06), 1, 0.06, blend=0).box((0.3, 0.12, 0.2), (0, -0.66, -0.42), 1, blend=0)
    s.ring(0.32, 0.07, (0, 0.86, -0.25), blend=0.02)
    for k in range(3):
        s.box((0.17, 0.03, 0.03), (0, 0.0 + 0.2 * k, 0.12 - 0.025 * k), 2, 0.02, blend=0)
    return s


def _crate(g: Rng) -> Shape:
    s = Shape().box((0.82, 0.82, 0.82))
    for x in (-0.78, 0.78):
        for y in (-0.78, 0.78):
            s.box((0.86, 0.1, 0.1), (0, x, y), 1).box((0.1, 0.86, 0.1), (x, 0, y), 1).box(
                (0.1, 0.1, 0.86), (x, y, 0), 1
            )
    return s


def _barrel(g: Rng) -> Shape:
    s = Shape(0.1).rod(0.6, 0.9, round_=0.05).ball((0.72, 1.0, 0.72))
    for y in (-0.66, -0.3, 0.3, 0.66):
        s.rod(0.745 - 0.16 * y * y, 0.075, (0, y, 0), 1, blend=0)
    return s


def _duck(g: Rng) -> Shape:
    s = (
        Shape(0.12)
        .ball((0.45, 0.4, 0.66), (0, -0.2, 0))
        .ball(0.32, (0, 0.48, 0.42))
        .cone(0.25, 0.2, 0.18, (0, 0.15, 0.36))
    )
    s.cone(0.22, 0.28, 0.03, (0, 0.0, -0.72), 0, (-2.0, 0, 0)).ball((0.15, 0.06, 0.2), (0, 0.42, 0.78), 1, blend=0)
    for x in (-1, 1):
        s.ball(0.055, (x * 0.18, 0.58, 0.68), slot=2, blend=0).ball(
            (0.1, 0.24, 0.4), (x * 0.42, -0.15, -0.08), blend=0.03
        )
    return s


def _teapot(g: Rng) -> Shape:
    s = Shape(0.06).ball((0.66, 0.52, 0.66)).rod(0.36, 0.06, (0, -0.5, 0)).ball((0.36, 0.12, 0.36), (0, 0.5, 0))
    s.ball(0.1, (0, 0.66, 0)).ring(0.32, 0.07, (-0.72, 0.05, 0), rot=(math.pi / 2, 0, 0))
    return s.cone(0.18, 0.36, 0.08, (0.82, 0.12, 0), 0, (0, 0, -0.85))


def _boat(g: Rng) -> Shape:
    s = Shape(0.08).ball((0.42, 0.34, 1.0), (0, -0.3, 0)).box((0.34, 0.05, 0.74), (0, -0.06, 0), 1, blend=0)
    if g.random() < 0.6:
        return s.rod(0.045, 0.62, (0, 0.5, 0.1), 1, blend=0).box((0.04, 0.42, 0.36), (0, 0.62, -0.28), 2, blend=0)
    s.box((0.22, 0.2, 0.3), (0, 0.15, -0.1), 2, blend=0)
    return s.rod(0.1, 0.2, (0, 0.48, -0.15), 3, blend=0)


@dataclass(frozen=True)
class Thing:
    """A named object.

    nouns: names in captions. build: makes its shape. parts: its own materials of slots 1 and up. own: those of slot 0
    if the caption names none. roof: a named material applies to slot 1 as well, which is all that is visible from
    above.
    named_parts: parts that captions may name. usual: materials that it is often made of. upright: boards are vertical.
    """

    nouns: tuple[str, ...]
    build: Callable[[Rng], Shape]
    front: bool = False
    parts: tuple[tuple[str, str], ...] = ()
    own: tuple[tuple[str, str], ...] = ()
    roof: bool = False
    named_parts: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    upright: bool = False


DARK, GLASS = ("plastic", "black"), ("plastic", "blue")
#: (material, colour or "") pairs.
ALL_THINGS: dict[str, Thing] = {
    "sphere": Thing(("sphere", "ball"), _sphere),
    "cube": Thing(("cube", "box", "block"), _cube),
    "cylinder": Thing(("cylinder", "column"), _cylinder),
    "cone": Thing(("cone",), _cone),
    "torus": Thing(("torus", "ring", "donut"), _torus),
    "capsule": Thing(("capsule", "pill"), _capsule),
    "vase": Thing(("vase", "pot"), _vase),
    "mug": Thing(("mug", "cup"), _mug, False, (("plastic", "brown"),)),
    "house": Thing(
        ("house", "cottage", "hut"),
        _house,
        True,
        (("tiles", "red"), GLASS, ("planks", "")),
        (("brick", ""), ("plastic", "white"), ("planks", ""), ("stone", "")),
        roof=True,
        named_parts=("windows", "a door", "windows and a door", "a roof"),
        usual=("brick", "wood", "planks", "stone"),
    ),
    "castle": Thing(
        ("castle", "fortress"),
        _castle,
        True,
        (("tiles", "red"), DARK, ("planks", "brown")),
        (("stone", ""), ("brick", "grey"), ("cobblestone", "")),
        roof=True,
        named_parts=("towers", "a door", "windows", "towers and a door"),
        usual=("stone", "brick", "cobblestone"),
    ),
    "tree": Thing(("tree",), _tree, False, (("wood", "brown"),), (("leaves", ""), ("moss", ""), ("grass", ""))),
    "car": Thing(
        ("car", "automobile"),
        _car,
        True,
        (DARK, GLASS, ("plastic", "yellow")),
        (("plastic", "red"), ("plastic", "blue"), ("plastic", "yellow"), ("plastic", "green"), ("metal", "")),
        named_parts=("wheels", "windows", "wheels and windows"),
    ),
    "rocket": Thing(
        ("rocket", "spaceship"),
        _rocket,
        True,
        (("plastic", "red"), GLASS, ("metal", "")),
        (("plastic", "white"), ("metal", "")),
    ),
    "robot": Thing(
        ("robot", "android"),
        _robot,
        True,
        (("metal", "grey"), ("plastic", "yellow"), DARK),
        (("metal", ""), ("plastic", "blue"), ("plastic", "white")),
    ),
    "teddy": Thing(
        ("teddy", "teddy bear", "bear"), _teddy, True, (("fur", "white"), DARK), (("fur", "brown"), ("fur", ""))
    ),
    "chair": Thing(("chair", "seat"), _chair, True, (), (("wood", ""), ("planks", ""))),
    "table": Thing(("table", "desk"), _table, False, (), (("wood", ""), ("planks", ""))),
    "mushroom": Thing(
        ("mushroom", "toadstool"), _mushroom, False, (("plastic", "white"),), (("dots", "red"), ("plastic", "brown"))
    ),
    "snowman": Thing(
        ("snowman",), _snowman, True, (("wood", ""), DARK, ("plastic", "orange")), (("snow", ""), ("plastic", "white"))
    ),
    "fish": Thing(
        ("fish",),
        _fish,
        True,
        (DARK, ("plastic", "white"), DARK),
        (("scales", "orange"), ("scales", ""), ("scales", "blue")),
    ),
    "cow": Thing(
        ("cow", "bull", "animal"),
        _cow,
        True,
        (("plastic", "pink"), DARK, ("plastic", "white")),
        (("camouflage", "cow"), ("fur", "brown")),
    ),
    "person": Thing(
        ("person", "man", "figure", "woman"),
        _person,
        True,
        (("plastic", "skin"), DARK, ("fur", "brown")),
        (("plastic", "blue"), ("plastic", "red"), ("plastic", "green")),
    ),
    "boot": Thing(
        ("boot", "shoe"),
        _boot,
        True,
        (("plastic", "black"), ("plastic", "white")),
        (("leather", ""), ("leather", "black")),
    ),
    "crate": Thing(("crate", "chest"), _crate, False, (("metal", "grey"),), (("planks", ""), ("wood", ""))),
    "barrel": Thing(
        ("barrel", "cask"),
        _barrel,
        False,
        (("metal", "grey"),),
        (("planks", ""), ("wood", "")),
        named_parts=("hoops", "iron hoops", "metal hoops", "bands"),
        usual=("wood", "planks"),
        upright=True,
    ),
    "duck": Thing(
        ("duck", "bird"), _duck, True, (("plastic", "orange"), DARK), (("plastic", "yellow"), ("plastic", "white"))
    ),
    "teapot": Thing(("teapot", "kettle"), _teapot),
    "boat": Thing(
        ("boat", "ship"),
        _boat,
        True,
        (("planks", ""), ("plastic", "white"), DARK),
        (("wood", ""), ("planks", ""), ("plastic", "red")),
    ),
}

# Objects that are built here, but that no caption names: at 64 pixels they look like a box, a cylinder or a cone, or
# they
#: have so many parts that a model of this size draws blobs. See vocabulary.RESERVE.
RESERVE = frozenset(
    (
        *("capsule", "mug", "rocket", "robot", "teddy", "crate", "boat"),
        *("cow", "person", "fish", "boot", "duck", "teapot"),
    )
)
#: The named objects of captions.
THINGS = {name: thing for name, thing in ALL_THINGS.items() if name not in RESERVE}

GENERIC_NOUNS = ("object", "shape", "thing", "form", "sculpture", "model", "statue", "mesh")


def assembly(g: Rng) -> np.ndarray:
    """A random assembly of 2 to 7 primitives with hard or smooth joints, each in slot 0 or 1."""
    s = Shape(float(g.choice([0.0, 0.08, 0.2, 0.35])))
    upright = g.random() < 0.5
    where = np.zeros(3)
    for _ in range(int(g.integers(2, 8))):
        rot = (0.0, float(g.uniform(0, 6.3)), 0.0) if upright else tuple(g.uniform(0, 6.3, 3))
        size = g.uniform(0.22, 0.6)
        dims = size * g.uniform(0.55, 1.3, 3)
        at = tuple(where)
        slot = int(g.random() < 0.3)
        kind = int(g.integers(0, 6))
        if kind == r.ELLIPSOID:
            s.add(kind, tuple(dims), at, rot, slot)
        elif kind == r.BOX:
            s.box(tuple(dims), at, slot, float(g.uniform(0.01, 0.12)), rot)
        elif kind == r.CYLINDER:
            s.rod(dims[0], dims[1] * 1.3, at, slot, rot)
        elif kind == r.CONE:
            s.cone(dims[0], dims[1] * 1.3, dims[2] * g.choice([0.05, 0.5]), at, slot, rot)
        elif kind == r.TORUS:
            s.ring(dims[0] * 1.2, dims[1] * 0.4, at, slot, rot)
        else:
            s.pill(dims[0] * 0.7, dims[1] * 1.2, at, slot, rot)
        where = where + g.normal(0, 1, 3) * size * 0.75
        where *= 0.75
    return s.array(float(g.uniform(1.1, 1.3)))


def blob(g: Rng) -> tuple[np.ndarray, np.ndarray]:
    """A body displaced by noise: primitives and the displacement (amplitude, frequency, seed)."""
    s = Shape(0.3)
    for _ in range(int(g.integers(1, 4))):
        s.add(
            r.ELLIPSOID,
            tuple(g.uniform(0.4, 0.85, 3)),
            tuple(g.normal(0, 0.25, 3)),
            tuple(g.uniform(0, 6, 3)),
        )
    warp = np.array([g.uniform(0.08, 0.24), g.uniform(1.4, 3.5), float(g.integers(1, 9999))])
    return s.array(1.05), warp

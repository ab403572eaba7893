"""The shapes of named objects: each function draws one with random proportions. Objects with a front face +Z."""

from __future__ import annotations

import math

import numpy as np

from training.shape_builder import Shape

Rng = np.random.Generator


def sphere(g: Rng) -> Shape:
    return Shape().ball(1.0)


def cube(g: Rng) -> Shape:
    return Shape().box((1, 1, 1), round_=g.uniform(0.02, 0.12))


def cylinder(g: Rng) -> Shape:
    return Shape().rod(g.uniform(0.5, 0.8), 1.0)


def cone(g: Rng) -> Shape:
    return Shape().cone(g.uniform(0.7, 0.95), 1.0)


def torus(g: Rng) -> Shape:
    tilt = g.choice([0.0, math.pi / 2, g.uniform(0, math.pi)])
    return Shape().ring(1.0, g.uniform(0.25, 0.42), rot=(float(tilt), 0, 0))


def capsule(g: Rng) -> Shape:
    return Shape().pill(0.5, 0.6, rot=(0, 0, float(g.choice([0.0, 0.0, g.uniform(0, 3)]))))


def vase(g: Rng) -> Shape:
    b = g.uniform(0.45, 0.65)
    s = Shape(0.25).ball((b, b * 1.1, b), (0, -0.2, 0))
    s.cone(0.22, 0.35, g.uniform(0.28, 0.42), (0, 0.55, 0)).rod(b * 0.6, 0.08, (0, -0.8, 0))
    return s.ring(0.36, 0.06, (0, 0.92, 0), blend=0.05)


def mug(g: Rng) -> Shape:
    s = Shape().rod(0.62, 0.75, round_=0.05).ring(0.36, 0.1, (0.66, 0, 0), rot=(math.pi / 2, 0, 0), blend=0.05)
    return s.rod(0.53, 0.02, (0, 0.745, 0), slot=1)


def house(g: Rng) -> Shape:
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


def castle(g: Rng) -> Shape:
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


def tree(g: Rng) -> Shape:
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


def car(g: Rng) -> Shape:
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


def rocket(g: Rng) -> Shape:
    s = Shape(0.05).rod(0.33, 0.6, (0, 0, 0), round_=0.05).cone(0.33, 0.35, 0.02, (0, 0.93, 0), slot=1, blend=0)
    for k in range(4):
        t = k * math.pi / 2 + math.pi / 4
        s.box((0.24, 0.28, 0.04), (0.42 * math.cos(t), -0.55, -0.42 * math.sin(t)), 1, rot=(0, t, 0), blend=0)
    s.rod(0.15, 0.04, (0, 0.25, 0.32), 2, (math.pi / 2, 0, 0), blend=0)
    return s.cone(0.3, 0.12, 0.2, (0, -0.7, 0), slot=3, blend=0)


def robot(g: Rng) -> Shape:
    s = Shape().box((0.45, 0.45, 0.3), (0, 0, 0), round_=0.06).box((0.33, 0.27, 0.27), (0, 0.78, 0), round_=0.06)
    s.rod(0.1, 0.1, (0, 0.5, 0), 1)
    for x in (-1, 1):
        s.ball(0.09, (x * 0.14, 0.84, 0.27), slot=2).box((0.1, 0.4, 0.12), (x * 0.58, -0.02, 0), round_=0.05)
        s.ball(0.13, (x * 0.58, -0.46, 0), slot=1).box((0.15, 0.35, 0.16), (x * 0.22, -0.75, 0), round_=0.04)
        s.box((0.17, 0.08, 0.25), (x * 0.22, -1.08, 0.06), 1)
    s.box((0.18, 0.04, 0.02), (0, 0.64, 0.275), slot=3).box((0.24, 0.18, 0.02), (0, 0.08, 0.305), slot=3)
    return s.rod(0.03, 0.15, (0, 1.15, 0), 1).ball(0.07, (0, 1.3, 0), slot=2)


def teddy(g: Rng) -> Shape:
    s = Shape(0.06).ball((0.46, 0.5, 0.4), (0, -0.2, 0)).ball(0.4, (0, 0.52, 0.02))
    for x in (-1, 1):
        s.ball(0.16, (x * 0.32, 0.84, 0)).ball((0.17, 0.32, 0.17), (x * 0.5, -0.05, 0.12))
        s.ball((0.2, 0.2, 0.36), (x * 0.3, -0.62, 0.3)).ball(0.06, (x * 0.15, 0.62, 0.37), slot=2, blend=0)
        s.ball((0.13, 0.13, 0.06), (x * 0.3, -0.62, 0.63), slot=1, blend=0)
    s.ball((0.18, 0.14, 0.14), (0, 0.44, 0.36), slot=1, blend=0.02).ball(0.06, (0, 0.5, 0.5), slot=2, blend=0)
    return s.ball((0.3, 0.34, 0.1), (0, -0.2, 0.35), slot=1, blend=0)


def chair(g: Rng) -> Shape:
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


def table(g: Rng) -> Shape:
    w, d, h = g.uniform(0.75, 1.0), g.uniform(0.55, 0.8), g.uniform(0.4, 0.55)
    s = Shape().rod(w, 0.07, (0, h, 0)) if g.random() < 0.3 else Shape().box((w, 0.07, d), (0, h, 0))
    for x in (-0.62, 0.62):
        for z in (-0.62, 0.62):
            s.box((0.07, h, 0.07), (x * w, 0, z * d))
    return s


def mushroom(g: Rng) -> Shape:
    s = Shape(0.05).cone(0.26, 0.45, 0.18, (0, -0.45, 0), slot=1)
    w = g.uniform(0.65, 0.85)
    s.ball((w, 0.42, w), (0, 0.18, 0)).rod(w * 0.8, 0.05, (0, 0.02, 0), 1, blend=0)
    return s


def snowman(g: Rng) -> Shape:
    s = Shape(0.03).ball(0.52, (0, -0.55, 0)).ball(0.39, (0, 0.12, 0)).ball(0.29, (0, 0.66, 0))
    s.cone(0.07, 0.17, 0.01, (0, 0.66, 0.42), 3, (math.pi / 2, 0, 0), blend=0)
    for x in (-0.1, 0.1):
        s.ball(0.045, (x, 0.76, 0.26), slot=2, blend=0)
    for y in (0.0, 0.16, 0.3):
        s.ball(0.05, (0, y, 0.385 - 0.12 * abs(y - 0.12)), slot=2, blend=0)
    s.rod(0.2, 0.15, (0, 1.0, 0), 2, blend=0).rod(0.34, 0.03, (0, 0.87, 0), 2, blend=0)
    return s.limb((0.3, 0.2, 0), (0.8, 0.45, 0), 0.035, 1, 0).limb((-0.3, 0.2, 0), (-0.8, 0.45, 0), 0.035, 1, 0)


def fish(g: Rng) -> Shape:
    s = Shape(0.08).ball((0.32, 0.46, 0.8), (0, 0, 0.1)).ball((0.2, 0.22, 0.4), (0, 0, -0.55))
    for k in (-1, 1):
        s.box((0.04, 0.34, 0.14), (0, k * 0.24, -1.0), 0, 0.03, (k * 0.6, 0, 0))
        s.box((0.2, 0.03, 0.12), (k * 0.36, -0.1, 0.25), 0, 0.02, (0, k * 0.5, -k * 0.5))
        s.ball(0.1, (k * 0.22, 0.14, 0.62), slot=2, blend=0).ball(0.05, (k * 0.29, 0.15, 0.66), slot=3, blend=0)
    return s.box((0.04, 0.2, 0.3), (0, 0.45, 0.0), 0, 0.03, (-0.3, 0, 0))


def cow(g: Rng) -> Shape:
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


def person(g: Rng) -> Shape:
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


def boot(g: Rng) -> Shape:
    s = Shape(0.12).rod(0.33, 0.5, (0, 0.4, -0.25), round_=0.06).ball((0.34, 0.3, 0.62), (0, -0.32, 0.12))
    s.box((0.33, 0.08, 0.72), (0, -0.56, 0.06), 1, 0.06, blend=0).box((0.3, 0.12, 0.2), (0, -0.66, -0.42), 1, blend=0)
    s.ring(0.32, 0.07, (0, 0.86, -0.25), blend=0.02)
    for k in range(3):
        s.box((0.17, 0.03, 0.03), (0, 0.0 + 0.2 * k, 0.12 - 0.025 * k), 2, 0.02, blend=0)
    return s


def crate(g: Rng) -> Shape:
    s = Shape().box((0.82, 0.82, 0.82))
    for x in (-0.78, 0.78):
        for y in (-0.78, 0.78):
            s.box((0.86, 0.1, 0.1), (0, x, y), 1).box((0.1, 0.86, 0.1), (x, 0, y), 1).box(
                (0.1, 0.1, 0.86), (x, y, 0), 1
            )
    return s


def barrel(g: Rng) -> Shape:
    s = Shape(0.1).rod(0.6, 0.9, round_=0.05).ball((0.72, 1.0, 0.72))
    for y in (-0.66, -0.3, 0.3, 0.66):
        s.rod(0.745 - 0.16 * y * y, 0.075, (0, y, 0), 1, blend=0)
    return s


def duck(g: Rng) -> Shape:
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


def teapot(g: Rng) -> Shape:
    s = Shape(0.06).ball((0.66, 0.52, 0.66)).rod(0.36, 0.06, (0, -0.5, 0)).ball((0.36, 0.12, 0.36), (0, 0.5, 0))
    s.ball(0.1, (0, 0.66, 0)).ring(0.32, 0.07, (-0.72, 0.05, 0), rot=(math.pi / 2, 0, 0))
    return s.cone(0.18, 0.36, 0.08, (0.82, 0.12, 0), 0, (0, 0, -0.85))


def boat(g: Rng) -> Shape:
    s = Shape(0.08).ball((0.42, 0.34, 1.0), (0, -0.3, 0)).box((0.34, 0.05, 0.74), (0, -0.06, 0), 1, blend=0)
    if g.random() < 0.6:
        return s.rod(0.045, 0.62, (0, 0.5, 0.1), 1, blend=0).box((0.04, 0.42, 0.36), (0, 0.62, -0.28), 2, blend=0)
    s.box((0.22, 0.2, 0.3), (0, 0.15, -0.1), 2, blend=0)
    return s.rod(0.1, 0.2, (0, 0.48, -0.15), 3, blend=0)

"""Shapes of the training images: named objects, and arbitrary assemblies.

A shape is a float64 array of primitives (P, ROW) (`render`). Slot 0 has the material of the caption; slots 1 to 3 have
the object's own materials (`parts`). Objects with a front face +Z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training import objects
from training import render as r
from training.shape_builder import Shape

Rng = np.random.Generator


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
    "sphere": Thing(("sphere", "ball"), objects.sphere),
    "cube": Thing(("cube", "box", "block"), objects.cube),
    "cylinder": Thing(("cylinder", "column"), objects.cylinder),
    "cone": Thing(("cone",), objects.cone),
    "torus": Thing(("torus", "ring", "donut"), objects.torus),
    "capsule": Thing(("capsule", "pill"), objects.capsule),
    "vase": Thing(("vase", "pot"), objects.vase),
    "mug": Thing(("mug", "cup"), objects.mug, False, (("plastic", "brown"),)),
    "house": Thing(
        ("house", "cottage", "hut"),
        objects.house,
        True,
        (("tiles", "red"), GLASS, ("planks", "")),
        (("brick", ""), ("plastic", "white"), ("planks", ""), ("stone", "")),
        roof=True,
        named_parts=("windows", "a door", "windows and a door", "a roof"),
        usual=("brick", "wood", "planks", "stone"),
    ),
    "castle": Thing(
        ("castle", "fortress"),
        objects.castle,
        True,
        (("tiles", "red"), DARK, ("planks", "brown")),
        (("stone", ""), ("brick", "grey"), ("cobblestone", "")),
        roof=True,
        named_parts=("towers", "a door", "windows", "towers and a door"),
        usual=("stone", "brick", "cobblestone"),
    ),
    "tree": Thing(("tree",), objects.tree, False, (("wood", "brown"),), (("leaves", ""), ("moss", ""), ("grass", ""))),
    "car": Thing(
        ("car", "automobile"),
        objects.car,
        True,
        (DARK, GLASS, ("plastic", "yellow")),
        (("plastic", "red"), ("plastic", "blue"), ("plastic", "yellow"), ("plastic", "green"), ("metal", "")),
        named_parts=("wheels", "windows", "wheels and windows"),
    ),
    "rocket": Thing(
        ("rocket", "spaceship"),
        objects.rocket,
        True,
        (("plastic", "red"), GLASS, ("metal", "")),
        (("plastic", "white"), ("metal", "")),
    ),
    "robot": Thing(
        ("robot", "android"),
        objects.robot,
        True,
        (("metal", "grey"), ("plastic", "yellow"), DARK),
        (("metal", ""), ("plastic", "blue"), ("plastic", "white")),
    ),
    "teddy": Thing(
        ("teddy", "teddy bear", "bear"),
        objects.teddy,
        True,
        (("fur", "white"), DARK),
        (("fur", "brown"), ("fur", "")),
    ),
    "chair": Thing(("chair", "seat"), objects.chair, True, (), (("wood", ""), ("planks", ""))),
    "table": Thing(("table", "desk"), objects.table, False, (), (("wood", ""), ("planks", ""))),
    "mushroom": Thing(
        ("mushroom", "toadstool"),
        objects.mushroom,
        False,
        (("plastic", "white"),),
        (("dots", "red"), ("plastic", "brown")),
    ),
    "snowman": Thing(
        ("snowman",),
        objects.snowman,
        True,
        (("wood", ""), DARK, ("plastic", "orange")),
        (("snow", ""), ("plastic", "white")),
    ),
    "fish": Thing(
        ("fish",),
        objects.fish,
        True,
        (DARK, ("plastic", "white"), DARK),
        (("scales", "orange"), ("scales", ""), ("scales", "blue")),
    ),
    "cow": Thing(
        ("cow", "bull", "animal"),
        objects.cow,
        True,
        (("plastic", "pink"), DARK, ("plastic", "white")),
        (("camouflage", "cow"), ("fur", "brown")),
    ),
    "person": Thing(
        ("person", "man", "figure", "woman"),
        objects.person,
        True,
        (("plastic", "skin"), DARK, ("fur", "brown")),
        (("plastic", "blue"), ("plastic", "red"), ("plastic", "green")),
    ),
    "boot": Thing(
        ("boot", "shoe"),
        objects.boot,
        True,
        (("plastic", "black"), ("plastic", "white")),
        (("leather", ""), ("leather", "black")),
    ),
    "crate": Thing(("crate", "chest"), objects.crate, False, (("metal", "grey"),), (("planks", ""), ("wood", ""))),
    "barrel": Thing(
        ("barrel", "cask"),
        objects.barrel,
        False,
        (("metal", "grey"),),
        (("planks", ""), ("wood", "")),
        named_parts=("hoops", "iron hoops", "metal hoops", "bands"),
        usual=("wood", "planks"),
        upright=True,
    ),
    "duck": Thing(
        ("duck", "bird"),
        objects.duck,
        True,
        (("plastic", "orange"), DARK),
        (("plastic", "yellow"), ("plastic", "white")),
    ),
    "teapot": Thing(("teapot", "kettle"), objects.teapot),
    "boat": Thing(
        ("boat", "ship"),
        objects.boat,
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

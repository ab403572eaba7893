"""Chooses scene, camera, caption and labels of a training image, as a pure function of (seed, index)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from training import lights, shapes
from training.looks import COLOUR_NAMES, MATERIAL_NAMES, METALS, Look, Rng, any_look, fixed_look, pick, with_article
from training.looks import colour as any_colour
from training.patterns import UNIT
from training.render import SLOT
from training.scene import WHOLE, Cover, Scene, Slot, camera
from training.shading import Light
from training.shape_builder import rotation
from training.vocabulary import MATERIALS, VIEWS, swatch, tinted

OBJECT_NAMES = ["surface", "object", *shapes.THINGS]
#: Words for a pattern's size, and the factors they stand for. Without a word it is 1. `_SPREAD` is the random spread of
#: the logarithm.
SCALES = {"fine": 0.6, "large": 1.7}
_SPREAD = 0.06
#: Materials of patches, and the adjective for an object that they cover.
_COVERS = {"moss": "mossy", "rust": "rusty", "snow": "snowy", "gold": "", "leaves": ""}
#: Materials without a pattern whose size could be named.
_PLAIN = ("plastic", "metal", "clouds")


@dataclass
class Composition:
    """One training image before it is drawn.

    ``camera`` is None for flat pieces. A label is -1 if the caption names none.
    """

    scene: Scene
    camera: np.ndarray | None
    caption: str
    material: int
    colour: int
    thing: int
    view: int
    close: bool


def slot_of(g: Rng, look: Look, pixels: float, scale: float = 1.0) -> Slot:
    """A slot with the material of ``look``.

    ``pixels`` is the number of pixels per unit of the scene. Patterns are ``scale`` times as large as in a close-up
    with as many pixels, with a random spread of `_SPREAD`.
    """
    m = look.material
    turn = m.turn * math.pi if g.random() < 0.8 or m.turn < 0.1 else 0.04
    a = g.uniform(-turn, turn)
    b = g.uniform(-math.pi, math.pi) if m.turn >= 1 else 0.0
    spread = math.exp(g.uniform(-_SPREAD, _SPREAD))
    return Slot(
        look.pattern,
        look.palette,
        pixels / (UNIT * scale * spread),
        rotation(b, 0.0, a),
        g.uniform(-40, 40, 3),
        int(g.integers(1, 1 << 20)),
    )


def _cover(g: Rng, names: tuple[str, ...], pixels: float, scale: float) -> tuple[str, Look, Cover]:
    name = pick(g, names)
    look = any_look(g, name, 0.0)
    share, frequency = g.uniform(0.45, 0.6), g.uniform(1.5, 2.6) * pixels / 32
    return name, look, Cover(slot_of(g, look, pixels, scale), share, frequency)


def background(g: Rng, avoid: np.ndarray) -> tuple[np.ndarray, str]:
    """A background row (15,) that differs from the colour ``avoid`` (3,), and its caption word or ''."""
    bg = np.zeros(15)

    def one() -> tuple[np.ndarray, str]:
        k = g.random()
        for _ in range(6):
            if k < 0.45:
                name = pick(g, ("white", "black", "grey"))
                c = swatch(g, name)
            elif k < 0.65:
                name, c = "", np.full(3, g.uniform(0, 1))
            elif k < 0.85:
                name = pick(g, COLOUR_NAMES)
                c = swatch(g, name)
            else:
                name, c = "", g.uniform(0, 1, 3)
            if np.abs(c - avoid).sum() > 0.45:
                break
        return c, name

    kind = int(g.choice(4, p=[0.74, 0.14, 0.07, 0.05]))
    bg[0] = kind
    bg[1:4], name = one()
    bg[4:7], _ = one()
    bg[7:10], _ = one()
    if kind == 3:
        bg[10], bg[11] = g.uniform(-0.4, 0.4), g.uniform(-0.15, 0.15)
    else:
        a = g.uniform(0, 2 * math.pi)
        bg[10], bg[11] = math.cos(a), math.sin(a)
    bg[12], bg[13], bg[14] = g.uniform(0.8, 3.0), float(g.integers(1, 99999)), g.uniform(0, 0.9)
    return bg, name if kind == 0 else ""


def any_camera(g: Rng, close: bool) -> tuple[np.ndarray, str, float]:
    """A camera row (14,), its view word, and half the height of what it sees.

    The words are those of the prior's view prompts (docs/method.md, section 2). Within 8 degrees of the border of two
    words there is none, because either would be right.
    """
    k = g.random()
    if k < 0.10:
        theta = math.radians(g.uniform(2, 30))
    elif k < 0.13:
        theta = math.radians(g.uniform(150, 178))
    else:
        theta = math.radians(np.clip(g.normal(76, 13), 31, 120))
    phi = g.uniform(-math.pi, math.pi)
    k = g.random()
    # Front and back views are drawn more often than their share of the circle.
    if k < 0.22:
        phi = math.radians(g.uniform(-35, 35))
    elif k < 0.34:
        phi = math.pi + math.radians(g.uniform(-35, 35))
    deg = abs(math.degrees(math.atan2(math.sin(phi), math.cos(phi))))
    if theta <= math.radians(30):
        view = "overhead"
    elif theta >= math.radians(150):
        view = "bottom"
    else:
        view = "front" if deg <= 35 else "back" if deg >= 145 else "side"
        if min(abs(deg - 35), abs(deg - 145)) < 8:
            view = ""
    # Use the range of painting's own cameras: the model has to learn any further variation at the cost of shapes.
    fov = math.radians(g.uniform(36, 52))
    half = g.uniform(1.1, 1.3) if not close else g.uniform(0.5, 0.8)
    dist = (half if not close else 1.3) / math.tan(fov / 2)
    d = np.array([math.sin(theta) * math.sin(phi), math.cos(theta), math.sin(theta) * math.cos(phi)])
    look = g.normal(0, 0.02 if not close else 0.22, 3)
    return camera(d * dist, half, dist, look), view, half


def _shape(g: Rng, k: float) -> tuple[np.ndarray, np.ndarray, str]:
    """Primitives, displacement and name ('' for an arbitrary shape). ``k`` in [0, 1) selects the kind."""
    if k < 0.19:
        return shapes.assembly(g), np.zeros(3), ""
    if k < 0.31:
        return *shapes.blob(g), ""
    # Objects with a front or with named parts are drawn more often than simple solids: there is more to learn.
    names = list(shapes.THINGS)
    p = np.array([(2.2 if shapes.THINGS[n].front else 1.0) + 0.8 * bool(shapes.THINGS[n].named_parts) for n in names])
    name = names[int(g.choice(len(names), p=p / p.sum()))]
    prims = shapes.THINGS[name].build(g).array(float(g.uniform(1.05, 1.15)))
    if not shapes.THINGS[name].front and len(prims) <= 2 and g.random() < 0.12:
        prims = _tilted(prims, g)
    return prims, np.zeros(3), name


def _tilted(prims: np.ndarray, g: Rng) -> np.ndarray:
    """``prims`` rotated at random as one body."""
    m = rotation(*g.uniform(-0.8, 0.8, 3))
    prims = prims.copy()
    for row in prims:
        row[1:4] = m @ row[1:4]
        row[4:13] = (m @ row[4:13].reshape(3, 3).T).T.ravel()
    return prims


def _main_look(g: Rng, thing: shapes.Thing | None, noun: str) -> tuple[Look, str]:
    """The look of an object, and its phrase if the caption does not name the material, else ''."""
    if thing and thing.own and g.random() < 0.12:
        # The object has its own materials, and the caption names none.
        name, word = pick(g, thing.own)
        if word not in ("", "cow", "skin") and name == "plastic" and g.random() < 0.6:
            colour, label, rgb = any_colour(g)
            return Look("plastic", colour, label, tinted(g, rgb, MATERIALS["plastic"].tint)), f"{colour} {noun}"
        return fixed_look(g, name, word), noun
    # A plain surface shows the object's shape best.
    if thing and g.random() < 0.1:
        return any_look(g, "plastic"), ""
    if thing and thing.usual and g.random() < 0.3:
        return any_look(g, pick(g, thing.usual), 0.4), ""
    return any_look(g), ""


def _phrase(g: Rng, look: Look, noun: str) -> str:
    if look.name == "plastic" and g.random() < 0.5:
        return f"{look.colour} {noun}"
    form = g.random()
    if form < 0.6:
        return f"{look.adjective(g)} {noun}"
    if form < 0.82:
        return f"{noun} made of {look.noun(g)}"
    if form < 0.92 and look.colour:
        return f"{look.colour} {noun} made of {pick(g, look.material.nouns)}"
    return f"{noun} of {look.noun(g)}"


@dataclass
class _Draft:
    """An object under construction."""

    slots: dict[int, Slot]
    prims: np.ndarray
    look: Look
    phrase: str
    material: int
    colour: int
    cover: Cover | None = None


def _object(g: Rng, prims: np.ndarray, name: str, pixels: float, scale: float, eye: np.ndarray) -> _Draft:
    """Choose materials and words of a shape that is seen from the direction ``eye`` (3,)."""
    thing = shapes.THINGS[name] if name else None
    generic = shapes.GENERIC_NOUNS[:3] if g.random() < 0.8 else shapes.GENERIC_NOUNS
    noun = pick(g, thing.nouns if thing else generic)
    look, phrase = _main_look(g, thing, noun)
    d = _Draft({0: slot_of(g, look, pixels, scale)}, prims.copy(), look, phrase, -1, -1)
    if thing and thing.upright and look.name == "planks":
        d.slots[0].turn = rotation(0, 0, math.pi / 2) @ d.slots[0].turn
    for slot, own in enumerate(thing.parts if thing else (), 1):
        d.slots[slot] = slot_of(g, fixed_look(g, *own), pixels, scale)
    named = phrase == ""
    if named:
        d.material, d.colour = MATERIAL_NAMES.index(look.name), look.colour_id
        d.phrase = _phrase(g, look, noun) + (" with patina" if look.patina else "")
    two = bool((prims[:, SLOT] == 1).any())
    if thing is None or (two and named and g.random() < 0.2):
        _second(g, d, name, two, pixels, scale)
    elif named and thing.roof:
        _roof(g, d, thing, eye)
    else:
        _parts(g, d, thing, eye)
    if named and d.material >= 0 and " with " not in d.phrase and g.random() < 0.07:
        _patches(g, d, thing is not None, pixels, scale)
    return d


def _parts(g: Rng, d: _Draft, thing: shapes.Thing, eye: np.ndarray) -> None:
    """Name parts that are visible from ``eye``: doors are in front, windows in the walls."""
    hidden = [word for word, gone in (("door", eye[2] < 0.35), ("windows", abs(eye[1]) > 0.85)) if gone]
    visible = [part for part in thing.named_parts if not any(word in part for word in hidden)]
    if visible and g.random() < 0.4:
        d.phrase += " with " + pick(g, visible)


def _roof(g: Rng, d: _Draft, thing: shapes.Thing, eye: np.ndarray) -> None:
    """Give the roof the named material, which is all that shows from above, or name another material for it."""
    if g.random() < 0.2:
        d.phrase += " with " + pick(g, ("a red roof", "a tiled roof", "a red tiled roof"))
        d.material = d.colour = -1
        return
    d.prims[d.prims[:, SLOT] == 1, SLOT] = 0
    _parts(g, d, thing, eye)


def _second(g: Rng, d: _Draft, name: str, two: bool, pixels: float, scale: float) -> None:
    """Add a second, named material on the parts of slot 1."""
    if not two or (not name and g.random() < 0.7):
        d.prims[:, SLOT] = 0
        return
    other = any_look(g, pick(g, ("metal", "gold", "rust", "copper", "planks", "leather")) if name == "barrel" else None)
    other.patina = False
    d.slots[1] = slot_of(g, other, pixels, scale)
    parts = pick(g, ("bands", "hoops")) if name == "barrel" else "parts"
    d.phrase += pick(g, (" with ", " and ")) + other.adjective(g) + " " + parts
    d.material = -1
    if not name:
        d.colour = -1


def _patches(g: Rng, d: _Draft, named: bool, pixels: float, scale: float) -> None:
    if d.look.name in ("moss", "rust", "snow"):
        return
    cover, over, d.cover = _cover(g, tuple(_COVERS), pixels, scale)
    d.cover.upward = 0.25 if cover in ("moss", "snow") else 0.0
    d.cover.only = 0 if named else -1
    if _COVERS[cover] and g.random() < 0.6:
        d.phrase = f"{_COVERS[cover]} {d.phrase}"
    else:
        d.phrase += pick(g, (" covered with ", " with ", " with patches of ")) + over.noun(g)
    d.material = d.colour = -1


def _object_light(g: Rng, cam: np.ndarray, look: Look, any_light: bool) -> Light:
    facing = -cam[9:12] + 0.3 * cam[6:9]
    facing /= np.linalg.norm(facing)
    up = np.array([0.0, 1.0, 0.0])
    if any_light:
        return lights.varied(g, facing, up)
    return lights.soft(g, facing, up if abs(facing[1]) < 0.9 else cam[6:9], look.name in METALS, False)


def compose(seed: int, index: int, size: int = 64, finer: float = 0.0, any_light: bool = False) -> Composition:
    """Image number ``index`` of stream ``seed``, for pictures of size x size pixels.

    A pattern has the same size in pixels at every ``size``. On half of the shapes seen as a whole it is up to
    exp(``finer``) times finer. ``any_light`` draws varied lighting instead of the soft lighting of the prior's images.
    """
    g = np.random.default_rng([seed, index])
    apart = np.random.default_rng([seed, index, 1])
    k = g.random()
    if k < 0.34:
        return _flat(g, any_light)
    kind_draw = (k - 0.34) / 0.66
    close = g.random() < (0.3 if kind_draw < 0.31 else 0.03)
    prims, warp, name = _shape(g, kind_draw)
    cam, view, half = any_camera(g, close)
    pixels = size / 2 / half
    scale = 1.0 if close else WHOLE / (math.exp(apart.uniform(0, finer)) if apart.random() < 0.5 else 1.0)
    d = _object(g, prims, name, pixels, scale, cam[:3] / np.linalg.norm(cam[:3]))
    bg, bg_word = background(g, d.look.palette.mean(0) if d.look.colour_id < 0 else d.look.palette[0])
    scene = Scene(d.slots, _object_light(g, cam, d.look, any_light), d.prims, warp, d.cover, bg)
    thing = shapes.THINGS[name] if name else None
    caption = with_article(g, d.phrase)
    if bg_word and not close and g.random() < 0.25:
        caption += f" on a {bg_word} background"
    if close:
        caption = caption + ", close up" if g.random() < 0.8 else "a close up of " + caption
    view_label = -1
    if g.random() < (0.85 if thing else 0.4) and view:
        caption += f", {view} view"
        view_label = VIEWS.index(view) if thing and not close else -1
    kind = OBJECT_NAMES.index(name) if name else 1
    return Composition(scene, cam, caption, d.material, d.colour, kind, view_label, close)


def _flat(g: Rng, any_light: bool) -> Composition:
    """A flat piece of material that fills the picture."""
    look = any_look(g)
    word, scale = "", 1.0
    if look.name not in _PLAIN and g.random() < 0.26:
        word = pick(g, tuple(SCALES))
        scale = SCALES[word]
    slot = slot_of(g, look, 1.0, scale)
    facing, up = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    metallic = look.name in METALS
    light = lights.varied(g, facing, up) if any_light else lights.soft(g, facing, up, metallic, True)
    material, colour = MATERIAL_NAMES.index(look.name), look.colour_id
    tail, cover = " with patina" if look.patina else "", None
    if not tail and not word and g.random() < 0.06 and look.name not in ("moss", "rust", "snow"):
        _, over, cover = _cover(g, ("moss", "rust", "snow", "gold"), 1.0, 1.0)
        tail = " with " + over.noun(g)
        material = colour = -1
    caption, close = _flat_caption(g, look, word, tail)
    return Composition(Scene({0: slot}, light, cover=cover), None, caption, material, colour, 0, -1, close)


def _flat_caption(g: Rng, look: Look, scale: str, tail: str) -> tuple[str, bool]:
    """The caption of a flat piece, and whether it calls it a close-up."""
    close = g.random() < 0.7
    noun = f"{scale} {look.noun(g)}".strip()
    word = noun if g.random() < 0.65 else f"{scale} {look.adjective(g)}".strip()
    form = g.random()
    if form < 0.4:
        caption = word + " texture" + tail
    elif form < 0.72:
        caption = word + " surface" + tail
    elif form < 0.86:
        return pick(g, ("a close up of ", "a detail of ")) + noun + tail, True
    else:
        caption = noun + tail
    if close and g.random() < 0.55:
        caption += ", close up"
    if g.random() < 0.1 and caption[0] != "a":
        caption = ("an " if caption[0] in "eiou" else "a ") + caption
    return caption, close

"""The vocabulary of the prior: colours, materials, objects, views, and their words.

A material is a pattern with a palette. The `natural` palettes apply if a caption names no colour. Otherwise `tint`
defines each palette slot: B the colour itself, B- B-- darker, B+ B++ lighter, C a contrast to it, or a hex colour.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from training.patterns import PATTERNS
from training.shapes import ALL_THINGS, GENERIC_NOUNS, THINGS, Thing

#: name -> (hue range in degrees, saturation range, value range)
COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-8, 6), (0.78, 0.95), (0.62, 0.88)),
    "orange": ((22, 31), (0.82, 0.96), (0.88, 1.0)),
    "yellow": ((48, 57), (0.72, 0.92), (0.9, 1.0)),
    "green": ((98, 145), (0.55, 0.85), (0.42, 0.72)),
    "cyan": ((176, 190), (0.55, 0.85), (0.65, 0.88)),
    "blue": ((212, 234), (0.65, 0.9), (0.5, 0.88)),
    "purple": ((266, 286), (0.5, 0.8), (0.45, 0.75)),
    "pink": ((322, 346), (0.35, 0.58), (0.92, 1.0)),
    "brown": ((18, 30), (0.52, 0.72), (0.33, 0.5)),
    "black": ((0, 360), (0.0, 0.1), (0.08, 0.16)),
    "white": ((0, 360), (0.0, 0.05), (0.92, 1.0)),
    "grey": ((0, 360), (0.0, 0.06), (0.42, 0.6)),
}
#: synonym -> (colour, value factor, share of white mixed in)
COLOUR_WORDS: dict[str, tuple[str, float, float]] = {
    "crimson": ("red", 0.85, 0.0),
    "scarlet": ("red", 1.1, 0.0),
    "ruby": ("red", 0.9, 0.0),
    "tangerine": ("orange", 1.0, 0.0),
    "amber": ("orange", 0.95, 0.0),
    "lemon": ("yellow", 1.0, 0.15),
    "emerald": ("green", 1.0, 0.0),
    "lime": ("green", 1.3, 0.1),
    "olive": ("green", 0.7, 0.0),
    "turquoise": ("cyan", 1.0, 0.1),
    "teal": ("cyan", 0.75, 0.0),
    "aqua": ("cyan", 1.05, 0.1),
    "navy": ("blue", 0.55, 0.0),
    "azure": ("blue", 1.1, 0.15),
    "cobalt": ("blue", 0.95, 0.0),
    "violet": ("purple", 1.0, 0.0),
    "lilac": ("purple", 1.2, 0.35),
    "lavender": ("purple", 1.2, 0.4),
    "rose": ("pink", 1.0, 0.0),
    "magenta": ("pink", 0.95, 0.0),
    "chocolate": ("brown", 0.8, 0.0),
    "tan": ("brown", 1.35, 0.15),
    "ebony": ("black", 1.0, 0.0),
    "ivory": ("white", 0.98, 0.0),
    "gray": ("grey", 1.0, 0.0),
}
SHADES: dict[str, tuple[float, float]] = {
    "dark": (0.55, 0.0),
    "light": (1.1, 0.4),
    "bright": (1.15, 0.0),
    "pale": (1.1, 0.5),
}
VIEWS = ("front", "side", "back", "overhead", "bottom")


@dataclass(frozen=True)
class Material:
    """One material: nouns ("made of oak"), adjectives ("a wooden cube"), palettes and nominal feature density."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    natural: tuple[str, ...]
    tint: tuple[str, str, str]
    scale: float = 0.9
    #: Largest rotation of the texture in its plane: 0 upright, 1 any angle. Directional patterns are upright: views of
    #: a painted mesh that choose different directions do not join, and a model of this size does not learn rows of
    #: bricks, stitches or blades at any slant.
    turn: float = 0.004


def _m(nouns: str, adjectives: str, natural: str, tint: str, scale: float = 0.9, turn: float = 0.004) -> Material:
    return Material(
        tuple(nouns.split(",")),
        tuple(adjectives.split(",")),
        tuple(natural.split("|")),
        tuple(tint.split()),
        scale,
        turn,
    )


# Palettes are three hex colours; several alternatives are separated by |.
ALL_MATERIALS: dict[str, Material] = {
    "plastic": _m("plastic,vinyl", "plastic,plain,smooth", "", "B B B"),
    "brick": _m(
        "brick,bricks,brickwork",
        "brick",
        "a8402c e6ddcf 000000|b5553a e9e2d6 000000|96382a ddd3c4 000000",
        "B mortar B",
        1.0,
    ),
    "wood": _m(
        "wood,oak,timber,walnut,pine",
        "wooden,wood,oak",
        "b98850 7a4d24 000000|c79a62 8a5a2c 000000|8c5a30 54321a 000000",
        "B B- B-",
        0.85,
    ),
    "planks": _m(
        "planks,boards,wooden planks",
        "plank,planked,boarded",
        "a9774a 7d5430 2a1a0e|b98d5f 8d6840 33241a|8f6a48 6a4a30 241810",
        "B B- B--",
        0.85,
    ),
    "marble": _m(
        "marble", "marble,marbled", "f4f2ee 5c5d66 d4d6da|f7f5f0 4a4b54 dcdad6|f2efe9 665c50 e0dcd6", "B vein B~", 1.15
    ),
    "stone": _m(
        "stone,rock",
        "stone,stony,rocky",
        "8f8d88 a9a69e 3c3a38|7f8084 98999c 333336|9a9184 b3aa9c 433d36",
        "B B+ B--",
        0.8,
    ),
    "cobblestone": _m(
        "cobblestone,cobbles,pebbles",
        "cobblestone,cobbled",
        "9b9a98 3b3936 000000|a39a8c 3d372f 000000",
        "B B-- B",
        0.8,
    ),
    "moss": _m("moss", "mossy,moss covered", "5c8a2f 3d6a22 9ab84a|6b8f35 456f2a b0c25c", "B B- B+", 0.8, 1),
    "grass": _m("grass,turf", "grassy,grass", "4f9a2e 6fbf3c c9d66a|3f8a2c 62b23e b4cc58", "B B+ B+", 0.7),
    "rust": _m(
        "rust,rusted iron,rusty metal",
        "rusty,rusted",
        "b5602a 6b3219 8a8d92|a8562a 5c2d18 84878c",
        "B B- 8a8d92",
        0.8,
        1,
    ),
    "gold": _m("gold", "gold,golden,gilded", "c98d22 f0bc48 fff2b0|c08420 eec052 fff6c4", "B- B B++", 0.75, 1),
    "metal": _m(
        "metal,steel,iron,aluminium,silver",
        "metal,metallic,steel,iron,silver",
        "7e848c b8bec6 eef2f6|6f757c a9b0b8 e6eaf0",
        "B- B B++",
        0.9,
    ),
    "copper": _m("copper,bronze", "copper,bronze", "a2532f da8a60 5fae98|9a4c2c d07c50 66b8a0", "B- B 5fae98", 0.65),
    "lava": _m(
        "lava,magma", "lava,molten,volcanic", "2b2220 ff6a14 ffd84a|241c1c ff5a10 ffc83c", "241f20 B B++", 0.8, 1
    ),
    "checker": _m(
        "checkers,checkerboard",
        "checkered,checker,chequered",
        "f2f2f0 1c1c1e 000000|f4f0e6 b02a2a 000000",
        "B C B",
        1.0,
    ),
    "stripes": _m("stripes", "striped,stripy", "f2f0ec 2858b8 000000|f4f2ee c23030 000000", "B C B", 1.3),
    "dots": _m(
        "polka dots,dots,spots",
        "dotted,polka dot,spotted",
        "f4f2ee d03a3a 000000|d8423e fafaf6 000000|f6f4ee 2c62c4 000000",
        "B C B",
        1.0,
    ),
    "knit": _m(
        "wool,knitwear,yarn",
        "knitted,woolen,knit",
        "d8cdb8 d8cdb8 d8cdb8|b8463e b8463e b8463e|8f9aa8 8f9aa8 8f9aa8",
        "B B B",
        0.65,
    ),
    "denim": _m("denim,jeans", "denim", "2f4a7c 7f9ac4 d89a48|365288 8aa4cc d89a48", "B B+ d89a48", 0.9, 0.2),
    "scales": _m(
        "scales,dragon scales,fish scales",
        "scaly,scaled",
        "3f9a5a 1c4a2c 8ad0a0|4a8fa8 1f4a5c a0d8e8",
        "B B-- B+",
        0.75,
    ),
    "camouflage": _m(
        "camouflage,camo", "camouflage,camo", "6f7a42 3d4a2a b8a878|74804a 44522e bfae80", "B B- B+", 1.6, 1
    ),
    "ice": _m("ice", "icy,ice,frozen", "9ad2ec f8fdff 5fa6d6|a8d8ee fbfeff 6caede", "B+ ffffff B", 0.85, 1),
    "snow": _m("snow", "snowy,snow,snow covered", "f6f9fc ffffff b2c8ea|f4f7fb ffffff a4c0e6", "B++ ffffff B", 0.8),
    "sand": _m("sand", "sandy,sand", "d9bc86 efd9a8 000000|cfae78 e6cc98 000000", "B- B+ B", 0.85, 0.4),
    "leather": _m("leather", "leather,leathery", "6e3f22 38200f 8a5632|7a4828 3e2412 96603a", "B B-- B+", 0.8, 1),
    "giraffe": _m(
        "giraffe skin,giraffe pattern", "giraffe", "f2dfb0 a8622a 000000|efd9a4 96541f 000000", "cream B B", 0.9
    ),
    "leopard": _m(
        "leopard skin,leopard fur",
        "leopard,leopard print",
        "e0b064 b8783a 241a12|dca858 b0703a 20160f",
        "B B- 1c1614",
        0.95,
    ),
    "zebra": _m("zebra skin,zebra stripes", "zebra,zebra striped", "f4f2ee 1a1a1c 000000", "C B B", 1.45, 0.05),
    "tiger": _m(
        "tiger skin,tiger fur",
        "tiger,tiger striped",
        "e8882a 1c1410 f6ead4|de7c22 1c1410 f4e6cc",
        "B 1c1410 B++",
        1.35,
        0.05,
    ),
    "clouds": _m("clouds,sky", "cloudy", "4f94d8 f8fafc dfe6ee|6aa6e0 fafbfd e2e8f0", "B ffffff B+", 1.1),
    "water": _m("water,sea", "watery,water", "2f86b8 b8ecf4 1a5a8c|2a90b0 c4f2f2 186480", "B B++ B-", 0.85),
    "tiles": _m(
        "tiles,ceramic tiles,mosaic",
        "tiled,mosaic",
        "4a90b0 f0eee8 8cc4d8|d8d4c8 7c7870 b8ac98|c4664a efe8dc e09a78",
        "B mortar B+",
        0.8,
    ),
    "plaid": _m("plaid,tartan", "plaid,tartan", "b02c2c 1c3a2c f0d878|2c4a8c 182440 e8e4d8", "B B-- fff4d8", 0.95, 0.3),
    "fur": _m(
        "fur",
        "furry,fluffy,hairy",
        "9a6c42 c89a68 6e4826|b8b0a4 dcd6cc 8a8278|c08a54 e6bc88 8f5f34",
        "B B+ B-",
        0.8,
        0.1,
    ),
    "earth": _m(
        "dry earth,mud,clay,soil",
        "earthen,muddy,clay",
        "a8805a 4a3220 c49a70|9a7450 42301f b89068",
        "B B-- B+",
        0.95,
        1,
    ),
    "granite": _m("granite", "granite,speckled", "9a9494 3c3a3c dcd4d0|a88c84 40383a e0ccc4", "B B-- B++", 0.8, 1),
    "crystal": _m(
        "crystal,gems,glass",
        "crystal,faceted,jewelled",
        "9a6ad0 f0e4ff c8a4f0|6ac0e0 f0fcff a8e4f4",
        "B B++ B+",
        0.85,
        1,
    ),
    "bark": _m("bark,tree bark", "bark,barky", "7a5c42 2e2016 a08060|6e5440 2a1e16 94765a", "B B-- B+", 0.85),
    "straw": _m(
        "straw,hay,thatch", "straw,thatched", "e0bc5a f4dc8c 7c5c20|d8b04e f0d47c 745418", "B B+ B--", 0.8, 0.2
    ),
    "leaves": _m("leaves,foliage,ivy", "leafy", "3f8a34 1c4418 a4c84a|4a943a 204a1c b4d054", "B B-- B+", 0.85, 1),
    "galaxy": _m(
        "galaxy,stars,outer space",
        "starry,galaxy,cosmic",
        "14163c 7a3a9c ffffff|101a40 4a50b0 ffffff",
        "B-- B ffffff",
        0.9,
        1,
    ),
    "cheese": _m("cheese", "cheesy,cheese", "f4c842 d09a20 a87414|f6d054 d8a428 b07c18", "B B- B--", 0.85, 1),
    "honeycomb": _m(
        "honeycomb,hexagons", "honeycomb,hexagonal", "d8901c f6d880 b06c10|e09a24 fae08c b87414", "B C B+", 0.8, 0.3
    ),
    "wicker": _m(
        "wicker,basket weave,rattan", "wicker,woven", "c49a5c 5c3e1c 000000|b88c50 543818 000000", "B B-- B", 0.75
    ),
}

# Materials that the renderer draws, but that no caption names: at 64 pixels the autoencoder loses them or they look
# like another material, and a model of this size learns fewer names better. To teach one, remove it here and continue
# training.
RESERVE = frozenset(
    (
        "denim",
        "sand",
        "plaid",
        "earth",
        "granite",
        "crystal",
        "bark",
        "straw",
        "galaxy",
        "cheese",
        "honeycomb",
        "wicker",
    )
)
#: The materials of captions.
MATERIALS = {name: material for name, material in ALL_MATERIALS.items() if name not in RESERVE}

#: Further words of the caption grammar.
GRAMMAR = [
    "a",
    "an",
    "the",
    "of",
    "made",
    "with",
    "and",
    "on",
    "in",
    "over",
    "covered",
    "texture",
    "surface",
    "close",
    "up",
    "view",
    "detail",
    "pattern",
    "material",
    "macro",
    "background",
    "plain",
    "gradient",
    "parts",
    "bands",
    "seamless",
    "painted",
    "photo",
    "image",
    "render",
    "picture",
    "from",
    "some",
    "big",
    "small",
    "old",
    "new",
    "one",
    "shaped",
]

#: Words that have tokens, but that no caption uses. To the model they are unknown words.
UNSAID = frozenset(
    [
        *["big", "small", "old", "new", "one", "some", "from", "in", "over", "left", "right", "top", "shaped"],
        *["photo", "picture", "image", "render", "painted", "macro", "seamless", "gradient", "material", "objects"],
        "shapes",
    ]
)

assert tuple(ALL_MATERIALS) == PATTERNS, "material order is the pattern id"


def rgb(hex_: str) -> np.ndarray:
    """Convert a hex colour to RGB (3,) float64 in [0, 1]."""
    return np.array([int(hex_[i : i + 2], 16) for i in (0, 2, 4)]) / 255.0


def swatch(g: np.random.Generator, colour: str, value: float = 1.0, white: float = 0.0) -> np.ndarray:
    """Draw an RGB (3,) in [0, 1] that people would call `colour`."""
    (h0, h1), (s0, s1), (v0, v1) = COLOURS[colour]
    h, s, v = g.uniform(h0, h1) / 360 % 1.0, g.uniform(s0, s1), g.uniform(v0, v1)
    c = np.array(colorsys.hsv_to_rgb(h, s, min(v * value, 1.0)))
    return c * (1 - white) + white


def tinted(g: np.random.Generator, base: np.ndarray, rule: tuple[str, str, str]) -> np.ndarray:
    """The palette (3, 3) of a material in the colour ``base`` by the tint ``rule`` (`Material.tint`).

    Slots darker than a dark colour become lighter, and slots lighter than a light one become darker. Otherwise joints
    of black stones and waves of white water would be invisible.
    """
    luma = float(base @ (0.3, 0.59, 0.11))
    rows = []
    for r in rule:
        k = g.uniform(0.92, 1.08)
        if r == "B":
            c = base
        elif r == "B-":
            c = base * 0.45 * k + 0.02 if luma > 0.22 else base + 0.24 * k
        elif r == "B--":
            c = base * 0.25 * k + 0.01 if luma > 0.22 else base + 0.36 * k
        elif r == "B+":
            c = base * 0.68 + 0.32 * max(luma, 0.55) * k if luma > 0.22 else base + 0.34 * k
            c = c if luma < 0.8 else base * 0.84 * k
        elif r == "B++":
            c = base * 0.3 + 0.7 if luma > 0.22 else base + 0.45 * k
            c = c if luma < 0.8 else base * 0.7 * k
        elif r == "B~":
            c = base * 0.8 + 0.2 * (0.25 if luma > 0.5 else 0.7)
        elif r == "C":
            c = np.full(3, 0.12 * k) if luma > 0.6 else np.full(3, 0.95)
            if g.random() < 0.3 and luma > 0.3:
                c = base * 0.3
        elif r == "mortar":
            c = np.array([0.9, 0.87, 0.82]) * k if luma < 0.66 else np.array([0.42, 0.41, 0.4]) * k
        elif r == "vein":
            c = base * 0.4 * k if luma > 0.55 else base * 0.25 + 0.68
        elif r == "cream":
            c = np.array([0.96, 0.92, 0.82]) if luma < 0.75 else np.array([0.2, 0.18, 0.17])
        else:
            c = rgb(r)
        rows.append(np.clip(c, 0, 1))
    return np.stack(rows)


def natural(g: np.random.Generator, material: str) -> np.ndarray:
    """Draw one of the material's own palettes (3, 3), slightly varied."""
    m = MATERIALS[material]
    pick = m.natural[int(g.integers(len(m.natural)))]
    if not pick:
        return tinted(g, swatch(g, str(g.choice(list(COLOURS)))), m.tint)
    p = np.stack([rgb(h) for h in pick.split()])
    return np.clip(p * g.uniform(0.92, 1.08) * g.uniform(0.97, 1.03, (1, 3)), 0, 1)


#: Words added after the first tokenizer. Their tokens follow all others, whose numbers did not change. Append only.
LATER = ("fine", "large", "patina", "windows", "door", "roof", "hoops", "wheels", "towers")


def words() -> list[str]:
    """Every word that captions use, sorted."""
    return sorted((set(_words(MATERIALS, THINGS)) | set(LATER)) - UNSAID)


def token_words() -> list[str]:
    """Every word with a token in the first tokenizer, sorted. `LATER` has words that were added since.

    The list includes reserved names, so that token ids do not change when one of them is taught or no longer taught.
    """
    return _words(ALL_MATERIALS, ALL_THINGS)


def _words(materials: dict[str, Material], things: dict[str, Thing]) -> list[str]:
    vocabulary = set(GRAMMAR) | set(COLOURS) | set(COLOUR_WORDS) | set(SHADES) | set(VIEWS)
    for m in materials.values():
        vocabulary |= {w for phrase in m.nouns + m.adjectives for w in phrase.split()}
    for name, t in things.items():
        vocabulary |= {name} | {w for phrase in t.nouns for w in phrase.split()}
    for n in GENERIC_NOUNS:
        vocabulary.add(n)
    vocabulary |= {"objects", "shapes", "left", "right", "top", "patches"}
    return sorted(vocabulary)

"""The surface patterns: a table of functions by name.

A pattern takes points of a surface and a palette (3, 3) of sRGB colours, and returns the material there: unlit base
colour, height, roughness, metalness and emission. It does not depend on light. One unit of texture space is `UNIT`
pixels of a close-up of any size, so the same words are always drawn at the same scale.
"""

from __future__ import annotations

from collections.abc import Callable

from training.patterns import cloth, hide, masonry, metal, nature, printed, wood
from training.patterns.surface import Array, Points, Surface

#: Pixels of a close-up per unit of texture space.
UNIT = 16.0

Pattern = Callable[[Points, Array, int], Surface]

#: By name. Append only: cached shards store positions in this order, and the palettes of `vocabulary` follow it.
TABLE: dict[str, Pattern] = {
    "plastic": printed.plastic,
    "brick": masonry.brick,
    "wood": wood.wood,
    "planks": wood.planks,
    "marble": masonry.marble,
    "stone": masonry.stone,
    "cobblestone": masonry.cobblestone,
    "moss": nature.moss,
    "grass": nature.grass,
    "rust": metal.rust,
    "gold": metal.gold,
    "metal": metal.metal,
    "copper": metal.copper,
    "lava": nature.lava,
    "checker": printed.checker,
    "stripes": printed.stripes,
    "dots": printed.dots,
    "knit": cloth.knit,
    "denim": cloth.denim,
    "scales": hide.scales,
    "camouflage": printed.camouflage,
    "ice": nature.ice,
    "snow": nature.snow,
    "sand": masonry.sand,
    "leather": cloth.leather,
    "giraffe": hide.giraffe,
    "leopard": hide.leopard,
    "zebra": hide.zebra,
    "tiger": hide.tiger,
    "clouds": nature.clouds,
    "water": nature.water,
    "tiles": masonry.tiles,
    "plaid": cloth.plaid,
    "fur": hide.fur,
    "earth": masonry.earth,
    "granite": masonry.granite,
    "crystal": nature.crystal,
    "bark": wood.bark,
    "straw": wood.straw,
    "leaves": nature.leaves,
    "galaxy": nature.galaxy,
    "cheese": wood.cheese,
    "honeycomb": wood.honeycomb,
    "wicker": wood.wicker,
}
PATTERNS = tuple(TABLE)

#: Variants of a material, which are drawn if the caption names them.
VARIANTS: dict[str, Pattern] = {"copper with patina": metal.patinated}

__all__ = ["PATTERNS", "TABLE", "UNIT", "VARIANTS", "Pattern", "Points", "Surface"]

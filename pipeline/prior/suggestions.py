"""Suggests a synonym or a correction for a word that a prior does not know."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Known words of the embedded prior, and words for things of similar appearance. Written by hand.
_NEAR = {
    "wood": "bark log logs trunk teak mahogany cedar birch maple bamboo cork plywood lumber driftwood hardwood",
    "planks": "parquet floorboards decking deck crate pallet",
    "stone": "granite slate basalt sandstone limestone concrete cement gravel sand sandy boulder asphalt rubble clay",
    "cobblestone": "pavement paving flagstone flagstones",
    "brick": "masonry clinker",
    "marble": "onyx travertine alabaster quartz",
    "metal": "chrome tin titanium nickel zinc lead chromium platinum foil metall",
    "copper": "brass",
    "rust": "corroded oxidized oxidised corrosion weathered",
    "knit": "denim fabric cloth cotton velvet silk linen felt burlap textile carpet towel jersey crochet woven jeans",
    "checkered": "tartan plaid gingham chess chessboard argyle",
    "striped": "lined pinstripe pinstriped candystripe",
    "spotted": "speckled freckled dalmatian ladybug ladybird cow",
    "scales": "snake snakeskin lizard crocodile alligator reptile reptilian",
    "leopard": "cheetah jaguar panther ocelot",
    "fur": "hair bear plush feather feathers fleece shaggy mink",
    "leather": "suede hide saddle",
    "ice": "glass crystal frost frosty frosted glacier icicle",
    "snow": "blizzard powder",
    "lava": "fire flame flames burning fiery ember embers volcano",
    "grass": "lawn meadow hay straw",
    "moss": "lichen algae",
    "leaves": "leaf fern plant plants bush hedge vine vines shrub floral",
    "water": "ocean lake river wave waves wet",
    "clouds": "mist fog smoke cloud foggy",
    "camouflage": "army military",
    "tiles": "porcelain terracotta pottery mosaics",
    "plastic": "rubber latex silicone acrylic resin nylon polymer paper cardboard",
    "red": "maroon burgundy cherry vermilion",
    "orange": "apricot",
    "yellow": "mustard canary",
    "green": "mint jade khaki",
    "blue": "indigo sapphire",
    "purple": "mauve plum",
    "pink": "salmon peach coral fuchsia",
    "brown": "beige sepia umber chestnut",
    "black": "coal jet obsidian charcoal",
    "white": "cream chalk",
    "grey": "ash",
    "sphere": "orb globe planet moon",
    "box": "chest dice suitcase parcel",
    "cylinder": "tube pipe can",
    "column": "pillar",
    "cone": "pyramid",
    "vase": "cup mug jar bowl bottle pitcher teapot urn",
    "house": "cabin shed building barn church home",
    "castle": "tower palace fort",
    "car": "truck van vehicle taxi bus",
    "chair": "stool bench sofa armchair throne couch",
    "torus": "doughnut bagel",
    "mushroom": "fungus",
    "barrel": "keg",
}  # fmt: skip
SUGGESTIONS = {word: known for known, words in _NEAR.items() for word in words.split()}
# Shorter words are like too many others.
_SHORTEST = 4
_ALIKE = 0.75


def suggest(word: str, known: Collection[str]) -> str:
    """Returns the word of ``known`` that best replaces the unknown ``word``; "" if there is none."""
    for form in (word, word.removesuffix("s"), word.removesuffix("y")):
        if (near := SUGGESTIONS.get(form, "")) in known:
            return near
    if len(word) < _SHORTEST or not (word.isascii() and word.isalpha()):
        return ""
    # Typing errors seldom affect the first letter, or more than one other.
    meant = [other for other in known if other[:1] == word[0] and abs(len(other) - len(word)) <= 1]
    return next(iter(difflib.get_close_matches(word, sorted(meant), 1, _ALIKE)), "")

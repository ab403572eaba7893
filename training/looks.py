"""Materials with colours, and the words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from training.vocabulary import COLOUR_WORDS, COLOURS, MATERIALS, SHADES, Material, natural, swatch, tinted

T = TypeVar("T")
Rng = np.random.Generator
MATERIAL_NAMES, COLOUR_NAMES = list(MATERIALS), list(COLOURS)
METALS = ("gold", "metal", "copper", "rust")
SKINS = ("e8b894", "c68e64", "8c5a3c", "f0c8a8")


def pick(g: Rng, options: Sequence[T]) -> T:
    """Draw one of ``options`` uniformly."""
    return options[int(g.integers(len(options)))]


def colour(g: Rng) -> tuple[str, int, np.ndarray]:
    """Draw a colour: its word or phrase, its label and an RGB (3,) in [0, 1]."""
    if g.random() < 0.16:
        word = pick(g, list(COLOUR_WORDS))
        base, value, white = COLOUR_WORDS[word]
        return word, COLOUR_NAMES.index(base), swatch(g, base, value, white)
    base = pick(g, COLOUR_NAMES)
    if g.random() < 0.1 and base not in ("black", "white"):
        shade = pick(g, list(SHADES))
        value, white = SHADES[shade]
        return f"{shade} {base}", COLOUR_NAMES.index(base), swatch(g, base, value, white)
    return base, COLOUR_NAMES.index(base), swatch(g, base)


@dataclass
class Look:
    """A material in a colour: its words and its palette (3, 3). ``patina`` marks copper that is partly green."""

    name: str
    colour: str
    colour_id: int
    palette: np.ndarray
    patina: bool = False

    @property
    def material(self) -> Material:
        return MATERIALS[self.name]

    @property
    def pattern(self) -> str:
        return "copper with patina" if self.patina else self.name

    def adjective(self, g: Rng) -> str:
        """The adjectives before a noun, such as "red wooden"."""
        return f"{self.colour} {pick(g, self.material.adjectives)}".strip()

    def noun(self, g: Rng) -> str:
        """The name as a substance, such as "red wood"."""
        return f"{self.colour} {pick(g, self.material.nouns)}".strip()


def any_look(g: Rng, name: str | None = None, coloured: float = 0.58) -> Look:
    """Draw a look, of the material ``name`` if given: in its own colours, or with probability ``coloured`` in a named
    one."""
    name = name or pick(g, MATERIAL_NAMES)
    m = MATERIALS[name]
    # A metal's colour is part of its nature, so it is recoloured less often.
    if name in METALS:
        coloured *= 0.5
    if name == "plastic" or g.random() < coloured:
        word, cid, rgb = colour(g)
        palette = tinted(g, rgb, m.tint)
        if m.tint[1] == "C" and name != "honeycomb" and g.random() < 0.3:
            word2, _, rgb2 = colour(g)
            if word2 != word and np.abs(rgb - rgb2).sum() > 0.5:
                palette[1] = rgb2
                return Look(name, f"{word} and {word2}", -1, palette)
        return Look(name, word, cid, palette)
    return Look(name, "", -1, natural(g, name), name == "copper" and g.random() < 0.16)


def fixed_look(g: Rng, name: str, word: str) -> Look:
    """The fixed material of a part: ``word`` is a plain colour, '', or one of two special palettes."""
    if word == "skin":
        tone = pick(g, SKINS)
        return Look(name, "", -1, np.tile([int(tone[i : i + 2], 16) / 255 for i in (0, 2, 4)], (3, 1)))
    if word == "cow":
        return Look(name, "", -1, np.array([[0.95, 0.94, 0.92], [0.12, 0.1, 0.1], [0.95, 0.94, 0.92]]))
    if word:
        return Look(name, word, COLOUR_NAMES.index(word), tinted(g, swatch(g, word), MATERIALS[name].tint))
    return Look(name, "", -1, natural(g, name))


def with_article(g: Rng, phrase: str) -> str:
    """``phrase`` after a, an, the or nothing."""
    k = g.random()
    if k < 0.72:
        return ("an " if phrase[0] in "aeiou" else "a ") + phrase
    return "the " + phrase if k < 0.8 else phrase

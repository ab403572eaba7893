"""The word list of a prior (``words.json`` in its folder), if it has one. Loads no torch."""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import PriorError

WORDS_FILE = "words.json"
_LATIN = "a-z0-9\u00df-\u00f6\u00f8-\u024f\u0300-\u036f\u1e00-\u1eff"
# A word in Latin letters, or a run of other characters with a meaning: other scripts, symbols, emoji.
_WORD = re.compile(
    rf"[{_LATIN}]+(?:'[{_LATIN}]+)?|[^\x00-\xbf\xd7\xf7{_LATIN}\u2000-\u206f\u2e00-\u2e7f\u3000-\u303f\ufe00-\ufe0f]+"
)


@functools.lru_cache(maxsize=8)
def known_words(folder: Path) -> frozenset[str] | None:
    """Returns all words of the prior in ``folder``, lower case; None if it has no list and accepts any text.

    Raises PriorError for an unreadable list.
    """
    path = folder / WORDS_FILE
    if not path.is_file():
        return None
    try:
        return frozenset(str(word).lower() for word in json.loads(path.read_text(encoding="utf-8"))["words"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PriorError(f"{path}: not a list of words ({type(error).__name__}: {error})") from None


def split_words(prompt: str) -> list[str]:
    """Splits a prompt into lower-case words in order; hyphens separate words.

    Includes words of other scripts and emoji. Normalises full-width letters (NFKC).
    """
    return _WORD.findall(_plain(prompt).lower())


def _plain(prompt: str) -> str:
    return prompt if prompt.isascii() else unicodedata.normalize("NFKC", prompt)


def unknown_words(folder: Path, prompt: str) -> list[str]:
    """Returns the words of ``prompt`` that the prior in ``folder`` does not know, each once, in order."""
    known = known_words(folder)
    if known is None:
        return []
    return [word for word in dict.fromkeys(split_words(prompt)) if word not in known]


def keep_known(folder: Path, prompt: str) -> str:
    """Removes words that the prior does not know from ``prompt`` and keeps commas. No change without a word list.

    An unknown word would be split into untrained tokens with a random effect.
    """
    known = known_words(folder)
    if known is None:
        return prompt
    phrases = (" ".join(w for w in split_words(phrase) if w in known) for phrase in _plain(prompt).split(","))
    return ", ".join(phrase for phrase in phrases if phrase)


def names_known_content(folder: Path, prompt: str) -> bool:
    """Tells whether ``prompt`` names a material, an object or a colour that the prior in ``folder`` knows.

    Returns True for a prior without a list, or with a list without kinds of words. Raises PriorError for an unreadable
    list.
    """
    if known_words(folder) is None:
        return True
    content = _content(folder)
    return content is None or content.search(keep_known(folder, prompt)) is not None


def names_material_alone(folder: Path, prompt: str) -> bool:
    """Tells whether ``prompt`` names a material and no object with different parts (``objects_with_parts`` in the list:
    a house, which has windows, but not a chair). Returns False for lists without kinds of words. Raises PriorError for
    an unreadable list."""
    kinds = _surface_patterns(folder)
    if kinds is None:
        return False
    prompt = _plain(prompt)
    return bool(kinds.materials.search(prompt)) and not kinds.with_parts.search(prompt)


def surface_prompt(folder: Path, prompt: str) -> str:
    """Rewrites ``prompt`` for a view that shows only a piece of the surface.

    Priors with kinds of words and a word for ``surface`` in their list draw an object's outline and background even
    close up. So that word replaces the noun: "a mossy stone object" becomes "a mossy stone surface", "a wooden barrel
    with iron bands" becomes "a wooden surface with iron bands". An object without a material keeps its noun, because
    its parts have their own materials. Other priors get ``prompt`` unchanged. Raises PriorError for an unreadable list.
    """
    kinds = _surface_patterns(folder)
    if kinds is None:
        return prompt
    prompt = _plain(prompt)
    material = kinds.materials.search(prompt)
    if match := kinds.anything.search(prompt) or (kinds.objects_with_parts.search(prompt) if material else None):
        return prompt[: match.start()] + kinds.surface + prompt[match.end() :]
    if material is None or kinds.objects_with_parts.search(prompt):
        return prompt
    first, comma, remainder = prompt.partition(",")
    return f"{first.rstrip()} {kinds.surface}{comma}{remainder}"


@dataclass(frozen=True)
class _Kinds:
    """The word for a surface, and patterns for a material, an object, an object with parts, and any noun."""

    surface: str
    materials: re.Pattern[str]
    objects_with_parts: re.Pattern[str]
    with_parts: re.Pattern[str]
    anything: re.Pattern[str]


@functools.lru_cache(maxsize=8)
def _surface_patterns(folder: Path) -> _Kinds | None:
    """Returns None if the prior has no list, or a list without kinds of words."""
    path = folder / WORDS_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "surface" not in values:
            return None
        materials, objects = values["materials"], values["objects"]
        # Without ``objects_with_parts`` any object may have parts.
        with_parts = {name: objects[name] for name in values.get("objects_with_parts", objects)}
        return _Kinds(
            str(values["surface"]),
            _phrases(_names(materials)),
            _phrases(_names(objects)),
            _phrases(_names(with_parts)),
            _phrases(values["any_object"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(f"{path}: not a list of words ({type(error).__name__}: {error})") from None


@functools.lru_cache(maxsize=8)
def _content(folder: Path) -> re.Pattern[str] | None:
    """Returns a pattern for a material, an object or a colour; None for a list without kinds of words."""
    path = folder / WORDS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kinds = [values[kind] for kind in ("materials", "objects", "colours") if kind in values]
        named = [phrase for kind in kinds for name, synonyms in kind.items() for phrase in (name, *synonyms)]
        return _phrases(named) if named else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(f"{path}: not a list of words ({type(error).__name__}: {error})") from None


def _names(kind: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns a kind's names and their synonyms."""
    return [phrase for name, synonyms in kind.items() for phrase in (name, *synonyms)]


def _phrases(phrases: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern for any of the phrases as whole words, the longest first."""
    longest = sorted({str(phrase).lower() for phrase in phrases}, key=lambda phrase: (-len(phrase), phrase))
    if not longest:
        return re.compile(r"(?!)")  # matches nothing
    return re.compile(rf"(?<![\w<-])(?:{'|'.join(map(re.escape, longest))})(?![\w>-])", re.IGNORECASE)

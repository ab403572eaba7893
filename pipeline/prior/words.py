"""The words a prior knows, for priors that say so (``words.json`` in their folder). Loads no torch."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from pipeline.core.errors import PriorError

WORDS_FILE = "words.json"
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


@functools.lru_cache(maxsize=8)
def known_words(folder: Path) -> frozenset[str] | None:
    """All words of the prior in ``folder``, lower case; None when it has no list and takes any text.

    Raises PriorError when the list is there but unreadable.
    """
    path = folder / WORDS_FILE
    if not path.is_file():
        return None
    try:
        return frozenset(str(word).lower() for word in json.loads(path.read_text(encoding="utf-8"))["words"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PriorError(f"{path}: not a list of words ({type(error).__name__}: {error})") from None


def split_words(prompt: str) -> list[str]:
    """The words of a prompt, lower case, in order; a hyphen parts two words."""
    return _WORD.findall(prompt.lower())


def unknown_words(folder: Path, prompt: str) -> list[str]:
    """Words of ``prompt`` that the prior in ``folder`` does not know, each once, in order."""
    known = known_words(folder)
    if known is None:
        return []
    return [word for word in dict.fromkeys(split_words(prompt)) if word not in known]


def keep_known(folder: Path, prompt: str) -> str:
    """``prompt`` without the words the prior does not know; commas stay. Unchanged without a word list.

    A word split into pieces that were never trained would steer at random, so it is dropped here.
    """
    known = known_words(folder)
    if known is None:
        return prompt
    parts = (" ".join(w for w in split_words(part) if w in known) for part in prompt.split(","))
    return ", ".join(part for part in parts if part)

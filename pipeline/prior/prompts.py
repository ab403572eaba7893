"""What a prior sees of a prompt, and what it does not: unknown words, and the end of what is too long.

Loads no torch, so that a manifest can be checked before anything is loaded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import PriorError
from pipeline.prior.suggestions import suggest
from pipeline.prior.tokens import TokenCounter, token_counters
from pipeline.prior.words import keep_known, known_words, says_something, split_words, unknown_words

VIEWS = ("front", "side", "back", "overhead", "bottom")
CLOSE_UP = ", close up"
# Learned words of a row's concepts, in small letters, and how many tokens each takes.
Concepts = Mapping[str, int]
_NO_CONCEPTS: Concepts = {}
# Characters of a prompt's unseen end that a message quotes.
_QUOTED = 60


def view_suffix(word: str) -> str:
    """What a prompt says of a view from ``word`` (front, side, ...)."""
    return f", {word} view"


def suffixes(*, view_words: bool, close_up: bool) -> list[str]:
    """All that may be added to a prompt for a view."""
    return ([view_suffix(word) for word in VIEWS] if view_words else []) + ([CLOSE_UP] if close_up else [])


def split_at(prompt: str, words: Collection[str]) -> list[str]:
    """``prompt`` cut at ``words``: plain text at even places, one of ``words`` as the prompt writes it at odd ones.

    No part of a longer word is taken for one; upper and lower case are one.
    """
    if not words:
        return [prompt]
    either = "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
    return re.split(rf"(?<!\w)({either})(?!\w)", prompt, flags=re.IGNORECASE)


@dataclass(frozen=True)
class Review:
    """What a prior makes of one text.

    ``unknown``: words that it does not know and leaves out; ``unseen``: the end of the text for which it has no token
    left, as it stands in the text, where up to ``limit`` tokens are read of text and ``suffix``; ``seen``: what is left
    of a text of which not all is seen;
    ``empty``: nothing that it knows is left but what may be said of anything.
    """

    unknown: tuple[str, ...]
    unseen: str
    limit: int
    suffix: str
    seen: str
    empty: bool


class PromptReader:
    """Reads prompts as the prior in ``folder`` (or the single ``file``) does. ``name``: as messages call it.

    Its methods raise PriorError where the prior's words cannot be read. ``problem`` says why a tokenizer cannot be:
    prompts then have any length.
    """

    def __init__(self, name: str, folder: Path, file: Path | None = None):
        self.name, self._folder, self._file = name, folder, file
        self.problem = ""

    @functools.cached_property
    def _counters(self) -> list[tuple[TokenCounter, int]]:
        """The tokenizers that have a limit, each with it."""
        try:
            counters = token_counters(self._folder, self._file)
        except PriorError as error:
            self.problem = error.message
            return []
        return [(counter, counter.limit) for counter in counters if counter.limit is not None]

    def fit(self, prompt: str, suffix: str, concepts: Concepts = _NO_CONCEPTS) -> str:
        """As many words of ``prompt`` as the prior has tokens for beside ``suffix``: of what is too long it would drop
        the suffix first. Of a text without blanks as many letters. Of a prior for which the suffix is longer than half
        of what it takes, all of it: the prompt matters more."""
        if self._fits(prompt + suffix, concepts) or not self._fits(suffix + suffix, {}):
            return prompt
        ends = [match.end() for match in re.finditer(r"\S+", prompt)]
        count = _most(len(ends), lambda n: self._fits(_end(prompt[: ends[n - 1]]) + suffix, concepts))
        if count:
            return _end(prompt[: ends[count - 1]])
        return prompt[: _most(ends[0] if ends else 0, lambda n: self._fits(prompt[:n] + suffix, concepts))]

    def review(
        self, text: str, suffixes: Sequence[str] = (), concepts: Concepts = _NO_CONCEPTS, *, positive: bool = True
    ) -> Review:
        """What the prior makes of ``text``, to which one of ``suffixes`` may be added. Only a ``positive`` prompt is
        ever ``empty``: a negative one may be."""
        if concepts:
            return self._review(text, tuple(suffixes), concepts, positive)
        # Rows often have the same prompts.
        return self._remembered(text, tuple(suffixes), positive)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - a process has few readers
    def _remembered(self, text: str, suffixes: tuple[str, ...], positive: bool) -> Review:
        return self._review(text, suffixes, _NO_CONCEPTS, positive)

    def _review(self, text: str, suffixes: tuple[str, ...], concepts: Concepts, positive: bool) -> Review:
        if not text:
            return Review((), "", 0, "", "", positive)
        pieces = split_at(text, concepts)
        plain = text if len(pieces) == 1 else " ".join(pieces[::2])
        # As nearly all prompts are: of known words, and short.
        known = self._plain.issuperset(plain.split())
        unknown = () if known else tuple(unknown_words(self._folder, plain))
        empty = positive and self.is_empty(text, concepts)
        limit = min((limit for _, limit in self._counters), default=0)
        left = self._left(suffixes)
        if all(
            self._length(text, counter, concepts) <= most
            for (counter, _), most in zip(self._counters, left, strict=True)
        ):
            return Review(unknown, "", limit, "", self._known(text, concepts) if unknown else "", empty)
        fitted = [(self.fit(text, suffix, concepts), suffix) for suffix in suffixes or ("",)]
        seen, suffix = min(fitted, key=lambda pair: len(pair[0]))
        return Review(unknown, text[len(seen) :].strip(), limit, suffix, self._known(seen, concepts), empty)

    @functools.cached_property
    def _plain(self) -> frozenset[str]:
        """Of the words that the prior knows, those that are one word between two blanks."""
        return frozenset(word for word in known_words(self._folder) or () if split_words(word) == [word])

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a process has few readers
    def _left(self, suffixes: tuple[str, ...]) -> list[int]:
        """For each counter, how many tokens are left for a text beside any of ``suffixes``."""
        # Each brings a comma, which is not counted where nothing stands before it.
        return [
            limit - max((counter.count(keep_known(self._folder, suffix)) + 1 for suffix in suffixes), default=0)
            for counter, limit in self._counters
        ]

    def _length(self, text: str, counter: TokenCounter, concepts: Concepts) -> int:
        pieces = split_at(text, concepts)
        learned = sum(concepts[piece.lower()] for piece in pieces[1::2])
        return learned + sum(counter.count(keep_known(self._folder, piece)) for piece in pieces[::2])

    def is_empty(self, prompt: str, concepts: Concepts = _NO_CONCEPTS) -> bool:
        """Whether nothing that the prior knows, or learns with ``concepts``, is in it."""
        pieces = split_at(prompt, concepts)
        return len(pieces) == 1 and not says_something(self._folder, prompt)

    def row_warnings(
        self, prompt: str, negative: str, suffixes: Sequence[str], concepts: Concepts = _NO_CONCEPTS
    ) -> list[str]:
        """What is to be told of a row's two prompts, as it goes into records."""
        review = self.review(prompt, suffixes, concepts)
        own = [f"prompt: {self.emptiness(review)}"] if review.empty else []
        own += [f"prompt: {text}" for text in self.warnings(review)]
        other = self.review(negative, (), concepts, positive=False)
        return own + [f"negative_prompt: {text}" for text in self.warnings(other)]

    def warnings(self, review: Review) -> Iterator[str]:
        """What is to be told of a text beside that it is empty: each in one line."""
        if review.unknown and not review.empty:
            yield f"the prior '{self.name}' does not know: {self.unknown(review)}"
        if review.unseen:
            added = f" ('{review.suffix}' among them)" if review.suffix else ""
            yield (
                f"it is longer than the {review.limit} tokens that the prior '{self.name}' takes{added}; its end is "
                f"not seen: {_quoted(review.unseen)}"
            )

    def concept_warnings(self, prompt: str, concepts: Concepts) -> Iterator[str]:
        """What is to be told of learned words: which ``prompt`` lacks, and which hide a word of the prior's."""
        used = {piece.lower() for piece in split_at(prompt, concepts)[1::2]}
        known = known_words(self._folder) or ()
        for word in concepts:
            if word not in used:
                lacks = "is not in the prompt, so it changes nothing; write its word into the prompt"
                yield f"the concept {word!r} {lacks}"
            elif word in known:
                yield f"the concept {word!r} takes the place of a word that the prior '{self.name}' knows"

    def emptiness(self, review: Review) -> str:
        """What is wrong with a prompt that is ``empty``: what it lacks, and what to write instead."""
        names = f" (it does not know: {self.unknown(review)})" if review.unknown else ""
        return f"no material, object or colour that the prior '{self.name}' knows is in it{names}"

    def unknown(self, review: Review) -> str:
        """The unknown words, each with a known one that may serve where there is one."""
        known = known_words(self._folder) or frozenset()
        near = [(word, suggest(word, known)) for word in review.unknown]
        return ", ".join(f"{word} (try '{other}')" if other else word for word, other in near)

    def _known(self, text: str, concepts: Concepts) -> str:
        pieces = split_at(text, concepts)
        return "".join(p.lower() if i % 2 else f" {keep_known(self._folder, p)} " for i, p in enumerate(pieces)).strip()

    def _fits(self, text: str, concepts: Concepts) -> bool:
        return all(self._length(text, counter, concepts) <= limit for counter, limit in self._counters)


def _most(count: int, holds: Callable[[int], bool]) -> int:
    """The largest n from 1 to ``count`` of which ``holds`` is true, as it is of all smaller ones; else 0."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _end(text: str) -> str:
    return text.rstrip(" ,;")


def _quoted(text: str) -> str:
    return f"'{text}'" if len(text) <= _QUOTED else f"'{text[: _QUOTED - 3]}...'"

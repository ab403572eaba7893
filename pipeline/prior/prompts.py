"""Finds the parts of a prompt that a prior ignores: unknown words, and the end of a long prompt.

Loads no torch, so a manifest can be checked before a prior is loaded.
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
from pipeline.prior.words import keep_known, known_words, names_known_content, split_words, unknown_words

VIEWS = ("front", "side", "back", "overhead", "bottom")
CLOSE_UP = ", close up"
# Maps learned words of a row's concepts, in lower case, to their numbers of tokens.
Concepts = Mapping[str, int]
_NO_CONCEPTS: Concepts = {}
# Maximum length of a quoted end of a prompt in a message.
_QUOTED = 60


def view_suffix(word: str) -> str:
    """Returns the prompt suffix for a view from ``word`` (front, side, ...)."""
    return f", {word} view"


def suffixes(*, view_words: bool, close_up: bool) -> list[str]:
    """Returns all suffixes that may be added to a prompt for a view."""
    return ([view_suffix(word) for word in VIEWS] if view_words else []) + ([CLOSE_UP] if close_up else [])


def split_at(prompt: str, words: Collection[str]) -> list[str]:
    """Splits ``prompt`` at ``words``: plain text at even indices, one of ``words`` as written at odd ones.

    Matches whole words only and ignores case.
    """
    if not words:
        return [prompt]
    either = "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
    return re.split(rf"(?<!\w)({either})(?!\w)", prompt, flags=re.IGNORECASE)


@dataclass(frozen=True)
class Review:
    """The parts of one text that a prior sees and ignores.

    ``unknown``: words that the prior does not know and drops. ``unseen``: the end of the text beyond the token limit,
    verbatim. ``limit``: maximum number of tokens of text and ``suffix``. ``seen``: the remaining text, if the prior
    ignores a part. ``empty``: the remaining text names nothing that the prior knows.
    """

    unknown: tuple[str, ...]
    unseen: str
    limit: int
    suffix: str
    seen: str
    empty: bool


class PromptReader:
    """Reads prompts as the prior in ``folder`` (or the single ``file``) does. ``name`` is its name in messages.

    Methods raise PriorError if the prior's word list is unreadable. If a tokenizer is unreadable, ``problem`` holds the
    reason, and the length of prompts is not checked.
    """

    def __init__(self, name: str, folder: Path, file: Path | None = None):
        self.name, self._folder, self._file = name, folder, file
        self.problem = ""

    @functools.cached_property
    def _counters(self) -> list[tuple[TokenCounter, int]]:
        """The tokenizers with a token limit, and their limits."""
        try:
            counters = token_counters(self._folder, self._file)
        except PriorError as error:
            self.problem = error.message
            return []
        return [(counter, counter.limit) for counter in counters if counter.limit is not None]

    def fit(self, prompt: str, suffix: str, concepts: Concepts = _NO_CONCEPTS) -> str:
        """Cuts ``prompt`` to the words that fit into the prior's tokens beside ``suffix``, which the prior would drop
        first. Cuts a text without blanks between letters. Does not cut if the suffix takes more than half of the
        tokens, since the prompt matters more."""
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
        """Reviews ``text``, to which one of ``suffixes`` may be added. Only a ``positive`` prompt can be ``empty`` in
        the review; a negative one may have no known words."""
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
        # Fast path for typical prompts: short, of known words.
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
        """The known words that contain no blanks."""
        return frozenset(word for word in known_words(self._folder) or () if split_words(word) == [word])

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a process has few readers
    def _left(self, suffixes: tuple[str, ...]) -> list[int]:
        """For each counter, the number of tokens left for a text beside any of ``suffixes``."""
        # Each suffix adds a comma, which is not counted without text before it.
        return [
            limit - max((counter.count(keep_known(self._folder, suffix)) + 1 for suffix in suffixes), default=0)
            for counter, limit in self._counters
        ]

    def _length(self, text: str, counter: TokenCounter, concepts: Concepts) -> int:
        pieces = split_at(text, concepts)
        learned = sum(concepts[piece.lower()] for piece in pieces[1::2])
        return learned + sum(counter.count(keep_known(self._folder, piece)) for piece in pieces[::2])

    def is_empty(self, prompt: str, concepts: Concepts = _NO_CONCEPTS) -> bool:
        """Tells whether the text names nothing that the prior knows or learns with ``concepts``."""
        pieces = split_at(prompt, concepts)
        return len(pieces) == 1 and not names_known_content(self._folder, prompt)

    def row_warnings(
        self, prompt: str, negative: str, suffixes: Sequence[str], concepts: Concepts = _NO_CONCEPTS
    ) -> list[str]:
        """Returns the warnings about a row's two prompts, for records."""
        review = self.review(prompt, suffixes, concepts)
        warnings_of_prompt = [f"prompt: {self.emptiness(review)}"] if review.empty else []
        warnings_of_prompt += [f"prompt: {text}" for text in self.warnings(review)]
        other = self.review(negative, (), concepts, positive=False)
        return warnings_of_prompt + [f"negative_prompt: {text}" for text in self.warnings(other)]

    def warnings(self, review: Review) -> Iterator[str]:
        """Yields the warnings about a text, one line each, except that it is empty."""
        if review.unknown and not review.empty:
            yield f"the prior '{self.name}' does not know: {self.unknown(review)}"
        if review.unseen:
            added = f" ('{review.suffix}' among them)" if review.suffix else ""
            yield (
                f"it is longer than the {review.limit} tokens that the prior '{self.name}' takes{added}; its end is "
                f"not seen: {_quoted(review.unseen)}"
            )

    def concept_warnings(self, prompt: str, concepts: Concepts) -> Iterator[str]:
        """Yields warnings about learned words that ``prompt`` lacks, and about those that hide a known word."""
        used = {piece.lower() for piece in split_at(prompt, concepts)[1::2]}
        known = known_words(self._folder) or ()
        for word in concepts:
            if word not in used:
                lacks = "is not in the prompt, so it changes nothing; write its word into the prompt"
                yield f"the concept {word!r} {lacks}"
            elif word in known:
                yield f"the concept {word!r} takes the place of a word that the prior '{self.name}' knows"

    def emptiness(self, review: Review) -> str:
        """Returns the error of an ``empty`` prompt: the missing words, and suggestions."""
        names = f" (it does not know: {self.unknown(review)})" if review.unknown else ""
        return f"the prior '{self.name}' knows no material, object or colour in it{names}"

    def unknown(self, review: Review) -> str:
        """Returns the unknown words, each with a suggestion if there is one."""
        known = known_words(self._folder) or frozenset()
        near = [(word, suggest(word, known)) for word in review.unknown]
        return ", ".join(f"{word} (try '{other}')" if other else word for word, other in near)

    def _known(self, text: str, concepts: Concepts) -> str:
        pieces = split_at(text, concepts)
        return "".join(p.lower() if i % 2 else f" {keep_known(self._folder, p)} " for i, p in enumerate(pieces)).strip()

    def _fits(self, text: str, concepts: Concepts) -> bool:
        return all(self._length(text, counter, concepts) <= limit for counter, limit in self._counters)


def _most(count: int, holds: Callable[[int], bool]) -> int:
    """Returns the largest n from 1 to ``count`` with ``holds(n)``, by bisection; 0 if there is none."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _end(text: str) -> str:
    return text.rstrip(" ,;")


def _quoted(text: str) -> str:
    return f"'{text}'" if len(text) <= _QUOTED else f"'{text[: _QUOTED - 3]}...'"

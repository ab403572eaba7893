"""View-dependent prompts (docs/method.md, section 2). Embeds text once per job and kind of view, not per step."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.core.scene import View
from pipeline.prior.adapters import NO_ADAPTERS as NO_ADAPTERS
from pipeline.prior.adapters import Adapters
from pipeline.prior.load import Prior, TextEmbedding
from pipeline.prior.prompts import CLOSE_UP, view_suffix


def view_prompt(
    prompt: str,
    view: View,
    *,
    view_words: bool,
    close_up: bool,
    fit: Callable[[str, str], str] = lambda prompt, suffix: prompt,
) -> str:
    """``"{prompt}, close up"`` for close-ups, ``"{prompt}, {word} view"`` for overviews.

    ``fit(prompt, suffix)`` shortens the prompt if it is too long for the prior with the suffix.
    """
    if view.close and close_up:
        suffix = CLOSE_UP
    elif view_words and not view.close:
        suffix = view_suffix(view.direction_word)
    else:
        return prompt
    return fit(prompt, suffix) + suffix


class PromptTable:
    """Embeddings of one job's prompts for every kind of view, and of its negative prompt."""

    def __init__(
        self,
        prior: Prior,
        prompt: str,
        negative: str,
        *,
        view_words: bool,
        close_up: bool,
        adapters: Adapters = NO_ADAPTERS,
    ):
        self._prior, self._prompt, self._adapters = prior, prompt, adapters
        self._fitted: dict[tuple[str, str], str] = {}
        self._surface = prior.surface_prompt(prompt)
        self._view_words, self._close_up = view_words, close_up
        self._negative = prior.embed([negative], adapters, negative=True)

    def text(self, views: list[View]) -> TextEmbedding:
        """(V, L, D) embeddings of the prompts for ``views``."""
        return self._prior.embed([self._view_prompt(view) for view in views], self._adapters)

    def _view_prompt(self, view: View) -> str:
        prompt = self._surface if view.close and self._close_up else self._prompt
        return view_prompt(prompt, view, view_words=self._view_words, close_up=self._close_up, fit=self._fit)

    def _fit(self, prompt: str, suffix: str) -> str:
        key = (prompt, suffix)
        if key not in self._fitted:
            self._fitted[key] = self._prior.fit_prompt(prompt, suffix, self._adapters)
        return self._fitted[key]

    def negative(self, count: int) -> TextEmbedding:
        """(V, L, D) embeddings of the negative prompt, repeated ``count`` times."""
        return self._negative.expand(count)

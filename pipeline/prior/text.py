"""Encodes prompts with one text encoder (SD 1.x and 2.x) or two (SDXL), and with textual inversions.

Shapes: N prompts, L tokens (77 for CLIP), D embedding width (both encoders' widths added for SDXL), P pooled width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.prior.adapters import NO_ADAPTERS, Adapters, Concept
from pipeline.prior.components import Components
from pipeline.prior.prompts import split_at

# Placeholder for a learned word's vectors: any token that does not end the text.
_PLACEHOLDER_ID = 0


@dataclass(frozen=True)
class TextEmbedding:
    """Text encoder states of N prompts: ``states`` (N, L, D) in the prior's dtype, on its device.

    ``pooled`` (N, P) if the prior's UNet needs it (SDXL), else None. ``adapters``: the UNet's adapters for these
    prompts.
    """

    states: Tensor
    pooled: Tensor | None = None
    adapters: Adapters = NO_ADAPTERS

    def __getitem__(self, index: Any) -> TextEmbedding:
        return TextEmbedding(self.states[index], None if self.pooled is None else self.pooled[index], self.adapters)

    def expand(self, count: int) -> TextEmbedding:
        """Repeats one embedding ``count`` times."""
        pooled = None if self.pooled is None else self.pooled.expand(count, *self.pooled.shape[1:])
        return TextEmbedding(self.states.expand(count, *self.states.shape[1:]), pooled, self.adapters)

    def map(self, function: Any) -> TextEmbedding:
        """Applies ``function`` to each tensor."""
        return TextEmbedding(
            function(self.states), None if self.pooled is None else function(self.pooled), self.adapters
        )

    @staticmethod
    def cat(embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
        """Concatenates ``embeddings``, which must have equal adapters."""
        pooled = [embedding.pooled for embedding in embeddings if embedding.pooled is not None]
        return TextEmbedding(
            torch.cat([embedding.states for embedding in embeddings]),
            torch.cat(pooled) if pooled else None,
            embeddings[0].adapters,
        )


class TextEncoders:
    """Tokenizers and text encoders of a prior, frozen."""

    def __init__(self, components: Components):
        self.tokenizers, self.models, self._is_xl = components.tokenizers, components.texts, components.is_xl

    @property
    def widths(self) -> list[int]:
        """D of each encoder."""
        return [int(model.config.hidden_size) for model in self.models]

    def names(self) -> dict[str, Any]:
        """The encoders by their names in LoRA files."""
        return dict(zip(("text", "text2"), self.models, strict=False))

    def encode(
        self, prompt: str, concepts: Sequence[Concept], device: torch.device, clean: Callable[[str], str]
    ) -> tuple[Tensor, Tensor | None]:
        """Returns states (L, D) and pooled state (P,) or None of one prompt. Applies ``clean`` to its plain text.

        SD uses the encoder's last layer. SDXL uses the penultimate layer of both encoders, and the second's projection.
        """
        states: list[Tensor] = []
        pooled: Tensor | None = None
        pieces = [clean(p) if isinstance(p, str) else p for p in split_concepts(prompt, concepts)]
        for number, (tokenizer, model) in enumerate(zip(self.tokenizers, self.models, strict=True)):
            ids, replacements = _tokens(tokenizer, pieces, number)
            with _replaced(model, replacements):
                if self._is_xl:
                    out = model(ids.to(device), output_hidden_states=True)
                    states.append(out.hidden_states[-2][0])
                    pooled = out[0][0]
                else:
                    states.append(model(ids.to(device))[0][0])
        return (torch.cat(states, dim=-1) if len(states) > 1 else states[0]), pooled


def _tokens(tokenizer: Any, pieces: Sequence[str | Concept], number: int) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Returns token ids (1, L), and the positions and vectors of learned words. ``number``: of the text encoder."""
    length = int(tokenizer.model_max_length)
    if len(pieces) == 1 and isinstance(pieces[0], str):
        plain = tokenizer(pieces[0], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return plain.input_ids, []
    ids: list[int] = []
    replacements: list[tuple[int, Tensor]] = []
    for piece in pieces:
        if isinstance(piece, str):
            ids += tokenizer(piece, add_special_tokens=False).input_ids
            continue
        for vector in piece.vectors[number]:
            replacements.append((len(ids) + 1, vector))
            ids.append(_PLACEHOLDER_ID)
    ids = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    return torch.tensor([ids]), [(position, vector) for position, vector in replacements if position < length - 1]


def split_concepts(prompt: str, concepts: Sequence[Concept]) -> list[str | Concept]:
    """Splits ``prompt`` into plain text and learned words. Matches whole words only."""
    by_word = {concept.word.lower(): concept for concept in concepts}
    pieces = split_at(prompt, by_word)
    if len(pieces) == 1:
        return [prompt]
    return [by_word[piece.lower()] if i % 2 else piece for i, piece in enumerate(pieces) if piece]


@contextlib.contextmanager
def _replaced(model: Any, replacements: list[tuple[int, Tensor]]) -> Iterator[None]:
    """Replaces ``model``'s embeddings at the given positions by the given vectors inside the block."""
    if not replacements:
        yield
        return

    def replace_rows(module: Any, arguments: Any, output: Tensor) -> Tensor:
        output = output.clone()
        for position, vector in replacements:
            output[:, position] = vector.to(output)
        return output

    handle = model.get_input_embeddings().register_forward_hook(replace_rows)
    try:
        yield
    finally:
        handle.remove()

"""Counts tokens with a prior's own tokenizers. Loads neither torch nor transformers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PriorError
from pipeline.prior import single_file
from pipeline.prior.identity import read_config
from pipeline.prior.vocabulary import END, START, Vocabulary, find_vocabulary, read_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Number of cached words.
_REMEMBERED = 1 << 16
# CLIP's pattern that splits a text before byte-pair encoding.
_PIECES = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class TokenCounter:
    """One tokenizer of a prior. ``limit``: maximum number of tokens of its encoder, without the start and end tokens;
    None if the prior does not define it."""

    def __init__(self, tokenizer: Tokenizer, limit: int | None):
        self.limit = limit
        # No token spans white space, so words can be counted one by one.
        self._word: Callable[[str], int] = functools.lru_cache(_REMEMBERED)(
            lambda word: len(tokenizer.encode(word, add_special_tokens=False).ids)
        )

    def count(self, text: str) -> int:
        """Returns the number of tokens of ``text``."""
        return sum(map(self._word, text.split()))


def token_counters(folder: Path, file: Path | None = None) -> list[TokenCounter]:
    """Returns a counter for each text encoder of the prior in ``folder``, or in the single ``file``.

    Raises PriorError if a tokenizer is missing or damaged.
    """
    if file is not None:
        kind = single_file.family(file)
        components = ("tokenizer", "tokenizer_2") if kind == "sdxl" else ("tokenizer",)
        return [_counter(single_file.config_folder(file, kind, part) / part, file) for part in components]
    components = ("tokenizer", "tokenizer_2") if (folder / "tokenizer_2").is_dir() else ("tokenizer",)
    return [_counter(folder / part) for part in components]


def _counter(folder: Path, file: Path | None = None) -> TokenCounter:
    settings = read_config(folder, "", "tokenizer_config.json")
    longest = settings.get("model_max_length")
    # transformers writes 10 ** 30 for an undefined length.
    known = isinstance(longest, int | float) and 2 < longest < 1 << 20
    if (folder / "tokenizer.json").is_file():
        vocabulary = _packed(folder / "tokenizer.json")
    else:
        vocabulary = find_vocabulary(file) if file else read_vocabulary(folder)
    try:
        return TokenCounter(_tokenizer(vocabulary), int(longest) - 2 if known and longest else None)
    except Exception as error:  # the library, written in Rust, raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise PriorError(f"{folder}: its tokenizer cannot be used ({reason})") from None


def _packed(path: Path) -> Vocabulary:
    """The vocabulary in a tokenizer.json."""
    try:
        model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model"]
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        return {str(token): int(number) for token, number in model["vocab"].items()}, pairs  # type: ignore[return-value]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PriorError(f"{path}: not a CLIP tokenizer ({type(error).__name__}: {error})") from None


def _tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Builds the tokenizer as transformers builds its CLIPTokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    numbers, merges = vocabulary
    model = BPE(
        vocab=numbers, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False,
        unk_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in (START, END) if mark in numbers])
    return tokenizer

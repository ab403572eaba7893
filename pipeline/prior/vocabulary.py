"""Finds CLIP's byte-pair vocabulary, which single-file checkpoints lack. Loads no torch.

Searches this machine: the file's sidecar, tokenizers in the hub cache, and the package ``open_clip_torch`` (MIT). All
of them contain the same 49,408 tokens.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

from pipeline.core.errors import PriorError
from pipeline.prior.hub import cached_tokenizers
from pipeline.prior.single_file import sidecar

Vocabulary = tuple[dict[str, int], list[tuple[str, str]]]

START, END = "<|startoftext|>", "<|endoftext|>"
PACKAGES = ("open_clip", "clip")
_PACKED = "bpe_simple_vocab_16e6.txt.gz"
_TOKENS = 49_408


def find_vocabulary(path: Path) -> Vocabulary:
    """Returns token ids and ordered merges for the checkpoint at ``path``. Raises PriorError if there are none."""
    for folder in (sidecar(path) / "tokenizer", path.parent / "tokenizer", *cached_tokenizers()):
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return read_vocabulary(folder)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for search_folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(search_folder) / _PACKED).is_file():
                return unpack(Path(search_folder) / _PACKED)
    raise PriorError(
        f"{path}: a single file brings no tokenizer, and none of CLIP's is on this machine; put vocab.json and "
        f"merges.txt into {sidecar(path) / 'tokenizer'}, or: pip install open_clip_torch"
    )


def read_vocabulary(folder: Path) -> Vocabulary:
    """Reads the vocabulary from ``vocab.json`` and ``merges.txt`` in ``folder``. Raises PriorError."""
    try:
        numbers = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        return {str(token): int(number) for token, number in numbers.items()}, _merges(lines)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PriorError(f"{folder}: not a CLIP vocabulary ({type(error).__name__}: {error})") from None


def unpack(path: Path) -> Vocabulary:
    """Builds CLIP's vocabulary from its published merges: bytes, word-final bytes, merges, start and end."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    # The file holds more merges than CLIP has tokens for.
    merges = _merges(lines)[: _TOKENS - len(tokens) - 2]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    """Parses merges: a header line, then one pair per non-empty line."""
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a merge is not a pair of tokens")
    return pairs  # type: ignore[return-value]


def _byte_letters() -> list[str]:
    """Returns one printable character for each of the 256 bytes: itself if printable, else one from 256 upwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]

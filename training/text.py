"""Stage 2: the tokenizer, with one token per known word, and the text encoder with a short pretraining on the labels.

    python -m training.text --config training/configs/embedded.toml

Unknown words are split into pieces. In training all pieces have the id of one empty token, and word dropout trains that
token to mean nothing. `fill_pieces` copies its embedding to all pieces for export. Reserved names
(`vocabulary.RESERVE`) have tokens, but are unknown words as well.
"""

from __future__ import annotations

import collections
import itertools
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import checkpoint
from training.data import COLOUR_NAMES, MATERIAL_NAMES, OBJECT_NAMES, read_pool
from training.settings import Log, Settings, load, parser
from training.vocabulary import LATER, VIEWS, token_words, words

LENGTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
HEADS = {
    "material": len(MATERIAL_NAMES),
    "colour": len(COLOUR_NAMES),
    "thing": len(OBJECT_NAMES),
    "view": len(VIEWS),
}


def _alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(extra))]


def _learn(words_: list[str], vocab: list[str], merges: list[tuple[str, str]]) -> None:
    """Append the merges that make each word one symbol, and their symbols, after the known merges."""
    seqs = [[*w[:-1], w[-1] + "</w>"] for w in words_]
    for pair in merges:
        for s in seqs:
            _merge(s, pair)
    while True:
        pairs = collections.Counter(p for s in seqs for p in itertools.pairwise(s))
        if not pairs:
            return
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        if "".join(best) not in vocab:
            vocab.append("".join(best))
        for s in seqs:
            _merge(s, best)


def _merge(symbols: list[str], pair: tuple[str, str]) -> None:
    """Merge every occurrence of a pair in place."""
    i = 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i : i + 2] = ["".join(pair)]
        i += 1


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every known word is one token.

    Byte-pair merges are learned on the word list until each word is a single symbol. Encoding replays the merges in the
    same order, so known words are never split. Words that were added later have their merges and tokens after all
    others and the two special tokens, so that the numbers of earlier tokens do not change.
    """
    vocab = [*_alphabet(), *(c + "</w>" for c in _alphabet())]
    merges: list[tuple[str, str]] = []
    _learn(token_words(), vocab, merges)
    vocab += [BOS, EOS]
    for word in LATER:
        _learn([word], vocab, merges)
    return CLIPTokenizer(
        vocab={t: i for i, t in enumerate(vocab)},
        merges=merges,
        model_max_length=LENGTH,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS,
    )


class Vocabulary:
    """The tokenizer with the map from pieces to the empty token."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        table = self.tokenizer.get_vocab()
        self.size = len(table)
        self.bos, self.eos = table[BOS], table[EOS]
        known = {w + "</w>" for w in words()} | {",</w>", BOS, EOS}
        self.pieces = torch.tensor(sorted(i for t, i in table.items() if t not in known))
        self.empty = int(self.pieces[0])
        self.remap = torch.arange(self.size)
        self.remap[self.pieces] = self.empty

    def ids(self, captions: list[str]) -> Tensor:
        """Token ids (N, 24) int64 of captions, with pieces mapped to the empty token."""
        out = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).input_ids
        return self.remap[out]

    def corrupt(self, ids: Tensor, word_drop: float, caption_drop: float, g: torch.Generator) -> Tensor:
        """Training noise: some words and commas become the empty token, and some captions become empty."""
        r = torch.rand(ids.shape, generator=g)
        special = (ids == self.bos) | (ids == self.eos)
        out = torch.where((r < word_drop) & ~special, torch.full_like(ids, self.empty), ids)
        # Pieces of unknown words may stand anywhere after the start, so insert empty tokens by shifting right by one.
        grow = torch.rand(len(ids), generator=g) < 2 * word_drop
        at = torch.randint(1, 8, (len(ids),), generator=g)
        pos = torch.arange(ids.shape[1])[None]
        shifted = torch.cat([out[:, :1], out[:, :-1]], 1)
        grown = torch.where(pos < at[:, None], out, shifted)
        grown = torch.where(pos == at[:, None], torch.full_like(out, self.empty), grown)
        out = torch.where(grow[:, None] & (out.gather(1, at[:, None]) != self.eos), grown, out)
        drop = torch.rand(len(ids), generator=g) < caption_drop
        none = torch.full_like(ids, self.eos)
        none[:, 0] = self.bos
        return torch.where(drop[:, None], none, out)


def build(vocabulary: Vocabulary, c: dict) -> CLIPTextModel:
    """The text encoder from its settings table."""
    config = CLIPTextConfig(
        vocab_size=vocabulary.size,
        hidden_size=c["width"],
        intermediate_size=c["width"] * 4,
        num_hidden_layers=c["layers"],
        num_attention_heads=c["heads"],
        max_position_embeddings=LENGTH,
        projection_dim=c["width"],
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.eos,
    )
    # On the CPU the backward pass of fused attention is very slow.
    config._attn_implementation = "eager"
    return CLIPTextModel(config)


@torch.no_grad()
def fill_pieces(model: CLIPTextModel, vocabulary: Vocabulary) -> None:
    """Copy the embedding of the empty token to every piece."""
    weight = model.get_input_embeddings().weight
    weight[vocabulary.pieces] = weight[vocabulary.empty].clone()


@torch.no_grad()
def load_encoder(model: CLIPTextModel, stored: dict[str, Tensor], vocabulary: Vocabulary) -> None:
    """Load weights that may have fewer tokens. Later tokens start as the empty token, which is how the stored weights
    have read those words."""
    key = next(k for k in stored if k.endswith("token_embedding.weight"))
    rows = stored[key]
    if len(rows) < vocabulary.size:
        later = rows[vocabulary.empty].expand(vocabulary.size - len(rows), -1)
        stored = {**stored, key: torch.cat([rows, later])}
    model.load_state_dict(stored)


class Heads(nn.Module):
    """Linear label heads on the mean of the token states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.ModuleDict({k: nn.Linear(width, n) for k, n in HEADS.items()})

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Token states (N, 24, width) to logits by head."""
        mean = states.mean(1)
        return {k: m(mean) for k, m in self.out.items()}


def train(cfg: Settings) -> None:
    """Pretrain for a fixed number of steps and save `text.safetensors`."""
    c = cfg["text"]
    torch.manual_seed(c["seed"])
    g = torch.Generator().manual_seed(c["seed"])
    log = Log(cfg.work / "text.jsonl")
    vocabulary = Vocabulary()
    _, captions, labels = read_pool(cfg.work / "pool" / "train", c.get("shards"))
    ids, lab = vocabulary.ids(captions), torch.from_numpy(labels)
    model, heads = build(vocabulary, c), Heads(c["width"])
    opt = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=c["lr"], weight_decay=1e-2, fused=True)
    rng = np.random.default_rng(c["seed"])
    start = time.time()
    for step in range(c["steps"]):
        for group in opt.param_groups:
            group["lr"] = c["lr"] * min(1.0, (step + 1) / 50) * (1.0 - 0.9 * step / c["steps"])
        i = torch.from_numpy(rng.integers(0, len(ids), c["batch"]))
        logits = heads(model(vocabulary.corrupt(ids[i], 0.05, 0.0, g)).last_hidden_state)
        losses = {k: F.cross_entropy(logits[k], lab[i, j], ignore_index=-1) for j, k in enumerate(HEADS)}
        opt.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        opt.step()
        if (step + 1) % c["log_every"] == 0:
            log(
                stage="text",
                step=step + 1,
                **{k: round(v.item(), 3) for k, v in losses.items()},
                s=round(time.time() - start),
            )
    checkpoint.save(cfg.work / "text.safetensors", {"model": model})


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = parser(__doc__)
    a = p.parse_args(argv)
    torch.set_num_threads(2)
    train(load(a.config, a.work))


if __name__ == "__main__":
    main()

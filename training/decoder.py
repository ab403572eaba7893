"""Stage 1b: a larger decoder for an unchanged encoder.

    python -m training.decoder --config training/configs/embedded.toml --minutes 40

Latents do not change, so this stage can run before, after or between runs of the UNet. The new decoder starts as the
old one, with additional channels and blocks that have no effect yet. The loss is that of the autoencoder plus the
logarithm of each image's squared error, which is the likelihood under noise of the size that fits the image best
(Rybkin et al., 2021). So plain images, in which small errors are visible, count as much as busy ones. Resumes like the
other stages, and keeps the old autoencoder in `vae-before`.
"""

from __future__ import annotations

import copy
import shutil
import time

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

from training import checkpoint
from training.autoencoder import add_noise, assess, build, picture_loss, shift_randomly, tensor
from training.data import read_pool
from training.optimiser import Orthogonal
from training.settings import Log, Settings, load, parser


@torch.no_grad()
def _widen(old: nn.Conv2d, new: nn.Conv2d) -> None:
    """Initialise `new` with the weights of `old`; the additional input channels have no effect."""
    out, inner = old.weight.shape[:2]
    new.weight[:out, inner:] = 0
    new.weight[:out, :inner] = old.weight
    if old.bias is not None and new.bias is not None:
        new.bias[:out] = old.bias


def _levels(decoder: nn.Module) -> tuple[list[nn.Conv2d], list[list[AutoencoderTinyBlock]]]:
    """The convolutions between the resolutions, in order, and the blocks at each resolution."""
    between, blocks = [], []
    for layer in decoder.layers:
        if isinstance(layer, nn.Conv2d):
            between.append(layer)
            blocks.append([])
        elif isinstance(layer, AutoencoderTinyBlock):
            blocks[-1].append(layer)
    return between, blocks[:-1]


def _convolutions(block: AutoencoderTinyBlock) -> list[nn.Conv2d]:
    return [m for m in block.conv if isinstance(m, nn.Conv2d)]


@torch.no_grad()
def enlarge_decoder(old: AutoencoderTiny, c: dict) -> AutoencoderTiny:
    """An autoencoder with the old encoder and a larger decoder that gives the same images.

    Raises ValueError if the settings ask for fewer channels or blocks than the old one has.
    """
    new = build(c)
    new.encoder.load_state_dict(old.encoder.state_dict())
    (convs, blocks), (wide, more) = _levels(old.decoder), _levels(new.decoder)
    if any(b.weight.shape[i] < a.weight.shape[i] for a, b in zip(convs, wide, strict=True) for i in (0, 1)) or any(
        len(b) < len(a) for a, b in zip(blocks, more, strict=True)
    ):
        raise ValueError("the new decoder must not be smaller than the old one")
    for a, b in zip(convs, wide, strict=True):
        _widen(a, b)
    for a_level, b_level in zip(blocks, more, strict=True):
        for a, b in zip(a_level, b_level, strict=False):
            for a_conv, b_conv in zip(_convolutions(a), _convolutions(b), strict=True):
                _widen(a_conv, b_conv)
        for b in b_level[
            len(a_level) :
        ]:  # its input is a block's output, which is not negative, so it passes it on unchanged
            last = _convolutions(b)[-1]
            last.weight.zero_()
            last.bias.zero_()
    return new


def train(cfg: Settings, minutes: float | None = None, steps: int | None = None) -> None:
    """Train for either `minutes` of wall time or `steps` more steps. The learning rate falls over each run."""
    c = {**cfg["autoencoder"], **cfg["decoder"]}
    torch.manual_seed(c["seed"])
    log = Log(cfg.work / "autoencoder.jsonl")
    pixels = read_pool(cfg.work / "pool" / "train", c.get("shards"))[0]
    held = read_pool(cfg.work / "pool" / "held", 1)[0][: c["held"]]
    before = cfg.work / "vae-before"
    if not before.exists():
        shutil.copytree(cfg.work / "vae", before)
    old = AutoencoderTiny.from_pretrained(before)
    now = AutoencoderTiny.from_pretrained(cfg.work / "vae").encoder.state_dict()
    if any(not torch.equal(v, now[k]) for k, v in old.encoder.state_dict().items()):
        raise SystemExit(f"{before} is of another autoencoder than vae: delete it and decoder.safetensors beside it")
    vae = enlarge_decoder(old, c).to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    decoder = vae.decoder
    between, blocks = _levels(decoder)
    inner = between[1:-1] + [conv for level in blocks for block in level for conv in _convolutions(block)]
    opt = Orthogonal(
        [{"params": list(decoder.parameters()), "weight_decay": c["weight_decay"]}],
        [conv.weight for conv in inner],
        lr=c["lr"],
    )
    ema = checkpoint.Average(decoder, c["ema"])
    averaged = copy.deepcopy(vae)
    averaged.decoder = ema.model
    path = cfg.work / "decoder.safetensors"
    step = checkpoint.load(path, {"model": decoder, "ema": ema}, opt)["step"] if path.exists() else 0
    g = np.random.default_rng([c["seed"], step])
    first, start, progress = step, time.time(), 0.0
    if step == 0:
        log(stage="decoder", begins=True, **assess(old, held))
    while progress < 1.0:
        for group in opt.param_groups:
            group["lr"] = c["lr"] * min(1.0, (step - first + 1) / 50) * min(1.0, 0.02 + 1.4 * (1 - progress))
        part = pixels[g.integers(0, len(pixels), c["batch"])]
        part = part[:, :, ::-1] if g.random() < 0.5 else part
        x = tensor(np.ascontiguousarray(part)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=c["bf16"]):
            z = vae.encoder(x).float()
        z, x = shift_randomly(z, x, g) if g.random() < c["shift"] else (z, x)
        z = add_noise(z, c["noise"], g).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=c["bf16"]):
            y = decoder(z).float()
        loss, l1, mse = picture_loss(y, x, c["mse"])
        loss = loss + c["calibrated"] * (y - x).square().flatten(1).mean(1).clamp_min(1e-6).log().mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        opt.step()
        step += 1
        ema.update(decoder, step)
        spent = (time.time() - start) / 60
        progress = (step - first) / steps if steps else spent / minutes
        if step % c["log_every"] == 0 or progress >= 1.0:
            log(
                stage="decoder",
                step=step,
                l1=round(l1.item(), 4),
                mse=round(mse.item(), 5),
                per_s=round((step - first) * c["batch"] / (60 * spent), 1),
                **assess(averaged, held[:200]),
            )
            checkpoint.save(path, {"model": decoder, "ema": ema}, opt, step=step)
    log(stage="decoder", done=True, step=step, **assess(averaged, held))
    averaged.save_pretrained(cfg.work / "vae")


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = parser(__doc__)
    p.add_argument("--minutes", type=float)
    p.add_argument("--steps", type=int)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args(argv)
    if (a.minutes is None) == (a.steps is None):
        p.error("give either --minutes or --steps")
    torch.set_num_threads(a.threads)
    train(load(a.config, a.work), a.minutes, a.steps)


if __name__ == "__main__":
    main()

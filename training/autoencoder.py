"""Stage 1: the autoencoder (4x reduction, 4 zero-mean unit-variance latent channels).

python -m training.autoencoder --config training/configs/embedded.toml
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from training import checkpoint
from training.data import read_pool
from training.settings import Log, Settings, load, parser

# Luma and two chroma axes, scaled so that each has about unit variance over the training images.
_LUMA = torch.tensor([[0.30, 0.59, 0.11], [0.50, -0.42, -0.08], [-0.17, -0.33, 0.50]])


def build(c: dict) -> AutoencoderTiny:
    """Build the autoencoder from its settings table."""
    n = len(c["encoder_blocks"])
    return AutoencoderTiny(
        encoder_block_out_channels=(c["encoder_width"],) * n,
        decoder_block_out_channels=(c["decoder_width"],) * n,
        num_encoder_blocks=tuple(c["encoder_blocks"]),
        num_decoder_blocks=tuple(c["decoder_blocks"]),
        latent_channels=4,
        scaling_factor=1.0,
    )


def tensor(pixels: np.ndarray) -> Tensor:
    """Convert uint8 images (N, S, S, 3) to float32 (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def bytes_of(x: Tensor) -> np.ndarray:
    """Convert decoded images (N, 3, S, S) to uint8 (N, S, S, 3); values outside [-1, 1] are clamped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB; inputs (N, 3, H, W) in [-1, 1]."""
    mse = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().flatten(1).mean(1).clamp_min(1e-8)
    return float((-10 * torch.log10(mse)).mean())


def luma_targets(x: Tensor, scale: Tensor) -> Tensor:
    """Normalised luma and chroma of images (N, 3, H, W) in [-1, 1], averaged to (N, 3, H/4, W/4)."""
    y = torch.einsum("ck,nkhw->nchw", _LUMA, F.avg_pool2d(x, 4))
    return (y - scale[0].view(1, 3, 1, 1)) / scale[1].view(1, 3, 1, 1)


def latent_rgb(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the linear map from latents (N, 4, h, w) to mean colours of images (N, 3, H, W) in [-1, 1].

    Returns matrix (4, 3), bias (3,) and R2 (3,) of rgb = latent @ matrix + bias, with colours in [0, 1].
    """
    rgb = F.avg_pool2d(x, x.shape[-1] // z.shape[-1]).permute(0, 2, 3, 1).reshape(-1, 3).double() / 2 + 0.5
    a = z.permute(0, 2, 3, 1).reshape(-1, 4).double()
    a1 = torch.cat([a, torch.ones_like(a[:, :1])], 1)
    sol = torch.linalg.lstsq(a1, rgb).solution
    r2 = 1 - (a1 @ sol - rgb).square().mean(0) / rgb.var(0)
    return sol[:4].float(), sol[4].float(), r2.float()


@torch.no_grad()
def normalise(vae: AutoencoderTiny, mean: Tensor, std: Tensor) -> None:
    """Fold per-channel statistics into the last encoder and first decoder convolution.

    diffusers pipelines have one scaling factor and no shift, so each channel itself must have zero mean and unit
    variance.
    """
    last = [m for m in vae.encoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    last.weight.div_(std.view(-1, 1, 1, 1))
    last.bias.sub_(mean).div_(std)
    first = next(m for m in vae.decoder.modules() if isinstance(m, torch.nn.Conv2d))
    first.bias.add_(torch.einsum("oihw,i->o", first.weight, mean))
    first.weight.mul_(std.view(1, -1, 1, 1))


@torch.no_grad()
def encode_all(vae: AutoencoderTiny, pixels: np.ndarray, batch: int = 128) -> Tensor:
    """Encode uint8 images (N, S, S, 3) to float16 scaled latents (N, 4, S/4, S/4)."""
    out = []
    k = vae.config.scaling_factor
    for i in range(0, len(pixels), batch):
        x = tensor(pixels[i : i + batch]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(x).latents.float()
        out.append((z * k).half().contiguous())
    return torch.cat(out)


@torch.no_grad()
def assess(vae: AutoencoderTiny, pixels: np.ndarray) -> dict:
    """Measure on held-out images: PSNR in dB, latent statistics, and the linear fit from latents to RGB."""
    x = tensor(pixels)
    z = encode_all(vae, pixels).float()
    y = torch.cat([vae.decode(p / vae.config.scaling_factor).sample for p in z.split(64)])
    noisy = torch.cat(
        [vae.decode((p + 0.1 * torch.randn_like(p)) / vae.config.scaling_factor).sample for p in z.split(64)]
    )
    r2 = latent_rgb(z, x)[2]
    return {
        "psnr": round(psnr(y, x), 2),
        "psnr_noise_0.1": round(psnr(noisy, x), 2),
        "r2": [round(float(v), 3) for v in r2],
        "mean": [round(float(v), 3) for v in z.mean((0, 2, 3))],
        "std": [round(float(v), 3) for v in z.std((0, 2, 3))],
        "abs_max": round(float(z.abs().max()), 2),
    }


def shift_randomly(z: Tensor, x: Tensor, g: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Shift latents (N, 4, h, w) and their images by the same random fraction of a latent pixel.

    Painted latents are sampled bilinearly, so shifted latents must decode to the shifted image.
    """
    move = torch.tensor(g.uniform(-1, 1, (len(z), 2)), dtype=torch.float32) / z.shape[-1]
    theta = torch.eye(2, 3).repeat(len(z), 1, 1)
    theta[:, :, 2] = move

    def shifted(a: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(a.shape), False)
        return F.grid_sample(a, grid, padding_mode="border", align_corners=False)

    return shifted(z), shifted(x)


def picture_loss(y: Tensor, x: Tensor, mse: float) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder's loss on images (N, 3, H, W), and its absolute and squared errors alone.

    `mse` weighs the squared error. The loss also compares differences of neighbouring pixels.
    """
    d = y - x
    l1, l2 = d.abs().mean(), d.square().mean()
    grad = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    return l1 + mse * l2 + 0.5 * grad, l1, l2


def add_noise(z: Tensor, most: float, g: np.random.Generator) -> Tensor:
    """Add noise of a random standard deviation up to `most` to the latents of three in five batches.

    Painted latents are noisy, too.
    """
    sigma = torch.rand(len(z), 1, 1, 1) * most * float(g.random() < 0.6)
    return z + sigma * torch.randn_like(z)


def draw_crops(pixels: np.ndarray, count: int, crop: int, g: np.random.Generator) -> Tensor:
    """Draw ``count`` crops of uint8 images (N, S, S, 3), mirrored at random, as (count, 3, crop, crop) in [-1, 1]."""
    index = g.integers(0, len(pixels), count)
    top, left = (int(v) for v in g.integers(0, (pixels.shape[1] - crop) // 4 + 1, 2) * 4)
    crops = pixels[index, top : top + crop, left : left + crop]
    if g.random() < 0.5:
        crops = crops[:, :, ::-1]
    return tensor(np.ascontiguousarray(crops)).contiguous(memory_format=torch.channels_last)


def train(cfg: Settings) -> None:
    """Train up to the step count of the settings; resumes from the last checkpoint."""
    c = cfg["autoencoder"]
    torch.manual_seed(c["seed"])
    log = Log(cfg.work / "autoencoder.jsonl")
    pixels, _, _ = read_pool(cfg.work / "pool" / "train", c.get("shards"))
    held = read_pool(cfg.work / "pool" / "held", 1)[0][: c["held"]]
    vae = build(c).to(memory_format=torch.channels_last)
    decay = [p for p in vae.parameters() if p.ndim > 1]
    no_decay = [p for p in vae.parameters() if p.ndim <= 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 1e-3}, {"params": no_decay, "weight_decay": 0.0}],
        lr=c["lr"],
        fused=True,
    )
    ema = checkpoint.Average(vae, c["ema"])
    path = cfg.work / "autoencoder.safetensors"
    step = 0
    if path.exists():
        step = checkpoint.load(path, {"model": vae, "ema": ema}, opt)["step"]
    pooled = torch.einsum("ck,nkhw->nchw", _LUMA, F.avg_pool2d(tensor(pixels[:2000]), 4))
    scale = torch.stack([pooled.mean((0, 2, 3)), pooled.std((0, 2, 3))])
    g = np.random.default_rng([c["seed"], step])
    start, samples_done = time.time(), 0
    size = pixels.shape[1]
    while step < c["steps"]:
        progress = step / c["steps"]
        crop = c["crop"] if progress < c["crop_until"] else size
        batch = c["batch"] * (size // crop) ** 2
        x = draw_crops(pixels, batch, crop, g)
        lr = c["lr"] * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress) * 0.98)
        for group in opt.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", torch.bfloat16, enabled=c["bf16"]):
            z = vae.encoder(x)
        z = z.float()
        seen_z, target = shift_randomly(z, x, g) if g.random() < c["shift"] else (z, x)
        with torch.autocast("cpu", torch.bfloat16, enabled=c["bf16"]):
            y = vae.decoder(add_noise(seen_z, c["noise"], g))
        y = y.float()
        loss, l1, mse = picture_loss(y, target, c["mse"])
        tie = (z[:, :3] - luma_targets(x, scale)).square().mean()
        tie_weight = c["tie"] * max(1.0 - progress / c["tie_until"], c["tie_rest"])
        flat = z.transpose(0, 1).flatten(1)
        norm = flat.mean(1).square().mean() + flat.var(1).clamp_min(1e-4).log().square().mean()
        loss = loss + tie_weight * tie + c["norm"] * norm
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        step += 1
        samples_done += batch
        ema.update(vae, step)
        if step % c["log_every"] == 0 or step == c["steps"]:
            log(
                stage="autoencoder",
                step=step,
                l1=round(l1.item(), 4),
                mse=round(mse.item(), 5),
                tie=round(tie.item(), 3),
                norm=round(norm.item(), 4),
                per_s=round(samples_done / (time.time() - start), 1),
                crop=crop,
                **(assess(ema.model, held[:200]) if step % (2 * c["log_every"]) == 0 else {}),
            )
            checkpoint.save(path, {"model": vae, "ema": ema}, opt, step=step)
    final = ema.model
    z = encode_all(final, pixels[:4000]).float()
    normalise(final, z.mean((0, 2, 3)), z.std((0, 2, 3)))
    log(stage="autoencoder", done=True, **assess(final, held))
    final.save_pretrained(cfg.work / "vae")


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = parser(__doc__)
    a = p.parse_args(argv)
    torch.set_num_threads(2)
    train(load(a.config, a.work))


if __name__ == "__main__":
    main()

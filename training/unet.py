"""Stage 3: the UNet, trained together with the text encoder on cached latents.

    python -m training.unet --config training/configs/embedded.toml --minutes 90

`--workers 2` trains with two single-threaded processes that average their gradients once per step. On shared cores this
is up to three times as fast as one process with two threads, which synchronise thousands of times per step.

Resumes from `unet.safetensors` in the work folder, else from the weights named by `--from` (an exported prior), else
from scratch. New shards of the pool are encoded and used as they appear.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from torch import distributed as dist
from transformers import CLIPTextModel

from training import checkpoint, text
from training.latent_pools import Images
from training.optimiser import Orthogonal, matrices
from training.settings import Log, Settings, load, parser


class _Float32Norm(nn.GroupNorm):
    """Group norm in float32: in bfloat16 and channels last torch's kernel takes four times as long."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


def build(c: dict, width: int) -> UNet2DConditionModel:
    """Build the UNet from its settings table. `width` is that of the text encoder."""
    n = len(c["channels"])
    unet = UNet2DConditionModel(
        sample_size=c["sample_size"],
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(c["channels"]),
        layers_per_block=c["layers"],
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (n - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (n - 1) + ("UpBlock2D",),
        cross_attention_dim=width,
        attention_head_dim=c["heads"],
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    # On the CPU the backward pass of fused attention is very slow.
    unet.set_attn_processor(AttnProcessor())
    for module in unet.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _Float32Norm
    return unet


def schedule() -> DDPMScheduler:
    """The noise schedule of SD 1.x, of which only ``alphas_cumprod`` is used."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
    )


class Trainee(nn.Module):
    """UNet and text encoder as one module, which share average, optimiser and checkpoint."""

    def __init__(self, unet: UNet2DConditionModel, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.encoder = unet, encoder

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor, bf16: bool = True) -> Tensor:
        """Predicted noise (N, 4, h, w) float32."""
        states = self.encoder(ids).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return self.unet(noisy, t, states).sample.float()


def groups(model: Trainee, c: dict) -> list[dict]:
    """Parameter groups. Text and time projections have a higher learning rate than convolutions."""
    fast, slow = [], []
    for name, p in model.named_parameters():
        quick = any(k in name for k in ("time_emb", "add_embedding", "attn2", "encoder."))
        (fast if quick else slow).append(p)
    return [
        {"params": slow, "scale": 1.0, "weight_decay": c["weight_decay"]},
        {"params": fast, "scale": c["text_lr_scale"], "weight_decay": c["weight_decay"]},
    ]


def draw_t(n: int, late: float, g: torch.Generator) -> Tensor:
    """Draw timesteps (n,): uniform, but a share `late` from the upper half, where colour and layout are decided."""
    t = torch.randint(0, 1000, (n,), generator=g)
    high = torch.randint(500, 1000, (n,), generator=g)
    return torch.where(torch.rand(n, generator=g) < late, high, t)


class LevelErrors:
    """Running mean of the noise error by noise level. A sample's weight is the inverse of its level's mean.

    So all levels count the same, as with the learned uncertainties of Karras et al. (2024). With weights by SNR, low
    noise counts a tenth of high noise, and fine lines and even surfaces are not learned.
    """

    LEVELS, KEPT = 25, 0.98

    def __init__(self) -> None:
        self.means = torch.zeros(self.LEVELS)

    def weights(self, t: Tensor, error: Tensor) -> Tensor:
        """Add errors (N,) at timesteps t (N,) to the means, and return their weights (N,)."""
        level = t * self.LEVELS // 1000
        count = torch.bincount(level, minlength=self.LEVELS)
        mean = torch.bincount(level, error, minlength=self.LEVELS) / count.clamp_min(1)
        decay = torch.where(self.means == 0, 0.0, torch.where(count > 0, self.KEPT, 1.0))
        self.means = decay * self.means + (1 - decay) * mean
        return 1 / self.means[level].clamp_min(1e-6)


def noise_error(output: Tensor, z: Tensor, noise: Tensor, a: Tensor, kind: str) -> Tensor:
    """Mean squared error (N,) of the noise that the network's output implies.

    output, z, noise: (N, 4, h, w); a: abar (N, 1, 1, 1). kind: ``epsilon``, or ``v_prediction`` where the output is
    v = sqrt(abar) noise - sqrt(1 - abar) z (Salimans and Ho, 2022): the error of the noise is sqrt(abar) times its.
    """
    if kind == "epsilon":
        return (output - noise).square().flatten(1).mean(1)
    v = a.sqrt() * noise - (1 - a).sqrt() * z
    return a.flatten() * (output - v).square().flatten(1).mean(1)


@torch.no_grad()
def held_error(model: Trainee, z: Tensor, ids: Tensor, vocabulary: text.Vocabulary, alphas: Tensor, kind: str) -> dict:
    """Mean squared noise error on fixed held-out latents, times and noise: with caption, empty, shuffled caption."""
    g = torch.Generator().manual_seed(5)
    n = len(z)
    t = (torch.arange(n) * 7919) % 1000
    noise = torch.randn(z.shape, generator=g)
    a = alphas[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * z + (1 - a).sqrt() * noise
    empty = vocabulary.ids([""]).expand(n, -1)
    out = {}
    for name, i in (("caption", ids), ("empty", empty), ("shuffled", ids.roll(37, 0))):
        e = torch.cat(
            [
                noise_error(model(x, s, k), y, q, b, kind)
                for x, y, s, k, q, b in zip(
                    noisy.split(64), z.split(64), t.split(64), i.split(64), noise.split(64), a.split(64), strict=True
                )
            ]
        )
        out[name] = round(e.mean().item(), 5)
        out[name + "_high"] = round(e[t >= 600].mean().item(), 5)
        out[name + "_low"] = round(e[t < 300].mean().item(), 5)
    return out


class Team:
    """Averages gradients over worker processes and shares the first worker's clock. Does nothing for one process."""

    def __init__(self, rank: int, workers: int, meeting: Path) -> None:
        self.rank, self.workers = rank, workers
        if workers > 1:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)

    def meet(self, model: nn.Module, progress: float) -> float:
        """Average gradients over workers, in place. Returns the first worker's progress."""
        if self.workers == 1:
            return progress
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([progress if self.rank == 0 else 0.0])])
        dist.all_reduce(flat)
        progress = float(flat[-1])
        flat.div_(self.workers)
        at = 0
        for g in grads:
            g.copy_(flat[at : at + g.numel()].view_as(g))
            at += g.numel()
        return progress


@dataclass
class Plan:
    """Duration and starting point of this run."""

    minutes: float | None = None
    steps: int | None = None
    start_from: Path | None = None
    large: float | None = None
    rank: int = 0
    workers: int = 1
    meeting: Path = Path()


@dataclass
class State:
    """The trained modules and the progress of a run."""

    model: Trainee
    mean: checkpoint.Average
    optimiser: Orthogonal
    step: int = 0
    hours: float = 0.0
    samples: int = 0

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        modules = {"model": self.model, "ema": self.mean}
        checkpoint.save(path, modules, self.optimiser, step=self.step, hours=self.hours, samples=self.samples)


def begin(cfg: Settings, plan: Plan, vocabulary: text.Vocabulary) -> State:
    """Model and optimiser from the checkpoint, else from the prior that the plan names, else new."""
    c = cfg["unet"]
    encoder = text.build(vocabulary, cfg["text"])
    torch.manual_seed(c["seed"])
    model = Trainee(build(c, cfg["text"]["width"]), encoder)
    path = cfg.work / "unet.safetensors"
    if not path.exists() and plan.start_from is None and (cfg.work / "text.safetensors").exists():
        checkpoint.load(cfg.work / "text.safetensors", {"model": encoder})
    model.unet.to(memory_format=torch.channels_last)
    optimiser = Orthogonal(
        groups(model, c),
        matrices(model),
        lr=c["lr"],
        rank=plan.rank,
        workers=plan.workers,
        gather=dist.all_reduce if plan.workers > 1 else lambda _: None,
    )
    run = State(model, checkpoint.Average(model, c["ema"]), optimiser)
    state = {"step": 0, "hours": 0.0, "samples": 0}
    if path.exists():
        state = checkpoint.load(path, {"model": model, "ema": run.mean}, optimiser)
    elif plan.start_from is not None:
        model.unet.load_state_dict(load_file(plan.start_from / "unet" / "diffusion_pytorch_model.safetensors"))
        stored = CLIPTextModel.from_pretrained(plan.start_from / "text_encoder").float()
        text.load_encoder(model.encoder, stored.state_dict(), vocabulary)
        run.mean = checkpoint.Average(model, c["ema"])
        state = json.loads((plan.start_from / "training.json").read_text())
    run.step, run.hours, run.samples = state["step"], state["hours"], state["samples"]
    return run


def rate_at(c: dict, step: int, progress: float) -> float:
    """Learning rate: warm-up, constant, then falling over the last part of this run."""
    rate = c["lr"] * min(1.0, (step + 1) / c["warmup"])
    return rate if progress <= c["hold"] else rate * (0.03 + 0.97 * (1 - (progress - c["hold"]) / (1 - c["hold"])))


class Errors:
    """The training loss of a batch, in which all noise levels count the same."""

    def __init__(self, c: dict, vocabulary: text.Vocabulary, seed: int) -> None:
        self.c, self.vocabulary = c, vocabulary
        self.alphas, self.levels = schedule().alphas_cumprod, LevelErrors()
        self.g = torch.Generator().manual_seed(seed)

    def __call__(self, model: Trainee, z: Tensor, ids: Tensor) -> tuple[Tensor, float]:
        """Draw noise, and return loss and mean noise error for latents (N, 4, h, w) and token ids (N, 24)."""
        c, g = self.c, self.g
        ids = self.vocabulary.corrupt(ids, c["word_drop"], c["caption_drop"], g)
        t = draw_t(len(z), c["late"], g)
        noise = torch.randn(z.shape, generator=g)
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        error = noise_error(model(noisy, t, ids, c["bf16"]), z, noise, a, c["prediction"])
        return (self.levels.weights(t, error.detach()) * error).mean(), error.mean().item()

    def held(self, model: Trainee, images: Images) -> dict:
        """Errors on the held-out images (`held_error`)."""
        return held_error(model, *images.held, self.vocabulary, self.alphas, self.c["prediction"])


def train(cfg: Settings, plan: Plan) -> None:
    """Train for `plan.minutes` of wall time or `plan.steps` more steps; checkpoints every few minutes."""
    c = cfg["unet"]
    log, path = Log(cfg.work / "unet.jsonl"), cfg.work / "unet.safetensors"
    vocabulary = text.Vocabulary()
    run = begin(cfg, plan, vocabulary)
    team = Team(plan.rank, plan.workers, plan.meeting)
    images = Images(cfg, vocabulary, large=plan.large, rank=plan.rank)
    # Workers and resumed runs draw their own batches. All workers draw the same image size for a step, because they
    # wait for the slowest.
    rng, sizes = np.random.default_rng([c["seed"], run.step, plan.rank]), np.random.default_rng([c["seed"], run.step])
    errors = Errors(c, vocabulary, c["seed"] * 1000 + run.step * 8 + plan.rank)
    torch.manual_seed(errors.g.initial_seed())
    first, start_time, saved, progress = run.step, time.time(), time.time(), 0.0
    base_hours, base_samples, recent = run.hours, run.samples, []
    if plan.rank == 0:
        count = sum(p.numel() for p in run.model.unet.parameters())
        # Measure the initial weights, so that the run's gain is known on the same images.
        before = errors.held(run.mean.model, images) if run.step else {}
        about = {"samples_held": len(images.small_pool.z), "workers": plan.workers, "parameters": count}
        log(stage="unet", begins=True, step=run.step, samples=run.samples, **about, **before)
    while progress < 1.0:
        rate = rate_at(c, run.step - first, progress)
        for group in run.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        z, ids = images.batch(c["batch"] // plan.workers, sizes.random() < images.large, rng)
        loss, error = errors(run.model, z, ids)
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        elapsed = time.time() - start_time
        own_progress = (run.step + 1 - first) / plan.steps if plan.steps else elapsed / 60 / plan.minutes
        progress = team.meet(run.model, own_progress)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimiser.step()
        run.step, run.samples = run.step + 1, run.samples + len(z) * plan.workers
        recent.append(error)
        due = run.step % c["log_every"] == 0
        if plan.rank:
            if due:
                images.refresh(0)
            continue
        run.mean.update(run.model, run.step)
        run.hours = base_hours + (time.time() - start_time) / 3600
        if due:
            held = errors.held(run.mean.model, images) if run.step % c["held_every"] == 0 else {}
            per_s = round((run.samples - base_samples) / (time.time() - start_time), 1)
            about = {"hours": round(run.hours, 3), "error": round(float(np.mean(recent)), 5), "lr": round(rate, 6)}
            about |= {"per_s": per_s, "pool": len(images.small_pool.z)}
            log(stage="unet", step=run.step, samples=run.samples, **about, **held)
            recent = []
            images.refresh(1)
        if time.time() - saved > c["save_minutes"] * 60 or progress >= 1.0:
            saved = time.time()
            run.save(path)
    if plan.rank == 0:
        final = errors.held(run.mean.model, images)
        log(stage="unet", done=True, step=run.step, samples=run.samples, hours=round(run.hours, 3), **final)
    if plan.workers > 1:
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    argv = sys.argv[1:] if argv is None else argv
    p = parser(__doc__)
    p.add_argument("--minutes", type=float)
    p.add_argument("--steps", type=int)
    p.add_argument("--from", dest="start_from", type=Path, help="exported prior to continue from")
    p.add_argument("--large", type=float, help="share of steps on large images; default: that of the settings")
    p.add_argument("--workers", type=int, default=1, help="processes of one thread each; 1: one process, two threads")
    p.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if (a.minutes is None) == (a.steps is None):
        p.error("give either --minutes or --steps")
    torch.set_num_threads(2 if a.workers == 1 else 1)
    cfg = load(a.config, a.work)
    meeting = cfg.work.resolve() / "meeting"
    others = []
    if a.workers > 1 and a.rank == 0:
        meeting.unlink(missing_ok=True)
        others = [
            subprocess.Popen([sys.executable, "-m", "training.unet", *argv, "--rank", str(r)])
            for r in range(1, a.workers)
        ]
    plan = Plan(a.minutes, a.steps, a.start_from, a.large, a.rank, a.workers, meeting)
    try:
        train(cfg, plan)
        for other in others:
            other.wait(timeout=60)
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()

"""``latentkiln prior``: describes a prior, fetches and prepares it, and samples images."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.core.atomic import atomic_write
from pipeline.core.errors import UsageError
from pipeline.core.terminal import say, say_json
from pipeline.prior import hub
from pipeline.prior.defaults import GenerateDefaults, MaterialDefaults, PaintDefaults, SampleDefaults, read_defaults
from pipeline.prior.identity import prior_identity
from pipeline.prior.words import known_words


def show_prior(spec: str, *, as_json: bool = False) -> int:
    """Prints a prior's card (its README.md), or its facts as JSON. Loads no weights. Exit code 0."""
    identity = prior_identity(spec)
    words = known_words(identity.folder)
    facts = {
        "name": identity.name,
        "identity": identity.identity,
        "paint": vars(read_defaults(identity.folder, "paint", PaintDefaults)),
        "generate": vars(read_defaults(identity.folder, "generate", GenerateDefaults)),
        "material": vars(read_defaults(identity.folder, "material", MaterialDefaults)),
        "sample": vars(read_defaults(identity.folder, "sample", SampleDefaults)),
        "words": sorted(words) if words is not None else None,
    }
    if as_json:
        say_json(facts, indent=1)
        return 0
    card = identity.folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").rstrip().split("\n"):
            say(line.rstrip("\r").expandtabs())
        say()
    say(f"file      {identity.file}" if identity.file else f"folder    {identity.folder}")
    say(f"identity  {identity.identity}")
    say("words     " + (f"{len(words)} known" if words is not None else "any (no word list)"))
    return 0


def fetch_prior(spec: str) -> int:
    """Downloads a hub id and prints its folder and facts. Exit code 0. Raises UsageError, PriorError."""
    if hub.parse_id(spec) is None:
        raise UsageError(f"prior fetch: {spec!r} is not a hub id; example: org/name or org/name@revision")
    identity = prior_identity(spec, download=True)
    say(f"folder    {identity.folder}")
    say(f"identity  {identity.identity}")
    return 0


def fit_rgb(spec: str, *, images: int = 48, as_json: bool = False) -> int:
    """Fits a prior's map from latents to colours, and prints its file and R2. Exit code 0.

    Raises PriorError.
    """
    from pipeline.prior.latent_rgb_fit import fit_prior

    result = fit_prior(spec, images=images)
    if as_json:
        say_json({"path": str(result.path), "r2": result.r2})
        return 0
    colours = ", ".join(f"{name} {value:.3f}" for name, value in zip(("red", "green", "blue"), result.r2, strict=True))
    say(f"R2        {colours} (on held-out images)")
    say(f"map       {result.path}")
    return 0


def sample_prior(
    spec: str,
    prompt: str,
    *,
    out: Path,
    count: int = 8,
    steps: int = 30,
    guidance_scale: float | None = None,
    seed: int = 0,
    size: int | None = None,
    negative_prompt: str = "",
) -> int:
    """Samples ``count`` images of ``prompt`` and writes them as one grid, a PNG at ``out``. Exit code 0.

    ``size`` is the side in image pixels (default: the prior's native size).

    Raises UsageError for an empty prompt and for a ``size`` that is not a multiple of the VAE's scale factor.
    """
    if not prompt.strip():
        raise UsageError("prior sample: the prompt is empty")
    from PIL import Image

    from pipeline.prior.load import load_prior, to_image
    from pipeline.prior.sample import sample_images

    prior = load_prior(spec)
    if size is not None and size % prior.vae_scale_factor:
        step = prior.vae_scale_factor
        fits = math.ceil(size / step) * step
        raise UsageError(
            f"prior sample: --size {size}: the prior {prior.name} draws multiples of {step} pixels; try {fits}"
        )
    for warning in prior.prompt_warnings(prompt, negative_prompt, ()):
        say(f"warning: {warning}")
    images = sample_images(
        prior,
        [prompt] * count,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        steps=steps,
        seed=seed,
        size=None if size is None else size // prior.vae_scale_factor,
    )
    columns = math.ceil(math.sqrt(count))
    side = images.shape[-1]
    grid = Image.new("RGB", (columns * side, math.ceil(count / columns) * side), (255, 255, 255))
    for index, image in enumerate(images):
        grid.paste(Image.fromarray(to_image(image)), (index % columns * side, index // columns * side))
    scale = max(1, 1024 // grid.width)
    grid = grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST)
    with atomic_write(out.with_suffix(".png")) as temporary:
        grid.save(temporary, format="PNG")
    say(out.with_suffix(".png"))
    return 0

"""Settings that depend on the prior: used where a manifest row leaves them out.

A prior may bring its own in ``latentkiln.json``; else the ones of the Latent-NeRF paper for Stable Diffusion
apply (guidance 100, one 64x64 latent view a step, a 128x128 latent texture that
starts from noise of 0.4, Adam 1e-2).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import PriorError

DEFAULTS_FILE = "latentkiln.json"


@dataclass(frozen=True)
class PaintDefaults:
    """What ``paint`` uses for a setting that a row leaves out.

    ``view_size`` is in latent pixels a side, ``texture_size`` in RGB pixels a side; ``views`` per step.
    ``view_words`` says whether the prior understands "front view" and the like.
    """

    guidance_scale: float = 100.0
    views: int = 1
    view_size: int = 64
    texture_size: int = 1024
    learning_rate: float = 0.01
    view_words: bool = True
    background: str = "learned"
    initial_noise: float = 0.4


def paint_defaults(folder: Path) -> PaintDefaults:
    """The defaults of the prior in ``folder``. Raises PriorError for a damaged ``latentkiln.json``."""
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return PaintDefaults()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["paint"]
        known = {field.name: field.type for field in dataclasses.fields(PaintDefaults)}
        unknown = set(values) - set(known)
        if unknown:
            raise KeyError(f"unknown: {', '.join(sorted(unknown))}")
        return PaintDefaults(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PriorError(f"{path}: cannot be used ({type(error).__name__}: {error})") from None

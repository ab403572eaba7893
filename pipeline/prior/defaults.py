"""Default settings that depend on the prior, for settings that a manifest row leaves out.

A prior may define its own in ``latentkiln.json``. Otherwise those of the Latent-NeRF paper for Stable Diffusion apply
(guidance 100, one 64x64 latent view per step, a 128x128 latent texture that starts from noise of 0.4, Adam 1e-2; for
``generate`` one 64x64 view, Adam 1e-3, 16 levels up to 2048).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import PriorError

DEFAULTS_FILE = "latentkiln.json"
# Maps of a material that a prior may recommend.
MAP_NAMES = ("base_colour", "normal", "metallic_roughness", "occlusion", "emissive", "height")


@dataclass(frozen=True)
class SharedDefaults:
    """Defaults of every recipe.

    ``view_size`` is the side in latent pixels, ``texture_size`` the side in RGB pixels; ``views`` per step.
    ``view_words``: whether the prior understands "front view" and similar. ``refine_...``: refinement in RGB.
    """

    guidance_scale: float = 100.0
    views: int = 1
    view_size: int = 64
    texture_size: int = 1024
    learning_rate: float = 0.01
    view_words: bool = True
    background: str = "learned"
    timesteps: str = "annealed"
    # None: the same as ``views`` and ``view_size``.
    patch_views: int | None = None
    patch_size: int | None = None
    patch_height: float = 0.7
    refine_steps: int = 1000
    refine_guidance_scale: float = 100.0
    refine_learning_rate: float = 0.003
    refine_t_max: float = 0.5


@dataclass(frozen=True)
class PaintDefaults(SharedDefaults):
    """Additional defaults of ``paint``."""

    steps: int = 300
    initial_noise: float = 0.4
    distillation: str = "score"


@dataclass(frozen=True)
class MaterialDefaults:
    """Defaults for painting with a tileable sample. ``auto``: rows without a way of painting use it if their prompt
    names a material and no object with parts.

    ``size`` is in latent pixels a side (0: the prior's native size), ``coverage`` the side of the sample on the
    surface in object radii, ``texture_size`` in pixels a side. ``maps``: which maps a row has that names none.
    """

    auto: bool = False
    steps: int = 25
    guidance_scale: float = 7.5
    size: int = 0
    coverage: float = 1.0
    texture_size: int = 1024
    maps: Sequence[str] = ("base_colour",)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.maps if name not in MAP_NAMES]:
            raise ValueError(f"maps has {unknown[0]!r}; there are: {', '.join(MAP_NAMES)}")


@dataclass(frozen=True)
class GenerateDefaults(SharedDefaults):
    """Additional defaults of ``generate``. Lambdas weigh mean losses against the gradient of one view's guidance."""

    steps: int = 5000
    learning_rate: float = 0.001
    grid_levels: int = 16
    grid_finest: int = 2048
    grid_log2_table: int = 19
    occupancy_resolution: int = 128
    samples_step: float = 0.0068
    mesh_resolution: int = 256
    surface_blur: float = 0.0
    texturing: str = "views"
    texture_steps: int = 400
    texture_guidance_scale: float = 7.5
    supersample: int = 1
    scene_radius: float = 2.0
    radius_min: float = 1.0
    radius_max: float = 1.5
    fov_min: float = 40.0
    fov_max: float = 70.0
    lambda_sparsity: float = 20.0
    lambda_shape: float = 500.0
    # Replaces guidance_scale if a sketch constrains the shape; None: no replacement.
    sketch_guidance_scale: float | None = None


@dataclass(frozen=True)
class SampleDefaults:
    """Defaults of ``prior sample``: the usual guidance scale of Stable Diffusion 1.x, as in diffusers."""

    guidance_scale: float = 7.5


S = TypeVar("S", PaintDefaults, GenerateDefaults)
D = TypeVar("D", PaintDefaults, GenerateDefaults, SampleDefaults, MaterialDefaults)


def read_defaults(folder: Path, recipe: str, kind: type[D]) -> D:
    """Returns the defaults of ``recipe`` (or ``sample``) for the prior in ``folder``.

    Raises PriorError for a damaged ``latentkiln.json``.
    """
    path = folder / DEFAULTS_FILE
    try:
        values = _read(path).get(recipe, {})
        unknown = set(values) - {field.name for field in dataclasses.fields(kind)}
        if unknown:
            raise KeyError(f"unknown: {', '.join(sorted(unknown))}")
        return kind(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(f"{path}: cannot be used ({type(error).__name__}: {error})") from None


def cpu_precision(folder: Path) -> str:
    """Returns ``cpu_precision`` of the prior in ``folder``: ``float32``, or ``bfloat16`` for CPUs with instructions for
    it. Raises PriorError for a damaged ``latentkiln.json``."""
    path = folder / DEFAULTS_FILE
    try:
        precision = _read(path).get("cpu_precision", "float32")
    except (OSError, ValueError, AttributeError) as error:
        raise PriorError(f"{path}: cannot be used ({type(error).__name__}: {error})") from None
    if precision not in ("float32", "bfloat16"):
        raise PriorError(f"{path}: cpu_precision is {precision!r}; allowed: float32, bfloat16")
    return str(precision)


def _read(path: Path) -> dict[str, Any]:
    """Returns the file's object; empty if there is no file."""
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values

"""Finds a prior's network that estimates materials. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.prior.identity import EMBEDDED_FOLDER

MATERIAL_FOLDER = "material"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

NO_ESTIMATOR = (
    "normal, metallic_roughness and height need a network that estimates materials, which this prior does not have; "
    "leave them out, or give metallic and roughness for metallic_roughness"
)


def estimator_folder(prior: Path) -> Path | None:
    """The folder with the ``material/`` that the prior in folder ``prior`` uses: its own, else the embedded prior's,
    which works for pictures of any prior. None if neither has one."""
    return next((f for f in (prior, EMBEDDED_FOLDER) if (f / MATERIAL_FOLDER / CONFIG_FILE).is_file()), None)


def needs_estimator(maps: Sequence[object], *, given: bool) -> bool:
    """Whether one of ``maps`` (names) has to be estimated. ``given``: the row gives metalness and roughness itself."""
    return "normal" in maps or "height" in maps or ("metallic_roughness" in maps and not given)

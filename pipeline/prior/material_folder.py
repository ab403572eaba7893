"""Where a prior's network for materials lies. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.prior.identity import EMBEDDED_FOLDER

MATERIAL_FOLDER = "material"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def estimator_folder(prior: Path) -> Path | None:
    """The folder whose ``material/`` serves the prior in ``prior``: its own, else the embedded prior's, which knows
    pictures by any prior. None where neither has one."""
    return next((f for f in (prior, EMBEDDED_FOLDER) if (f / MATERIAL_FOLDER / CONFIG_FILE).is_file()), None)

"""Child process that lists the files that a USD reads. Run by path; imports nothing of this project."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

_shared = runpy.run_path(str(Path(__file__).with_name("child_scene.py")))
_open = runpy.run_path(str(Path(__file__).with_name("usd_open.py")))


def main(folder: Path, source: bytes, options: dict[str, Any]) -> None:
    """Writes the layers and the other files, both from the asset's folder."""
    layers = _open["Layers"](options["path"], options["root"])
    paths = [layer.realPath for layer in layers.layers.values() if layer is not layers.top]
    found = [os.path.relpath(path, layers.root) for path in paths]
    _shared["SceneWriter"]().save(folder, {"layers": found, "assets": list(dict.fromkeys(layers.assets()))})


if __name__ == "__main__":
    _shared["run"](main)

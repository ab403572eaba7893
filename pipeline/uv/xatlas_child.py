"""Child process that runs xatlas, because xatlas holds the interpreter lock for its whole run.

Run by path as ``python -P xatlas_child.py FOLDER PARENT SECONDS``; imports nothing of this project. Reads
``vertices.npy`` (V, 3) float32 and ``faces.npy`` (F, 3) uint32 in FOLDER, writes ``uv.npy`` (T, 2) float32 in
texels of equal size on both axes and, last, ``uv_faces.npy`` (F, 3) uint32.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import numpy as np

exit_with_parent = runpy.run_path(str(Path(__file__).parents[1] / "core" / "process" / "die_with.py"))[
    "exit_with_parent"
]


def main(folder: Path) -> None:
    """Unwraps the mesh in ``folder``."""
    import xatlas

    vertices = np.load(folder / "vertices.npy", allow_pickle=False)
    faces = np.load(folder / "faces.npy", allow_pickle=False)
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    charts = xatlas.ChartOptions()
    # Half of the default: on scanned and modelled meshes it gives as few charts, none of them strongly stretched, in a
    # third of the time.
    charts.max_cost = 1.0
    packing = xatlas.PackOptions()
    # Our own packer packs the charts again, into a square and at an exact distance. So this packing only has to be
    # quick.
    packing.resolution = 1024
    packing.padding = 1
    packing.bilinear = False
    packing.blockAlign = True
    packing.rotate_charts = False
    atlas.generate(charts, packing)
    _, uv_faces, uv = atlas[0]
    uv = uv.astype(np.float32) * np.array([atlas.width, atlas.height], np.float32)
    np.save(folder / "uv.npy", uv, allow_pickle=False)
    np.save(folder / "uv_faces.partial.npy", uv_faces.astype(np.uint32), allow_pickle=False)
    os.replace(folder / "uv_faces.partial.npy", folder / "uv_faces.npy")


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[2]), int(sys.argv[3]))
    main(Path(sys.argv[1]))

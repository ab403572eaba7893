"""What the children that run native readers share. Loaded by path, so it imports nothing of this project.

A child reads ``source.npy`` (uint8, the file's bytes) and ``options.npy`` (uint8, JSON) in its folder. It writes
``scene.npy`` (uint8, JSON) and, last, ``data.npy`` (uint8). An array in the JSON is
``{"array": [offset, dtype, shape]}``: little-endian values in ``data.npy`` from a byte offset on.
``pipeline/mesh/convert/scene.py`` states the keys.
"""

from __future__ import annotations

import json
import os
import re
import resource
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

# Native libraries shall start no threads: each reserves memory, of which the child has little.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PXR_WORK_THREAD_LIMIT="1")

import numpy as np


class SceneWriter:
    """Collects the arrays of a scene."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def array(self, values: object, dtype: str, columns: int = 0) -> dict[str, object]:
        """Returns the JSON of ``values``: (n, columns), or (n,) for 0 columns."""
        table = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
        table = table.reshape(-1, columns) if columns else table.reshape(-1)
        return self._add(table.tobytes(), table.dtype.str, table.shape)

    def blob(self, data: bytes) -> dict[str, object]:
        """Returns the JSON of ``data``, for example an embedded image."""
        return self._add(data, "|u1", (len(data),))

    def _add(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> dict[str, object]:
        data += b"\0" * (-len(data) % 8)
        reference: dict[str, object] = {"array": [self._size, dtype, list(shape)]}
        self._chunks.append(data)
        self._size += len(data)
        return reference

    def save(self, folder: Path, scene: dict[str, object]) -> None:
        """Writes the scene; ``data.npy`` appears last and complete."""
        np.save(folder / "scene.npy", np.frombuffer(json.dumps(scene).encode(), np.uint8), allow_pickle=False)
        data = np.frombuffer(b"".join(self._chunks), np.uint8)
        np.save(folder / "data.partial.npy", data, allow_pickle=False)
        os.replace(folder / "data.partial.npy", folder / "data.npy")


def in_one_line(error: BaseException) -> str:
    """What ``error`` says: without its kind if we raised it, without the place in OpenUSD's own source if that did."""
    kind, text = type(error).__name__, str(error)
    if kind == "UnicodeDecodeError":
        return "its text is not UTF-8"
    said = re.findall(r": '(.*?)'(?:\n|$)", text, re.DOTALL) if kind == "ErrorException" else []
    text = said[0] if said else text
    return " ".join((text if kind in ("RuntimeError", "ErrorException") else f"{kind}: {text}").split())


def run(main: Callable[[Path, bytes, dict[str, object]], None]) -> None:
    """Runs ``main(folder, source, options)`` as this process's whole work, and never returns.

    The last line of output says what went wrong. The process ends without cleaning up, because ufbx 0.0.5 crashes when
    its objects are collected.
    """
    folder = Path(sys.argv[1])
    exit_with_parent = runpy.run_path(str(Path(__file__).parents[2] / "core" / "process" / "die_with.py"))
    exit_with_parent["exit_with_parent"](int(sys.argv[2]), int(sys.argv[3]))
    status = 1
    try:
        options = json.loads(np.load(folder / "options.npy", allow_pickle=False).tobytes())
        for kind, limit in (("AS", options["memory"]), ("FSIZE", options["output"]), ("CORE", 0)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (limit, limit))
        main(folder, np.load(folder / "source.npy", allow_pickle=False).tobytes(), options)
        status = 0
    except MemoryError:
        print(f"it needs more than {options['memory'] >> 20} MiB of memory", flush=True)
    except BaseException as error:
        print(in_one_line(error)[:500], flush=True)
    sys.stdout.flush()
    os._exit(status)

"""Reads USD, USDA, USDC and USDZ by OpenUSD, in a child process."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from pipeline.core.errors import MeshError
from pipeline.core.private import private_folder
from pipeline.mesh.convert.child import read_in_child, run_reader
from pipeline.mesh.convert.places import file_beside
from pipeline.mesh.convert.scene import Scene

_FOLDER = Path(__file__).parent
_MOST_ENTRIES = 10_000
_MOST_BYTES = 1 << 30


def read_usd(data: bytes, path: Path) -> Scene:
    """Reads the USD at ``path`` (``data`` are its bytes). Raises MeshError."""
    if data[:4] != b"PK\3\4":
        return _read(path, path.parent, path.name)
    with private_folder() as folder:
        top = unpack_usdz(data, folder, path.name)
        scene = _read(top, folder, path.name)
        for image in scene.images:
            if not image.data and (file := file_beside(image.files, folder)) is not None:
                image.data = file.read_bytes()
        return scene


def _read(path: Path, root: Path, name: str) -> Scene:
    options: dict[str, object] = {"path": str(path.resolve()), "root": str(root.resolve())}
    return read_in_child(_FOLDER / "usd_child.py", "pxr", b"", name, extra="usd", options=options)


def usd_files(path: Path) -> list[Path]:
    """The layers and textures in the folder of the USD at ``path`` that it reads. Raises MeshError, OSError."""
    with path.open("rb") as stream:
        head = stream.read(8)
        # Text without "@" names no file; a package has all it needs.
        if head[:4] == b"PK\3\4" or (head[:5] == b"#usda" and b"@" not in stream.read()):
            return []
    options: dict[str, object] = {"path": str(path.resolve()), "root": str(path.parent.resolve())}
    program = _FOLDER / "usd_files_child.py"
    text, _ = run_reader(program, "pxr", b"", path.name, extra="usd", options=options)
    found = json.loads(text)
    files: dict[Path, None] = {}
    for name in [*found["layers"], *found["assets"]]:
        if (file := file_beside([str(name)], path.parent)) is not None:
            files[file] = None
    return list(files)


def unpack_usdz(data: bytes, folder: Path, name: str) -> Path:
    """Unpacks the USDZ ``data`` into ``folder``. Returns the path of its first file, the layer. Raises MeshError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            entries = [entry for entry in package.infolist() if not entry.is_dir()]
            if not entries or len(entries) > _MOST_ENTRIES:
                raise MeshError(f"{name}: it holds {len(entries)} files; a USDZ has 1 to {_MOST_ENTRIES}")
            if sum(entry.file_size for entry in entries) > _MOST_BYTES:
                raise MeshError(f"{name}: its files are larger than {_MOST_BYTES >> 20} MiB")
            for entry in entries:
                parts = entry.filename.split("/")
                if any(part in ("", ".", "..") for part in parts) or "\\" in entry.filename or "\0" in entry.filename:
                    raise MeshError(f"{name}: it holds a file with a path that leads outside; export it again")
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with package.open(entry) as source:
                    # The size in the entry is untrusted.
                    target.write_bytes(source.read(entry.file_size))
            return folder.joinpath(*entries[0].filename.split("/"))
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise MeshError(f"{name}: it cannot be unpacked ({error.strerror})") from None
        raise MeshError(f"{name}: its package is damaged; export it again") from None

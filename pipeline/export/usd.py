"""Writes painted materials for USD: a layer over the artist's file, which stays as it is, or a USDZ with everything."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import ExportError, MeshError
from pipeline.core.private import private_folder
from pipeline.mesh.convert.child import run_reader
from pipeline.mesh.convert.usd import unpack_usdz

SLOTS = ("base_color", "normal", "metallic_roughness", "occlusion", "emissive")


@dataclass(frozen=True)
class PaintedMaterial:
    """A material to bind in place of what ``prims`` (paths of meshes and subsets) have.

    textures  image files by slot (``SLOTS``), as names in the folder of the layer; red, green and blue of
              ``metallic_roughness`` mean what they mean in glTF.
    uv_set    the primvar with the texture coordinates.
    """

    name: str
    prims: tuple[str, ...]
    textures: Mapping[str, str] = field(default_factory=dict)
    uv_set: str = "st"
    base_color_factor: tuple[float, float, float] | None = None
    metallic: float | None = None
    roughness: float | None = None


def write_usd_layer(source: Path, target: Path, materials: Sequence[PaintedMaterial]) -> list[str]:
    """Writes to ``target`` (.usda or .usdc) a layer over the USD at ``source`` that binds ``materials``.

    The layer names its source by the path from its own folder, and its textures by their names. Returns what of the
    source was not followed. Raises ExportError.
    """
    return _write(source, target, materials, package=False)


def write_usdz(source: Path, target: Path, materials: Sequence[PaintedMaterial]) -> list[str]:
    """Writes to ``target`` a USDZ of the USD at ``source`` with ``materials``, whose textures lie in its folder.

    Layers are joined into one; files outside the folders of source and target are left out. Returns what was left out.
    Raises ExportError.
    """
    return _write(source, target, materials, package=True)


def _write(source: Path, target: Path, materials: Sequence[PaintedMaterial], *, package: bool) -> list[str]:
    for material in materials:
        if unknown := [slot for slot in material.textures if slot not in SLOTS]:
            raise ExportError(f"{target.name}: a material has no map {unknown[0]!r}; use {', '.join(SLOTS)}")
    program = Path(__file__).with_name("usd_child.py")
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        with _opened(source) as (top, root):
            options: dict[str, object] = {
                "path": str(top.resolve()),
                "root": str(root.resolve()),
                "target": str(partial.absolute()),
                "textures": str(target.parent.resolve()),
                "reference": _reference(source, target),
                "package": package,
                "materials": [_entry(material) for material in materials],
            }
            text, _ = run_reader(
                program, "pxr", b"", source.name, extra="usd", options=options,
                task="write over it", advice="look at the names of its prims",
            )  # fmt: skip
        os.replace(partial, target)
    except MeshError as error:
        raise ExportError(f"{target.name}: not written: {error.message}") from None
    except OSError as error:
        raise ExportError(f"{target.name}: it cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return [str(item) for item in json.loads(text)["left_out"]]


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[Path, Path]]:
    """(the layer to open, the folder of what it may name); a package is unpacked for the time of the block."""
    with source.open("rb") as stream:
        data = stream.read() if stream.read(4) == b"PK\3\4" else b""
    if not data:
        yield source, source.parent
        return
    with private_folder() as folder:
        yield unpack_usdz(source.read_bytes(), folder, source.name), folder


def _reference(source: Path, target: Path) -> str:
    path = Path(os.path.relpath(source.resolve(), target.parent.resolve())).as_posix()
    return path if path.startswith("..") else f"./{path}"


def _entry(material: PaintedMaterial) -> dict[str, object]:
    return {
        "name": material.name,
        "prims": list(material.prims),
        "textures": {slot: f"./{name}" for slot, name in material.textures.items()},
        "uv_set": material.uv_set,
        "base_color_factor": list(material.base_color_factor) if material.base_color_factor else None,
        "metallic": material.metallic,
        "roughness": material.roughness,
    }

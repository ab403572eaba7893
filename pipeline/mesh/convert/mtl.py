"""Reads MTL, the materials of an OBJ. Imports no numpy.

The colour of a material with a texture is the texture's alone, as in most programs that write OBJ.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.mesh.convert.places import file_beside

_MOST_BYTES = 16 << 20
_MOST_MATERIALS = 10_000
_MOST_LIBRARIES = 50
# Statements with a texture, by slot.
_MAPS = {
    "map_kd": "base_colour", "map_ke": "emissive", "map_d": "opacity", "norm": "normal", "map_pr": "roughness",
    "map_pm": "metallic", "map_bump": "bump", "bump": "bump", "map_ao": "occlusion",
}  # fmt: skip
# Arguments of a texture's options: at most so many, of which all after the first may be missing for three.
_OPTIONS = {
    "-blendu": 1, "-blendv": 1, "-boost": 1, "-mm": 2, "-o": 3, "-s": 3, "-t": 3, "-texres": 1, "-clamp": 1, "-bm": 1,
    "-imfchan": 1, "-type": 1, "-cc": 1,
}  # fmt: skip


@dataclass
class MtlTexture:
    """A texture: its file as the MTL names it, its scale and offset (bottom left origin), and whether it is clamped."""

    file: str
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    clamp: bool = False


@dataclass
class MtlMaterial:
    """A material: its numbers by statement (lower case), and its textures by slot."""

    name: str
    numbers: dict[str, list[float]] = field(default_factory=dict)
    textures: dict[str, MtlTexture] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def material_files(names: list[str], folder: Path) -> list[Path]:
    """The existing MTL files that the arguments of ``mtllib`` statements name, inside ``folder``."""
    found: dict[Path, None] = {}
    for argument in [name[:4096] for name in dict.fromkeys(names)][:_MOST_LIBRARIES]:
        # Names may hold blanks, and one statement may hold several names.
        for name in (argument, *argument.split()[:_MOST_LIBRARIES]):
            if (path := file_beside([name], folder)) is not None:
                found[path] = None
                if name == argument:
                    break
    return list(found)


def read_mtl(path: Path) -> list[MtlMaterial]:
    """The materials of the MTL at ``path``; none if it is no text or too large. Raises OSError."""
    if path.stat().st_size > _MOST_BYTES:
        return []
    materials: list[MtlMaterial] = []
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        words = line.split("#", 1)[0].split(None, 1) if not line.lstrip().startswith("#") else []
        if len(words) != 2:
            continue
        statement, argument = words[0].lower(), words[1].strip()
        if statement == "newmtl":
            if len(materials) >= _MOST_MATERIALS:
                break
            materials.append(MtlMaterial(argument))
        elif not materials:
            continue
        elif statement in _MAPS:
            if (texture := _texture(argument)) is not None:
                materials[-1].textures[_MAPS[statement]] = texture
        elif statement.startswith("map_") or statement in ("disp", "decal", "refl"):
            materials[-1].lost.append(f"the texture {statement} of the material {argument[-60:]!r}")
        else:
            numbers = _numbers(argument)
            if numbers:
                materials[-1].numbers[statement] = numbers
    return materials


def _numbers(text: str) -> list[float]:
    numbers = []
    for word in text.split():
        try:
            value = float(word)
        except ValueError:
            break
        numbers.append(value if math.isfinite(value) else 0.0)
    return numbers


def _texture(argument: str) -> MtlTexture | None:
    """The texture of a statement: options, then the name of a file, which may hold blanks."""
    texture = MtlTexture("")
    rest = argument
    while rest.startswith("-"):
        option, _, after = rest.partition(" ")
        most = _OPTIONS.get(option.lower())
        if most is None:
            break
        values: list[str] = []
        after = after.lstrip()
        while len(values) < most and after:
            word, _, following = after.partition(" ")
            if values and not re.fullmatch(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?", word):
                break
            values.append(word)
            after = following.lstrip()
        numbers = _numbers(" ".join(values))
        if option.lower() in ("-s", "-o") and numbers:
            missing = 1.0 if option.lower() == "-s" else 0.0
            pair = (numbers[0], numbers[1] if len(numbers) > 1 else missing)
            texture.scale, texture.offset = (pair, texture.offset) if option.lower() == "-s" else (texture.scale, pair)
        elif option.lower() == "-clamp":
            texture.clamp = values[:1] == ["on"]
        rest = after
    texture.file = rest.strip().strip('"')
    return texture if texture.file else None

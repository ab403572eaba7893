"""A manifest of 30 rows, each wrong in its own way, among 5 good ones; used by the tests of check, run and plan."""

from __future__ import annotations

import csv
import os
from pathlib import Path

HEADER = ["id", "recipe", "prompt", "negative_prompt", "mesh", "seed", "steps", "guidance_scale", "texture_size"]
HEADER += ["t_min", "t_max", "close_up", "fov", "turntable", "base_colour", "unwrap", "front", "up_axis"]
HEADER += ["learning_rate", "views", "colour"]

GOOD = {"prompt": "a red brick thing", "mesh": "meshes/good.obj", "steps": "2", "texture_size": "64"}

# What each bad row changes of a good one, the field the problem has to name, and a word of its message.
BAD: list[tuple[dict[str, str], str, str]] = [
    ({"id": "../escape"}, "id", "safe file name"),
    ({"id": ".hidden"}, "id", "safe file name"),
    ({"id": "nul.glb"}, "id", "device"),
    ({"id": "x" * 101}, "id", "100"),
    ({"recipe": "generate"}, "mesh", "the row's recipe is generate; did you mean 'sketch'?"),
    ({"recipe": "pain"}, "recipe", "did you mean 'paint'?"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": "p" * 2001}, "prompt", "2001 characters"),
    ({"prompt": "bell \a rings"}, "prompt", "U+0007"),
    ({"negative_prompt": "n" * 2001}, "negative_prompt", "at most 2000"),
    ({"mesh": ""}, "mesh", "empty"),
    ({"mesh": "meshes/missing.obj"}, "mesh", "there is no file"),
    ({"mesh": "../outside.obj"}, "mesh", "leaves the manifest's folder"),
    ({"mesh": "meshes/link.obj"}, "mesh", "leaves the manifest's folder"),
    ({"mesh": "/etc/mesh.obj"}, "mesh", "absolute path"),
    ({"mesh": "meshes/good.blend"}, "mesh", "'.blend' is not a mesh format"),
    ({"mesh": "meshes/folder.obj"}, "mesh", "is a folder"),
    ({"mesh": "meshes/empty.obj"}, "mesh", "empty file"),
    ({"seed": "-1"}, "seed", "from 0"),
    ({"seed": "one"}, "seed", "a whole number"),
    ({"steps": "0"}, "steps", "from 1 to 100000"),
    ({"steps": "2.5"}, "steps", "a whole number"),
    ({"guidance_scale": "nan"}, "guidance_scale", "from 0 to 1000"),
    ({"texture_size": "100"}, "texture_size", "multiple of 64"),
    ({"t_min": "0.9", "t_max": "0.1"}, "t_min", "below t_max"),
    ({"close_up": "1.5"}, "close_up", "from 0 to 1"),
    ({"turntable": "perhaps"}, "turntable", "true or false"),
    ({"base_colour": "red"}, "base_colour", "#c04020"),
    ({"unwrap": "magic"}, "unwrap", "auto, input, xatlas or box"),
    ({"colour": "blue"}, "colour", "did you mean 'base_colour'?"),
]
assert len(BAD) == 30


def write_thirty(folder: Path) -> Path:
    """Writes the manifest and its meshes under ``folder``; gives the manifest's path.

    The good rows have the ids good-0 ... good-4; a bad row has the id bad-NN unless its id is what is wrong.
    """
    home = folder / "thirty"
    meshes = home / "meshes"
    meshes.mkdir(parents=True)
    write_tetrahedron(meshes / "good.obj")
    write_tetrahedron(folder / "outside.obj")
    os.symlink(folder / "outside.obj", meshes / "link.obj")
    (meshes / "folder.obj").mkdir()
    (meshes / "empty.obj").touch()
    (meshes / "good.blend").write_bytes(b"blend")
    path = home / "thirty_bad_rows.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, HEADER)
        writer.writeheader()
        for number, (change, _, _) in enumerate(BAD):
            if number % 6 == 0:
                writer.writerow({**GOOD, "id": f"good-{number // 6}"})
            writer.writerow({**GOOD, "id": f"bad-{number:02}", **change})
    return path


def write_tetrahedron(path: Path, size: float = 1.0) -> Path:
    """Writes a closed mesh of four faces as OBJ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = [(0, 0, 0), (size, 0, 0), (0, size, 0), (0, 0, size)]
    faces = ["1 3 2", "1 2 4", "1 4 3", "2 3 4"]
    path.write_text("".join(f"v {x} {y} {z}\n" for x, y, z in corners) + "".join(f"f {f}\n" for f in faces))
    return path

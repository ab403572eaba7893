"""Converts damaged FBX, USD, DAE and OBJ files and says how each attempt ended.

    python benchmarks/fuzz_formats.py --count 1200 [--seed 0] [--kinds fbx,usdc,usda,usdz,dae,obj]

Each file is a committed or small written one with a few bytes changed, cut, repeated or replaced by large numbers. An
attempt may end as a document that reads back or as one line that begins with the file's name. Anything else, or an
attempt beyond the time limit plus ten seconds, is a failure: the program names the file and ends with 1.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fakes")]

from pipeline.core.errors import MeshError  # noqa: E402
from pipeline.mesh.convert import child  # noqa: E402
from pipeline.mesh.convert.to_gltf import to_gltf  # noqa: E402

FOREIGN = ROOT / "tests" / "data" / "foreign"
SECONDS = 20.0
LARGE = [b"\xff" * 4, b"\0" * 4, b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, b"\0\0\xc0\x7f"]
NUMBERS = [b"-1", b"0", b"4294967295", b"1e999", b"nan", b"99999999999999999999", b"2147483648", b""]


def sources(kinds: list[str]) -> list[tuple[str, bytes]]:
    """(ending, bytes) of the files that are damaged."""
    from fbx_text import flag

    found = [(path.suffix, path.read_bytes()) for path in sorted(FOREIGN.iterdir()) if path.suffix[1:] in kinds]
    if "fbx" in kinds:
        found.append((".fbx", flag(Lcl_Rotation=(1, 2, 3)).text()))
    return found


def damaged(data: bytes, chance: random.Random) -> bytes:
    """``data`` with one to eight changes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        if len(changed) < 16:
            break
        at = chance.randrange(len(changed))
        kind = chance.randrange(6)
        if kind == 0:
            changed[at] = chance.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            value = chance.choice(LARGE)
            changed[at : at + len(value)] = value
        elif kind == 3:
            end = at + chance.randrange(1, 200)
            changed[at:at] = changed[at:end] * chance.choice((1, 1, 3))
        elif kind == 4:
            del changed[at : at + chance.randrange(1, 64)]
        elif chance.random() < 0.3:
            del changed[at:]
        else:
            spans = list(re.finditer(rb"-?\d+(?:\.\d+)?", bytes(changed[at : at + 2000])))
            if spans:
                span = chance.choice(spans)
                changed[at + span.start() : at + span.end()] = chance.choice(NUMBERS)
    return bytes(changed)


def attempt(path: Path) -> str:
    """How converting ``path`` ends: "document", or the message without names and numbers. Raises AssertionError."""
    began = time.monotonic()
    try:
        document = to_gltf(path)
        assert document.glb()[:4] == b"glTF"
        ended = "document"
    except MeshError as error:
        assert error.message.startswith(f"{path.name}: "), error.message
        assert "\n" not in error.message, error.message
        assert error.message.isprintable(), error.message
        ended = re.sub(r"\d+", "N", error.message.removeprefix(f"{path.name}: "))[:60]
    assert time.monotonic() - began < 2 * SECONDS + 10, f"{time.monotonic() - began:.0f} s"
    return ended


def main() -> int:
    """Runs the attempts and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="fbx,usdc,usda,usdz")
    options = parser.parse_args()
    child.SECONDS = SECONDS
    read_in_child = child.run_reader.__kwdefaults__
    assert read_in_child is not None
    read_in_child["seconds"] = SECONDS
    child.read_in_child.__kwdefaults__["seconds"] = SECONDS  # type: ignore[index]
    files = sources(options.kinds.split(","))
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    slowest: dict[str, float] = collections.defaultdict(float)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.count):
            chance = random.Random(f"{options.seed}/{number}")
            ending, data = files[number % len(files)]
            path = Path(folder) / f"file{ending}"
            path.write_bytes(damaged(data, chance))
            began = time.monotonic()
            try:
                table[ending][attempt(path)] += 1
            except Exception as error:
                failures += 1
                kept = Path(tempfile.gettempdir()) / f"fuzz-{options.seed}-{number}{ending}"
                kept.write_bytes(path.read_bytes())
                print(f"FAILED {kept}: {type(error).__name__}: {error}", flush=True)
            slowest[ending] = max(slowest[ending], time.monotonic() - began)
    for ending, ends in table.items():
        print(f"{ending}: {sum(ends.values())} files, the slowest {slowest[ending]:.1f} s")
        for ended, count in ends.most_common(12):
            print(f"  {count:5d}  {ended}")
    print(f"{options.count} attempts, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

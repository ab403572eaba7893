"""``check`` of a manifest of a million rows, in CSV and JSON Lines: rows a second, and the most memory it held.

``ok`` at full size asks for 50,000 rows a second of processor time within 500 MB: beside other load, the clock on the
wall says more about the other load. ``plan`` of the same manifest, for its memory, with a tenth of the rows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import ROOT, arguments, finish, workplace

CHILD = """
import json, resource, sys, time
from pipeline.cli import main
begun, used = time.monotonic(), time.process_time()
code = main(sys.argv[1:])
print(json.dumps({"code": code, "wall": time.monotonic() - begun, "cpu": time.process_time() - used,
                  "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def write(path: Path, rows: int) -> None:
    """Rows that differ in every field but the mesh."""
    with path.open("w") as stream:
        if path.suffix == ".csv":
            stream.write("id,prompt,mesh,seed,steps\n")
            for number in range(rows):
                colour = ("red", "blue", "green")[number % 3]
                stream.write(f"asset-{number:07d},a {colour} brick cube,cube.obj,{number},{100 + number % 500}\n")
        else:
            for number in range(rows):
                stream.write(
                    f'{{"id": "asset-{number:07d}", "prompt": "a red brick cube", "mesh": "cube.obj", '
                    f'"seed": {number}}}\n'
                )


def measure(*arguments: str) -> dict:
    """Runs the command in a process of its own; the last line it prints are its figures."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    chosen = arguments(__doc__, rows=(20_000, 1_000_000))
    with workplace(chosen) as folder:
        figures: dict = {}
        ok = True
        for ending in ("csv", "jsonl"):
            manifest = folder / f"m.{ending}"
            write(manifest, chosen.rows)
            found = measure("check", str(manifest))
            rate = chosen.rows / found["cpu"]
            figures[ending] = {
                "rows_per_cpu_second": round(rate),
                "rows_per_second": round(chosen.rows / found["wall"]),
            }
            figures[ending]["mb"] = round(found["mb"])
            ok = ok and found["code"] == 0 and found["mb"] < 500 and (rate >= 50_000 or not chosen.full)
        write(folder / "m.csv", chosen.rows // 10)
        out = ["--out", str(folder / "out"), "--prior", str(folder / "prior")]
        found = measure("plan", str(folder / "m.csv"), *out)
        figures["plan_mb"] = round(found["mb"])
        finish(ok and found["code"] == 0, rows=chosen.rows, **figures)


if __name__ == "__main__":
    main()

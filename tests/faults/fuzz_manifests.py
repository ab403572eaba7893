"""Generated and broken manifests through ``check``, ``plan`` and ``run``: no traceback, no hang, no write outside the
output root, the right exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from harness import ROOT, arguments, finish, workplace

sys.path.insert(0, str(ROOT))

LIMIT_SECONDS = 20
NASTY = (
    "", " ", "\x00", "\ufeff", "NaN", "-Infinity", "1e999", "9" * 400, "-1", "0x10", "1,5", "true", "null", "[]", "{}",
    "=cmd|' /C calc'!A0", "@SUM(1)", "../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "s3://b/k.obj",
    "http://localhost/x.obj", "C:\\x.obj", "out/escape/x.obj", "pipe.obj", "cube.obj\x00.txt", "\ud800", "💥" * 50,
    "a" * 5000, "\u202etxt.obj", '"', '""', "'", "\r", "\n", "\r\n", ";", "\t", "con", "..", ".", "run.json", "a/b",
    "[" * 3000, '{"a":' * 2000, "\\u0000", "1e-400", "００１", "<script>", "${HOME}", "%s%n", "\x1b[31m",
)  # fmt: skip
FIELDS = ("id", "recipe", "prompt", "negative_prompt", "mesh", "sketch", "shapes", "seed", "steps", "guidance_scale",
          "texture_size", "t_min", "t_max", "base_colour", "lora", "concept", "max_seconds", "nonsense")  # fmt: skip
SANE = {
    "recipe": "paint", "prompt": "a red brick cube", "mesh": "cube.obj", "seed": "3", "steps": "20", "t_min": "0.1",
    "guidance_scale": "7.5", "texture_size": "128", "t_max": "0.9", "base_colour": "#c04020", "max_seconds": "60",
}  # fmt: skip


def row(rng: random.Random, number: int) -> dict[str, object]:
    """A row that is usually nearly right."""
    names = ["prompt", "mesh", *rng.sample(FIELDS, rng.randint(0, 5))]
    values: dict[str, object] = {}
    for name in names:
        text = SANE.get(name, f"r{number}")
        if rng.random() < 0.15:
            text = rng.choice(NASTY)
        if rng.random() < 0.1:
            values[name] = rng.choice((None, 5, -1.5, True, [1], {"a": 1}, 10**30, 1e300, "x"))
        else:
            values[name] = text
    return values


def manifest(rng: random.Random) -> tuple[str, bytes]:
    """(ending, bytes): a manifest in one of the formats, then perhaps broken."""
    rows = [row(rng, number) for number in range(rng.randint(0, 6))]
    ending = rng.choice((".csv", ".csv", ".json", ".jsonl", ".tsv", ".txt"))
    if ending in (".json", ".jsonl"):
        texts = [json.dumps(one, ensure_ascii=rng.random() < 0.5) for one in rows]
        body = "\n".join(texts) if ending == ".jsonl" else "[" + ",".join(texts) + "]"
        if ending == ".json" and rng.random() < 0.3:
            body = '{"defaults": ' + json.dumps(row(rng, 99)) + ', "rows": ' + body + "}"
    else:
        columns = list(dict.fromkeys(["prompt", "mesh", *rng.sample(FIELDS, 4)]))
        comma = rng.choice((",", ";", "\t"))
        lines = [comma.join(columns)]
        for one in rows:
            cells = [str(one.get(name, "")) for name in columns]
            quoted = ['"' + c.replace('"', '""') + '"' if any(x in c for x in ',;"\n\r\t') else c for c in cells]
            lines.append(comma.join(quoted))
        body = "\n".join(lines)
    data = bytearray(body.encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice((0, 0, 1, 1, 3, 20))):
        broken(rng, data)
    return ending, bytes(data)


def broken(rng: random.Random, data: bytearray) -> None:
    """One mutation: a flipped bit, a cut, a doubled piece, a foreign token, two pieces swapped."""
    if not data:
        return
    at = rng.randrange(len(data))
    kind = rng.randrange(5)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at : at + rng.choice((1, 5, len(data)))]
    elif kind == 2:
        data[at:at] = data[at : at + rng.randint(1, 40)] * rng.choice((1, 2, 50))
    elif kind == 3:
        data[at:at] = rng.choice(NASTY).encode("utf-8", "surrogatepass")
    else:
        other = rng.randrange(len(data))
        data[at], data[other] = data[other], data[at]


def really_run(path: Path, outer: Path) -> int:
    """``run`` with a recipe that writes a few bytes for each row, in this process."""
    from pipeline.commands.run import RunOptions, run_manifest
    from pipeline.core.errors import LatentkilnError

    sys.path.insert(0, str(ROOT / "tests" / "fakes"))
    from stub_recipe import make_toolbox

    options = RunOptions(path, path.parent / "out", str(outer / "prior"), serial=True, quiet=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return run_manifest(options, hooks=make_toolbox())
    except LatentkilnError:
        return 2


class Hang(BaseException):
    """Raised by the alarm."""


def call(*words: str) -> tuple[int, str, float]:
    """The command in this process: exit code, what it printed, seconds."""
    from pipeline import cli

    def ring(*_: object) -> None:
        raise Hang

    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_SECONDS)
    begun = time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(list(words))
    finally:
        signal.alarm(0)
    out.flush()
    return code, out.buffer.getvalue().decode() + err.getvalue(), time.monotonic() - begun  # type: ignore[attr-defined]


def snapshot(folder: Path, skip: str) -> dict[str, int]:
    """Every file below ``folder`` with its time, but for those below the folder ``skip``."""
    return {
        os.path.join(base, name): os.lstat(os.path.join(base, name)).st_mtime_ns
        for base, folders, names in os.walk(folder)
        for name in (*names, *folders)
        if not os.path.join(base, name).startswith(os.path.join(folder, skip))
    }


def main() -> None:
    chosen = arguments(__doc__, manifests=(400, 20_000))
    counts: Counter[str] = Counter()
    bad: list[str] = []
    slowest = 0.0
    with workplace(chosen) as outer:
        folder = outer / "in"
        folder.mkdir(exist_ok=True)
        (folder / "cube.obj").write_bytes((outer / "cube.obj").read_bytes())
        (folder / "out").mkdir(exist_ok=True)
        os.mkfifo(folder / "pipe.obj")
        for number in range(chosen.manifests):
            rng = random.Random(f"{chosen.seed}-{number}")
            ending, data = manifest(rng)
            path = folder / f"m{ending}"
            path.write_bytes(data)
            common = [str(path), "--prior", str(outer / "prior")]
            verbs = [["check", *common]]
            if number % 10 == 0:
                verbs += [[verb, *common, "--out", str(folder / "out")] for verb in ("plan", "clean")]
                verbs[-1][2:4] = []
                verbs.append(["run", *common, "--out", str(folder / "out"), "--dry-run", "--json"])
            before = snapshot(outer, "nothing")
            for words in verbs:
                try:
                    code, printed, seconds = call(*words)
                except Hang:
                    code, printed, seconds = -1, "hang", float(LIMIT_SECONDS)
                except BaseException as error:  # what leaves main is a traceback for the user
                    code, printed, seconds = -2, f"{type(error).__name__}: {error}", 0.0
                slowest = max(slowest, seconds)
                counts[f"{words[0]} {code}"] += 1
                allowed = (0, 2) if words[0] in ("check", "clean") else (0, 1, 2)
                if code not in allowed or "this is a bug" in printed or "Traceback" in printed:
                    bad.append(f"{number}: {' '.join(words[:1])}: {code}: {printed.splitlines()[-1:]}")
            if snapshot(outer, "nothing") != before:
                bad.append(f"{number}: something was written")
            if number % 25 == 0:
                before = snapshot(outer, "in/out")
                code = really_run(path, outer)
                counts[f"run for good {code}"] += 1
                if code not in (0, 1, 2) or snapshot(outer, "in/out") != before:
                    bad.append(f"{number}: run for good: {code}, or something was written outside the output root")
            path.unlink()
    for line in bad[:20]:
        print(line)
    finish(not bad, manifests=chosen.manifests, faults=len(bad), slowest=round(slowest, 2), exits=dict(counts))


if __name__ == "__main__":
    main()

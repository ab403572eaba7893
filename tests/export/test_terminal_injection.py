"""No text that a file, a folder or an argument brings reaches the terminal as something it obeys.

Every string of every file that a command reads is replaced in turn by a hostile one, and what the commands print is
looked at, into a pipe and on a terminal.
"""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
import os
import pty
import re
import struct
import sys
import threading
import tty
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.core.outcome import TaskResult
from pipeline.core.terminal import escape, escape_json, safe_json
from pipeline.export.record import describe_outputs, write_failure, write_record
from pipeline.scheduler.run_log import RunLog
from pipeline.scheduler.tasks import Hooks

# SGR, OSC 52 (clipboard), C1 CSI and NEL, backspace, CR, line end, tab, DEL, bidi controls, separators, a lone
# surrogate, a formula.
HOSTILE = (
    "A\x1b[31mEVIL\x1b]52;c;cHdu\x07\x9b32m\x85\x08\r\n\t\x7f\u202e\u2066\u2069\u200f\u061c\u2028\udc80;=cmd|'!A0 Z"
)
FORMULA = "=cmd|' /C calc'!A0"
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What rich writes on a terminal: colours, cursor movements, erasing, hiding the cursor.
OURS = re.compile(r"\r?\x1b\[[0-9;?]*[A-HJKhlm]")
CUBE = "v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 1\nf 1 2 3\nf 1 3 4\nf 1 4 2\nf 2 4 3\n"


def printed(arguments: list[str], *, terminal: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command in this process; ``terminal``: output is a pty."""
    before, raw, errors = (sys.stdout, sys.stderr), bytearray(), io.BytesIO()
    sys.stderr = io.TextIOWrapper(errors, encoding="utf-8", errors="backslashreplace")
    reader, slave = None, -1
    if terminal:
        master, slave = pty.openpty()
        tty.setraw(slave)

        def read() -> None:
            while True:
                try:
                    raw.extend(os.read(master, 1 << 16))
                except OSError:
                    return os.close(master)

        reader = threading.Thread(target=read)
        reader.start()
        sys.stdout = os.fdopen(slave, "w", encoding="utf-8")
    else:
        sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        code = cli.main(arguments)
        sys.stderr.flush()
        sys.stdout.flush()
        said = errors.getvalue().decode()
        if not terminal:
            raw += sys.stdout.buffer.getvalue()
    finally:
        stream, (sys.stdout, sys.stderr) = sys.stdout, before
        if reader:
            stream.close()
            reader.join()
    return code, raw.decode(), said


def assert_harmless(*arguments: str) -> None:
    """Runs the command into a pipe and on a terminal; a string that names what was printed wrongly is the message."""
    code, out, err = printed(list(arguments))
    assert not FORBIDDEN.search(out.replace("\t", "")), (arguments, out)
    assert out.count("\t") == 0 or ("\t" in out and max(line.count("\t") for line in out.splitlines()) <= 2), out
    assert not FORBIDDEN.search(err) and "this is a bug" not in err and "Traceback" not in err, (arguments, err)
    assert 0 <= code <= 3
    if "--json" in arguments and out:
        [json.loads(out)] if arguments[0] != "run" else [json.loads(line) for line in out.splitlines()]
    if "--csv" in arguments:
        for cell in (cell for row in csv.reader(io.StringIO(out)) for cell in row):
            assert not re.match(r"\s*[=@+\uff1d]", cell) and not re.search(r";\s*[=@+]", cell), cell
    _, out, err = printed(list(arguments), terminal=True)
    assert not FORBIDDEN.search(OURS.sub("", out).replace("\t", "")) and "\x1b[31mEVIL" not in out, (arguments, out)
    assert not FORBIDDEN.search(err), (arguments, err)


def replaced(value: Any, hostile: str = HOSTILE) -> Iterator[Any]:
    """``value`` with each of its strings, numbers and keys in turn replaced by a hostile one."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield {(hostile if name == key else name): other for name, other in value.items()}
            for changed in replaced(item, hostile):
                yield value | {key: changed}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for changed in replaced(item, hostile):
                yield [*value[:index], changed, *value[index + 1 :]]
    if not isinstance(value, bool):
        yield hostile


@pytest.fixture(autouse=True)
def terminal_of_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder: a mesh, a prior, a manifest, and ``out`` with a run and assets of all kinds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cube.obj").write_text(CUBE)
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("{}")
    (tmp_path / "m.csv").write_text("id,prompt,mesh\na,fine,cube.obj\nb,fine,cube.obj\n")
    out = tmp_path / "out"
    run_log = RunLog(
        out, {"manifest": "m.csv", "command": "latentkiln run m.csv", "prior": {"name": "p", "identity": "i"}}
    )
    out.mkdir()
    run_log.open()
    for name in ("a", "b", "c", "d"):
        run_log.planned(name, "planned")
        run_log.started(name, 1, "worker 1", "node 7")
    run_log.stage("d", "distill", 1, 10)
    write_asset(out / "a")
    run_log.finished(TaskResult("a", "done", warnings=["a hole"]))
    write_failure(out / "b", failure("b"))
    run_log.finished(TaskResult("b", "failed", "load", "MeshError", "no mesh", reproduce="again"))
    run_log.finished(TaskResult("c", "elsewhere", message="being built by another run"))
    run_log.refused(TaskResult("e", "failed", "manifest", "ManifestError", "mesh: there is no file"), "m.csv:7")
    run_log.close("interrupted", 3)
    write_asset(out / "g")
    write_failure(out / "h", failure("h"))
    return tmp_path


def failure(name: str) -> dict[str, Any]:
    return {"id": name, "fingerprint": "f", "stage": "load", "error": "E", "message": "no", "reproduce": "again"}


def write_asset(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {
        "id": folder.name, "fingerprint": "f", "recipe": "paint", "recipe_version": "1", "prompt": "p", "seed": 1,
        "negative_prompt": "n", "prior": {"name": "p", "identity": "i"}, "mesh_sha256": "7", "settings": {"steps": "1"},
        "backends": {"device": "cpu"},
    }  # fmt: skip
    document = {"asset": {"version": "2.0", "generator": "latentkiln", "extras": {"latentkiln": provenance}}}
    (folder / "asset.glb").write_bytes(glb(document))
    record = {
        "id": folder.name,
        "fingerprint": "f",
        "recipe": "paint",
        "recipe_version": "1",
        "inputs": {
            "mesh": {"name": "cube.obj", "sha256": "7"},
            "job": {"prompt": "p", "seed": 1, "settings": {"steps": 1}},
            "prior": {"identity": "i"},
            "adapters": [{"kind": "lora"}],
        },
        "backends": {"device": "cpu"},
        "unwrap": {"method": "xatlas", "reason": "none"},
        "lockstep": 1,
        "timings": {"load": 1.0},
        "peak_rss_mb": 1.0,
        "finished": 1.0,
        "warnings": ["a hole"],
    }
    write_record(folder, record | {"outputs": describe_outputs(folder, ["asset.glb"])})


def glb(document: dict[str, Any], binary: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    tail = struct.pack("<I4s", len(binary), b"BIN\0") + binary if binary else b""
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(tail), len(text), 0x4E4F534A) + text + tail


def look_at(place: Path) -> None:
    """Every command that reads an output folder."""
    assert_harmless("status", "out")
    assert_harmless("status", "out", "--csv")
    assert_harmless("status", "out", "--json", "--check")
    for verb in (["clean"], ["plan", "--prior", "prior"], ["plan", "--csv", "--prior", "prior"]):
        assert_harmless(*verb, "m.csv", "--out", "out")
    assert_harmless("inspect", "out/a")
    assert_harmless("inspect", "out/a", "--json")


def test_an_ordinary_folder_is_looked_at(place):
    look_at(place)
    code, out, _ = printed(["status", "out"], terminal=True)
    assert code == 0 and "\x1b[32mdone" in out and "a hole" in out


@pytest.mark.parametrize("name", ["run.json", "a/record.json", "b/failure.json", "h/failure.json", "g/record.json"])
def test_every_string_of_a_strangers_record(name, place):
    path = place / "out" / name
    original = json.loads(path.read_text())
    for changed in replaced(original):
        path.write_text(json.dumps(changed))
        look_at(place)


def test_every_string_of_a_strangers_log(place):
    path = place / "out" / "run.events.jsonl"
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        for changed in replaced(json.loads(line)):
            path.write_text("\n".join([*lines[:number], json.dumps(changed), *lines[number + 1 :]]))
            assert_harmless("status", "out")
            assert_harmless("status", "out", "--csv")
            assert_harmless("status", "out", "--json")


def test_a_run_that_was_killed_is_told_with_its_stages(place):
    path = place / "out" / "run.json"
    header = json.loads(path.read_text()) | {"state": "running", "pid": 2**22 + 1, "running": {"d": {"stage": HOSTILE}}}
    path.write_text(json.dumps(header | {"command": HOSTILE, "node": os.uname().nodename}))
    look_at(place)
    for name in ("state", "started", "counts"):
        path.write_text(json.dumps(header | {name: [HOSTILE]}))
        look_at(place)


def test_every_string_of_a_strangers_asset(place):
    path = place / "out" / "a" / "asset.glb"
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    for changed in replaced(json.loads(data[20 : 20 + length])):
        path.write_bytes(glb(changed))
        assert_harmless("inspect", "out/a")
        assert_harmless("inspect", "out/a/asset.glb", "--json")


def test_names_of_folders_and_files(place):
    name = HOSTILE.replace("/", "")
    write_asset(place / "out" / name)
    write_failure(place / "out" / f"x{name}", failure(f"x{name}"))
    (place / "out" / "g" / name).write_text("mine")
    look_at(place)
    assert_harmless("inspect", f"out/{name}")
    assert_harmless("status", f"out/{name}", "--csv")
    assert_harmless("clean", "m.csv", "--out", "out", "--yes")
    assert not (place / "out" / name).exists() and (place / "out" / "g" / name).exists()


@pytest.mark.parametrize("hostile", [HOSTILE, FORMULA], ids=["controls", "formula"])
def test_every_field_of_a_manifest(hostile, place):
    row = {
        "id": "a", "prompt": "fine", "negative_prompt": "n", "mesh": "cube.obj", "recipe": "paint", "seed": 1,
        "lora": "l.safetensors", "concept": "c.safetensors", "steps": 3, "unwrap": "auto",
    }  # fmt: skip
    for changed in [*replaced(row, hostile), hostile]:
        (place / "m.json").write_text(json.dumps([changed]))
        for verb in (["check"], ["check", "--json"], ["plan"], ["plan", "--csv"], ["plan", "--json"]):
            assert_harmless(*verb, "m.json", "--prior", "prior")
    with (place / "h.csv").open("w", newline="", encoding="utf-8", errors="replace") as stream:
        csv.writer(stream).writerows(
            [["id", "prompt", hostile], [hostile] * 3, ["a"], ["b", hostile, hostile, hostile]]
        )
    assert_harmless("check", "h.csv", "--prior", "prior")
    (place / "h.jsonl").write_text(
        json.dumps({"prompt": "x", "mesh": hostile}) + "\n{" + HOSTILE.encode("utf-8", "replace").decode()
    )
    assert_harmless("check", "h.jsonl", "--prior", "prior")


def test_every_string_of_a_mesh(place):
    data = struct.pack("<12f3H", 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 2)
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    document = {
        "asset": {"version": "2.0", "generator": "g", "minVersion": "2.0"},
        "extensionsUsed": ["KHR_x"],
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0], "name": "s"}],
        "nodes": [{"mesh": 0, "name": "n"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": 4}], "name": "m"}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 1]},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 6},
        ],
        "buffers": [{"byteLength": 54, "uri": uri}],
        "images": [{"uri": "x.png"}],
    }
    (place / "m.csv").write_text("id,prompt,mesh\na,fine,mesh.gltf\n")
    for changed in replaced(document):
        (place / "mesh.gltf").write_text(json.dumps(changed))
        assert_harmless("check", "m.csv", "--prior", "prior")
        assert_harmless("plan", "m.csv", "--prior", "prior")
    for name, text in (("x.obj", f"v {HOSTILE}\n"), ("x.ply", f"ply\nformat {HOSTILE}"), ("x.off", f"OFF\n{HOSTILE}")):
        (place / name).write_text(text, encoding="utf-8", errors="replace")
        (place / "m.csv").write_text(f"id,prompt,mesh\na,fine,{name}\n")
        assert_harmless("check", "m.csv", "--prior", "prior")


def test_names_in_a_lora(place, prior):
    """Where adapters are opened, what is in them is told."""
    from pipeline.core.errors import PriorError
    from pipeline.core.job import AdapterFile
    from pipeline.core.location import InputFile

    header = {HOSTILE + ".lora_up.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path = place / "l.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    (place / "m.json").write_text(json.dumps([{"id": "a", "prompt": "x", "mesh": "cube.obj", "lora": path.name}]))
    for verb in ("check", "plan"):
        assert_harmless(verb, "m.json", "--prior", "prior")
    with pytest.raises(PriorError) as error:
        prior.adapters((AdapterFile("lora", InputFile(path), 1.0),))
    assert "EVIL" not in str(error.value) or FORBIDDEN.search(str(error.value)), "then this test feeds nothing"


def test_every_argument(place):
    for verb in (
        ["check", HOSTILE], ["check", "m.csv", "--prior", HOSTILE], ["plan", "m.csv", "--out", HOSTILE],
        ["plan", HOSTILE], ["plan", "m.csv", "--set", HOSTILE], ["plan", "m.csv", "--set", f"{HOSTILE}=1"],
        ["plan", "m.csv", "--set", f"steps={HOSTILE}"], ["run", HOSTILE], ["run", "m.csv", "--only", HOSTILE],
        ["run", "m.csv", "--prior", HOSTILE], ["run", "m.csv", "--lockstep", HOSTILE],
        ["run", "m.csv", "--precision", HOSTILE], ["run", "m.csv", "--out", f"m.csv/{HOSTILE}"], ["status", HOSTILE],
        ["inspect", HOSTILE], ["clean", HOSTILE], ["clean", "m.csv", "--out", HOSTILE], ["doctor", "--prior", HOSTILE],
        ["doctor", "--json", "--prior", HOSTILE], ["prior", "show", HOSTILE], ["prior", "fetch", HOSTILE],
        ["prior", "fetch", f"org/{HOSTILE}"], ["prior", "sample", "x", "--prior", HOSTILE], [HOSTILE],
        [f"--{HOSTILE}"], ["check", f"--{HOSTILE}"], ["prior", HOSTILE], ["check", f"s3://{HOSTILE}/m.csv"],
        ["check", f"{HOSTILE}://x/m.csv"],
    ):  # fmt: skip
        assert_harmless(*verb)


def test_the_name_of_a_manifest_everywhere(place):
    for name in (f"{HOSTILE}.csv", f"{HOSTILE}.json", os.fsdecode(b"m\xff\xfe.csv")):
        bad = "id,prompt,mesh\na,fine,cube.obj\nb,fine,none.obj\n" if name.endswith("csv") else "{"
        (place / name).write_text(bad)
        for verb in ("check", "plan", "clean", "run"):
            extra = [] if verb == "clean" else ["--prior", "prior"]
            assert_harmless(verb, name, *extra, *(["--dry-run"] if verb == "run" else []))


def test_a_priors_card(place):
    (place / "prior" / "README.md").write_text(
        f"card {HOSTILE}\r\n\ttabbed\n", encoding="utf-8", errors="surrogatepass"
    )
    assert_harmless("prior", "show", "prior")
    assert_harmless("prior", "show", "prior", "--json")
    (place / "prior" / "model_index.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    assert_harmless("doctor", "--prior", "prior")
    assert_harmless("prior", "show", "prior")


def recipe(outcome: Callable[[str], Any]) -> Hooks:
    def build(jobs, prior, out, *, report_for, **_):
        for index, _job in enumerate(jobs):
            report_for(index)(f"stage {HOSTILE}", 1, 10)
        warnings.warn(HOSTILE, stacklevel=1)
        return [outcome(job.id) for job in jobs]

    return Hooks(lambda spec, threads: None, lambda name: build)


def raising(job_id: str) -> Any:
    raise ValueError(HOSTILE)


@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet"]], ids=str)
@pytest.mark.parametrize(
    "outcome",
    [
        lambda job_id: TaskResult(job_id, "failed", HOSTILE, HOSTILE, HOSTILE, warnings=[HOSTILE]),
        lambda job_id: TaskResult(job_id, "done", seconds=0.1, warnings=[HOSTILE]),
        raising,
    ],
    ids=["failed", "done", "raised"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_run(outcome, options, place, monkeypatch):
    from pipeline.commands import run as module

    plain = module.run_manifest
    monkeypatch.setattr(module, "run_manifest", lambda chosen: plain(chosen, hooks=recipe(outcome)))
    rows = [{"id": "a", "prompt": HOSTILE, "mesh": "cube.obj"}, {"id": "b", "prompt": "x", "mesh": HOSTILE}]
    rows += [{"id": HOSTILE, "prompt": "x", "mesh": "cube.obj"}, {"id": "e", "prompt": "fine", "mesh": "cube.obj"}]
    (place / f"{HOSTILE}.json").write_text(json.dumps(rows))
    assert_harmless("run", f"{HOSTILE}.json", "--out", "new", "--prior", "prior", "--serial", *options)
    for path in (place / "new").rglob("*.json*"):
        assert not FORBIDDEN.search(path.read_text(encoding="utf-8")), path
    assert json.loads((place / "new" / "run.json").read_text())["manifest"] == f"{HOSTILE}.json"


def test_text_is_escaped_and_ordinary_text_stays():
    assert escape(HOSTILE).isprintable() and escape("\x1b\x9b\n\t\r\u202e\udc80") == r"\x1b\x9b\n\t\r\u202e\udc80"
    for text in ("plain", "wörfel", "木の箱", "\U0001f9f1", "👩\u200d🚀", "می\u200cخواهم", "a\\x1bb"):
        assert escape(text) == text
    value = {HOSTILE: [HOSTILE, "wörfel"]}
    for text in (safe_json(value), escape_json(json.dumps(value, ensure_ascii=False, indent=1))):
        assert json.loads(text) == value and not FORBIDDEN.search(text)
    assert "wörfel" in escape_json(json.dumps(value, ensure_ascii=False))


ROOT = Path(cli.__file__).parent.parent


def test_nothing_prints_but_by_the_one_module():
    """``print``, the standard streams, Click's echo and rich's consoles: only where their text is escaped."""
    allowed = {"core/terminal.py", "uv/xatlas_child.py", "mesh/winding_grid_child.py", "mesh/convert/child_scene.py"}
    consoles = {"commands/table.py", "commands/status.py", "scheduler/progress.py"}
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or name in allowed:
                continue
            called = ast.unparse(node.func)
            wrong = called in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
                "click.echo",
                "click.secho",
                "rich.print",
            )
            assert not wrong, f"{name}:{node.lineno} calls {called}"
            assert called != "Console" or name in consoles, f"{name}:{node.lineno} makes a console"

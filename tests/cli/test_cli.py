"""The command's shell: help, exit codes, and that every error is one line."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from pipeline import __version__, cli
from pipeline.core.errors import Interrupted, LatentkilnError, ManifestError, MeshError, PriorError, UsageError

MODULE = [sys.executable, "-m", "pipeline"]


def verbs(group: click.Group = cli.cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += verbs(command, (*path, name))
    return found


def test_all_verbs_are_there() -> None:
    names = {" ".join(verb) for verb in verbs()}
    assert names >= {"run", "check", "plan", "status", "inspect", "doctor", "prior show", "prior sample"}


@pytest.mark.parametrize("verb", [(), *verbs()], ids=" ".join)
def test_each_help_has_an_example_that_parses(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    examples = re.findall(r"^\s+latentkiln (.*)$", text.split("Example:", 1)[1], re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example.split(">")[0])
        context, command = click.Context(cli.cli), cli.cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        # Parses, or raises.
        command.make_context("x", words, parent=context, resilient_parsing=False)


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_option_has_help(verb: tuple[str, ...]) -> None:
    command: click.Command = cli.cli
    for name in verb:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"latentkiln {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "Missing argument 'MANIFEST'"),
        (["chek", "x.csv"], "chek"),
        (["run", "x.csv", "--lockstep", "0"], "--lockstep"),
        (["run", "x.csv", "--nope"], "--nope"),
        (["run", "x.csv", "--set", "steps"], "--set steps: not KEY=VALUE"),
        (["check", "x.csv", "--set", "=3"], "not KEY=VALUE"),
        (["check"], "MANIFEST"),
        (["check", "no-such.csv", "--set", "stps=3"], "did you mean 'steps'?"),
        (["check", ""], "it is empty; name a path or URL"),
        (["run", "x.csv", "--out", ""], "'--out': it is empty; name a path or URL"),
        (
            ["run", "x.csv", "--out", "/dev/null", "--dry-run"],
            "--out /dev/null: /dev/null is not a folder; name a folder",
        ),
        (["run", "x.csv", "--address", ""], "--address: it is empty; name a Ray cluster"),
        (["plan", "x.csv", "--out", "/dev/null/a/b"], "--out /dev/null/a/b: /dev/null is not a folder"),
        (["plan", "no-such.csv"], "no-such.csv: the manifest cannot be read: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"latentkiln: error: [^\n]+\n", printed.err)
    assert words in printed.err


def test_no_arguments_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.fixture
def status_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int]], None]:
    """Puts a function of the test in the place of what ``latentkiln status`` calls."""

    def replace(function: Callable[..., int]) -> None:
        module = types.ModuleType("pipeline.commands.status")
        module.show_status = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pipeline.commands.status", module)

    return replace


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_verbs_exit_code_is_the_commands(code: int, status_does: Callable[[Callable[..., int]], None]) -> None:
    status_does(lambda *_, **__: code)
    assert cli.main(["status", "x"]) == code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("a\nb"), 2, "latentkiln: error: a b\n"),
        (ManifestError("m.csv:3: id: bad"), 2, "latentkiln: error: m.csv:3: id: bad\n"),
        (PriorError("no such prior"), 2, "latentkiln: error: no such prior\n"),
        (MeshError("x.obj: no faces"), 1, "latentkiln: error: x.obj: no faces\n"),
        (LatentkilnError("odd"), 1, "latentkiln: error: odd\n"),
        (PermissionError(13, "Permission denied", "/out/x"), 1, "latentkiln: error: /out/x: Permission denied\n"),
        (Interrupted("stopped; continue with: ..."), 3, "latentkiln: stopped; continue with: ...\n"),
        (KeyboardInterrupt(), 3, "latentkiln: interrupted\n"),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "latentkiln: error: ZeroDivisionError: by zero; this is a bug; "
            "run with LATENTKILN_DEBUG=1 for the traceback\n",
        ),
    ],
)
def test_errors_become_a_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    status_does: Callable[[Callable[..., int]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    status_does(fail)
    assert cli.main(["status", "x"]) == code
    assert capsys.readouterr().err.lstrip("\n") == line


def test_a_bug_shows_its_traceback_when_asked(
    status_does: Callable[[Callable[..., int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise ZeroDivisionError

    status_does(fail)
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["status", "x"])


def test_ctrl_c_during_run_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("pipeline.commands.run")

    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    module.RunOptions = lambda **options: options  # type: ignore[attr-defined]
    module.run_manifest = interrupted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.commands.run", module)
    assert cli.main(["run", "my shop.csv", "--out", "x"]) == 3
    line = capsys.readouterr().err.strip()
    assert (
        line == "latentkiln: interrupted; finished assets are kept; continue with: latentkiln run 'my shop.csv' --out x"
    )


def test_run_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pipeline.commands.run")
    seen: list[dict[str, object]] = []

    def run_manifest(options: dict[str, object]) -> int:
        seen.append(options)
        return 0

    module.RunOptions = lambda **options: options  # type: ignore[attr-defined]
    module.run_manifest = run_manifest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.commands.run", module)
    assert cli.main(["run", "a.csv"]) == 0
    line = "run a.csv --out o --prior p --only x --only y --lockstep 4 --set steps=5 --set seed=1=2 --set steps=6"
    line += " --max-seconds 9.5 --max-memory 4 --precision bfloat16 --compile --low-memory --download"
    line += " --gpus-per-worker 0.5 --checkpoint-seconds 5 --allow-unknown"
    line += " --address local --workers 2 --strict --fail-fast --dry-run --serial --allow-outside --quiet --json"
    assert cli.main(line.split()) == 0
    flags = ("strict", "fail_fast", "dry_run", "serial", "allow_outside", "quiet", "json")
    flags += ("compile", "low_memory", "download", "allow_unknown")
    plain = {"manifest": Path("a.csv"), "out": Path("outputs"), "prior": "embedded", "only": (), "lockstep": None}
    plain |= {"overrides": {}, "address": None, "workers": None, "max_seconds": None, "max_memory": None}
    plain |= {"precision": "auto", "gpus_per_worker": None, "checkpoint_seconds": 30}
    assert seen[0] == plain | dict.fromkeys(flags, False)
    full = {"manifest": Path("a.csv"), "out": Path("o"), "prior": "p", "only": ("x", "y"), "lockstep": 4}
    full |= {"overrides": {"steps": "6", "seed": "1=2"}, "address": "local", "workers": 2}
    full |= {"max_seconds": 9.5, "max_memory": 4.0, "precision": "bfloat16", "gpus_per_worker": 0.5}
    full |= {"checkpoint_seconds": 5}
    assert seen[1] == full | dict.fromkeys(flags, True)


@pytest.mark.parametrize("verb", ["check", "plan", "plan --csv", "plan --json", "run --dry-run", "run --strict --json"])
def test_what_a_stream_cannot_hold_ends_nothing(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.csv").write_text("id,prompt,mesh\na,x,wörfel-\U0001f9f1.obj\n", encoding="utf-8")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    monkeypatch.chdir(tmp_path)
    assert cli.main([*verb.split(), "m.csv"]) in (1, 2)
    sys.stdout.flush()
    text = printed.getvalue().decode("ascii")
    if "--json" in verb:
        assert all(json.loads(part) for part in ([text] if verb.startswith("plan") else text.splitlines()))
    else:
        assert "w\\xf6rfel-\\U0001f9f1.obj" in text


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    manifest = tmp_path / "bad.csv"
    manifest.write_text("prompt,mesh\n" + "x,no.obj\n" * 20_000)
    process = subprocess.Popen([*MODULE, "check", str(manifest)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert b"there is no file" in process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == 1
    assert b"Traceback" not in errors and b"BrokenPipe" not in errors and b"Exception" not in errors


def test_a_real_ctrl_c_ends_with_3(tmp_path: Path) -> None:
    manifest = tmp_path / "many.csv"
    (tmp_path / "a.obj").write_text("v 0 0 0\n")
    manifest.write_text("prompt,mesh\n" + "".join(f"x{i},no{i}.obj\n" for i in range(200_000)))
    # As a terminal starts it: in a shell's background the signal would be ignored, and a child inherits that.
    process = subprocess.Popen(
        [*MODULE, "check", str(manifest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert errors.decode().strip().splitlines()[-1] == "latentkiln: interrupted"
    assert "Traceback" not in errors.decode()

"""A terminal that is closed, a reader that leaves, a full or closed standard output: no command shows a traceback, and
a run saves its work, says how to go on and ends with 3."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.terminal import Display, OutputLost, is_run_command, say, shell_join

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "pipeline"]
SLOW = [sys.executable, str(HERE / "faults" / "slow_run.py")]
CUBE = "v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 1\nf 1 2 3\nf 1 3 4\nf 1 4 2\nf 2 4 3\n"


@pytest.fixture
def place(tmp_path):
    """A manifest of three rows that take twenty seconds each, their mesh, and a prior's shell."""
    (tmp_path / "cube.obj").write_text(CUBE)
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("{}")
    rows = "".join(f"asset-{n},work 400,cube.obj\n" for n in range(3))
    (tmp_path / "m.csv").write_text("id,prompt,mesh\n" + rows)
    return tmp_path


def wait_for_work(out: Path) -> None:
    end = time.monotonic() + 120
    while not list(out.glob("*/.work/checkpoint.json")):
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_saved(out: Path, said: str) -> None:
    """The run's record and log say the truth, and how to go on; the row that was begun has its checkpoint."""
    told = json.loads((out / "run.json").read_text())
    assert (told["state"], told["exit_code"]) == ("interrupted", 3)
    last = json.loads((out / "run.events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "end" and last["exit_code"] == 3
    assert last["resume"].startswith("latentkiln run ") and f"continue with: {last['resume']}" in said
    assert list(out.glob("*/.work/checkpoint.json")) and "Traceback" not in said


def start(place: Path, *options: str, **streams) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SLOW, str(place / "m.csv"), str(place / "out"), *options],
        env=os.environ | {"LATENTKILN_STEP_SECONDS": "0.05"},
        start_new_session=True,
        text=True,
        **streams,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_saves_the_run(place, number):
    process = start(place, "--serial", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for_work(place / "out")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert_saved(place / "out", said)


@pytest.mark.xdist_group("cluster")
def test_a_hangup_of_the_whole_group_saves_the_rows_of_workers(place):
    """As a closed terminal does it: Ray's servers and the workers get the signal, too; and twice."""
    process = start(place, "--workers", "1", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for_work(place / "out")
    for _ in range(2):
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.05)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert_saved(place / "out", said)
    events = [json.loads(line) for line in (place / "out" / "run.events.jsonl").read_text().splitlines()]
    ends = [event for event in events if event.get("state") == "interrupted" and "id" in event]
    assert len(ends) == 1 and not [event for event in events if "retry" in event]


def test_a_hangup_is_not_heard_under_nohup(place):
    process = start(
        place,
        "--serial",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for_work(place / "out")
    process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 3


def test_a_closed_terminal_saves_the_run(place):
    command = [*SLOW, str(place / "m.csv"), str(place / "out"), "--serial"]
    pid, master = pty.fork()
    if not pid:
        os.environ["LATENTKILN_STEP_SECONDS"] = "0.05"
        os.dup2(os.open(place / "said", os.O_WRONLY | os.O_CREAT, 0o600), 2)
        os.execv(command[0], command)
    end = time.monotonic() + 60
    while not list((place / "out").glob("*/.work/checkpoint.json")):
        assert time.monotonic() < end and os.read(master, 1 << 16)
    os.close(master)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 3
    assert_saved(place / "out", (place / "said").read_text())


@pytest.mark.parametrize("options", [["--serial"], ["--serial", "--json"]], ids=["lines", "json"])
def test_a_run_whose_reader_has_gone_is_saved(place, options):
    process = start(place, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_work(place / "out")
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 3
    assert_saved(place / "out", said)


@pytest.mark.parametrize("redirect", [">&-", "> /dev/full", ">&- <&-"])
def test_a_run_into_a_full_or_closed_output_says_how_to_go_on(place, redirect):
    words = shell_join([*SLOW, str(place / "m.csv"), str(place / "out"), "--serial"])
    done = subprocess.run(["sh", "-c", f"{words} {redirect}"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "continue with: latentkiln run" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((place / "out" / "run.json").read_text())["exit_code"] == 3


VERBS = ("check", "plan", "plan --csv", "plan --json", "clean", "status", "status --csv", "status --json", "--help")
LOST = {
    ">&-": "it is closed",
    "> /dev/full": "No space left on device",
    ">&- <&- 2> said": "it is closed",
    "> /dev/full 2>&-": "",
    ">&- 2>&- <&-": "",
}


@pytest.mark.parametrize(
    ("verb", "redirect"),
    # Every command with a closed and with a full output, and one command with all else.
    [(verb, redirect) for verb in VERBS for redirect in LOST if redirect in (">&-", "> /dev/full") or verb == "check"],
)
def test_lost_output_is_told_and_no_success(verb, redirect, place):
    (place / "out").mkdir()
    arguments = {"status": "out", "--help": "", "clean": "m.csv --out out"}.get(verb.split()[0], "m.csv")
    words = f"{shell_join(COMMAND)} {verb} {arguments}"
    if verb.split()[0] in ("check", "plan"):
        words += " --prior prior"
    done = subprocess.run(["sh", "-c", f"{words} {redirect}"], cwd=place, capture_output=True, text=True, check=False)
    said = done.stderr + ((place / "said").read_text() if (place / "said").exists() else "")
    assert done.returncode == 1
    wanted = f"latentkiln: error: standard output cannot be written: {LOST[redirect]}\n" if LOST[redirect] else ""
    assert [line for line in said.splitlines(True) if "note:" not in line] == ([wanted] if wanted else [])


def test_no_file_is_opened_as_standard_output(place):
    """With standard output closed, the next file that is opened would get its number."""
    before = (place / "m.csv").read_bytes()
    words = f"{shell_join(COMMAND)} check m.csv --prior prior >&- 2>&- <&-"
    assert subprocess.run(["sh", "-c", words], cwd=place, check=False).returncode == 1
    assert (place / "m.csv").read_bytes() == before


def test_a_display_that_cannot_be_written_says_why_and_stops_nothing():
    with open("/dev/full", "w") as stream:
        display = Display(stream)
        display.write("x")
        assert not display.lost
        display.flush()
        assert display.lost == "No space left on device" and display.write("more") == 4
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_what_is_said_into_a_closed_stream_is_lost(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputLost, match="it is closed"):
        say("x")


@pytest.mark.parametrize("word", ["it's", "a b", "\x1b[31m", "tab\t'quote'\\", "\x85\u202e", "ö\udcff", "", "$x"])
def test_a_command_line_is_printable_and_means_the_same(word):
    line = shell_join(["printf", "%s", word])
    assert line.isprintable()
    printed = subprocess.run(["bash", "-c", line], capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True).stdout
    assert printed == os.fsencode(word)
    assert is_run_command(shell_join(["latentkiln", "run", word]))

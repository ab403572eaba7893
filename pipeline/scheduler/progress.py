"""Display the progress of a run: a live display, plain lines, JSON lines, or nothing.

``Progress`` is the interface and the silent display; ``make_progress`` chooses a display. ``RowClock``
computes the rate and the time left of a row's stage, ``RunClock`` the time left of the whole run.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

from pipeline.core.outcome import FAILURES, TaskResult
from pipeline.core.terminal import Display, complain, escape, safe_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

Clock = Callable[[], float]

# The fraction of a row that is done when a stage starts and ends, to estimate the run's time left. Distilling takes
# most of the time.
_SHARES = {
    "load": (0.0, 0.01),
    "unwrap": (0.0, 0.05),
    "prepare": (0.05, 0.06),
    "distill": (0.06, 0.92),
    "bake": (0.92, 0.96),
    "export": (0.96, 0.98),
    "preview": (0.98, 1.0),
}
_MOST_LINES = 16
_PLAIN_SECONDS = 10.0
_RATE_WINDOW = 15.0


class RowClock:
    """Rate and time left of a row's current stage, measured over its last seconds."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self.began = clock()
        self.stage, self.done, self.total = "", 0, 0
        self._marks: list[tuple[float, int]] = []
        self._fraction = 0.0
        self.first_fraction: float | None = None

    def at(self, stage: str, done: int, total: int) -> None:
        """Note the row's progress."""
        now = self._clock()
        if stage != self.stage or done < self.done:
            self._marks = []
        self.stage, self.done, self.total = stage, done, total
        # Thinned out, so that the window holds a bounded number of marks.
        if not self._marks or now - self._marks[-1][0] >= _RATE_WINDOW / 60:
            self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_WINDOW:
            self._marks.pop(0)
        low, high = _SHARES.get(stage, (self._fraction, self._fraction))
        self._fraction = max(self._fraction, low + (high - low) * (done / total if total > 0 else 0.0))
        if self.first_fraction is None:
            self.first_fraction = self._fraction

    @property
    def fraction(self) -> float:
        """The estimated fraction of the row that is done, 0 to 1."""
        return self._fraction

    @property
    def rate(self) -> float | None:
        """Steps per second; None while unknown."""
        if not self._marks:
            return None
        seconds, steps = self._clock() - self._marks[0][0], self.done - self._marks[0][1]
        return steps / seconds if seconds > 0 and steps > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds left of the stage; None while unknown."""
        rate = self.rate
        return (self.total - self.done) / rate if rate and self.total else None


class RunClock:
    """Counts the rows of a run and estimates its time left."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self.began = clock()
        self.build = self.kept = 0
        self.ended: Counter[str] = Counter()
        self.rows: dict[str, RowClock] = {}
        self._first_row: float | None = None
        self._skipped = 0.0

    def row_began(self, job_id: str) -> RowClock:
        """Note that a row starts, or starts again."""
        if self._first_row is None:
            self._first_row = self._clock()
        self.rows[job_id] = RowClock(self._clock)
        return self.rows[job_id]

    def row_ended(self, result: TaskResult) -> None:
        """Note the end of a row."""
        clock = self.rows.pop(result.job_id, None)
        # Work that a checkpoint had saved before this run took no time in it.
        self._skipped += (clock.first_fraction or 0.0) if clock else 1.0
        self.ended[result.state] += 1

    @property
    def finished(self) -> int:
        """The number of rows to build that have ended."""
        return sum(self.ended.values())

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Seconds left for all rows, from the work done so far; None while too little is done."""
        if self._first_row is None:
            return None
        work = self.finished + sum(row.fraction for row in self.rows.values())
        skipped = self._skipped + sum(row.first_fraction or 0.0 for row in self.rows.values())
        if work - skipped < 0.02:
            return None
        return (self._clock() - self._first_row) * (self.build - work) / (work - skipped)


class Progress:
    """The interface of displays. This class shows nothing. ``run_id`` is the id in all logs of the run, once known.

    No method raises if the output cannot be written; ``lost`` gives the reason from then on.
    """

    run_id = ""

    @property
    def lost(self) -> str:
        """Why nobody can see the output any more, such as a closed terminal or a full disk; "" while someone can."""
        return ""

    def begin(self, *, build: int, kept: int) -> None:
        """Show the first numbers of the plan: rows to build and rows up to date."""

    def planned(self, *, build: int, kept: int) -> None:
        """Update these numbers, because more of a long manifest was read."""

    def note(self, text: str) -> None:
        """Show one line about the run, such as a worker that died."""

    def warn(self, text: str) -> None:
        """As ``note``, for a problem of the machine."""
        self.note(text)

    def row_began(self, job_id: str, attempt: int) -> None:
        """Show that a worker took the row."""

    def row_stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Show the progress of a running row. Called a few times a second."""

    def row_ended(self, result: TaskResult) -> None:
        """Show the result of a row."""

    def row_refused(self, result: TaskResult) -> None:
        """Show a row that the manifest refuses. ``begin`` does not count it."""

    def close(self) -> None:
        """End the display. Called once, also after an error."""


class PlainProgress(Progress):
    """Lines for logs and pipes: starts, stages (at most one line in ten seconds within a stage), ends."""

    def __init__(self, stream: IO[str] | None = None, clock: Clock = time.monotonic):
        self._display, self._clock = Display(stream), clock
        self._run = RunClock(clock)
        self._printed: dict[str, tuple[str, float]] = {}

    @property
    def lost(self) -> str:
        return self._display.lost

    def begin(self, *, build: int, kept: int) -> None:
        self._run.build, self._run.kept = build, kept
        self._print(f"run: {build} to build, {kept} up to date")

    def planned(self, *, build: int, kept: int) -> None:
        self._run.build, self._run.kept = build, kept

    def note(self, text: str) -> None:
        self._print(f"run: {text}")

    def row_began(self, job_id: str, attempt: int) -> None:
        self._run.row_began(job_id)
        self._print(f"{job_id}: started" + (f" (attempt {attempt})" if attempt > 1 else ""))

    def row_stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        row = self._run.rows.get(job_id)
        if row is None:
            return
        row.at(stage, done, total)
        printed_stage, when = self._printed.get(job_id, ("", 0.0))
        now = self._clock()
        if printed_stage == stage and now - when < _PLAIN_SECONDS:
            return
        self._printed[job_id] = (stage, now)
        self._print(f"{job_id}: {describe(row)}")

    def row_ended(self, result: TaskResult) -> None:
        self._run.row_ended(result)
        self._printed.pop(result.job_id, None)
        left = self._run.seconds_left
        tail = f" [{self._run.finished}/{self._run.build}"
        tail += f", {duration(left)} left]" if left and self._run.finished < self._run.build else "]"
        self._print(f"{result.job_id}: {describe_end(result)}{tail}")

    def _print(self, text: str) -> None:
        self._display.write(escape(text) + "\n")
        self._display.flush()


class JsonProgress(Progress):
    """One JSON object per line on standard output. ``event`` names its kind."""

    def __init__(self, stream: IO[str] | None = None):
        self._display = Display(stream)

    @property
    def lost(self) -> str:
        return self._display.lost

    def begin(self, *, build: int, kept: int) -> None:
        self._emit("begin", build=build, kept=kept)

    def note(self, text: str) -> None:
        self._emit("note", text=text)

    def warn(self, text: str) -> None:
        self.note(text)
        complain(f"latentkiln: {text}")

    def row_began(self, job_id: str, attempt: int) -> None:
        self._emit("row", id=job_id, state="running", attempt=attempt)

    def row_stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        self._emit("stage", id=job_id, stage=stage, done=done, total=total)

    def row_ended(self, result: TaskResult) -> None:
        self._emit("row", **result_json(result))

    def row_refused(self, result: TaskResult) -> None:
        self._emit("row", **result_json(result))

    def _emit(self, event: str, **values: object) -> None:
        run = {"run": self.run_id} if self.run_id else {}
        self._display.write(safe_json({"event": event, "time": round(time.time(), 3)} | run | values) + "\n")
        self._display.flush()


@dataclass
class LiveProgress(Progress):
    """One line per running row and one for the run, redrawn in place. Results and notes scroll by above them."""

    console: Console
    clock: Clock = time.monotonic
    display: Display | None = None
    _run: RunClock = field(init=False)
    _live: Live | None = None
    _refused: int = 0

    def __post_init__(self) -> None:
        self._run = RunClock(self.clock)

    @property
    def lost(self) -> str:
        return self.display.lost if self.display else ""

    def begin(self, *, build: int, kept: int) -> None:
        self._run.build, self._run.kept = build, kept
        if build:
            from rich.live import Live

            self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def planned(self, *, build: int, kept: int) -> None:
        self._run.build, self._run.kept = build, kept

    def note(self, text: str) -> None:
        self._print(text)

    def row_began(self, job_id: str, attempt: int) -> None:
        self._run.row_began(job_id)

    def row_stage(self, job_id: str, stage: str, done: int, total: int) -> None:
        if row := self._run.rows.get(job_id):
            row.at(stage, done, total)

    def row_ended(self, result: TaskResult) -> None:
        self._run.row_ended(result)
        style = {"failed": "red", "quarantined": "red", "done": "green"}.get(result.state, "yellow")
        self._print(f"{result.job_id}: {describe_end(result)}", style)

    def row_refused(self, result: TaskResult) -> None:
        self._refused += 1

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(escape(text), style=style, markup=False, highlight=False, emoji=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self) -> Table:
        """Return the lines that are redrawn: at most sixteen rows, then the run."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1), expand=False)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=32)
        for _ in range(5):
            table.add_column(no_wrap=True)
        most = max(1, min(_MOST_LINES, self.console.size.height - 4))
        running = dict(self._run.rows)
        for job_id, row in list(running.items())[:most]:
            rate, left = row.rate, row.seconds_left
            table.add_row(
                Text(escape(job_id)),
                Text(escape(row.stage) or "starting"),
                ProgressBar(total=max(row.total, 1), completed=row.done, width=20),
                f"{row.done}/{row.total}" if row.total else "",
                f"{rate:.1f}/s" if rate else "",
                f"{duration(left)} left" if left is not None else "",
            )
        if len(running) > most:
            table.add_row(f"and {len(running) - most} more")
        left = self._run.seconds_left
        failures = sum(self._run.ended[state] for state in FAILURES) + self._refused
        counts = [f"{failures} failed"] if failures else []
        counts += [f"{self._run.kept} up to date"] if self._run.kept else []
        table.add_row(
            Text("run", style="bold"),
            duration(self._run.elapsed),
            ProgressBar(total=max(self._run.build, 1), completed=self._run.finished, width=20),
            f"{self._run.finished}/{self._run.build}",
            ", ".join(counts),
            f"{duration(left)} left" if left is not None else "",
        )
        return table


def make_progress(*, quiet: bool = False, as_json: bool = False, stream: IO[str] | None = None) -> Progress:
    """Return the display for this terminal. ``quiet`` overrides ``as_json``; JSON goes to ``stream``."""
    if quiet:
        return Progress()
    if as_json:
        return JsonProgress(stream)
    from rich.console import Console

    display = Display()
    console = Console(file=cast(IO[str], display))
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveProgress(console, display=display) if live else PlainProgress()


def result_json(result: TaskResult) -> dict[str, object]:
    """Return ``result`` as a JSON object without empty fields."""
    value: dict[str, object] = {"id": result.job_id, "state": result.state, "seconds": round(result.seconds, 3)}
    for name in ("stage", "error", "message", "reproduce", "warnings"):
        if item := getattr(result, name):
            value[name] = item
    return value | ({"attempts": result.attempts} if result.attempts > 1 else {})


def describe(row: RowClock) -> str:
    """Return text such as ``distill 120/300 (4.1/s, 0:44 left)``."""
    text = f"{row.stage} {row.done}/{row.total}" if row.total > 1 else row.stage
    rate, left = row.rate, row.seconds_left
    if rate and left is not None and row.total > 1:
        text += f" ({rate:.1f}/s, {duration(left)} left)"
    return text


def describe_end(result: TaskResult) -> str:
    """Return one line about the result of a row."""
    if result.state in FAILURES:
        return f"{result.state.upper()} in {result.stage or 'fleet'}: {result.message}"
    if result.state == "done":
        count = len(result.warnings)
        warned = f" ({count} warning{'s' * (count != 1)})" if count else ""
        return f"done in {result.seconds:.1f} s{warned}"
    return {
        "kept": "already finished",
        "interrupted": f"interrupted{f' in {result.stage}' if result.stage else ''}, its work is kept",
        "elsewhere": "being built by another run, skipped",
        "waiting": "not started",
    }[result.state]


def duration(seconds: float | None) -> str:
    """Format ``seconds`` as ``0:42``, ``12:03`` or ``1:02:03``; ``?`` if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    total_seconds = max(0, round(seconds))
    hours, remainder = divmod(total_seconds, 3600)
    minutes, secs = divmod(remainder, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"

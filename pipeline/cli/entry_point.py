"""The entry point: runs a verb, and reports every error as one line on standard error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from pipeline.cli.verbs import cli
from pipeline.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_ROWS_FAILED,
    EXIT_USAGE,
    LatentkilnError,
    describe_os_error,
    exit_code_of,
)
from pipeline.core.home import settle
from pipeline.core.redact import redact
from pipeline.core.safe_path import leave_out_current_folder
from pipeline.core.terminal import OutputLost, complain, flush, prepare_streams, shell_join, silence_stdout

DEBUG_VARIABLE = "LATENTKILN_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; every error is one line on standard error."""
    if own := arguments is None:
        # Only the command itself may change its process; a caller in Python keeps its settings.
        leave_out_current_folder()
        settle()
        arguments = sys.argv[1:]
    arguments = list(arguments)
    prepare_streams()
    if own:
        # Warnings of libraries may quote an untrusted file.
        warnings.showwarning = _show_warning
    with _signals_as_interrupts():
        code = _run(arguments)
    try:
        flush()
    except OutputLost as lost:
        code = code or _lost(lost, arguments)
        silence_stdout()
    return code


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="latentkiln", standalone_mode=False)
        return result if isinstance(result, int) else EXIT_OK
    except OutputLost as lost:
        return _lost(lost, arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {context.command_path} --help)" if context else ""
        return _fail(error.format_message() + hint, EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail(_interrupted(arguments), EXIT_INTERRUPTED, word="")
    except LatentkilnError as error:
        code = exit_code_of(error)
        return _fail(error.message, code, word="" if code == EXIT_INTERRUPTED else "error: ")
    except Exception as error:
        return _unexpected(error, arguments)
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            # While Ray starts, it turns the signal into this exception.
            return _fail(_interrupted(arguments), EXIT_INTERRUPTED, word="")
        # Click exits by itself when a pipe breaks.
        return error.code if isinstance(error.code, int) else EXIT_ROWS_FAILED


def _unexpected(error: Exception, arguments: list[str]) -> int:
    """Reports an error that no command expects, of the machine or a bug of ours. Returns the exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    if isinstance(error, OSError) and error.strerror:
        try:
            # Click prints help itself, so the error may be one of standard output.
            flush()
        except OutputLost as lost:
            return _lost(lost, arguments)
        # A full disk or a read-only folder is not a bug.
        return _fail(describe_os_error(error), EXIT_ROWS_FAILED)
    if isinstance(error, UnicodeEncodeError):
        advice = "names cannot be written in this locale: set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
        return _fail(f"{error.object!r}: {advice}", EXIT_ROWS_FAILED)
    advice = f"this is a bug; run with {DEBUG_VARIABLE}=1 for the traceback"
    return _fail(f"{type(error).__name__}: {error}; {advice}", EXIT_ROWS_FAILED)


def _lost(lost: OutputLost, arguments: list[str]) -> int:
    """Reports that standard output cannot be written. A run ends as if interrupted; other commands fail."""
    silence_stdout()
    if arguments[:1] == ["run"] and not {"--help", "-h", "--dry-run"} & set(arguments):
        message = f"standard output cannot be written ({lost.reason}); {_interrupted(arguments)}"
        return _fail(message, EXIT_INTERRUPTED, word="")
    if not lost.reader_gone:
        return _fail(f"standard output cannot be written: {lost.reason}", EXIT_ROWS_FAILED)
    # The reader (head, less) stopped reading on purpose: print nothing.
    return EXIT_ROWS_FAILED


def _interrupted(arguments: list[str]) -> str:
    if arguments[:1] == ["run"]:
        return f"interrupted; finished assets are kept; continue with: {redact(shell_join(['latentkiln', *arguments]))}"
    return "interrupted"


def _fail(message: str, code: int, word: str = "error: ") -> int:
    complain(f"latentkiln: {word}{' '.join(message.split())}")
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    complain(f"{category.__name__}: {' '.join(str(message).split())}")


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP (a closed terminal) end a command as Ctrl-C does. Ignored signals (``nohup``) stay
    ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

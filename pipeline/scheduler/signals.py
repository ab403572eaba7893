"""Ctrl-C, SIGTERM and SIGHUP: once to finish nothing new and save, twice to stop at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# SIGHUP: the terminal was closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """A context that counts SIGINT, SIGTERM and SIGHUP instead of dying of them. ``lost`` says, once that is so, why
    nobody sees what the run shows; it counts like a signal.

    With ``raising``, the second one raises KeyboardInterrupt where the program stands: for work done in this
    process, which no loop of ours can abort. A closed terminal is told once, however often: the shell and the system
    both send SIGHUP. One that was ignored from the start (``nohup``) stays so. Outside the main thread no signal can
    be caught, and none is.
    """

    def __init__(self, *, raising: bool = False, lost: Callable[[], str] = lambda: ""):
        self._raising, self._lost = raising, lost
        self._count = 0
        self._previous_handlers: dict[int, Any] = {}

    @property
    def stopping(self) -> bool:
        """At least one signal came, or nobody sees the run any more."""
        return self._count >= 1 or bool(self._lost())

    @property
    def stop_at_once(self) -> bool:
        """At least two came."""
        return self._count >= 2

    def install(self) -> None:
        """Takes the signals; again after a library took them for itself (Ray does when it starts)."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                before = signal.signal(number, self._handle)
                self._previous_handlers.setdefault(number, before)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Children that begin inside the block do not get SIGHUP, which a closed terminal sends to all of them: they
        are needed to save. This process gets one that came meanwhile at the block's end.

        The second SIGINT or SIGTERM raises KeyboardInterrupt in the block: no loop looks at them while children begin,
        which may take a minute on a busy machine.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        raising, self._raising = self._raising, True
        try:
            yield
        finally:
            self._raising = raising
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._previous_handlers.items():
            signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count = max(self._count, 1) if number == signal.SIGHUP else self._count + 1
        if self._raising and self.stop_at_once:
            raise KeyboardInterrupt

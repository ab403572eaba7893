"""Ctrl-C and SIGTERM: once to finish nothing new and save, twice to stop at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context that counts SIGINT and SIGTERM instead of dying of them.

    With ``raising``, the second one raises KeyboardInterrupt where the program stands: for work done in this
    process, which no loop of ours can abort. Outside the main thread no signal can be caught, and none is.
    """

    def __init__(self, *, raising: bool = False):
        self._raising = raising
        self._count = 0
        self._before: dict[int, Any] = {}

    @property
    def stopping(self) -> bool:
        """At least one signal came."""
        return self._count >= 1

    @property
    def now(self) -> bool:
        """At least two came."""
        return self._count >= 2

    def install(self) -> None:
        """Takes the signals; again after a library took them for itself (Ray does when it starts)."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def __enter__(self) -> Interrupts:
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._raising and self.now:
            raise KeyboardInterrupt

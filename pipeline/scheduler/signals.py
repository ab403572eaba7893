"""Ctrl-C, SIGTERM and SIGHUP: the first saves the work and stops, the second stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None

# SIGHUP: the terminal was closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """A context that counts SIGINT, SIGTERM and SIGHUP instead of ending the process.

    ``lost`` returns why nobody can see the output any more, "" while someone can; a reason counts like a signal. With
    ``raising`` the second signal raises KeyboardInterrupt, to abort work in this process. SIGHUP counts once, because
    the shell and the system both send it when a terminal closes; it stays ignored if it was (``nohup``). Outside the
    main thread the context does nothing, because signals cannot be caught there.
    """

    def __init__(self, *, raising: bool = False, lost: Callable[[], str] = lambda: ""):
        self._raising, self._lost = raising, lost
        self._count = 0
        self._previous_handlers: dict[int, Handler] = {}

    @property
    def stopping(self) -> bool:
        """Whether a signal came, or nobody can see the output any more."""
        return self._count >= 1 or bool(self._lost())

    @property
    def stop_at_once(self) -> bool:
        """Whether at least two signals came."""
        return self._count >= 2

    def install(self) -> None:
        """Install the handlers. Call it again after a library installed its own, as Ray does when it starts."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                before = signal.signal(number, self._handle)
                self._previous_handlers.setdefault(number, before)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Block SIGHUP for children that start inside the block, because they are needed to save the work.

        This process receives a SIGHUP that came meanwhile at the end of the block. The second SIGINT or SIGTERM raises
        KeyboardInterrupt inside the block: no loop looks at signals while children start, which may take a minute on a
        busy machine.
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

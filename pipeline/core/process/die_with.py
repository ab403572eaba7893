"""How a helper process ends with the process that started it. Read by path, so it imports nothing of ours."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def exit_with_parent(parent: int, seconds: int) -> None:
    """Has the system end this process with its parent (where it can), and after ``seconds`` in any case."""
    # The default action of SIGALRM needs no interpreter: it also ends a process inside native code.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(max(1, seconds))
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)

"""Checks whether a process of this machine is alive, for lock files, leases and temporary names."""

from __future__ import annotations

import os

import psutil


def is_alive(pid: object) -> bool:
    """Tells whether a process of any user has the id ``pid``. Returns False if ``pid`` is not a process id.

    A zombie counts as dead: in a container it may last as long as the container.
    """
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True

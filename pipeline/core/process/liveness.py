"""Whether a process of this machine is still there: what lock files, leases and temporary names are judged by."""

from __future__ import annotations

import os

import psutil


def is_alive(pid: object) -> bool:
    """True where a process has the number ``pid``, also one of another user. False for what is no process number.

    One that was killed and whose parent has not asked for its end yet (a zombie) is gone: in containers that may last
    as long as the container.
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

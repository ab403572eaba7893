"""Whether a process of this machine is still there: what lock files, leases and temporary names are judged by."""

from __future__ import annotations

import os


def is_alive(pid: object) -> bool:
    """True where a process has the number ``pid``, also one of another user. False for what is no process number."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True

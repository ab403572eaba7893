"""Errors that a user can cause, and the exit codes of the command.

A message is one line: what is wrong, where, and what to do. No code of this project raises a bare ``ValueError`` for a
user's mistake.
"""

from __future__ import annotations

import errno

EXIT_OK = 0
EXIT_ROWS_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 3


class LatentkilnError(Exception):
    """Base class of every expected error.

    ``stage`` names the failed step of the pipeline (``manifest``, ``load``, ``unwrap``, ``prior``, ``distill``,
    ``bake``, ``export``, ``fleet``). The record of a failed row contains it.
    """

    stage = "internal"

    def __init__(self, message: str, *, stage: str | None = None):
        super().__init__(message)
        self.message = message
        if stage is not None:
            self.stage = stage

    def __reduce__(self) -> tuple[object, ...]:
        # Keeps the keyword argument when the error crosses a process border (Ray, multiprocessing).
        return (_rebuild, (type(self), self.message, self.stage))


def _rebuild(cls: type[LatentkilnError], message: str, stage: str) -> LatentkilnError:
    return cls(message, stage=stage)


class UsageError(LatentkilnError):
    """An option or argument of the command is wrong. Nothing was built; exit code 2."""

    stage = "usage"


class ManifestError(LatentkilnError):
    """The manifest as a whole is unusable (it does not parse, or ids collide); exit code 2."""

    stage = "manifest"


class MeshError(LatentkilnError):
    """A mesh cannot be read or painted."""

    stage = "load"


class UnwrapError(LatentkilnError):
    """A mesh cannot be unwrapped."""

    stage = "unwrap"


class PriorError(LatentkilnError):
    """The diffusion prior cannot be found, loaded or used with these settings."""

    stage = "prior"


class SettingError(LatentkilnError):
    """A setting is valid in itself but not with this mesh, prior or machine."""

    stage = "settings"


class BackendError(LatentkilnError):
    """A requested compute backend (numba, nvdiffrast, ...) cannot be loaded."""

    stage = "backend"


class ExportError(LatentkilnError):
    """The finished asset cannot be written."""

    stage = "export"


class Interrupted(LatentkilnError):
    """The run was interrupted and can be resumed from its checkpoints; exit code 3."""

    stage = "interrupted"


# Advice for a file that cannot be written, by errno.
_ADVICE = {
    errno.ENOSPC: "free some space there, then run again",
    errno.EDQUOT: "your quota is used up: free some space, then run again",
    errno.EFBIG: "the limit on the size of files (ulimit -f) is too low",
    errno.EROFS: "choose a folder that may be written",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def describe_os_error(error: OSError, path: object = None) -> str:
    """Returns ``PATH: what is wrong; what to do`` for ``error``. ``path`` is used if the error names no file."""
    name = path if error.filename is None else error.filename
    if isinstance(name, bytes):
        name = name.decode(errors="backslashreplace")
    where = f"{name}: " if name is not None else ""
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f"; {advice}" if advice else "")


def exit_code_of(error: BaseException) -> int:
    """Returns the command's exit code for an error that ends it."""
    # Ray raises SystemExit for SIGTERM while it starts.
    if isinstance(error, (Interrupted, KeyboardInterrupt, SystemExit)):
        return EXIT_INTERRUPTED
    # An unusable prior stops a command before it begins, as a wrong option does.
    return EXIT_USAGE if isinstance(error, (UsageError, ManifestError, PriorError)) else EXIT_ROWS_FAILED

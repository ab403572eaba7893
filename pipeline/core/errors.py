"""Errors a user can meet, and the exit codes of the command.

A message is one line that says what is wrong, where, and what to do. Nothing below raises a bare
``ValueError`` for something a user can cause.
"""

from __future__ import annotations

import errno

EXIT_OK = 0
EXIT_ROWS_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 3


class LatentkilnError(Exception):
    """Base of every expected error.

    ``stage`` names the step of the pipeline in which it happened (``manifest``, ``load``, ``unwrap``,
    ``prior``, ``distill``, ``bake``, ``export``, ``fleet``); it goes into the record of a failed row.
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
    """A wrong option or argument of the command: nothing was built, exit code 2."""

    stage = "usage"


class ManifestError(LatentkilnError):
    """The manifest as a whole cannot be used (unparsable, ids that clash): exit code 2."""

    stage = "manifest"


class MeshError(LatentkilnError):
    """A mesh that cannot be read or painted."""

    stage = "load"


class UnwrapError(LatentkilnError):
    """No texture coordinates could be made for a mesh."""

    stage = "unwrap"


class PriorError(LatentkilnError):
    """The diffusion prior cannot be found, loaded or used as asked."""

    stage = "prior"


class SettingError(LatentkilnError):
    """A setting that is valid in itself but not with this mesh, prior or machine."""

    stage = "settings"


class BackendError(LatentkilnError):
    """A computing backend (numba, nvdiffrast, ...) was asked for and cannot be loaded."""

    stage = "backend"


class ExportError(LatentkilnError):
    """The finished asset could not be written."""

    stage = "export"


class Interrupted(LatentkilnError):
    """The run was asked to stop; work so far is in checkpoints: exit code 3."""

    stage = "interrupted"


# What to do about a file that cannot be written, by the system's error.
_ADVICE = {
    errno.ENOSPC: "free some space there, then run again",
    errno.EDQUOT: "your quota is used up: free some space, then run again",
    errno.EFBIG: "the limit on the size of files (ulimit -f) is too low",
    errno.EROFS: "choose a folder that may be written",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def describe_os_error(error: OSError, path: object = None) -> str:
    """``PATH: what is wrong; what to do`` for an error of the system; ``path`` is for one that names no file itself."""
    name = path if error.filename is None else error.filename
    if isinstance(name, bytes):
        name = name.decode(errors="backslashreplace")
    where = f"{name}: " if name is not None else ""
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f"; {advice}" if advice else "")


def exit_code_of(error: BaseException) -> int:
    """The command's exit code for an error that ends it."""
    # SystemExit: how Ray, while it starts, takes SIGTERM.
    if isinstance(error, (Interrupted, KeyboardInterrupt, SystemExit)):
        return EXIT_INTERRUPTED
    # A prior that cannot be used stops a command before it has begun, as a wrong option does.
    return EXIT_USAGE if isinstance(error, (UsageError, ManifestError, PriorError)) else EXIT_ROWS_FAILED

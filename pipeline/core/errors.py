"""Errors a user can meet, and the exit codes of the command.

A message is one line that says what is wrong, where, and what to do. Nothing below raises a bare
``ValueError`` for something a user can cause.
"""

from __future__ import annotations

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

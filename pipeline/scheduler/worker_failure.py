"""Why a worker is gone, and whether one of its rows may be to blame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WorkerFailure:
    """``blame``: what the worker was doing may be the cause, so that its rows are suspects."""

    reason: str
    blame: bool


def classify(errors: Any, error: Exception, *, node_alive: bool = True) -> WorkerFailure:
    """What ``error``, which Ray raised for a call to a worker, says. ``errors`` is ``ray.exceptions``.

    Judged by class first: ``OutOfMemoryError`` is no ``RayActorError``, ``ObjectReconstructionFailedError`` neither.
    Of machines that went away, networks that were cut and preemptions no row is guilty. ``node_alive`` is what
    the cluster says of the worker's machine.
    """
    text = str(error)
    if isinstance(error, errors.OutOfMemoryError) or "low on memory" in text or "memory monitor" in text:
        return WorkerFailure("killed by Ray: its machine ran out of memory", blame=True)
    if isinstance(error, errors.OutOfDiskError):
        return WorkerFailure("its machine's disk is full", blame=False)
    if isinstance(error, errors.ActorUnavailableError):
        return WorkerFailure("out of reach", blame=False)
    if isinstance(error, (errors.NodeDiedError, errors.LocalRayletDiedError)):
        return WorkerFailure("its machine is gone", blame=False)
    if isinstance(error, errors.ObjectLostError):
        # Its subclasses, too: what travelled between us and the worker was on a machine that is gone.
        return WorkerFailure("its answer was lost with a machine", blame=False)
    if isinstance(error, (errors.ActorUnschedulableError, errors.TaskUnschedulableError)):
        return WorkerFailure("no machine of the cluster can hold it", blame=False)
    if isinstance(error, errors.ActorDiedError):
        if getattr(error, "preempted", False):
            return WorkerFailure("its machine was preempted", blame=False)
        if "node has died" in text or "node was" in text or not node_alive:
            return WorkerFailure("its machine is gone", blame=False)
        if "owner has died" in text or "ray.kill" in text:
            return WorkerFailure("it was ended from outside", blame=False)
    return WorkerFailure("its process was killed or crashed", blame=True)

"""Tell why a worker is gone, and whether one of its rows may be to blame."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.scheduler.ray_api import RayErrors


@dataclass(frozen=True)
class WorkerFailure:
    """The end of a worker. ``blame`` says that the row it was building may be the cause."""

    reason: str
    blame: bool


def classify(errors: RayErrors, error: Exception, *, node_alive: bool = True) -> WorkerFailure:
    """Return why a worker is gone, given the ``error`` that Ray raised for a call to it.

    ``errors`` is ``ray.exceptions``. ``node_alive`` says whether the cluster counts the worker's machine as alive.
    No row is to blame for a machine that went away, a network that failed or a preemption. The class decides first:
    neither ``OutOfMemoryError`` nor ``ObjectReconstructionFailedError`` is a ``RayActorError``.
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
        # Includes its subclasses: the value was stored on a machine that is gone.
        return WorkerFailure("its result was lost with a machine", blame=False)
    if isinstance(error, (errors.ActorUnschedulableError, errors.TaskUnschedulableError)):
        return WorkerFailure("no machine of the cluster has room for it", blame=False)
    if isinstance(error, errors.ActorDiedError):
        if getattr(error, "preempted", False):
            return WorkerFailure("its machine was preempted", blame=False)
        if "node has died" in text or "node was" in text or not node_alive:
            return WorkerFailure("its machine is gone", blame=False)
        if "owner has died" in text or "ray.kill" in text:
            return WorkerFailure("it was killed from outside", blame=False)
    return WorkerFailure("its process was killed or crashed", blame=True)

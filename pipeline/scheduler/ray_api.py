"""The calls of Ray that the scheduler makes, with types.

Much of Ray's API is untyped or returns ``Any``. All of that stays in this module. Ray is imported when a function is
called, never when this module is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from pipeline.scheduler.tasks import Task
    from pipeline.scheduler.worker import BatchResult, Heartbeat, LoadReport, WorkerSettings

ActorOptions = Mapping[str, float]
"""Resources that an actor asks for: ``num_cpus``, ``num_gpus`` and ``memory`` (bytes)."""

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ObjectRef(Protocol[T_co]):
    """The result of a remote call, which may not be available yet."""

    def __hash__(self) -> int: ...


class RemoteMethod(Protocol[P, T_co]):
    """A method of an actor."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[T_co]:
        """Call the method in the actor's process."""
        ...

    def options(self, *, concurrency_group: str) -> RemoteMethod[P, T_co]:
        """Return the same method, run by the threads of ``concurrency_group``."""
        ...


class WorkerActor(Protocol):
    """A handle of a ``scheduler.worker.Worker`` in another process."""

    @property
    def load(self) -> RemoteMethod[[], LoadReport]: ...
    @property
    def build(self) -> RemoteMethod[[Sequence[Task], int], BatchResult]: ...
    @property
    def heartbeat(self) -> RemoteMethod[[], Heartbeat]: ...
    @property
    def stop(self) -> RemoteMethod[[int], None]: ...


class WorkerClass(Protocol):
    """The class ``Worker`` as an actor class."""

    def options(self, **options: float) -> WorkerClass:
        """Return the same class, whose actors ask for other resources."""
        ...

    def remote(self, settings: WorkerSettings) -> WorkerActor:
        """Start a worker. It is made with ``settings``."""
        ...


class RayErrors(Protocol):
    """The classes of ``ray.exceptions`` that the scheduler tells apart."""

    @property
    def RayError(self) -> type[Exception]: ...
    @property
    def RayTaskError(self) -> type[Exception]: ...
    @property
    def OutOfMemoryError(self) -> type[Exception]: ...
    @property
    def OutOfDiskError(self) -> type[Exception]: ...
    @property
    def ActorUnavailableError(self) -> type[Exception]: ...
    @property
    def NodeDiedError(self) -> type[Exception]: ...
    @property
    def LocalRayletDiedError(self) -> type[Exception]: ...
    @property
    def ObjectLostError(self) -> type[Exception]: ...
    @property
    def ActorUnschedulableError(self) -> type[Exception]: ...
    @property
    def TaskUnschedulableError(self) -> type[Exception]: ...
    @property
    def ActorDiedError(self) -> type[Exception]: ...


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. ``resources`` are amounts by name, such as ``CPU`` and ``GPU``."""

    id: str
    alive: bool
    resources: Mapping[str, float]


def worker_class(options: ActorOptions) -> WorkerClass:
    """Make ``Worker`` an actor class.

    An actor runs two groups of threads: one builds, ``control`` answers meanwhile. Ray does not restart actors: the
    pool starts a new worker, because it knows what the old one was doing.
    """
    from pipeline.scheduler.worker import Worker

    decorator = _ray().remote(concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0, **options)
    return cast("WorkerClass", decorator(Worker))


def get(ref: ObjectRef[T]) -> T:
    """Wait for the result ``ref``. Raises what the call raised as RayTaskError, or another RayError."""
    return cast(T, _ray().get(ref))


def wait(refs: Sequence[ObjectRef[T]], *, timeout: float) -> list[ObjectRef[T]]:
    """Wait at most ``timeout`` seconds until one of ``refs`` is ready. Return that one, or an empty list."""
    ready, _ = _ray().wait(list(refs), num_returns=1, timeout=timeout)
    return cast("list[ObjectRef[T]]", ready)


def kill(actor: WorkerActor) -> None:
    """End the process of ``actor``."""
    _ray().kill(actor, no_restart=True)


def errors() -> RayErrors:
    """Return Ray's exception classes."""
    return cast(RayErrors, _ray().exceptions)


def nodes() -> list[Node]:
    """Return the machines of the cluster, dead ones included."""
    return [Node(node.get("NodeID", ""), node["Alive"], node["Resources"]) for node in _ray().nodes()]


def cluster_resources() -> Mapping[str, float]:
    """Return the resources of the whole cluster by name."""
    return cast("Mapping[str, float]", _ray().cluster_resources())


def listening_address() -> str:
    """Return the IP address on which this node's servers listen."""
    return str(_ray().util.get_node_ip_address())


def asks_for_token() -> bool:
    """Return whether this Ray requires a token from its clients. False if it cannot tell."""
    raylet = _raylet()
    try:
        return bool(raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN)
    except AttributeError:
        return False


def forget_token() -> None:
    """Make Ray read its token from the environment again. Ray otherwise reads it once per process."""
    raylet = _raylet()
    with contextlib.suppress(AttributeError):
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def draining_nodes() -> frozenset[str]:
    """Return the ids of nodes that will be taken away. Ray marks them at SIGTERM or at a notice of preemption."""
    try:
        from ray._private.state import state
    except ImportError:
        return frozenset()
    # Ray has no public name for this yet. Without it the scheduler notices a node only when it is gone.
    known = getattr(state, "get_draining_nodes", None)
    try:
        return frozenset(known()) if known else frozenset()
    except Exception:
        return frozenset()


@contextlib.contextmanager
def capture_messages(keep: Callable[[str], None]) -> Iterator[None]:
    """Pass each line that Ray would print about workers and servers to ``keep`` instead, inside the block."""
    from ray._private import worker

    module = cast(Any, worker)
    before = getattr(module, "print_to_stdstream", None)

    def take(data: Mapping[str, Any], *args: object, **options: object) -> None:
        for line in data.get("lines", ()):
            keep(" ".join(str(line).split()))

    module.print_to_stdstream = take
    try:
        yield
    finally:
        module.print_to_stdstream = before


def _ray() -> Any:
    import ray

    return ray


def _raylet() -> Any:
    from ray import _raylet

    return _raylet

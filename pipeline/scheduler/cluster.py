"""A Ray cluster for one run: started here and stopped at its end, or one that exists and is left running.

The local cluster listens on the loopback only, asks for a token that this process made and passes on in the
environment, has no dashboard, and keeps its files in a private folder that goes with it. Its workers import nothing
from the current folder. Ray sends no usage statistics, and prints nothing.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.machinery
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import pipeline
from pipeline.core.errors import LatentkilnError
from pipeline.core.private import private_folder
from pipeline.core.safe_path import without_current_folder

_OBJECT_STORE_BYTES = 100 << 20  # what travels is a few kilobytes a row
# What Ray says of a run is kept up to so many messages.
_MOST_MESSAGES = 100
# A head that is being started is waited for so long.
ANSWER_SECONDS = 20.0
# Unix socket paths hold 107 bytes at most, and Ray adds some 70 to its folder's.
_LONGEST_ROOT = 24


class SchedulerError(LatentkilnError):
    """Workers cannot be started, or none survives."""

    stage = "fleet"


class ClusterLost(SchedulerError):
    """The servers of our own cluster died under us; another may be started."""


@dataclass(frozen=True)
class Cluster:
    """What was found: ``local`` when it is ours, with its ``servers``; and GPUs in all. ``messages`` is what Ray has to
    say, the last ones."""

    local: bool
    gpus: int
    servers: tuple[psutil.Process, ...] = ()
    messages: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=_MOST_MESSAGES))

    def alive(self) -> bool:
        """Its servers run, as far as they are ours: without them no call of Ray's comes back, or ever fails."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return all(server.status() != psutil.STATUS_ZOMBIE for server in self.servers)
        return False


@contextlib.contextmanager
def ray_cluster(address: str | None, threads: int) -> Iterator[Cluster]:
    """Connects this process to Ray for the length of the block; starts Ray when ``address`` is None.

    ``threads`` is what each worker's numeric libraries are given. Raises SchedulerError.
    """
    if address is not None:
        wait_for_answer(address)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder_for_ray()) if address is None else None
        stack.enter_context(_environment(_settings_of_ray(folder, threads)))
        if "ray" in sys.modules:
            _forget_token()
        import ray
        from ray.job_config import JobConfig

        try:
            job = JobConfig()
            job._py_driver_sys_path = _Ours()
            stack.callback(ray.shutdown)
            if folder is not None:
                # One logical CPU: Ray starts that many spare processes. Our actors ask for none.
                ray.init(
                    address="local",
                    num_cpus=1,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    job_config=job,
                    # Ray lets everybody into its own folder, so it gets one inside ours.
                    _temp_dir=str(folder / "r"),
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=job)
        except Exception as error:
            action = f"joining Ray at {address}" if address else "starting Ray on this machine"
            reason = " ".join(str(error).split())[:200]
            hint = "a cluster with tokens needs RAY_AUTH_MODE=token here" if address else "--serial builds without Ray"
            raise SchedulerError(f"{action} failed: {reason}; {hint}") from error
        untyped: Any = ray
        if address is None:
            _require_closed(untyped)
        resources = untyped.cluster_resources()
        servers = _servers() if address is None else ()
        cluster = Cluster(address is None, int(resources.get("GPU", 0)), servers)
        stack.enter_context(_kept_quiet(cluster.messages))
        yield cluster


class _Ours(list[str]):
    """The folders that workers import from beside their own: none. Ray would add the current one, and the script's."""

    def extend(self, folders: Iterable[str]) -> None:
        """Adds nothing."""


def _settings_of_ray(folder: Path | None, threads: int) -> dict[str, str]:
    """The environment in which Ray is started, for the cluster that lives in ``folder``; None: that is joined."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    # Under "uv run" Ray would send the current folder to the workers, as their code.
    settings["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    if folder is None:
        return settings
    # The first name is Ray's switch for "one machine only": every port is bound to 127.0.0.1. It is read
    # when Ray is imported. The others reach the servers and workers through the environment, which only
    # this user can read.
    settings |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": str(threads)}
    settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
    path = without_current_folder(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    package = Path(pipeline.__file__).parent
    spec = importlib.machinery.PathFinder.find_spec("pipeline", without_current_folder(sys.path))
    if spec is None or spec.origin is None or not Path(spec.origin).samefile(pipeline.__file__):
        # Run from a checkout, as ``python -m pipeline``: workers see the package, and nothing else that lies there.
        (folder / "modules").mkdir()
        (folder / "modules" / package.name).symlink_to(package)
        path.insert(0, str(folder / "modules"))
    return settings | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}


@functools.cache
def _token() -> str:
    """The token of this process's clusters. Ray reads it once in a process."""
    return secrets.token_hex(32)


def _forget_token() -> None:
    """Has Ray read its token again, where it was used in this process before."""
    from ray import _raylet

    untyped: Any = _raylet
    with contextlib.suppress(AttributeError):
        untyped.Config.initialize("")
        untyped.AuthenticationTokenLoader.instance().reset_cache()


def _require_closed(ray: Any) -> None:
    """Raises SchedulerError where strangers, on this machine or another, could use the cluster that was started."""
    if not ray.util.get_node_ip_address().startswith("127."):
        raise SchedulerError("Ray was imported before its network was set up; it would listen beyond this machine")
    from ray import _raylet

    untyped: Any = _raylet
    try:
        asks = untyped.get_authentication_mode() == untyped.AuthenticationMode.TOKEN
    except AttributeError:
        asks = False
    if not asks:
        raise SchedulerError(
            "this Ray asks for no token, so any user of this machine could use its workers; update ray"
        )


@contextlib.contextmanager
def _kept_quiet(messages: collections.deque[str]) -> Iterator[None]:
    """Keeps what Ray would print about dead workers and servers, in colours and on standard output, in ``messages``."""
    from ray._private import worker

    untyped: Any = worker
    before = getattr(untyped, "print_to_stdstream", None)

    def keep(data: dict[str, Any], *args: Any, **more: Any) -> None:
        messages.extend(" ".join(str(line).split()) for line in data.get("lines", ()))

    untyped.print_to_stdstream = keep
    try:
        yield
    finally:
        untyped.print_to_stdstream = before


def wait_for_answer(address: str) -> None:
    """Returns as soon as something listens at ``address`` (HOST:PORT, also ray://HOST:PORT; others are Ray's to judge).

    Ray itself asks for minutes, and says nothing of use meanwhile. Raises SchedulerError.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS):
                return
        except (OSError, OverflowError, UnicodeError) as error:
            # The last two: no such port, no such name, now or later.
            if time.monotonic() >= end or not isinstance(error, OSError):
                reason = getattr(error, "strerror", None) or str(error)
                message = f"joining Ray at {address} failed: nothing answers there ({reason})"
                raise SchedulerError(f"{message}; 'ray start --head' prints the address to give") from None
        time.sleep(0.5)


def worker_cpus(threads: int, *, early: bool, on_gpus: bool = False) -> int:
    """How many CPUs a worker of ``threads`` threads asks for in the joined cluster as it is now. At least one: without
    any it would be put where there is no room for it.

    No more than a node has: those of a GPU's share, so that all GPUs of a node find some; without GPUs those of the
    largest node. Where there is no node yet that the worker could be on (``on_gpus``: none with a GPU), its size is a
    guess: ``threads`` while it is ``early``, and one when none has come, since an autoscaler starts no machine that is
    smaller than what is asked for.
    """
    import ray

    untyped: Any = ray
    nodes = [node["Resources"] for node in untyped.nodes() if node["Alive"]]
    shares = [node.get("CPU", 0) // node["GPU"] for node in nodes if node.get("GPU", 0) >= 1]
    plain = [] if on_gpus else [node.get("CPU", 0) for node in nodes]
    cpus = int(min(shares) if shares else max(plain, default=0))
    return max(1, min(threads, cpus or (threads if early else 1)))


def _servers() -> tuple[psutil.Process, ...]:
    """Ray's servers among this process's children."""
    servers = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name() in ("raylet", "gcs_server"):
                servers.append(child)
    return tuple(servers)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _folder_for_ray() -> Iterator[Path]:
    """A private folder whose path is short enough for sockets inside. Raises SchedulerError."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(longest_root=_LONGEST_ROOT))
        except OSError as error:
            reason = f"{error.filename}: {error.strerror or error}"
            raise SchedulerError(
                f"starting Ray on this machine failed: {reason}; --serial builds without Ray"
            ) from error
        yield folder


def worker_capacity(cpus: int, per_gpu: int) -> int:
    """How many workers the joined cluster can hold now: ``per_gpu`` for each GPU; where that is 0, as many as each node
    has ``cpus`` for."""
    import ray

    untyped: Any = ray
    alive = [node["Resources"] for node in untyped.nodes() if node["Alive"]]
    if per_gpu:
        return int(sum(node.get("GPU", 0) for node in alive)) * per_gpu
    return sum(int(node.get("CPU", 0) // cpus) for node in alive)


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that will be taken away; Ray marks them when they get SIGTERM or a preemption notice."""
    try:
        from ray._private.state import state
    except ImportError:
        return frozenset()
    # No public name for it yet. Without it a machine that goes away is noticed when it is gone.
    known = getattr(state, "get_draining_nodes", None)
    try:
        return frozenset(known()) if known else frozenset()
    except Exception:
        return frozenset()


def exposed_servers() -> list[str]:
    """One line for each Ray server on this machine that strangers can reach: whoever can may run code as its user.

    Judged by what the process itself says: the addresses it listens on, and its environment where that may be read.
    """
    lines = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] not in ("gcs_server", "raylet"):
            continue
        with contextlib.suppress(psutil.Error):
            ports = sorted(
                connection.laddr.port
                for connection in process.net_connections(kind="tcp")
                if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip)
            )
            mode = process.environ().get("RAY_AUTH_MODE", "").lower()
            if ports and mode != "token":
                addresses = ", ".join(map(str, ports[:3]))
                lines.append(
                    f"{process.info['name']} (process {process.pid}) listens beyond this machine on port {addresses} "
                    "and "
                    "asks for no token: start Ray with RAY_AUTH_MODE=token"
                )
    return lines


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")

"""A Ray cluster for one run: started here and stopped at the end of the run, or joined and left running.

The local cluster listens on the loopback only and has no dashboard. It requires a token that this process makes and
passes on in the environment. Its files lie in a private folder that is removed at the end. Its workers import nothing
from the current folder. Ray sends no usage statistics and prints nothing.
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

import psutil

import pipeline
from pipeline.core.errors import LatentkilnError
from pipeline.core.private import private_folder
from pipeline.core.safe_path import without_current_folder
from pipeline.scheduler import ray_api

_OBJECT_STORE_BYTES = 100 << 20  # what travels is a few kilobytes a row
# The last messages of Ray that are kept.
_MOST_MESSAGES = 100
# How long to wait for a head node that is being started.
ANSWER_SECONDS = 20.0
# Unix socket paths hold 107 bytes at most, and Ray adds some 70 to its folder's.
_LONGEST_ROOT = 24


class SchedulerError(LatentkilnError):
    """No worker can be started, or none survives."""

    stage = "fleet"


class ClusterLost(SchedulerError):
    """The servers of the local cluster died. Another cluster may be started."""


@dataclass(frozen=True)
class Cluster:
    """The cluster of a run. ``local``: started by this process, with its ``servers``. ``gpus``: GPUs in all.

    ``messages`` are the last lines that Ray would have printed.
    """

    local: bool
    gpus: int
    servers: tuple[psutil.Process, ...] = ()
    messages: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=_MOST_MESSAGES))

    def alive(self) -> bool:
        """Return whether the local servers run. Without them calls of Ray neither return nor fail."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return all(server.status() != psutil.STATUS_ZOMBIE for server in self.servers)
        return False


@contextlib.contextmanager
def ray_cluster(address: str | None, threads: int) -> Iterator[Cluster]:
    """Connect this process to Ray inside the block. Start Ray if ``address`` is None.

    ``threads`` limits each worker's numeric libraries. Raises SchedulerError.
    """
    if address is not None:
        wait_for_answer(address)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder_for_ray()) if address is None else None
        stack.enter_context(_environment(_settings_of_ray(folder, threads)))
        if "ray" in sys.modules:
            ray_api.forget_token()
        import ray
        from ray.job_config import JobConfig

        try:
            job = JobConfig()
            job._py_driver_sys_path = _Ours()
            stack.callback(ray.shutdown)
            if folder is not None:
                # One logical CPU, because Ray starts one spare process per CPU. The actors ask for none.
                ray.init(
                    address="local",
                    num_cpus=1,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    job_config=job,
                    # Ray's own folder is readable by everyone, so it lies inside the private one.
                    _temp_dir=str(folder / "r"),
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=job)
        except Exception as error:
            action = f"joining Ray at {address}" if address else "starting Ray on this machine"
            reason = " ".join(str(error).split())[:200]
            hint = "a cluster with tokens needs RAY_AUTH_MODE=token here" if address else "--serial builds without Ray"
            raise SchedulerError(f"{action} failed: {reason}; {hint}") from error
        if address is None:
            _require_closed()
        resources = ray_api.cluster_resources()
        servers = _servers() if address is None else ()
        cluster = Cluster(address is None, int(resources.get("GPU", 0)), servers)
        stack.enter_context(ray_api.capture_messages(cluster.messages.append))
        yield cluster


class _Ours(list[str]):
    """A list that stays empty: the extra folders from which workers import. Ray adds the current one to it."""

    def extend(self, folders: Iterable[str]) -> None:
        """Adds nothing."""


def _settings_of_ray(folder: Path | None, threads: int) -> dict[str, str]:
    """Return the environment in which Ray is started in ``folder``; None: for a cluster that is joined."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    # Under "uv run" Ray would send the current folder to the workers as their code.
    settings["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    if folder is None:
        return settings
    # The first variable makes Ray bind every port to 127.0.0.1; Ray reads it when it is imported. The others reach
    # servers and workers through the environment, which only this user can read.
    settings |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": str(threads)}
    settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
    path = without_current_folder(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    package = Path(pipeline.__file__).parent
    spec = importlib.machinery.PathFinder.find_spec("pipeline", without_current_folder(sys.path))
    if spec is None or spec.origin is None or not Path(spec.origin).samefile(pipeline.__file__):
        # ``python -m pipeline`` in a checkout: workers see the package and nothing else of that folder.
        (folder / "modules").mkdir()
        (folder / "modules" / package.name).symlink_to(package)
        path.insert(0, str(folder / "modules"))
    return settings | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}


@functools.cache
def _token() -> str:
    """Return the token of this process's clusters. Ray reads it once per process."""
    return secrets.token_hex(32)


def _require_closed() -> None:
    """Raise SchedulerError if other users, on this machine or elsewhere, could use the cluster that was started."""
    if not ray_api.listening_address().startswith("127."):
        raise SchedulerError("Ray was imported before its network was set up; other machines could connect to it")
    if not ray_api.asks_for_token():
        raise SchedulerError(
            "this version of Ray asks for no token, so any user of this machine could use its workers; update ray"
        )


def wait_for_answer(address: str) -> None:
    """Wait until something listens at ``address`` (HOST:PORT or ray://HOST:PORT). Ray checks any other address.

    Ray itself would try for minutes without a useful message. Raises SchedulerError.
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
            # The last two mean that there is no such port or name, so waiting does not help.
            if time.monotonic() >= end or not isinstance(error, OSError):
                reason = getattr(error, "strerror", None) or str(error)
                message = f"joining Ray at {address} failed: nothing answers there ({reason})"
                raise SchedulerError(f"{message}; 'ray start --head' prints the address to give") from None
        time.sleep(0.5)


def worker_cpus(threads: int, *, early: bool, on_gpus: bool = False) -> int:
    """Return how many CPUs a worker of ``threads`` threads asks for in the joined cluster as it is now, at least 1.

    A worker that asked for no CPU could be placed where there is no room for it. It asks for no more than a node has:
    the share of one GPU, so that all GPUs of a node can be used, or without GPUs the CPUs of the largest node.
    If no suitable node exists yet (``on_gpus``: none with a GPU), the size is a guess: ``threads`` while it is
    ``early``, else 1, because an autoscaler starts no machine that is smaller than the request.
    """
    nodes = [node.resources for node in ray_api.nodes() if node.alive]
    shares = [node.get("CPU", 0) // node["GPU"] for node in nodes if node.get("GPU", 0) >= 1]
    plain = [] if on_gpus else [node.get("CPU", 0) for node in nodes]
    cpus = int(min(shares) if shares else max(plain, default=0))
    return max(1, min(threads, cpus or (threads if early else 1)))


def _servers() -> tuple[psutil.Process, ...]:
    """Return Ray's servers among this process's children."""
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
    """Make a private folder whose path is short enough for sockets inside. Raises SchedulerError."""
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
    """Return how many workers the joined cluster can hold now: ``per_gpu`` per GPU, or if that is 0, by ``cpus``."""
    alive = [node.resources for node in ray_api.nodes() if node.alive]
    if per_gpu:
        return int(sum(node.get("GPU", 0) for node in alive)) * per_gpu
    return sum(int(node.get("CPU", 0) // cpus) for node in alive)


def exposed_servers() -> list[str]:
    """Return one line per Ray server on this machine that strangers can reach, and so run code as its user.

    The check uses the addresses on which the process listens, and its environment if that is readable.
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
                    f"{process.info['name']} (process {process.pid}) accepts connections from other machines on port "
                    f"{addresses} and asks for no token: start Ray with RAY_AUTH_MODE=token"
                )
    return lines


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")

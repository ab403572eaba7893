"""One builder per asset across machines: a lease is a small object beside the asset that names its builder.

A builder takes the lease with a conditional write, renews it during the build and deletes it at the end. A builder that
dies stops renewing; after the lease's seconds, by the *store's* clock, another one may take over. Two kinds of dead
holders are known sooner: a process of this machine that is gone, and an earlier attempt of the same run, whose worker
the driver has ended. A holder that was only paused finds its lease changed and publishes nothing, because each write
checks ``held`` first and expects the content that was seen under the lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.asset_layout import LEASE
from pipeline.core.json_types import Json
from pipeline.core.location import RemotePath
from pipeline.core.process.liveness import is_alive
from pipeline.storage.errors import PreconditionFailed, StorageError
from pipeline.storage.store import ABSENT, ObjectMeta, Store, deadline, store_of

LEASE_SECONDS = 60.0
_RENEWALS = 4  # within a lease's seconds
_MAX_BYTES = 4096
# For stores without conditional writes: how long to wait before reading who wrote last.
_SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class Owner:
    """The owner of a lease: a run, its attempt at the row, and the process.

    ``machine`` identifies one boot of one host and one PID namespace: processes with the same value can look each other
    up by ``pid``.
    """

    run: str
    attempt: int = 1
    machine: str = ""
    pid: int = 0

    @classmethod
    def here(cls, run: str, attempt: int = 1) -> Owner:
        """Return this process as an owner."""
        return cls(run, attempt, _machine(), os.getpid())


class Lease:
    """A lease that was taken. ``held`` turns false when it may have expired, or was taken over."""

    def __init__(self, location: RemotePath, body: bytes, tag: str, seconds: float, since: float):
        self.location, self.seconds = location, seconds
        self._body, self._tag, self._since, self._lost = body, tag, since, False
        self._lock = threading.Lock()

    @property
    def held(self) -> bool:
        """Whether no one else can have it. The last quarter of its time is reserved for a write in progress."""
        return not self._lost and time.monotonic() - self._since < 0.75 * self.seconds

    def ensure(self) -> bool:
        """As ``held``, but first renew a lease that was not renewed in time because the store did not answer.

        The renewal fails if somebody else has taken the lease meanwhile.
        """
        if not self.held:
            self.renew()
        return self.held

    def renew(self) -> None:
        """Write the lease again. It is lost if another lease took its place, not if the store does not answer."""
        with self._lock:
            if self._lost:
                return
            start_time = time.monotonic()
            # The body, and with it the tag, changes each time: others see that the holder lives.
            body = self._body + b" " * (1 + int(start_time) % 512)
            try:
                with deadline(self.seconds / _RENEWALS):
                    self._tag = store_of(self.location).write(self.location, body, expect=self._tag)
                self._since = start_time
            except PreconditionFailed:
                self._lost = True
            except StorageError:
                pass  # tried again soon; ``held`` watches the time

    def release(self) -> None:
        """Give the lease up. If it cannot be deleted, it expires."""
        with self._lock:
            if not self._lost:
                with contextlib.suppress(PreconditionFailed, StorageError), deadline(self.seconds / _RENEWALS):
                    store_of(self.location).delete(self.location, expect=self._tag)
            self._lost = True


def acquire(folder: RemotePath, owner: Owner, *, seconds: float = LEASE_SECONDS) -> Lease | None:
    """Take the lease of the asset in ``folder``. Return None while another holds it. Raises StorageError."""
    location, store = folder / LEASE, store_of(folder)
    token = uuid.uuid4().hex
    body = json.dumps(vars(owner) | {"token": token, "seconds": seconds, "taken": time.time()}).encode()
    expect = ABSENT
    for _ in range(3):
        start_time = time.monotonic()
        try:
            tag = store.write(location, body, expect=expect)
            return Lease(location, body, tag, seconds, start_time) if _is_still_held(store, location, token) else None
        except PreconditionFailed:
            try:
                data, meta = store.read(location, _MAX_BYTES)
            except FileNotFoundError:
                expect = ABSENT  # given up meanwhile
                continue
            if not _is_abandoned(_object(data), meta, owner):
                return None
            expect = meta.etag
    return None


def holder(folder: RemotePath) -> Json | None:
    """Return the content of the lease of the asset in ``folder``; None if nobody holds it. Raises StorageError."""
    try:
        data, meta = store_of(folder).read(folder / LEASE, _MAX_BYTES)
    except FileNotFoundError:
        return None
    lease = _object(data)
    return None if _is_expired(lease, meta) else lease


class LeaseRenewer:
    """Renews leases in its own thread until they are released."""

    def __init__(self) -> None:
        self._leases: list[Lease] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def renewing(self, lease: Lease) -> Iterator[Lease]:
        """Renew ``lease`` during the block and release it at the end."""
        with self._lock:
            self._leases.append(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._thread.start()
        try:
            yield lease
        finally:
            with self._lock:
                self._leases.remove(lease)
            lease.release()

    def close(self) -> None:
        """End the thread."""
        self._wake.set()

    def _renew(self) -> None:
        while not self._wake.wait(self._pause()):
            with self._lock:
                leases = list(self._leases)
            for lease in leases:
                if time.monotonic() - lease._since >= lease.seconds / _RENEWALS:
                    lease.renew()

    def _pause(self) -> float:
        with self._lock:
            return min((lease.seconds for lease in self._leases), default=LEASE_SECONDS) / _RENEWALS / 2


def _is_still_held(store: Store, location: RemotePath, token: str) -> bool:
    if store.exact:
        return True
    time.sleep(_SETTLE_SECONDS if location.scheme != "memory" else 0)
    with contextlib.suppress(FileNotFoundError):
        return _object(store.read(location, _MAX_BYTES)[0]).get("token") == token
    return False


def _is_abandoned(lease: Json, meta: ObjectMeta, owner: Owner) -> bool:
    """Return whether the holder is certainly gone."""
    attempt, pid = lease.get("attempt"), lease.get("pid")
    if owner.run and lease.get("run") == owner.run and isinstance(attempt, int) and attempt < owner.attempt:
        return True
    if lease.get("machine") == owner.machine and isinstance(pid, int) and pid > 0 and not is_alive(pid):
        return True
    return _is_expired(lease, meta)


def _is_expired(lease: Json, meta: ObjectMeta) -> bool:
    seconds = lease.get("seconds")
    # An unreadable lease is damaged or of a later version. It counts as one of the default length.
    seconds = float(seconds) if isinstance(seconds, (int, float)) and 0 < seconds < 86_400 else LEASE_SECONDS
    # The store's clock has a resolution of one second.
    return meta.now - meta.modified > seconds + 1


def _object(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _machine() -> str:
    def read(source: Callable[[], object]) -> str:
        try:
            return str(source())
        except OSError:
            return ""

    boot = read(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return f"{platform.node()}/{boot}/{read(lambda: os.readlink('/proc/self/ns/pid'))}"

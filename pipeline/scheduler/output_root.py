"""The output root of a run: a local folder, or a URL with a scratch folder on this node.

Recipes write into ``root/<id>/`` in both cases. For a URL, a builder takes a lease on the row, downloads its last
checkpoint, uploads new checkpoints during the build, and publishes the finished asset before it releases the lease.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.core.asset_layout import (
    EVENTS_FILE,
    FAILURE,
    LOCK,
    LOCK_FILE,
    LOG,
    RUN_FILE,
    RUNS_FOLDER,
    SKETCH_CACHE,
    UNWRAP_CACHE,
    WORK_DIR,
)
from pipeline.core.atomic import TEMPORARY_PREFIX
from pipeline.core.errors import UsageError
from pipeline.core.json_types import Json
from pipeline.core.location import Location, RemotePath
from pipeline.core.plain import files_below, refuse_links
from pipeline.export.record import load_record, names_of_rows, output_problem, read_failure, read_record, write_failure
from pipeline.scheduler.file_lock import asset_lock
from pipeline.scheduler.tasks import Task
from pipeline.storage import lease, publish, sync
from pipeline.storage.errors import StorageError
from pipeline.storage.input_cache import scratch_folder
from pipeline.storage.shared_cache import SharedCache
from pipeline.storage.snapshot import take_snapshot
from pipeline.storage.store import deadline, store_of

# How often checkpoints and the run's own files are checked for changes.
SYNC_SECONDS = 15.0
_DEADLINE_SECONDS = 20.0
_WAIT_SECONDS = 1.0
_STALE_SECONDS = 7 * 86_400.0
_MAX_LOG = 1 << 20


class OutputRoot(Protocol):
    """The operations of builders and the driver on an output root. Recipes write into the local folder ``root``.

    ``unwrap_cache`` shares texture coordinates with other nodes; None where ``root`` itself is the output root.
    """

    root: Path
    unwrap_cache: SharedCache | None

    def claim(self, row: Task, *, wait_seconds: float = 0.0) -> AbstractContextManager[bool]:
        """Claim the row's asset in the block. Yields False if another builder has it. Raises OSError, StorageError."""
        ...

    def is_finished(self, row: Task) -> bool:
        """Return whether a complete asset of these inputs exists. The caller has claimed the row."""
        ...

    def working(self, rows: Sequence[Task]) -> AbstractContextManager[None]:
        """Return a context for the recipe's work on claimed ``rows``. Raises StorageError."""
        ...

    def commit(self, row: Task) -> None:
        """Publish the asset that the recipe has finished. Raises StorageError, OSError."""
        ...

    def clean_up(self, job_id: str) -> None:
        """Remove the lock file, checkpoints and temporaries that a killed builder left beside an up-to-date asset.

        Removes nothing while another process holds the lock, because that process is building the asset again.
        """
        ...

    def read_failure(self, job_id: str) -> Json | None:
        """Return the recipe's record of a row's failure."""
        ...

    def write_failure(self, job_id: str, failure: Json) -> None:
        """Write ``failure.json``. Raises OSError, StorageError."""
        ...


def open_output_root(out: Location, *, run_id: str = "") -> OutputRoot:
    """Open the output root ``out`` for the run ``run_id``. Sends no request to a store yet."""
    return RemoteOutputRoot(out, run_id) if isinstance(out, RemotePath) else LocalOutputRoot(out)


def refuse_links_in(out: Location) -> None:
    """Raise UsageError if a file or folder of the run itself in the local output root ``out`` is a link."""
    names = (RUN_FILE, EVENTS_FILE, LOCK_FILE, RUNS_FOLDER, UNWRAP_CACHE, SKETCH_CACHE)
    try:
        refuse_links(local_root(out), names)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.filename}: {error.strerror}") from None


def local_root(out: Location) -> Path:
    """Return the local folder of ``out``: the folder itself, or this node's scratch folder for a URL."""
    return scratch_folder(out) if isinstance(out, RemotePath) else out.resolve()


class LocalOutputRoot:
    """A folder on this machine, or on a file system that all nodes share."""

    def __init__(self, out: Path):
        self.root = out
        self.unwrap_cache: SharedCache | None = None

    @contextlib.contextmanager
    def claim(self, row: Task, *, wait_seconds: float = 0.0) -> Iterator[bool]:
        folder = self.root / row.job.id
        refuse_links(folder, names_of_rows(folder))
        refuse_links(folder / WORK_DIR, files_below(folder / WORK_DIR))
        with asset_lock(folder, wait_seconds=wait_seconds) as held:
            yield held

    def is_finished(self, row: Task) -> bool:
        return _is_complete(self.root / row.job.id, row.fingerprint)

    def working(self, rows: Sequence[Task]) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def commit(self, row: Task) -> None:
        pass

    def clean_up(self, job_id: str) -> None:
        folder = self.root / job_id
        # A killed builder always leaves one of the two.
        if not (os.path.lexists(folder / LOCK) or os.path.lexists(folder / WORK_DIR)):
            return
        with contextlib.suppress(OSError), asset_lock(folder) as held:
            if held:
                shutil.rmtree(folder / WORK_DIR, ignore_errors=True)
                for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                    path.unlink()

    def read_failure(self, job_id: str) -> Json | None:
        return read_failure(self.root / job_id)

    def write_failure(self, job_id: str, failure: Json) -> None:
        write_failure(self.root / job_id, failure)


class RemoteOutputRoot:
    """A URL. The scratch folder holds copies and unpublished files; the store's state is the valid one."""

    def __init__(self, out: RemotePath, run_id: str):
        self.out, self._run_id = out, run_id
        self.root = scratch_folder(out)
        self.root.mkdir(parents=True, exist_ok=True)
        # Unwrapping runs under a time limit. All nodes must use the same texture coordinates.
        self.unwrap_cache: SharedCache | None = SharedCache(
            self.root / UNWRAP_CACHE, self.out / UNWRAP_CACHE.as_posix()
        )
        self._renewer = lease.LeaseRenewer()
        self._leases: dict[str, lease.Lease] = {}
        self._checkpointed: set[str] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def claim(self, row: Task, *, wait_seconds: float = 0.0) -> Iterator[bool]:
        job_id, deadline = row.job.id, time.monotonic() + wait_seconds
        with asset_lock(self.root / job_id, wait_seconds=wait_seconds) as held:
            owner = lease.Owner.here(self._run_id, row.attempt + row.setbacks)
            acquired = lease.acquire(self.out / job_id, owner) if held else None
            while held and acquired is None and time.monotonic() < deadline:
                time.sleep(_WAIT_SECONDS)
                acquired = lease.acquire(self.out / job_id, owner)
            if acquired is None:
                yield False
            else:
                with self._renewer.renewing(acquired):
                    self._leases[job_id] = acquired
                    try:
                        yield True
                    finally:
                        self._upload_log(job_id)
                        del self._leases[job_id]
        # A row that is done leaves nothing in the scratch folder.
        with contextlib.suppress(OSError):
            (self.root / job_id).rmdir()

    def is_finished(self, row: Task) -> bool:
        job_id = row.job.id
        snapshot = take_snapshot(self.out / job_id)
        self._checkpointed.discard(job_id)
        if any(name.startswith(f"{WORK_DIR}/") for name in snapshot.files):
            self._checkpointed.add(job_id)
        record, _ = load_record(snapshot)
        if record is not None and record["fingerprint"] == row.fingerprint:
            if publish.is_partly_published(record, snapshot.files):
                publish.finish_publish(self.out / job_id, held=self._held(job_id))
                snapshot = take_snapshot(self.out / job_id)
                record, _ = load_record(snapshot)
            if record is not None and not output_problem(snapshot, record):
                self._clear_folder(job_id)
                return True
        # An earlier builder on this node finished the asset but could not publish it.
        if _is_complete(self.root / job_id, row.fingerprint):
            self.commit(row)
            return True
        return False

    @contextlib.contextmanager
    def working(self, rows: Sequence[Task]) -> Iterator[None]:
        ids = [row.job.id for row in rows]
        for job_id in ids:
            work = self.root / job_id / WORK_DIR
            if job_id in self._checkpointed:
                shutil.rmtree(work, ignore_errors=True)
                sync.download_folder(self.out / job_id / WORK_DIR, work)

        def checkpoints() -> list[sync.LocalAndRemote]:
            return [
                pair
                for job_id in ids
                if job_id in self._leases and self._leases[job_id].held
                for pair in sync.files_below(self.root / job_id / WORK_DIR, self.out / job_id / WORK_DIR)
            ]

        with sync.FileSync(checkpoints, seconds=SYNC_SECONDS) as file_sync:
            yield
        file_sync.sync()

    def commit(self, row: Task) -> None:
        job_id = row.job.id
        publish.publish_asset(self.root / job_id, self.out / job_id, held=self._held(job_id))
        self._clear_folder(job_id)

    def clean_up(self, job_id: str) -> None:
        # The lease at the URL expires by itself. The asset is published, so nothing in the scratch folder is needed.
        folder = self.root / job_id
        if not folder.is_dir():
            return
        with contextlib.suppress(OSError), asset_lock(folder) as held:
            if held:
                self._clear_folder(job_id)
        with contextlib.suppress(OSError):
            folder.rmdir()

    def read_failure(self, job_id: str) -> Json | None:
        return read_failure(self.root / job_id)

    def write_failure(self, job_id: str, failure: Json) -> None:
        with deadline(_DEADLINE_SECONDS):
            publish.write_failure(self.out / job_id, failure)
        (self.root / job_id / FAILURE).unlink(missing_ok=True)

    def _held(self, job_id: str) -> Callable[[], bool]:
        def held() -> bool:
            lease_held = self._leases.get(job_id)
            return lease_held is not None and lease_held.ensure()

        return held

    def _clear_folder(self, job_id: str) -> None:
        """Remove everything but lock and log from the row's scratch folder."""
        for path in (self.root / job_id).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in (LOCK, LOG):
                path.unlink(missing_ok=True)

    def _upload_log(self, job_id: str) -> None:
        """Append this attempt's lines to the row's log at the URL. Ignores errors."""
        path, location = self.root / job_id / LOG, self.out / job_id / LOG
        with contextlib.suppress(OSError, StorageError, FileNotFoundError), deadline(_DEADLINE_SECONDS):
            lines = path.read_bytes()
            before = b""
            with contextlib.suppress(FileNotFoundError, StorageError):
                before = store_of(location).read(location, _MAX_LOG)[0]
            store_of(location).write(location, before + lines)
            path.unlink()


def clean_scratch(out: Location) -> None:
    """Remove rows that killed runs left in this node's scratch folder for a URL and nobody touched for a week."""
    if not isinstance(out, RemotePath):
        return
    with contextlib.suppress(OSError):
        for folder in scratch_folder(out).iterdir():
            newest = max((path.stat().st_mtime for path in [folder, *folder.rglob("*")]), default=0.0)
            if folder.is_dir() and not folder.name.startswith(".") and time.time() - newest > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _is_complete(folder: Path, fingerprint: str) -> bool:
    record = read_record(folder)
    return record is not None and record["fingerprint"] == fingerprint and not output_problem(folder, record)


def publish_run(
    root: Path, out: Location, names: Sequence[str], folders: Sequence[str]
) -> AbstractContextManager[object]:
    """Copy the run's own files from ``root`` to ``out`` inside the block, if ``out`` is a URL."""
    if not isinstance(out, RemotePath):
        return contextlib.nullcontext()

    def files() -> list[sync.LocalAndRemote]:
        files = [(root / name, out / name) for name in names]
        for folder in folders:
            files += sync.files_below(root / folder, out / folder)
        return files

    return _synced_at_the_end(sync.FileSync(files, seconds=SYNC_SECONDS / 3))


@contextlib.contextmanager
def _synced_at_the_end(file_sync: sync.FileSync) -> Iterator[sync.FileSync]:
    try:
        with file_sync:
            yield file_sync
    finally:
        file_sync.sync()


def fetch_run(out: RemotePath, folder: Path, names: Sequence[str]) -> None:
    """Copy those of the run's files ``names`` that exist at ``out`` into the local ``folder``."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            (folder / name).write_bytes(store_of(out).read(out / name)[0])

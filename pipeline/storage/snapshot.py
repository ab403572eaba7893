"""Read the state of many remote asset folders at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from pipeline.core.asset_layout import FAILURE, RECORD
from pipeline.core.location import RemotePath
from pipeline.storage.publish import MAX_RECORD
from pipeline.storage.store import ObjectMeta, store_of

MAX_CONCURRENT = 16
WINDOW = 256
# The most files in one listing (some 300 bytes each), and how long a listing is used. The builder that claims a row
# notices later changes.
MAX_LISTED = 200_000
_LISTING_SECONDS = 600.0


@dataclass(frozen=True)
class Snapshot:
    """One asset's folder at one moment: its files, and the text of its record and its failure."""

    place: RemotePath
    files: Mapping[str, ObjectMeta] = field(default_factory=dict)
    texts: Mapping[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.place)


def take_snapshot(location: RemotePath) -> Snapshot:
    """Read the asset's folder at ``location``, which may be empty. Raises StorageError."""
    return _read(location, store_of(location).files(location))


def _read(location: RemotePath, files: dict[str, ObjectMeta]) -> Snapshot:
    """Read the record and the failure among ``files`` of the folder at ``location``. Raises StorageError."""
    store, texts = store_of(location), {}
    for name in (RECORD, FAILURE):
        if name in files:
            try:
                texts[name] = store.read(location / name, MAX_RECORD)[0]
            except FileNotFoundError:  # gone since the listing
                files.pop(name)
    return Snapshot(location, files, texts)


def take_snapshots(out: RemotePath, ids: Iterable[str]) -> Iterator[tuple[str, Snapshot]]:
    """Yield (id, snapshot) for each of ``ids`` below ``out``, in order, a window at a time. Raises StorageError.

    For many ids all files are listed together, a thousand per request, unless they are too many to hold. A missing
    asset then takes no request of its own, an existing one takes one for its record.
    """
    remaining, listing = iter(ids), _Listing(out)
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        while window := list(islice(remaining, WINDOW)):
            known = listing.refresh() if listing.listed_at or len(window) == WINDOW else None

            def one(job_id: str, known: Mapping[str, dict[str, ObjectMeta]] | None = known) -> Snapshot:
                folder = out / job_id
                return take_snapshot(folder) if known is None else _read(folder, dict(known.get(job_id, ())))

            yield from zip(window, pool.map(one, window), strict=True)


class _Listing:
    """The files in all folders below ``out``, from one listing that is repeated after some minutes.

    A run may read its plan for hours. ``listed_at`` is the time of the listing by the monotonic clock, 0 before it.
    """

    def __init__(self, out: RemotePath):
        self._out = out
        self.listed_at = 0.0
        self._files_by_folder: dict[str, dict[str, ObjectMeta]] | None = None

    def refresh(self) -> Mapping[str, dict[str, ObjectMeta]] | None:
        """Return the files by folder; None if there are too many to hold. Raises StorageError."""
        if not self.listed_at or time.monotonic() - self.listed_at >= _LISTING_SECONDS:
            files = store_of(self._out).list_at_most(self._out, MAX_LISTED)
            self._files_by_folder = None if files is None else {}
            for path, meta in (files or {}).items():
                job_id, slash, name = path.partition("/")
                if slash and self._files_by_folder is not None:
                    self._files_by_folder.setdefault(job_id, {})[name] = meta
            self.listed_at = time.monotonic()
        return self._files_by_folder

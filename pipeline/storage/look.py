"""What stands in assets' folders at a URL, looked up for many of them at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from pipeline.core.location import RemotePath
from pipeline.storage.assets import FAILURE, MAX_RECORD, RECORD
from pipeline.storage.store import Found, store_of

AT_ONCE = 16
_WINDOW = 256
# Files that one listing holds at most (some 300 bytes each), and how long it is taken for true. What changed since is
# noticed by whoever claims the row.
MOST_LISTED = 200_000
_LISTING_SECONDS = 600.0


@dataclass(frozen=True)
class Snapshot:
    """One asset's folder as it was at one moment: its files, and the text of its record and its failure."""

    place: RemotePath
    files: Mapping[str, Found] = field(default_factory=dict)
    texts: Mapping[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.place)


def look(place: RemotePath) -> Snapshot:
    """The asset's folder at ``place``, which may be empty. Raises StorageError."""
    return _read(place, store_of(place).files(place))


def _read(place: RemotePath, files: dict[str, Found]) -> Snapshot:
    """The folder at ``place`` in which ``files`` were seen. Raises StorageError."""
    store, texts = store_of(place), {}
    for name in (RECORD, FAILURE):
        if name in files:
            try:
                texts[name] = store.read(place / name, MAX_RECORD)[0]
            except FileNotFoundError:  # gone since the listing
                files.pop(name)
    return Snapshot(place, files, texts)


def look_at_all(out: RemotePath, ids: Iterable[str]) -> Iterator[tuple[str, Snapshot]]:
    """(id, snapshot) of each asset below ``out``, in order, a window of them at a time. Raises StorageError.

    Of many ids the files are listed together, a thousand to a request, as long as there are not too many to hold:
    an asset that is not there then takes no request of its own, and one that is there takes one, for its record.
    """
    rest, listing = iter(ids), _Listing(out)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while window := list(islice(rest, _WINDOW)):
            known = listing.now() if listing.made or len(window) == _WINDOW else None

            def one(job_id: str, known: Mapping[str, dict[str, Found]] | None = known) -> Snapshot:
                place = out / job_id
                return look(place) if known is None else _read(place, dict(known.get(job_id, ())))

            yield from zip(window, pool.map(one, window), strict=True)


class _Listing:
    """What lies in each folder below ``out``, listed in one go, and anew after a while: a run reads its plan for hours.

    ``made``: when, by the monotonic clock; 0 before.
    """

    def __init__(self, out: RemotePath):
        self._out = out
        self.made = 0.0
        self._found: dict[str, dict[str, Found]] | None = None

    def now(self) -> Mapping[str, dict[str, Found]] | None:
        """None where there is too much to hold. Raises StorageError."""
        if not self.made or time.monotonic() - self.made >= _LISTING_SECONDS:
            files = store_of(self._out).some_files(self._out, MOST_LISTED)
            self._found = None if files is None else {}
            for path, found in (files or {}).items():
                job_id, slash, name = path.partition("/")
                if slash and self._found is not None:
                    self._found.setdefault(job_id, {})[name] = found
            self.made = time.monotonic()
        return self._found

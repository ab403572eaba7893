"""What stands in assets' folders at a URL, looked up for many of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from pipeline.core.place import Remote
from pipeline.storage.assets import FAILURE, MAX_RECORD, RECORD
from pipeline.storage.store import Found, store_of

AT_ONCE = 16
_WINDOW = 256


@dataclass(frozen=True)
class Snapshot:
    """One asset's folder as it was at one moment: its files, and the text of its record and its failure."""

    place: Remote
    files: Mapping[str, Found] = field(default_factory=dict)
    texts: Mapping[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.place)


def look(place: Remote) -> Snapshot:
    """The asset's folder at ``place``, which may be empty. Raises StorageError."""
    store = store_of(place)
    files = store.files(place)
    texts = {}
    for name in (RECORD, FAILURE):
        if name in files:
            try:
                texts[name] = store.read(place / name, MAX_RECORD)[0]
            except FileNotFoundError:  # gone since the listing
                files.pop(name)
    return Snapshot(place, files, texts)


def look_at_all(out: Remote, ids: Iterable[str]) -> Iterator[tuple[str, Snapshot]]:
    """(id, snapshot) of each asset below ``out``, in order, a window of them at a time. Raises StorageError."""
    rest = iter(ids)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while window := list(islice(rest, _WINDOW)):
            yield from zip(window, pool.map(lambda job_id: look(out / job_id), window), strict=True)

"""Assets at a URL: publish them so that no reader sees half of one, read them by their hashes, remove them.

``OUT/<id>/`` holds the same names as a local output folder. An asset exists when it has a ``record.json``, which is
written last. The record names each output with its size, its sha256, the store's tag and, if that differs from the
name, the object that holds it.

* A new asset: the outputs under their own names, then the record. Before that a reader finds no asset.
* A rebuilt asset: the outputs under ``.next/<sha256>-<name>``, then the record that points there, with which readers
  get the new asset. Then the outputs under their own names and the record without pointers; the rest is deleted. If
  the publisher is killed between two steps, the record names complete objects, old or new. The next builder or
  ``finish_publish`` continues from there.

Each write expects the content that was seen when the lease was taken, so a publisher that lost its lease without
noticing replaces nothing. A reader whose bytes do not match the recorded hash has met a rebuild and reads the record
again, as ``read_output`` does.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

from pipeline.core.asset_layout import FAILURE, NEXT, RECORD, WORK_DIR
from pipeline.core.hashing import sha256_bytes
from pipeline.core.json_types import Json
from pipeline.core.location import RemotePath
from pipeline.storage.errors import PreconditionFailed, StorageError
from pipeline.storage.lease import holder
from pipeline.storage.store import ABSENT, ObjectMeta, store_of

MAX_RECORD = 16 << 20
_MAX_OUTPUT = 4 << 30
_OBJECT = re.compile(rf"{re.escape(NEXT)}/[0-9a-f]{{64}}-[^/\\]+")


class _Folder:
    """An asset's folder during publishing: its objects with their tags, and the check of the lease."""

    def __init__(self, location: RemotePath, held: Callable[[], bool]):
        self.location, self._held, self._store = location, held, store_of(location)
        self.etags: dict[str, ObjectMeta] = self._store.files(location)

    def write(self, name: str, data: bytes) -> str:
        """Write ``data`` to ``name`` in place of the content that was seen there. Raises StorageError."""
        self._check()
        before = self.etags.get(name)
        try:
            tag = self._store.write(self.location / name, data, expect=before.etag if before else ABSENT)
        except PreconditionFailed:
            raise _lease_lost_error(self.location) from None
        self.etags[name] = ObjectMeta(len(data), tag)
        return tag

    def delete(self, name: str) -> None:
        """Remove ``name`` if it still has the content that was seen."""
        self._check()
        with contextlib.suppress(PreconditionFailed):
            self._store.delete(self.location / name, expect=self.etags[name].etag)
        del self.etags[name]

    def read(self, name: str) -> bytes:
        """Return the content of ``name``. Raises StorageError."""
        try:
            return self._store.read(self.location / name, _MAX_OUTPUT)[0]
        except FileNotFoundError:
            raise _lease_lost_error(self.location) from None

    def _check(self) -> None:
        if not self._held():
            raise _lease_lost_error(self.location)


def publish_asset(local: Path, location: RemotePath, *, held: Callable[[], bool] = lambda: True) -> Json:
    """Publish the finished asset in the folder ``local`` at ``location``. Return the record as published.

    ``local/record.json`` names the outputs. ``held`` returns whether the caller still has the asset's lease; without
    it nothing is written. Raises StorageError if the store refuses, stays unreachable, or the lease is lost. A second
    call completes the missing steps.
    """
    record: dict[str, object] = json.loads((local / RECORD).read_bytes())
    outputs = outputs_of(record)
    contents = {name: (local / name).read_bytes() for name in outputs}
    for name, data in contents.items():
        if sha256_bytes(data) != outputs[name]["sha256"]:
            raise StorageError(f"{local / name}: does not match the hash in its record; build it again")
    folder = _Folder(location, held)
    replaced: list[str] = []
    if RECORD in folder.etags:
        replaced = sorted(set(_outputs(folder)) - set(contents))
        objects = {name: f"{NEXT}/{outputs[name]['sha256']}-{name}" for name in contents}
        _put_outputs(folder, record, contents, objects)
        _put_record(folder, {**record, "replaces": replaced})
    _replace_outputs(folder, record, contents, replaced)
    if FAILURE in folder.etags:
        folder.delete(FAILURE)
    return record


def finish_publish(location: RemotePath, *, held: Callable[[], bool] = lambda: True) -> bool:
    """Complete the publishing that a killed publisher left at ``location``. Return False if there was nothing to do.

    The caller holds the asset's lease. Raises StorageError.
    """
    folder = _Folder(location, held)
    if RECORD not in folder.etags:
        return False
    record = json.loads(folder.read(RECORD))
    if not is_partly_published(record, folder.etags):
        return False
    if "replaces" not in record:
        _remove_unreferenced(folder)
        return True
    contents = {}
    for name, value in record["outputs"].items():
        contents[name] = folder.read(object_name(name, value))
        if sha256_bytes(contents[name]) != value["sha256"]:
            raise StorageError(f"{location}: {name} does not match its recorded hash; build it again")
    _replace_outputs(folder, record, contents, [str(name) for name in record.pop("replaces")])
    return True


def is_partly_published(record: Json, names: Iterable[str]) -> bool:
    """Return whether the publisher of ``record`` was killed, given the ``names`` in the asset's folder."""
    return "replaces" in record or any(_is_temporary(name) for name in names)


def _replace_outputs(
    folder: _Folder, record: dict[str, object], contents: Mapping[str, bytes], replaced: Iterable[str]
) -> None:
    """Write the outputs under their own names, then the record, and remove all temporary objects."""
    _put_outputs(folder, record, contents, {})
    for name in replaced:
        if name in folder.etags and name not in contents:
            folder.delete(name)
    _put_record(folder, record)
    _remove_unreferenced(folder)


def _put_outputs(
    folder: _Folder, record: dict[str, object], contents: Mapping[str, bytes], objects: Mapping[str, str]
) -> None:
    """Write the outputs, under the names in ``objects`` if given there, and enter these names in ``record``."""
    outputs = dict(outputs_of(record))
    for name, data in contents.items():
        output = {key: value for key, value in outputs[name].items() if key not in ("object", "tag")}
        output["tag"] = folder.write(objects.get(name, name), data)
        if name in objects:
            output["object"] = objects[name]
        outputs[name] = output
    record["outputs"] = outputs


def _put_record(folder: _Folder, record: Json) -> None:
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    folder.write(RECORD, (text + "\n").encode())


def _outputs(folder: _Folder) -> Json:
    """Return the outputs of the published record; none if it is damaged."""
    try:
        outputs = json.loads(folder.read(RECORD))["outputs"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return outputs if isinstance(outputs, dict) else {}


def _remove_unreferenced(folder: _Folder) -> None:
    for name in [name for name in folder.etags if _is_temporary(name)]:
        folder.delete(name)


def _is_temporary(name: str) -> bool:
    return name.startswith((f"{NEXT}/", f"{WORK_DIR}/"))


def outputs_of(record: Json) -> Mapping[str, Json]:
    """Return the entries of each output in a checked record: ``sha256``, ``bytes``, and at a URL ``tag``."""
    return cast("Mapping[str, Json]", record["outputs"])


def object_name(name: str, output: Json) -> str:
    """Return the object in the asset's folder that holds the output ``name``. Never a path outside the folder."""
    held = output.get("object")
    return held if isinstance(held, str) and _OBJECT.fullmatch(held) else name


def read_output(location: RemotePath, name: str) -> tuple[bytes, Json]:
    """Return the bytes of the output ``name`` of the asset at ``location``, and the record they belong to.

    Checks the hash. During a rebuild it reads again. Raises StorageError, and FileNotFoundError if there is no asset or
    it has no such output.
    """
    store = store_of(location)
    for _ in range(5):
        record = json.loads(store.read(location / RECORD, MAX_RECORD)[0])
        outputs = record.get("outputs", {})
        if name not in outputs:
            raise FileNotFoundError(f"{location}: the asset has no {name}")
        with contextlib.suppress(FileNotFoundError):
            data = store.read(location / object_name(name, outputs[name]), _MAX_OUTPUT)[0]
            if sha256_bytes(data) == outputs[name].get("sha256"):
                return data, record
    raise StorageError(f"{location / name}: does not match the hash in its record; build it again")


def asset_ids(out: RemotePath) -> Iterator[str]:
    """Yield the ids of all rows with a folder below ``out``, finished or not. Raises StorageError."""
    for name in store_of(out).folders(out):
        if not name.startswith("."):
            yield name


def remove_asset(out: RemotePath, job_id: str) -> None:
    """Remove the asset ``job_id``, its record first. Raises StorageError, also while a run is building it."""
    location = out / job_id
    if holder(location) is not None:
        raise StorageError(f"{location}: a run is building it; wait for it to end")
    store = store_of(location)
    store.delete(location / RECORD)
    for name in store.files(location):
        store.delete(location / name)


def write_failure(location: RemotePath, failure: Json) -> None:
    """Write ``failure.json``. A record beside it stays unchanged. Raises StorageError."""
    text = json.dumps({**failure, "schema": 1, "status": "failed"}, indent=1, sort_keys=True, ensure_ascii=False)
    store_of(location).write(location / FAILURE, (text + "\n").encode())


def _lease_lost_error(location: RemotePath) -> StorageError:
    return StorageError(f"{location}: another run has taken this row over; its asset is left to that run")

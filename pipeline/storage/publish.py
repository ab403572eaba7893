"""Assets at a URL: published so that no reader sees half of one, read back by their hashes, removed record first.

``OUT/<id>/`` holds the same names as a local output folder. ``record.json`` makes the asset: it is written last and
names each output with its size, its sha256, the store's tag and, while that differs, the object it lies in.

* A new asset: outputs under their own names, then the record. Before it there is nothing to a reader.
* A rebuilt one: outputs under ``.next/<sha256>-<name>``, then the record that points there; from this moment the new
  asset is what a reader finds. Then the outputs under their own names, the record without the pointers, and the rest
  is deleted. Killed between any two of these steps, the record names whole objects, old or new; the next builder or
  ``finish_publish`` goes on from there.

Each write expects what was seen when the lease had been taken, so that a publisher which lost its lease without
knowing replaces nothing. A reader that finds other bytes than the record says has met a rebuild: it reads the record
again (``read_output`` does).
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
    """An asset's folder while it is written: the tags of what lies there, and whether it is still ours to write."""

    def __init__(self, location: RemotePath, held: Callable[[], bool]):
        self.place, self._held, self._store = location, held, store_of(location)
        self.etags: dict[str, ObjectMeta] = self._store.files(location)

    def write(self, name: str, data: bytes) -> str:
        """Puts ``data`` under ``name`` in place of what was seen there. Raises StorageError."""
        self._check()
        before = self.etags.get(name)
        try:
            tag = self._store.write(self.place / name, data, expect=before.etag if before else ABSENT)
        except PreconditionFailed:
            raise _lease_lost_error(self.place) from None
        self.etags[name] = ObjectMeta(len(data), tag)
        return tag

    def delete(self, name: str) -> None:
        """Removes ``name``, should it still be what was seen."""
        self._check()
        with contextlib.suppress(PreconditionFailed):
            self._store.delete(self.place / name, expect=self.etags[name].etag)
        del self.etags[name]

    def read(self, name: str) -> bytes:
        """The content of ``name``. Raises StorageError."""
        try:
            return self._store.read(self.place / name, _MAX_OUTPUT)[0]
        except FileNotFoundError:
            raise _lease_lost_error(self.place) from None

    def _check(self) -> None:
        if not self._held():
            raise _lease_lost_error(self.place)


def publish_asset(local: Path, location: RemotePath, *, held: Callable[[], bool] = lambda: True) -> Json:
    """Publishes the finished asset in the folder ``local`` at ``location`` and gives the record as it stands there.

    ``local/record.json`` names the outputs. ``held`` says whether the caller still has the asset's lease; nothing is
    written once it does not. Raises StorageError where the store refuses, stays unreachable or the lease is lost;
    called again, it does what is left to do.
    """
    record: dict[str, object] = json.loads((local / RECORD).read_bytes())
    outputs = outputs_of(record)
    contents = {name: (local / name).read_bytes() for name in outputs}
    for name, data in contents.items():
        if sha256_bytes(data) != outputs[name]["sha256"]:
            raise StorageError(f"{local / name}: has other bytes than its record says; build it again")
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
    """Finishes what a killed publisher left behind at ``location``; True where there was something.

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
            raise StorageError(f"{location}: {name} has other bytes than recorded; it has to be built again")
    _replace_outputs(folder, record, contents, [str(name) for name in record.pop("replaces")])
    return True


def is_partly_published(record: Json, names: Iterable[str]) -> bool:
    """Whether the publisher of ``record`` was killed before its end, given the ``names`` in the asset's folder."""
    return "replaces" in record or any(_is_temporary(name) for name in names)


def _replace_outputs(
    folder: _Folder, record: dict[str, object], contents: Mapping[str, bytes], replaced: Iterable[str]
) -> None:
    """The outputs under their own names, the record that says so, and nothing else of ours beside them."""
    _put_outputs(folder, record, contents, {})
    for name in replaced:
        if name in folder.etags and name not in contents:
            folder.delete(name)
    _put_record(folder, record)
    _remove_unreferenced(folder)


def _put_outputs(
    folder: _Folder, record: dict[str, object], contents: Mapping[str, bytes], objects: Mapping[str, str]
) -> None:
    """Writes the outputs, under their own names where ``objects`` gives no other, and says where in ``record``."""
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
    """The outputs of the record that is there; none where it is damaged."""
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
    """Return what a record that was checked says of each output: ``sha256``, ``bytes``, and at a URL ``tag``."""
    return cast("Mapping[str, Json]", record["outputs"])


def object_name(name: str, output: Json) -> str:
    """Where in the asset's folder the output ``name`` of a record lies; never outside it."""
    held = output.get("object")
    return held if isinstance(held, str) and _OBJECT.fullmatch(held) else name


def read_output(location: RemotePath, name: str) -> tuple[bytes, Json]:
    """The bytes of the output ``name`` of the asset at ``location``, with the record they belong to.

    Checked by size and hash; a rebuild that goes on meanwhile is waited for by reading again. Raises StorageError,
    FileNotFoundError where there is no asset or it has no such output.
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
    raise StorageError(f"{location / name}: has other bytes than its record says; build it again")


def asset_ids(out: RemotePath) -> Iterator[str]:
    """The ids of everything that has a folder below ``out``, finished or not. Raises StorageError."""
    for name in store_of(out).folders(out):
        if not name.startswith("."):
            yield name


def remove_asset(out: RemotePath, job_id: str) -> None:
    """Removes the asset ``job_id``, its record first. Raises StorageError, also while a run is building it."""
    location = out / job_id
    if holder(location) is not None:
        raise StorageError(f"{location}: a run is building it; wait for it to end")
    store = store_of(location)
    store.delete(location / RECORD)
    for name in store.files(location):
        store.delete(location / name)


def write_failure(location: RemotePath, failure: Json) -> None:
    """Writes ``failure.json``; a record beside it stays as it is. Raises StorageError."""
    text = json.dumps({**failure, "schema": 1, "status": "failed"}, indent=1, sort_keys=True, ensure_ascii=False)
    store_of(location).write(location / FAILURE, (text + "\n").encode())


def _lease_lost_error(location: RemotePath) -> StorageError:
    return StorageError(f"{location}: another run has taken this row over; its asset is left to that run")

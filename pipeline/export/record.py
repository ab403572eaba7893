"""The record in each asset's folder: ``record.json`` for a built row, ``failure.json`` for a failed one.

The record is written last. A folder without a readable record holds only remains of a crash. A failure keeps the
record of an earlier success; a success removes the failure.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.asset_layout import FAILURE, LEASE, LOCK, LOG, NEXT, RECORD, WORK_DIR
from pipeline.core.atomic import TEMPORARY_PREFIX, sync_folder, write_json
from pipeline.core.hashing import sha256_file
from pipeline.core.json_types import Json
from pipeline.core.plain import is_plain, open_plain
from pipeline.storage.publish import is_partly_published, object_name
from pipeline.storage.secrets import scrub
from pipeline.storage.snapshot import Snapshot

SCHEMA = 1

# Bounds the memory for a foreign file of that name; our records are far smaller.
_MAX_BYTES = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Files of a row without a record or failure, at a URL or on this machine.
_HALF_BUILT = frozenset([WORK_DIR, NEXT, LEASE, LOCK, LOG])
# Outputs that a crash may leave without a record.
_OUTPUT = re.compile(r"(asset|seed-[0-9]+)([._-].*)?\.[a-z]+|(seed-[0-9]+-)?(preview|depth|normal)\.png")


def write_record(folder: Path, record: Json) -> None:
    """Writes ``record`` (JSON values) to ``folder/record.json`` atomically and removes an earlier failure."""
    write_json(folder / RECORD, {**_without_secrets(record), "schema": SCHEMA, "status": "done"})
    try:
        (folder / FAILURE).unlink()
    except FileNotFoundError:
        return  # the common case; a flush of the folder takes milliseconds
    sync_folder(folder)


def write_failure(folder: Path, failure: Json) -> None:
    """Writes ``failure`` to ``folder/failure.json`` atomically. Keeps an existing record."""
    write_json(folder / FAILURE, {**_without_secrets(failure), "schema": SCHEMA, "status": "failed"})


def _without_secrets(record: Json) -> dict[str, Any]:
    """Redacts credentials in the messages of ``record``, which may quote libraries."""
    clean: dict[str, Any] = dict(record)
    if isinstance(clean.get("message"), str):
        clean["message"] = scrub(clean["message"])
    if isinstance(clean.get("warnings"), list):
        clean["warnings"] = [scrub(text) if isinstance(text, str) else text for text in clean["warnings"]]
    return clean


def read_record(folder: Path | Snapshot) -> dict[str, Any] | None:
    """Returns the record in ``folder``; None if there is no usable one (``load_record`` gives the reason)."""
    return load_record(folder)[0]


def load_record(folder: Path | Snapshot) -> tuple[dict[str, Any] | None, str]:
    """Returns the record in ``folder`` and "", or None and a reason of one line ("" if there is no file)."""
    record, reason = _load(folder, RECORD, "done")
    if record is None:
        return None, reason
    outputs = record.get("outputs")
    if not isinstance(outputs, dict) or not all(_is_output(name, value) for name, value in outputs.items()):
        return None, f"{folder}/{RECORD}: 'outputs' is not a list of files with sha256 and bytes"
    return record, ""


def read_failure(folder: Path | Snapshot) -> dict[str, Any] | None:
    """Returns the failure in ``folder``; None if there is no usable one."""
    return _load(folder, FAILURE, "failed")[0]


def is_ours(folder: Path | Snapshot, name: str) -> bool:
    """Tells whether the folder called ``name`` belongs to a built, failed or half-built row, so it may be deleted.

    A half-built row has no record, so its folder must hold only files that rows write.
    """
    if any(stored is not None and stored["id"] == name for stored in (read_record(folder), read_failure(folder))):
        return True
    entries = _entries(folder)
    only_ours = all(entry in _HALF_BUILT or entry.startswith(TEMPORARY_PREFIX) for entry in entries)
    return only_ours and any(entry.startswith(".") for entry in entries)


def foreign_files(folder: Path | Snapshot) -> list[str]:
    """Lists the names in a row's folder that no row writes, sorted. They belong to somebody else; never delete them.

    An output root may be an older folder, with a subfolder that has the name of a row's id.
    """
    record = read_record(folder) or {}
    ours = {RECORD, FAILURE, *_HALF_BUILT, *record.get("outputs", ())}
    others = (entry for entry in _entries(folder) if entry not in ours and not entry.startswith(TEMPORARY_PREFIX))
    return sorted(entry for entry in others if not _OUTPUT.fullmatch(entry))


def names_of_rows(folder: Path) -> list[str]:
    """Lists the names in ``folder`` that rows read or write, sorted."""
    ours = {RECORD, FAILURE, *_HALF_BUILT}
    return sorted(
        entry
        for entry in _entries(folder)
        if entry in ours or entry.startswith(TEMPORARY_PREFIX) or _OUTPUT.fullmatch(entry)
    )


def foreign_without_record(folder: Path | Snapshot) -> list[str]:
    """Lists ``foreign_files`` of a folder without a record, into which we must not write. Returns [] if there is a
    record: we allow extra files beside our assets."""
    return foreign_files(folder) if read_record(folder) is None else []


def _entries(folder: Path | Snapshot) -> set[str]:
    """Lists a folder's entries; empty if it cannot be read."""
    if isinstance(folder, Snapshot):
        return {path.partition("/")[0] for path in folder.files}
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _load(folder: Path | Snapshot, name: str, status: str) -> tuple[dict[str, Any] | None, str]:
    path = f"{folder}/{name}"
    try:
        if isinstance(folder, Snapshot):
            if name not in folder.texts:
                return None, ""
            data = folder.texts[name]
        else:
            with open_plain(folder / name) as stream:
                data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{path}: cannot be read: {error.strerror or error}"
    if len(data) > _MAX_BYTES:
        return None, f"{path}: larger than {_MAX_BYTES >> 20} MiB, not one of ours"
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None, f"{path}: is not valid JSON"
    if not isinstance(value, dict):
        return None, f"{path}: does not hold a JSON object"
    if value.get("schema") != SCHEMA:
        return None, f"{path}: schema {value.get('schema')!r} is not {SCHEMA}, which this version reads"
    if value.get("status") != status:
        return None, f"{path}: status {value.get('status')!r} is not {status!r}"
    for key in ("id", "fingerprint"):
        if not isinstance(value.get(key), str):
            return None, f"{path}: {key!r} is missing or not text"
    return value, ""


def _is_output(name: str, value: object) -> bool:
    # Accept only plain file names: a record must not make us read other folders.
    plain = name not in ("", ".", "..") and not any(c in name for c in "/\\\0")
    return (
        plain
        and isinstance(value, dict)
        and isinstance(value.get("sha256"), str)
        and _SHA256.fullmatch(value["sha256"]) is not None
        and isinstance(value.get("bytes"), int)
    )


def describe_outputs(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns the ``outputs`` of a record: sha256 and size in bytes of each file of ``names`` in ``folder``."""
    return {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(names)
    }


def output_problem(folder: Path | Snapshot, record: Mapping[str, Any]) -> str:
    """Returns "" if every output of the record exists byte for byte, else one line about the first other."""
    if isinstance(folder, Snapshot):
        return _remote_problem(folder, record)
    for name, expected in record["outputs"].items():
        path = folder / name
        try:
            if not is_plain(path):
                return f"{name} is a link, or not a file" if os.path.lexists(path) else f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} does not have its recorded size"
            if sha256_file(path) != expected["sha256"]:
                return f"{name} does not match its recorded hash"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return ""


def _remote_problem(folder: Snapshot, record: Mapping[str, Any]) -> str:
    """As ``output_problem`` at a URL: compares sizes and the store's content tags from publishing."""
    for name, expected in record["outputs"].items():
        meta = folder.files.get(object_name(name, expected))
        if meta is None:
            return f"{name} is missing"
        if meta.size != expected["bytes"]:
            return f"{name} does not have its recorded size"
        if meta.etag and expected.get("tag") and meta.etag != expected["tag"]:
            return f"{name} does not match its recorded hash"
    return "its publication was interrupted" if is_partly_published(record, folder.files) else ""

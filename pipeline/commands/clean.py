"""``latentkiln clean``: lists assets whose rows are no longer in the manifest, and deletes them on request."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.asset_layout import FAILURE, RECORD
from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_ROWS_FAILED, ManifestError
from pipeline.core.location import Location, RemotePath
from pipeline.core.terminal import say, say_json
from pipeline.export.record import foreign_files
from pipeline.manifest import ValidatedManifest
from pipeline.manifest.problems import quoted
from pipeline.plan import leftovers
from pipeline.scheduler.file_lock import asset_lock
from pipeline.storage import publish
from pipeline.storage.errors import StorageError
from pipeline.storage.lease import holder
from pipeline.storage.snapshot import Snapshot

_WOULD, _BUILT = "would be deleted", "being built"


@dataclass(frozen=True)
class _Leftover:
    """A folder of ours without a row: its size in ``bytes``, and what was done with it."""

    id: str
    bytes: int
    fate: str


def clean(
    manifest: Location,
    *,
    out: Location = Path("outputs"),
    overrides: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    yes: bool = False,
    json: bool = False,
) -> int:
    """Lists the assets under ``out`` that no row of ``manifest`` names; deletes them with ``yes``.

    ``out`` is a folder or a URL. Touches only folders with a record or failure of their own name, or with nothing but
    files of an interrupted row. Keeps assets that a run is building and folders with foreign files, and follows no
    links. Returns 0; 1 if a deletion failed, 3 if a run is building an asset. Raises ManifestError if any row of the
    manifest is wrong, since the asset of such a row is unknown.
    """
    validated = ValidatedManifest(manifest, overrides=overrides, allow_outside=allow_outside)
    if validated.bad:
        rows = f"{validated.bad} row{'s' * (validated.bad != 1)}"
        raise ManifestError(f"{manifest}: {rows} wrong, so their assets are not known; run 'latentkiln check' first")
    fates: dict[str, int] = {}
    total = 0
    leftovers_json = []
    for leftover in (
        _remote_leftovers(out, validated.knows, yes)
        if isinstance(out, RemotePath)
        else _local_leftovers(out, validated.knows, yes)
    ):
        kind = leftover.fate.split(":")[0]
        fates[kind] = fates.get(kind, 0) + 1
        total += leftover.bytes
        if json:
            leftovers_json.append(vars(leftover))
        else:
            say(leftover.id, leftover.fate, f"{leftover.bytes} bytes")
    if json:
        say_json({"out": str(out), "deleted": yes, "bytes": total, "assets": leftovers_json})
    else:
        counts = ", ".join(f"{count} {fate}" for fate, count in fates.items()) or "all assets are in the manifest"
        hint = "" if yes or not fates else "; delete them with --yes"
        say(f"{out}: {counts}" + (f" ({total / 1e6:.1f} MB)" if fates else "") + hint)
    if fates.get("not deleted"):
        return EXIT_ROWS_FAILED
    return EXIT_INTERRUPTED if fates.get(_BUILT) else EXIT_OK


def _local_leftovers(out: Path, knows: Callable[[str], bool], yes: bool) -> Iterator[_Leftover]:
    for name, _ in leftovers(out, knows):
        size = sum(_sizes(out / name))
        fate = _reason_to_keep(foreign_files(out / name), yes) or (_delete(out / name) if yes else _WOULD)
        yield _Leftover(name, size, fate)


def _remote_leftovers(out: RemotePath, knows: Callable[[str], bool], yes: bool) -> Iterator[_Leftover]:
    for name, snapshot in leftovers(out, knows):
        size = sum(file.size for file in snapshot.files.values()) if isinstance(snapshot, Snapshot) else 0
        fate = _reason_to_keep(foreign_files(snapshot), yes) or (_remove(out, name) if yes else _WOULD)
        yield _Leftover(name, size, fate)


def _reason_to_keep(others: Sequence[str], yes: bool) -> str:
    """Why a folder with foreign files is kept; "" if there are none."""
    if not others:
        return ""
    some = ", ".join(map(quoted, others[:3])) + (", ..." if len(others) > 3 else "")
    return f"{'not' if yes else 'would not be'} deleted: it contains files that do not belong to an asset: {some}"


def _sizes(folder: Path) -> Iterator[int]:
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(base, name)).st_size


def _remove(out: RemotePath, name: str) -> str:
    """Deletes an asset at a URL. Returns what was done."""
    if holder(out / name) is not None:
        return _BUILT
    try:
        publish.remove_asset(out, name)
    except StorageError as error:
        return f"not deleted: {error.message}"
    return "deleted"


def _delete(folder: Path) -> str:
    """Deletes an asset, its record first, so that a crash leaves no partial asset. Returns what was done."""
    try:
        with asset_lock(folder) as held:
            if not held:
                return _BUILT
            for name in (RECORD, FAILURE):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder)
    except OSError as error:
        return f"not deleted: {error.strerror or error}"
    return "deleted"

"""``latentkiln inspect``: where an asset came from and what is in it."""

from __future__ import annotations

import datetime
import json as json_module
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import EXIT_OK, EXIT_ROWS_FAILED
from pipeline.core.place import Place, Remote
from pipeline.export.inspect import InspectError, inspect_glb
from pipeline.export.record import RECORD, load_record
from pipeline.storage.assets import read_output
from pipeline.storage.look import look
from pipeline.storage.store import store_of


def inspect_asset(path: Place, json: bool = False) -> int:
    """Prints the provenance and figures of the GLB at ``path``; times and such from the record beside it.

    ``path`` may also be an asset's folder, and either may lie at a URL. ``json`` prints one JSON object instead.
    Returns the exit code: 1 with one line on standard error for a file that is not ours or cannot be read. Raises
    StorageError.
    """
    try:
        if isinstance(path, Remote):
            path, asset, (record, reason) = _fetched(path)
        else:
            path = path / "asset.glb" if path.is_dir() else path
            asset = inspect_glb(path)
            record, reason = load_record(path.parent)
    except InspectError as error:
        print(f"latentkiln: error: {error}", file=sys.stderr)
        return EXIT_ROWS_FAILED
    if record is not None and record["fingerprint"] != asset["provenance"].get("fingerprint"):
        record, reason = None, f"{path.parent / RECORD}: belongs to another asset (other fingerprint)"
    if json:
        whole = {"path": str(path), **asset, "record": record, "record_problem": reason or None}
        print(json_module.dumps(whole))
        return EXIT_OK
    for label, value in _lines(path, asset, record):
        print(f"{label:<15} {value}")
    if reason:
        print(f"{'note':<15} {_printable(reason)}")
    return EXIT_OK


def _fetched(place: Remote) -> tuple[Remote, dict[str, Any], tuple[dict[str, Any] | None, str]]:
    """The place of a GLB at a URL, what it says about itself, and its record. Raises InspectError, StorageError."""
    if place.suffix.lower() != ".glb":
        place = place / "asset.glb"
    there = look(place.parent)
    record, reason = load_record(there)
    try:
        if record is not None and place.name in record["outputs"]:
            data = read_output(place.parent, place.name)[0]
        else:
            data = store_of(place).read(place)[0]
    except FileNotFoundError:
        raise InspectError(f"{place}: cannot be read: nothing is there") from None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "asset.glb"
        copy.write_bytes(data)
        try:
            return place, inspect_glb(copy), (record, reason)
        except InspectError as error:
            raise InspectError(error.message.replace(str(copy), str(place))) from None


def _lines(path: Place, asset: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Label and text of each line; a line whose value is unknown is left out."""
    provenance = asset["provenance"]
    texture, bounds = asset["texture"], asset["bounds"]
    lines: list[tuple[str, Any]] = [
        ("asset", path),
        ("id", provenance.get("id")),
        ("prompt", provenance.get("prompt")),
        ("negative prompt", provenance.get("negative_prompt")),
        ("seed", provenance.get("seed")),
        ("recipe", _joined(provenance.get("recipe"), provenance.get("recipe_version"), "version ")),
        ("prior", _joined(_at(provenance, "prior", "name"), _short(_at(provenance, "prior", "identity")))),
        ("mesh", _joined(_at(record, "inputs", "mesh", "name"), _short(provenance.get("mesh_sha256")))),
        ("backends", _pairs(provenance.get("backends") or _at(record, "backends"))),
        ("unwrap", _joined(_at(record, "unwrap", "method"), _at(record, "unwrap", "reason"))),
        ("fingerprint", provenance.get("fingerprint")),
        ("generator", asset["generator"]),
        ("file", f"{asset['bytes']:,} bytes"),
        ("geometry", f"{asset['triangles']:,} triangles, {asset['vertices']:,} vertices"),
    ]
    if bounds:
        size = " x ".join(f"{high - low:.6g}" for low, high in zip(*bounds, strict=True))
        lines.append(("size", f"{size} (in the input's units)"))
    if texture:
        pixels = f"{texture['width']} x {texture['height']} {texture['format'].upper()}"
        lines.append(("texture", f"{pixels}, {texture['bytes']:,} bytes"))
    lines.append(("settings", _pairs(provenance.get("settings"))))
    if record is not None:
        lines.append(("lockstep", record.get("lockstep")))
        lines.append(("times", _times(record.get("timings"))))
        lines.append(("peak memory", _unit(record.get("peak_rss_mb"), "MB")))
        lines.append(("built", _date(record.get("finished"))))
        warnings = record.get("warnings")
        lines += [("warning", warning) for warning in warnings] if isinstance(warnings, list) else []
    return [(label, _printable(value)) for label, value in lines if value not in (None, "")]


def _printable(value: object) -> str:
    """One line of text that a terminal can show: a foreign file's control characters are escaped."""
    text = value if isinstance(value, str) else str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _at(value: object, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _short(digest: object) -> str | None:
    return digest[:12] if isinstance(digest, str) else None


def _joined(first: object, second: object, word: str = "") -> str | None:
    """``first (word second)``, or what there is of it."""
    if first in (None, ""):
        return None
    return str(first) if second in (None, "") else f"{first} ({word}{second})"


def _unit(value: object, unit: str) -> str | None:
    return f"{value:,.0f} {unit}" if isinstance(value, (int, float)) else None


def _pairs(value: object) -> str | None:
    """``key=value`` of what is set; what is left to defaults (None) says nothing."""
    if not isinstance(value, dict):
        return None
    return ", ".join(f"{k}={v}" for k, v in sorted(value.items()) if v is not None)


def _date(value: object) -> str | None:
    """Seconds since 1970 as a date in UTC."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1e11:
        return None
    return datetime.datetime.fromtimestamp(value, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _times(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    numbers = {k: v for k, v in value.items() if isinstance(v, (int, float))}
    # "total" may be among them; it is said last, whatever its place.
    ordered = sorted(numbers.items(), key=lambda item: (item[0] == "total", -item[1]))
    return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in ordered)

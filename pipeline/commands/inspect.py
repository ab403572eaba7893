"""``latentkiln inspect``: prints an asset's provenance and figures."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.commands.quality import quality_text
from pipeline.core.asset_layout import RECORD
from pipeline.core.errors import EXIT_OK, EXIT_ROWS_FAILED
from pipeline.core.hashing import sha256_bytes
from pipeline.core.location import Location, RemotePath
from pipeline.core.terminal import complain, say, say_json
from pipeline.export.inspect import InspectError, inspect_glb
from pipeline.export.record import load_record, output_problem
from pipeline.storage.publish import read_output
from pipeline.storage.snapshot import Snapshot, take_snapshot
from pipeline.storage.store import store_of


def inspect_asset(path: Location, json: bool = False) -> int:
    """Prints the provenance and figures of the GLB at ``path``, with timings of the record beside it.

    ``path`` may also be an asset's folder, and either may be a URL. ``json`` prints one JSON object instead. Returns
    1, with one line on standard error, for a file that is unreadable or not ours, or whose bytes differ from the record
    (for a folder: any of its outputs). Otherwise returns 0. Raises StorageError.
    """
    try:
        if isinstance(path, RemotePath):
            path, asset, (record, reason), damage = _fetched(path)
        else:
            document = path.is_dir()
            path = path / "asset.glb" if document else path
            asset = inspect_glb(path)
            record, reason = load_record(path.parent)
            damage = _damage(path, record, all_outputs=document)
    except InspectError as error:
        complain(f"latentkiln: error: {error}")
        return EXIT_ROWS_FAILED
    code = EXIT_ROWS_FAILED if damage else EXIT_OK
    if record is not None and record["fingerprint"] != asset["provenance"].get("fingerprint"):
        record, reason = None, f"{path.parent / RECORD}: belongs to another asset (other fingerprint)"
    if json:
        details = {"record": record, "record_problem": reason or None, "damage": damage or None}
        say_json({"path": str(path), **asset, **details})
        return code
    for label, value in _lines(path, asset, record):
        say(f"{label:<15} {value}")
    if reason:
        say(f"{'note':<15} {reason}")
    if damage:
        say(f"{'damaged':<15} {damage}; build it again with 'latentkiln run'")
    return code


def _damage(path: Path, record: Mapping[str, Any] | None, *, all_outputs: bool) -> str:
    """Returns how the file at ``path`` (with ``all_outputs``, any output) differs from its record; "" if it does
    not."""
    if record is None:
        return ""
    outputs = record["outputs"]
    named = outputs if all_outputs else {path.name: outputs[path.name]} if path.name in outputs else {}
    return output_problem(path.parent, {**record, "outputs": named})


def _fetched(location: RemotePath) -> tuple[RemotePath, dict[str, Any], tuple[dict[str, Any] | None, str], str]:
    """Returns the URL of a GLB, its provenance and figures, its record, and "" or how its bytes differ from the record.

    Raises InspectError, StorageError.
    """
    is_folder = location.suffix.lower() != ".glb"
    if location.suffix.lower() != ".glb":
        location = location / "asset.glb"
    snapshot = take_snapshot(location.parent)
    record, reason = load_record(snapshot)
    try:
        if record is not None and location.name in record["outputs"]:
            data = read_output(location.parent, location.name)[0]
        else:
            data = store_of(location).read(location)[0]
    except FileNotFoundError:
        raise InspectError(f"{location}: cannot be read: there is no file at this URL") from None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "asset.glb"
        copy.write_bytes(data)
        try:
            return (
                location,
                inspect_glb(copy),
                (record, reason),
                _remote_damage(location, data, record, snapshot, is_folder),
            )
        except InspectError as error:
            raise InspectError(error.message.replace(str(copy), str(location))) from None


def _remote_damage(
    location: RemotePath, data: bytes, record: Mapping[str, Any] | None, snapshot: Snapshot, all_outputs: bool
) -> str:
    """As ``_damage``, but compares sizes and tags of the other outputs, not their bytes."""
    if record is None:
        return ""
    expected = record["outputs"].get(location.name)
    if expected is not None and sha256_bytes(data) != expected["sha256"]:
        return f"{location.name} does not match its recorded hash"
    return output_problem(snapshot, record) if all_outputs else ""


def _lines(path: Location, asset: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Returns label and text of each line. Leaves out unknown values."""
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
    lines += [("part", _part(part)) for part in asset["parts"]]
    lines.append(("settings", _pairs(provenance.get("settings"))))
    if record is not None:
        lines.append(("lockstep", record.get("lockstep")))
        lines.append(("quality", quality_text(record)))
        lines.append(("times", _times(record.get("timings"))))
        lines.append(("peak memory", _unit(record.get("peak_rss_mb"), "MB")))
        lines.append(("built", _date(record.get("finished"))))
        warnings = record.get("warnings")
        lines += [("warning", warning) for warning in warnings] if isinstance(warnings, list) else []
    return [(label, str(value)) for label, value in lines if value not in (None, "")]


def _part(part: Mapping[str, Any]) -> str:
    """A material of the artist's document, and what was painted of it."""
    count, texture, painted = part["primitives"], part["texture"], part["painted"]
    words = [f"{part['material']}: {count} primitive{'s' * (count != 1)}"]
    if texture:
        words.append(f"{texture['width']} x {texture['height']} {texture['format'].upper()}")
    if painted is None:
        words.append("the artist's")
    else:
        words.append(f"painted, {painted.get('uv')}")
        words += ["split from others"] if painted.get("split") else []
        words += [f"variant {painted['variant']}"] if painted.get("variant") else []
    return ", ".join(words)


def _at(value: object, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _short(digest: object) -> str | None:
    return digest[:12] if isinstance(digest, str) else None


def _joined(first: object, second: object, word: str = "") -> str | None:
    """Returns ``first (word second)``, without the parts that are missing."""
    if first in (None, ""):
        return None
    return str(first) if second in (None, "") else f"{first} ({word}{second})"


def _unit(value: object, unit: str) -> str | None:
    return f"{value:,.0f} {unit}" if isinstance(value, (int, float)) else None


def _pairs(value: object) -> str | None:
    """Returns ``key=value`` of each setting that is not None."""
    if not isinstance(value, dict):
        return None
    return ", ".join(f"{k}={v}" for k, v in sorted(value.items()) if v is not None)


def _date(value: object) -> str | None:
    """Formats seconds since 1970 as a date in UTC."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1e11:
        return None
    return datetime.datetime.fromtimestamp(value, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _times(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    numbers = {k: v for k, v in value.items() if isinstance(v, (int, float))}
    # Print "total" last.
    ordered = sorted(numbers.items(), key=lambda item: (item[0] == "total", -item[1]))
    return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in ordered)

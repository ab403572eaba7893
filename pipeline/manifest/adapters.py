"""The fields ``lora`` and ``concept``: adapter files for one row."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pipeline.core.job import AdapterFile
from pipeline.core.location import InputFile, Location
from pipeline.manifest.problems import quoted

ADAPTERS: tuple[Literal["lora", "concept"], ...] = ("lora", "concept")
ENDINGS = (".safetensors",)
MAX_FILES = 8
MAX_WEIGHT = 10.0
_WEIGHT = re.compile(r"(?P<path>.+?)\s*:\s*(?P<weight>[+-]?[0-9]*\.?[0-9]+)")
ALLOWED = {
    "lora": "the path of a .safetensors LoRA, with :WEIGHT if it is not 1; several separated by ';'",
    "concept": "the path of a .safetensors textual inversion; several separated by ';'",
}


def read_adapters(
    kind: Literal["lora", "concept"], value: object, find: Callable[[str], tuple[Location | None, str]]
) -> tuple[tuple[AdapterFile, ...], str]:
    """Parses a field to adapter files, or returns an error. ``find`` resolves a path or URL, or returns an error."""
    if not isinstance(value, str):
        return (), f"{quoted(value)} is not text; allowed: {ALLOWED[kind]}"
    entries = [entry.strip() for entry in value.split(";") if entry.strip()]
    if not 1 <= len(entries) <= MAX_FILES:
        return (), f"it names {len(entries)} files; allowed: 1 to {MAX_FILES}"
    adapters = []
    for entry in entries:
        weighed = _WEIGHT.fullmatch(entry) if kind == "lora" else None
        weight = float(weighed["weight"]) if weighed else 1.0
        if abs(weight) > MAX_WEIGHT:
            return (), f"the weight {weight:g} is not allowed; allowed: from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        location, reason = find(weighed["path"] if weighed else entry)
        if location is None:
            return (), reason
        adapters.append(AdapterFile(kind, InputFile(location), weight))
    return tuple(adapters), ""

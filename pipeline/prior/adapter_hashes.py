"""Content hashes of a row's adapter files, for fingerprints and records. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile
from pipeline.prior.cache import file_hash


def adapter_hashes(files: Iterable[AdapterFile]) -> list[dict[str, Any]]:
    """Returns ``kind``, ``name``, ``sha256`` and ``weight`` of each file. Raises PriorError if one cannot be read.

    The name of a LoRA is empty, so renaming its file rebuilds no asset. The name of a concept may be its word in
    prompts.
    """
    try:
        return [
            {
                "kind": adapter.kind,
                "name": adapter.file.local().stem if adapter.kind == "concept" else "",
                "sha256": file_hash(adapter.file.local()),
                "weight": adapter.weight,
            }
            for adapter in files
        ]
    except OSError as error:
        raise PriorError(f"{error.filename}: cannot be read ({error.strerror})") from None

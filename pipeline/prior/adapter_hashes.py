"""What a row's adapter files are, by their bytes: for fingerprints and records. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile
from pipeline.prior.cache import file_hash


def adapter_hashes(files: Iterable[AdapterFile]) -> list[dict[str, Any]]:
    """``kind``, ``name``, ``sha256`` and ``weight`` of each. Raises PriorError when one cannot be read.

    A LoRA's name means nothing and is left empty: a file that is renamed rebuilds no asset. A concept's can be the
    word that stands for it in prompts.
    """
    try:
        return [
            {
                "kind": file.kind,
                "name": file.path.stem if file.kind == "concept" else "",
                "sha256": file_hash(file.path),
                "weight": file.weight,
            }
            for file in files
        ]
    except OSError as error:
        raise PriorError(f"{error.filename}: cannot be read ({error.strerror})") from None

"""Remove credentials from text that is printed or written. Credentials come from the environment only."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping

from pipeline.core.json_types import Json
from pipeline.core.redact import redact

_NAMES = re.compile(r"secret|token|passw|credential|access_key|account_key|sas|^key$|_key$", re.IGNORECASE)
_VARIABLES = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_", "HF_", "HUGGING_FACE_", "RAY_AUTH_")
# Shorter values could be ordinary words.
_SHORTEST = 6


def scrub(text: str) -> str:
    """Return ``text`` without the secrets in this process's environment, and without anything that looks like one."""
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "***")
    return redact(text)


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.startswith(_VARIABLES) and _NAMES.search(name) and len(value) >= _SHORTEST:
            yield value
    # fsspec's own configuration, if it was loaded.
    config = getattr(sys.modules.get("fsspec.config"), "conf", None)
    if isinstance(config, Mapping):
        yield from _values(config)


def _values(config: Json) -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif isinstance(value, str) and _NAMES.search(str(name)) and len(value) >= _SHORTEST:
            yield value

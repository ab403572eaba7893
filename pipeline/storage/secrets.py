"""Keeps credentials out of what is printed or written: they come from the environment and stay there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_NAMES = re.compile(r"secret|token|passw|credential|access_key|account_key|sas|^key$|_key$", re.IGNORECASE)
# What signs a request, wherever it may turn up: in a URL, a header, an error of a client library.
_PATTERNS = (
    re.compile(r"(?i)(x-amz-(?:signature|credential|security-token)=)[^&\s'\"]+"),
    re.compile(r"(?i)((?:signature|credential|sig|awsaccesskeyid)=)[^&,\s'\"]+"),
    re.compile(r"(?i)(authorization:?\s*)(?:bearer\s+|aws4-hmac-sha256\s+)?[^\s'\"]+"),
    re.compile(r"(://)[^/@\s]+(?=@)"),
)
# Shorter values would blot out ordinary words.
_SHORTEST = 6
_HIDDEN = "[hidden]"


def scrub(text: str) -> str:
    """``text`` without the secrets this process knows of, and without anything that looks like a signature."""
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{_HIDDEN}", text)
    return text


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.startswith(("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")) and _NAMES.search(name):
            yield from _long_enough(value)
    # fsspec's own configuration, where it was loaded at all.
    config = getattr(sys.modules.get("fsspec.config"), "conf", None)
    if isinstance(config, Mapping):
        yield from _values(config)


def _values(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif isinstance(value, str) and _NAMES.search(str(name)):
            yield from _long_enough(value)


def _long_enough(value: str) -> Iterator[str]:
    if len(value) >= _SHORTEST:
        yield value

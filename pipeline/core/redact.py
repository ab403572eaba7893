"""Takes secrets out of text that goes into records, logs or messages."""

from __future__ import annotations

import re

_REDACTED = "***"
# scheme://user:password@host
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]+@")
# Parameters of signed URLs, and settings written as name=value.
_NAMED_SECRET = re.compile(
    r"(?P<name>\b(?:[A-Za-z0-9_-]*(?:signature|password|passwd|secret|token|credential|api[_-]?key|access[_-]?key)"
    r"[A-Za-z0-9_-]*))(?P<equals>\s?[=:]\s?)(?P<quote>[\"']?)[^\s&\"',;]+",
    re.IGNORECASE,
)
_AUTHORISATION = re.compile(r"(?P<kind>\b(?:Bearer|Basic)\s+)[A-Za-z0-9+/=._~-]{8,}", re.IGNORECASE)
_AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def redact(text: str) -> str:
    """Replaces credentials in ``text`` by ``***``.

    Recognises user information and signatures in URLs, ``password=...``, bearer tokens and AWS key ids.
    """
    if not any(mark in text for mark in ("://", "=", ":", "earer", "asic", "AKIA", "ASIA")):
        return text
    text = _USER_INFO.sub(rf"\g<scheme>{_REDACTED}@", text)
    text = _AUTHORISATION.sub(rf"\g<kind>{_REDACTED}", text)
    text = _NAMED_SECRET.sub(rf"\g<name>\g<equals>\g<quote>{_REDACTED}", text)
    return _AWS_KEY.sub(_REDACTED, text)

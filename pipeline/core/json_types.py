"""Types of JSON values."""

from __future__ import annotations

from collections.abc import Mapping

# A JSON object whose values the reader checks before use.
Json = Mapping[str, object]

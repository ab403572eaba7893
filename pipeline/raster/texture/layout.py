"""The types that all backends of texture lookups share."""

from __future__ import annotations

from typing import Literal

Mode = Literal["bilinear", "nearest"]

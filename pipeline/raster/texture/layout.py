"""What every backend of texture lookups shares."""

from __future__ import annotations

from typing import Literal

Mode = Literal["bilinear", "nearest"]

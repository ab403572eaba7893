"""Formats the record's figures of quality for ``inspect`` and ``status``. Records are untrusted."""

from __future__ import annotations

from collections.abc import Mapping

# Each figure, in the order in which it is shown, and how.
_WORDS = {
    "gradient": "gradient {:.1f}",
    "contrast": "contrast {:.1f}",
    "faded": "faded {:.0%}",
    "texels_per_radius": "{:.0f} texels a radius",
    "prior_pixels_per_radius": "{:.0f} prior pixels a radius",
    "coverage": "covered {:.0%}",
    "chart_seam": "chart seams {:.1f} of 255",
    "wrap_step": "borders {:.1f} of 255",
    "inside_step": "inside {:.1f}",
}
_SHORT = ("gradient", "contrast", "faded", "chart_seam", "wrap_step", "inside_step")


def quality_figures(record: Mapping[str, object] | None) -> dict[str, float]:
    """The usable figures of a record; {} if it has none."""
    values = record.get("quality") if record else None
    if not isinstance(values, dict):
        return {}
    known = ((name, values.get(name)) for name in _WORDS)
    return {n: float(v) for n, v in known if isinstance(v, int | float) and type(v) is not bool and abs(v) < 1e6}


def quality_text(record: Mapping[str, object] | None, *, short: bool = False) -> str:
    """The figures of a record in one line; with ``short`` only the most important ones."""
    figures = quality_figures(record)
    names = [name for name in (_SHORT if short else _WORDS) if name in figures]
    return ", ".join(_WORDS[name].format(figures[name]) for name in names)

"""Parses field values from text or JSON, and words what is allowed."""

from __future__ import annotations

import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.fields import FieldInfo

from pipeline.manifest.problems import join_or, quoted
from pipeline.manifest.readers import decode_json
from pipeline.recipes.generate_settings import MAX_SHAPES

FieldKind = Literal["whole", "number", "switch", "choice", "text", "words", "patterns", "shapes"]

# Wording for fields whose types do not imply it.
_ALLOWED = {
    "base_colour": "a colour like #c04020",
    "target": 'a list of 1 to 64 names or patterns, like ["Body", "wheel_*"]',
    "shapes": f'a list of 1 to {MAX_SHAPES} solids, like [{{"shape": "box", "size": [1, 0.5, 1]}}]',
}


@dataclass(frozen=True)
class FieldRule:
    """How a field's text is parsed (``kind``), and what is allowed, in words."""

    kind: FieldKind
    allowed: str


def field_rule(name: str, field: FieldInfo) -> FieldRule:
    """Derives the rule of a model's field ``name`` from its type and limits."""
    annotation = field.annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(candidate for candidate in typing.get_args(annotation) if candidate is not type(None))
    if typing.get_origin(annotation) is Literal:
        return FieldRule("choice", join_or(typing.get_args(annotation)))
    if typing.get_origin(annotation) is list:
        (item,) = typing.get_args(annotation)
        if typing.get_origin(item) is Literal:
            return FieldRule("words", f"a list of {join_or(typing.get_args(item))}")
        if item is str:
            return FieldRule("patterns", _ALLOWED[name])
        return FieldRule("shapes", _ALLOWED[name])
    if annotation is bool:
        return FieldRule("switch", "true or false")
    if annotation is str:
        return FieldRule("text", _ALLOWED.get(name, "text"))
    limits = {
        key: value for candidate in field.metadata for key in ("ge", "gt", "le", "multiple_of")
        if (value := getattr(candidate, key, None)) is not None
    }  # fmt: skip
    noun = "a whole number" if annotation is int else "a number"
    span = f"above {limits['gt']:g} and at most {limits['le']:g}" if "gt" in limits else (
        f"from {_plain(limits['ge'])} to {_plain(limits['le'])}"
    )  # fmt: skip
    multiple = f" that is a multiple of {limits['multiple_of']}" if "multiple_of" in limits else ""
    return FieldRule("whole" if annotation is int else "number", f"{noun} {span}{multiple}")


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


_WHOLE = re.compile(r"[+-]?[0-9]{1,20}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_text(rule: FieldRule, text: str) -> tuple[Any, str]:
    """Parses ``text`` of a CSV cell or of ``--set``. Returns (value, "") or (None, error)."""
    if rule.kind == "switch":
        value = _SWITCH.get(text.lower())
        return (value, "") if value is not None else (None, not_allowed(rule, text))
    if rule.kind == "whole":
        return (int(text.split(".")[0]), "") if _WHOLE.fullmatch(text) else (None, not_allowed(rule, text))
    if rule.kind == "number":
        if not _NUMBER.fullmatch(text):
            hint = " (write the decimal point as '.')" if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text) else ""
            return None, not_allowed(rule, text) + hint
        number = float(text)
        return (number, "") if math.isfinite(number) else (None, not_allowed(rule, text))
    if rule.kind == "words":
        return [word for word in re.split(r"[\s,;+]+", text) if word], ""
    if rule.kind == "patterns":
        return [word.strip() for word in re.split(r"[,;]", text) if word.strip()], ""
    if rule.kind == "shapes":
        shapes, reason = decode_json(text)
        return read_json(rule, shapes) if not reason else (None, f"{reason}; allowed: {rule.allowed}")
    return text, ""


_TYPES: dict[FieldKind, tuple[type, ...]] = {
    "whole": (int,),
    "number": (int, float),
    "switch": (bool,),
    "choice": (str,),
    "text": (str,),
    "words": (list,),
    "patterns": (list,),
    "shapes": (list,),
}


def read_json(rule: FieldRule, value: Any) -> tuple[Any, str]:
    """Converts a JSON value for the models. Returns (value, "") or (None, error)."""
    kind = type(value)
    if rule.kind == "whole" and kind is float and math.isfinite(value) and value.is_integer():
        # JSON has one number type: 300.0 is 300.
        return int(value), ""
    if rule.kind == "number" and kind is int and abs(value) > 2**1000:
        return None, not_allowed(rule, value)
    return (value, "") if kind in _TYPES[rule.kind] else (None, not_allowed(rule, value))


def not_allowed(rule: FieldRule, value: object) -> str:
    """Returns the message for a ``value`` that violates ``rule``."""
    text = quoted(value)
    if rule.kind in ("choice", "text") and not isinstance(value, str):
        return f"{text} is not text; allowed: {rule.allowed}"
    return f"{text} is not allowed; allowed: {rule.allowed}"

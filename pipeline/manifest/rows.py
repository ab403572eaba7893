"""Converts a raw row to a Job, or to the list of all its problems."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import UsageError
from pipeline.core.job import AdapterFile, Job, RowLocation
from pipeline.core.location import InputFile, Location
from pipeline.manifest import schema
from pipeline.manifest.adapters import ADAPTERS, ENDINGS, read_adapters
from pipeline.manifest.file_finder import FileFinder
from pipeline.manifest.ids import derive_id, id_problem
from pipeline.manifest.problems import Problem, join_or, quoted, suggestion
from pipeline.manifest.readers import RawRow
from pipeline.manifest.schema import DEFAULT_RECIPE, MAX_PROMPT, MAX_SEED, RECIPES
from pipeline.mesh.mesh_hash import FORMATS
from pipeline.recipes.shared_settings import SharedOptions

# Fields that --set may set for all rows.
_SETTABLE = ("seed", "negative_prompt", *schema.SETTINGS)
_KNOWN = frozenset(schema.FIELDS)
_CACHED = 4096
# Every number with fewer digits is a valid seed.
_SURE_DIGITS = len(str(MAX_SEED))

# Control characters and lone surrogates; tab and line ends are white space in prompts.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")

_SETTINGS_OF = {name: frozenset(recipe.model.model_fields) for name, recipe in RECIPES.items()}
_MAX_FACES: int = SharedOptions.model_fields["max_faces"].default
# Allowed values of a row without a mesh, for error messages.
_MESH_OR_RECIPE = f"the path of a mesh, or recipe {join_or(n for n, r in RECIPES.items() if r.mesh not in r.required)}"
_REQUIRED = {name: frozenset(recipe.required) for name, recipe in RECIPES.items()}

FieldError = tuple[str, str]
# Returns the error of a mesh of at most so many faces; "" if it is usable.
MeshReason = Callable[[Location, int], str]
# Returns the errors of a row's LoRAs and concepts.
AdapterErrors = Callable[[Sequence[AdapterFile]], list[FieldError]]


@dataclass(frozen=True)
class RowInput:
    """Settings of a row: all with defaults, the row's own, and errors."""

    settings: dict[str, Any]
    own: dict[str, object]
    errors: tuple[FieldError, ...]


_NO_INPUT = RowInput({}, {}, ())


class RowChecker:
    """Checks rows one by one. Caches the results of equal settings and meshes.

    ``mesh_reason`` and ``adapter_errors``, if given, check the files of rows that have other errors, so that all
    errors of a row are reported at once.
    """

    def __init__(
        self,
        manifest: Location,
        *,
        overrides: Mapping[str, str] | None = None,
        allow_outside: bool = False,
        check_files: bool = True,
        mesh_reason: MeshReason | None = None,
        adapter_errors: AdapterErrors | None = None,
    ):
        self.file = str(manifest)
        self._finder = FileFinder(manifest, allow_outside=allow_outside, check_files=check_files)
        self._mesh_reason = mesh_reason
        self._adapter_errors = adapter_errors
        self._settings: dict[object, RowInput] = {}
        self._recipes: set[str] = set()
        # Maps a field's text to the mesh, its path as hashed into a derived id, and its error.
        self._meshes: dict[str, tuple[Location | None, str, str]] = {}
        self._overrides = self._read_overrides(overrides or {})

    def _read_overrides(self, overrides: Mapping[str, str]) -> dict[str, Any]:
        values: dict[str, object] = {}
        for name, text in overrides.items():
            option = f"--set {name}={text}"
            if name not in _SETTABLE:
                if name in _KNOWN:
                    raise UsageError(f"{option}: '{name}' belongs to each row and cannot be set for all rows")
                known = suggestion(name, _SETTABLE) or f"; allowed: {', '.join(_SETTABLE)}"
                raise UsageError(f"{option}: unknown setting {quoted(name)}{known}")
            errors: list[FieldError] = []
            if name == "negative_prompt":
                values[name] = self._text({name: text}, name, MAX_PROMPT, errors)
            else:
                values[name], reason = schema.from_text(name, text)
                if reason:
                    errors.append((name, reason))
                elif name == "seed":
                    self._seed(text, True, errors)
            if errors:
                raise UsageError(f"{option}: {errors[0][1]}")
        # Combinations of settings can only be checked per row.
        for recipe in RECIPES:
            for name, message in schema.settings_problems(recipe, _settings_of(recipe, values), together=False)[1]:
                raise UsageError(f"--set {name}={overrides[name]}: {message}")
        return values

    def raise_for_unused(self) -> None:
        """Call this after the last row. Raises UsageError for an override that no row's recipe has."""
        for name in self._overrides:
            owners = schema.recipes_with(name)
            if self._recipes and self._recipes.isdisjoint(owners):
                raise UsageError(
                    f"--set {name}: only the recipe {join_or(owners)} has this setting, and no row uses that recipe"
                )

    def defaults(self, raw: RawRow) -> list[Problem]:
        """Returns the errors of a manifest's ``defaults``. Each makes the whole manifest unusable."""
        errors = [("id", "an id cannot be a default: it names one row")] if "id" in raw.values else []
        self._check(raw, errors, partial=True)
        return [
            Problem(self.file, 0, f"defaults: {_field(field)}", message, unusable=True) for field, message in errors
        ]

    def check(self, raw: RawRow) -> tuple[Job | None, list[Problem], str | None]:
        """Returns the row's job (None if it has problems), its problems, and its id if that is valid."""
        errors = list(raw.errors)
        job, row_id = self._check(raw, errors)
        if not errors:
            return job, [], row_id
        return job, [Problem(self.file, raw.row, _field(field), text, row_id) for field, text in errors], row_id

    def _check(self, raw: RawRow, errors: list[FieldError], partial: bool = False) -> tuple[Job | None, str | None]:
        row_id = None
        if "id" in raw.values and not partial:
            row_id = self._id(raw.values["id"], errors)
        if raw.broken:
            return None, row_id
        recipe = self._recipe(raw.values.get("recipe", DEFAULT_RECIPE), errors)
        values = self._own_values(raw, recipe) if raw.inherited else raw.values
        names = _names(recipe, tuple(values), raw.text, partial)
        errors += names.errors
        expected = RECIPES[recipe].prompt if recipe else "text"
        prompt = self._text(values, "prompt", MAX_PROMPT, errors, expected)
        negative = self._text(values, "negative_prompt", MAX_PROMPT, errors) if "negative_prompt" in values else ""
        seed = self._seed(values["seed"], raw.text, errors) if "seed" in values else 0
        mesh, mesh_text, mesh_field = None, "", ""
        for name in names.meshes:
            mesh_location, text = self._mesh(values.get(name), name, errors)
            if mesh_location is not None:
                mesh, mesh_text, mesh_field = mesh_location, text, name
        adapters = self._adapters(values, errors) if names.adapters else ()
        if "sketch" in values and not partial and ("shapes" in values or "shapes" in self._overrides):
            forced = "" if "shapes" in values else " (with --set)"
            errors.append(("shapes", f"the row also has a sketch; allowed: one of the two{forced}"))
        # The settings of an unknown recipe cannot be checked.
        row_input = _NO_INPUT
        if partial:
            errors += self._default_errors(values, recipe)
        elif recipe:
            row_input = self._row_input(recipe, names.settings, values, raw.text)
        errors += row_input.errors
        if errors and not partial and mesh is not None and self._mesh_reason:
            # The consumer of the job checks the mesh of a good row.
            limit = row_input.settings.get("max_faces", _MAX_FACES)
            if reason := self._mesh_reason(mesh, limit):
                errors.append((mesh_field, reason))
        if errors and not partial and adapters and self._adapter_errors:
            errors += self._adapter_errors(adapters)
        if errors or partial:
            return None, row_id
        if row_id is None:
            named = {name: values[name] for name in ("lora", "concept") if name in values}
            row_id = derive_id(recipe, prompt, negative, mesh_text, seed, row_input.own | named)
        overrides = self._overrides
        job = Job(
            id=row_id,
            recipe=recipe,
            prompt=prompt,
            negative_prompt=overrides.get("negative_prompt", negative),
            seed=overrides.get("seed", seed),
            mesh=None if mesh is None else InputFile(mesh),
            settings=row_input.settings,
            row_location=RowLocation(self.file, raw.row),
            adapters=adapters,
        )
        return job, row_id

    def _own_values(self, raw: RawRow, recipe: str) -> Mapping[str, object]:
        """Returns the row's values without the manifest's defaults for other recipes.

        A row's own sketch replaces the one of the defaults.
        """
        if not recipe:
            return raw.values
        known = RECIPES[recipe].names
        dropped = {name for name in raw.inherited if name not in known and name in _KNOWN}
        for one, other in (("sketch", "shapes"), ("shapes", "sketch")):
            if one in raw.inherited and other in raw.values and other not in raw.inherited:
                dropped.add(one)
        return {name: value for name, value in raw.values.items() if name not in dropped}

    def _default_errors(self, values: Mapping[str, object], recipe: str) -> Iterator[FieldError]:
        """Yields errors of settings in a manifest's defaults, each checked by a recipe that has it."""
        left = dict(values)
        for other in dict.fromkeys((recipe or DEFAULT_RECIPE, *RECIPES)):
            own = _settings_of(other, left)
            left = {name: value for name, value in left.items() if name not in own}
            yield from self._read_settings(other, own, False).errors

    def _id(self, value: object, errors: list[FieldError]) -> str | None:
        if not isinstance(value, str):
            errors.append(("id", f'{quoted(value)} is not text; allowed: text, like "boot-1"'))
            return None
        reason = id_problem(value)
        if reason:
            errors.append(("id", reason))
        return None if reason else value

    def _recipe(self, value: object, errors: list[FieldError]) -> str:
        if isinstance(value, str) and value in RECIPES:
            if value not in self._recipes:
                self._recipes.add(value)
            return value
        hint = suggestion(value, RECIPES) if isinstance(value, str) else ""
        errors.append(("recipe", f"{quoted(value)} is not a recipe; allowed: {join_or(RECIPES)}{hint}"))
        return ""

    def _text(
        self, values: Mapping[str, object], name: str, longest: int, errors: list[FieldError], expected: str = ""
    ) -> str:
        """Reads a prompt and replaces each run of white space, line breaks included, by one space.

        It may be empty unless ``expected`` describes the required text.
        """
        if name not in values:
            return ""
        value = values[name]
        if not isinstance(value, str):
            errors.append((name, f"{quoted(value)} is not text; allowed: text"))
            return ""
        if len(value) > longest:
            errors.append((name, f"it has {len(value)} characters; allowed: at most {longest}"))
        elif not value.isprintable() and (control := _CONTROL.search(value)):
            code = f"U+{ord(control[0]):04X}"
            errors.append((name, f"it contains the control character {code}; allowed: printable text"))
        text = " ".join(value.split())
        if not text and expected:
            errors.append((name, f"it is empty; allowed: {expected}"))
        return text

    def _seed(self, raw_value: Any, text: bool, errors: list[FieldError]) -> int:
        # Fast path for typical seeds. The rule reads all others and reports their errors.
        if text and len(raw_value) < _SURE_DIGITS and raw_value.isascii() and raw_value.isdigit():
            return int(raw_value)
        if type(raw_value) is int and 0 <= raw_value <= MAX_SEED:
            return raw_value
        read = schema.from_text if text else schema.from_json
        value, reason = read("seed", raw_value)
        if not reason and not 0 <= value <= MAX_SEED:
            reason = f"{quoted(value)} is not allowed; allowed: {schema.RULES['seed'].allowed}"
        if reason:
            errors.append(("seed", reason))
            return 0
        return int(value)

    def _row_input(self, recipe: str, names: tuple[str, ...], values: Mapping[str, object], text: bool) -> RowInput:
        """Reads the settings ``names`` of ``values``."""
        row = tuple([values[name] for name in names])
        try:
            # 1, 1.0 and True are equal as dict keys but differ as settings.
            key = (recipe, names, row, () if text else tuple(map(type, row)))
            if (cached := self._settings.get(key)) is not None:
                return cached
        except TypeError:
            # A list or an object is not hashable.
            return self._read_settings(recipe, dict(zip(names, row, strict=True)), text)
        if len(self._settings) >= _CACHED:
            self._settings.clear()
        row_input = self._settings[key] = self._read_settings(recipe, dict(zip(names, row, strict=True)), text)
        return row_input

    def _read_settings(self, recipe: str, own: Mapping[str, Any], text: bool) -> RowInput:
        read = schema.from_text if text else schema.from_json
        values: dict[str, object] = {}
        errors: list[FieldError] = []
        for name, value in own.items():
            values[name], reason = read(name, value)
            if reason:
                del values[name]
                errors.append((name, reason))
        settings, wrong = schema.settings_problems(recipe, values)
        errors += wrong
        overrides = _settings_of(recipe, self._overrides)
        if overrides and not errors:
            settings, wrong = schema.settings_problems(recipe, {**values, **overrides})
            errors += [(name, f"{message} (with --set)") for name, message in wrong]
        return RowInput(settings, values, tuple(errors))

    def _mesh(self, value: object, field: str, errors: list[FieldError]) -> tuple[Location | None, str]:
        """Returns the mesh's absolute path or URL, and its path as hashed into a derived id."""
        if value is None:
            return None, ""
        if not isinstance(value, str):
            errors.append((field, f"{quoted(value)} is not text; allowed: the path of a mesh"))
            return None, ""
        known = self._meshes.get(value)
        if known is None:
            if len(self._meshes) >= _CACHED:
                self._meshes.clear()
            location, wrong = self._finder.find(value, "mesh", FORMATS)
            known = self._meshes[value] = location, posixpath.normpath(value) if location else "", wrong
        path, text, reason = known
        if reason:
            errors.append((field, reason))
        return path, text

    def _adapters(self, values: Mapping[str, object], errors: list[FieldError]) -> tuple[AdapterFile, ...]:
        """Returns the files of the fields ``lora`` and ``concept``."""
        adapters: tuple[AdapterFile, ...] = ()
        for kind in ADAPTERS:
            if kind in values:
                files, reason = read_adapters(kind, values[kind], functools.partial(self._find_adapter, kind))
                adapters += files
                if reason:
                    errors.append((kind, reason))
        return adapters

    def _find_adapter(self, kind: str, text: str) -> tuple[Location | None, str]:
        return self._finder.find(text, "LoRA" if kind == "lora" else kind, ENDINGS)


def _field(name: str) -> str:
    """Returns a field's name for a message. An untrusted name may be any text, even empty."""
    return name if name in _KNOWN else quoted(name)[1:-1] or "''"


def _settings_of(recipe: str, values: Mapping[str, object]) -> dict[str, Any]:
    settings = _SETTINGS_OF[recipe]
    return {name: value for name, value in values.items() if name in settings}


@dataclass(frozen=True)
class _Names:
    """The result of checking a row's field names: errors, the names of ``settings``, the field of the mesh, and whether
    the row has ``adapters``."""

    errors: tuple[FieldError, ...]
    settings: tuple[str, ...]
    meshes: tuple[str, ...]
    adapters: bool


@functools.lru_cache(_CACHED)
def _names(recipe: str, names: tuple[str, ...], text: bool, partial: bool) -> _Names:
    """Checks the field ``names`` of a row of ``recipe`` ("" if unknown). Cached, since most rows have the same names.

    ``partial``: the names are those of defaults, which rows of any recipe complete.
    """
    # If the recipe is unknown, or rows may set others, the fields of every recipe are allowed.
    fields = RECIPES.get(recipe) if not partial else None
    errors: list[FieldError] = []
    if not (fields.names if fields else _KNOWN).issuperset(names):
        errors += _unknown_fields(names, recipe if fields else "")
    if not partial and not (recipe and _REQUIRED[recipe].issubset(names)):
        errors += _missing(names, text, recipe)
    return _Names(
        tuple(errors),
        tuple(name for name in names if recipe and name in _SETTINGS_OF[recipe]),
        tuple(dict.fromkeys(r.mesh for r in ((fields,) if fields else RECIPES.values()) if r.mesh)),
        "lora" in names or "concept" in names,
    )


def _unknown_fields(names: Sequence[str], recipe: str) -> Iterator[FieldError]:
    """Yields errors of fields that ``recipe`` does not have; "" means an unknown recipe."""
    fields = RECIPES.get(recipe)
    for name in names:
        owners = schema.recipes_with(name)
        if not owners:
            known = (*fields.own, *fields.settings) if fields else schema.FIELDS
            yield name, f"unknown field{suggestion(name, known)}"
        elif fields and name not in fields.names:
            meshes = {RECIPES[owner].mesh for owner in owners}
            hint = f"; did you mean '{fields.mesh}'?" if fields.mesh and name in meshes else ""
            yield name, f"this field belongs to the recipe {join_or(owners)}, but the row's recipe is {recipe}{hint}"


def _missing(names: Sequence[str], text: bool, recipe: str) -> Iterator[FieldError]:
    problem = "it is empty" if text else "it is missing"
    for name in RECIPES[recipe].required if recipe else ("prompt",):
        if name not in names:
            expected = _MESH_OR_RECIPE if name != "prompt" else RECIPES[recipe or DEFAULT_RECIPE].prompt
            yield name, f"{problem}; allowed: {expected}"

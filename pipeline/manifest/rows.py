"""Converts a raw row to a Job, or to the list of all its problems."""

from __future__ import annotations

import functools
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UsageError
from pipeline.core.files import path_on_disk
from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.core.job import AdapterFile, Job, RowLocation
from pipeline.core.location import InputFile, Location, RemotePath, is_url, parse_location, url_problem
from pipeline.manifest import schema
from pipeline.manifest.adapters import ADAPTERS, ENDINGS, read_adapters
from pipeline.manifest.problems import Problem, join_or, quoted, suggestion
from pipeline.manifest.readers import RawRow
from pipeline.manifest.schema import DEFAULT_RECIPE, ID_ALLOWED, MAX_ID, MAX_PATH, MAX_PROMPT, MAX_SEED, RECIPES
from pipeline.mesh.mesh_hash import FORMATS
from pipeline.recipes.shared_settings import SharedOptions

# Fields that --set may set for all rows.
_SETTABLE = ("seed", "negative_prompt", *schema.SETTINGS)
_KNOWN = frozenset(schema.FIELDS)
_CACHED = 4096
# Every number with fewer digits is a valid seed.
_SURE_DIGITS = len(str(MAX_SEED))

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_ID - 1}}}(?<!\.)")
# Device names on Windows (with any ending), and names of the run's own files in the output root.
_DEVICES = frozenset(["con", "prn", "aux", "nul"] + [f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)])
_RESERVED_NAMES = frozenset(["run.json", "run.events.jsonl", "report.html"])
# Control characters and lone surrogates; tab and line ends are white space in prompts.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")

_SETTINGS_OF = {name: frozenset(recipe.model.model_fields) for name, recipe in RECIPES.items()}
_MAX_FACES: int = SharedOptions.model_fields["max_faces"].default
# What a row without a mesh may have instead.
_MESH_OR_RECIPE = f"the path of a mesh, or recipe {join_or(n for n, r in RECIPES.items() if r.mesh not in r.required)}"
_REQUIRED = {name: frozenset(recipe.required) for name, recipe in RECIPES.items()}

FieldError = tuple[str, str]
# Returns the error of a mesh of at most so many faces; "" if it is usable.
MeshReason = Callable[[Location, int], str]
# Returns the errors of a row's LoRAs and concepts.
AdapterErrors = Callable[[Sequence[AdapterFile]], list[FieldError]]


def id_problem(text: str) -> str:
    """Returns "" if ``text`` is a valid folder name on every system, else what is wrong and what is allowed."""
    if not _ID.fullmatch(text):
        return f"{quoted(text)} is not a safe file name; allowed: {ID_ALLOWED}"
    lower = text.lower()
    if lower.partition(".")[0] in _DEVICES:
        return f"{quoted(text)} is the name of a device on Windows; allowed: any other name"
    if lower in _RESERVED_NAMES:
        return f"{quoted(text)} is the name of a file that a run writes; allowed: any other name"
    return ""


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
        # A manifest at a URL has a remote folder.
        self.base = manifest.parent if isinstance(manifest, RemotePath) else None
        self.folder = str(self.base) if isinstance(manifest, RemotePath) else os.path.realpath(manifest.parent)
        self.allow_outside = allow_outside
        self.check_files = check_files
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
            row_id = _derived_id(recipe, prompt, negative, mesh_text, seed, row_input.own | named)
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
            location, wrong = self._find_mesh(value)
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
        label = "LoRA" if kind == "lora" else kind
        if self.base is not None or is_url(text):
            return self._find_remote(text, label, ENDINGS)
        return self._find_local(text, label, ENDINGS)

    def _find_mesh(self, text: str) -> tuple[Location | None, str]:
        if self.base is not None or is_url(text):
            return self._find_remote(text, "mesh", FORMATS)
        return self._find_local(text, "mesh", FORMATS)

    def _find_local(self, text: str, label: str, endings: Sequence[str]) -> tuple[Path | None, str]:
        name = quoted(text)
        if reason := _path_problem(text, self.allow_outside, label, endings):
            return None, reason
        try:
            path = os.path.realpath(path_on_disk(Path(self.folder, text)))
            if not self.allow_outside and os.path.commonpath([self.folder, path]) != self.folder:
                return None, (
                    f"{name} leaves the manifest's folder; allowed: files inside it (or give --allow-outside)"
                )
            if self.check_files:
                file_stat = os.stat(path)
                if stat.S_ISDIR(file_stat.st_mode):
                    return None, f"{name} is a folder; allowed: the path of a {label} file"
                if not stat.S_ISREG(file_stat.st_mode):
                    return None, f"{name} is not a regular file; allowed: the path of a {label} file"
                if file_stat.st_size == 0:
                    return None, f"{name} is an empty file; allowed: a {label} file with content"
                if not os.access(path, os.R_OK):
                    return None, f"{name} cannot be read by this user; allowed: a readable file"
        except FileNotFoundError:
            return None, f"there is no file {name}; allowed: a path relative to {quoted(self.folder)}"
        except UnicodeEncodeError:
            return None, f"{name} cannot be encoded in this locale; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return None, f"{name} cannot be used: {reason}"
        return Path(path), ""

    def _find_remote(self, text: str, label: str, endings: Sequence[str]) -> tuple[RemotePath | None, str]:
        """Resolves a URL, or a path relative to a remote manifest. A missing file is reported by the later fetch."""
        name = quoted(text)
        if self.base is not None and not is_url(text):
            if reason := _path_problem(text, False, label, endings):
                return None, reason
            bucket, _, folder = self.base.key.partition("/")
            path = posixpath.normpath(f"{folder}/{text}".lstrip("/"))
            if path.startswith("..") or not (self.allow_outside or path.startswith(f"{folder}/" if folder else "")):
                return None, f"{name} leaves the manifest's folder; allowed: files inside it (or give --allow-outside)"
            text = f"{self.base.scheme}://{bucket}/{path}"
        if not self.allow_outside and (self.base is None or not text.startswith(f"{self.base}/")):
            outside = "is a URL outside the manifest's folder; allowed: files inside it"
            return None, f"{name if not url_problem(text) else 'this'} {outside} (or give --allow-outside)"
        if len(text) > MAX_PATH:
            return None, f"the URL has {len(text)} characters; allowed: at most {MAX_PATH}"
        if reason := url_problem(text):
            return None, reason
        location = parse_location(text)
        if not isinstance(location, RemotePath):
            return None, f"{name} is the URL of a file on this machine; allowed: the path of the file"
        if location.suffix.lower() not in endings:
            return None, f"{name} is not a {label} format; allowed: {join_or(endings)}"
        return location, ""


def _path_problem(text: str, allow_outside: bool, label: str, endings: Sequence[str]) -> str:
    """Returns the error of a ``label``'s path that its text alone shows; "" if there is none."""
    name = quoted(text)
    if not text.strip():
        return f"it is empty; allowed: the path of a {label}"
    if len(text) > MAX_PATH:
        return f"the path has {len(text)} characters; allowed: at most {MAX_PATH}"
    if not all(c.isprintable() for c in text):
        return f"{name} contains a control character; allowed: printable text"
    if not allow_outside and (text.startswith("/") or _DRIVE.match(text)):
        return f"{name} is an absolute path; allowed: a path inside the manifest's folder (or give --allow-outside)"
    if "\\" in text and not _DRIVE.match(text):
        return f"{name} contains a backslash; allowed: '/' between folders, on every system"
    ending = posixpath.splitext(text)[1].lower()
    if ending not in endings:
        wrong = f"{quoted(ending)} is not a {label} format" if ending else f"{name} has no ending"
        return f"{wrong}; allowed: {join_or(endings)}"
    return ""


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


def _slug(text: str, longest: int) -> str:
    plain = unicodedata.normalize("NFKD", text[: 4 * longest]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(slug) <= longest:
        return slug
    cut = slug[: longest + 1]
    # Cut at the end of a word if there is one.
    return (cut.rsplit("-", 1)[0] if "-" in cut else cut[:longest]).strip("-")


def _derived_id(recipe: str, prompt: str, negative: str, mesh: str, seed: int, own: Mapping[str, object]) -> str:
    """Derives a readable id for a row without one. Equal rows give equal ids.

    Uses the row's own values only, not defaults or ``--set``, which may change from run to run.
    """
    content = canonical_json([recipe, prompt, negative, mesh, seed, dict(own)])
    stem = posixpath.splitext(posixpath.basename(mesh))[0]
    pieces = [_slug(prompt, 40), _slug(stem, 24), sha256_bytes(content)[:12]]
    return "-".join(piece for piece in pieces if piece)

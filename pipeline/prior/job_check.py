"""Checks a row's prompts, LoRAs and concepts against the prior before that is loaded.

Reads only headers and configs. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import PriorError
from pipeline.core.job import AdapterFile, Job
from pipeline.prior import single_file
from pipeline.prior.adapter_layers import match_concepts, match_lora, vectors_of
from pipeline.prior.defaults import GenerateDefaults, PaintDefaults, read_defaults
from pipeline.prior.identity import find_prior
from pipeline.prior.layers import PriorLayers, prior_layers
from pipeline.prior.material_folder import NO_ESTIMATOR, estimator_folder, needs_estimator
from pipeline.prior.prompts import Concepts, PromptReader, Review, suffixes

# A LoRA of SDXL has a header of less than one.
_LARGEST_HEADER = 16 << 20
_REMEMBERED = 1 << 12
_HOW = "give --allow-unknown to build it with the remaining words"

FieldError = tuple[str, str]


@dataclass(frozen=True)
class JobFindings:
    """``errors`` and ``warnings`` of a row: (field, message) each. ``seen``: the parts of its two prompts that the
    prior sees, or None if it sees all."""

    errors: tuple[FieldError, ...] = ()
    warnings: tuple[FieldError, ...] = ()
    seen: tuple[str, str] | None = None


class JobChecker:
    """Checks rows against the prior ``name`` in ``folder``, or in the single ``file``.

    A prompt of unknown words only is an error unless ``allow_unknown``. ``problem`` describes an unreadable file of the
    prior; related checks are skipped, and loading the prior reports it.
    """

    def __init__(self, name: str, folder: Path, file: Path | None = None, *, allow_unknown: bool = False):
        self.problem = ""
        self._folder, self._allow_unknown = folder, allow_unknown
        self._reader: PromptReader | None = PromptReader(name, folder, file)
        self._file = file
        # Maps path, size and time of a file to its error and its words.
        self._files: dict[object, tuple[str, dict[str, int]]] = {}

    @functools.cached_property
    def _layers(self) -> PriorLayers | None:
        try:
            return prior_layers(self._folder, self._file)
        except PriorError as error:
            self.problem = error.message
            return None

    def reason(self, job: Job) -> str:
        """Returns why ``job`` cannot be built; "" if it can."""
        return "; ".join(f"{field}: {message}" for field, message in self.errors(job))

    def errors(self, job: Job) -> tuple[FieldError, ...]:
        """As ``check``, but returns only errors. Skips remote files that are not on this machine."""
        local = tuple(adapter for adapter in job.adapters if adapter.file.is_local)
        return self.check(dataclasses.replace(job, adapters=local), errors_only=True).errors

    def check(self, job: Job, *, errors_only: bool = False) -> JobFindings:
        """Returns all errors and warnings of ``job``. Its files must be on this machine."""
        errors = list(self.adapter_errors(job.adapters))
        if estimated := self._estimated(job):
            errors.append(("maps", estimated))
        if self._reader is None:
            return JobFindings(tuple(errors))
        try:
            warnings, visible = self._prompts(job, self._reader, errors, errors_only)
        except PriorError as error:
            self.problem, self._reader = error.message, None
            return JobFindings(tuple(errors))
        self.problem = self.problem or self._reader.problem
        return JobFindings(tuple(errors), tuple(warnings), visible)

    def adapter_errors(self, files: Sequence[AdapterFile]) -> Iterator[FieldError]:
        """Yields the errors of a row's LoRAs and concepts."""
        words: dict[str, str] = {}
        for adapter in files:
            name = adapter.file.name
            problem, learned = self._adapter(adapter)
            if problem:
                yield adapter.kind, f"{name}: {problem}"
            for word in learned:
                if word in words:
                    both = f"{words[word]} and {name}" if words[word] != name else name
                    message = f"the word {word!r} is in two of its files ({both}); give one of them, or rename"
                    yield adapter.kind, message
                words[word] = name

    def _estimated(self, job: Job) -> str:
        """Why the row's maps cannot be estimated; "" where they can, or need not."""
        settings = job.settings
        given = settings.get("metallic") is not None and settings.get("roughness") is not None
        maps = settings.get("maps")
        if not needs_estimator(maps if isinstance(maps, list) else (), given=given) or estimator_folder(self._folder):
            return ""
        return NO_ESTIMATOR

    def concepts(self, job: Job) -> Concepts:
        """Maps the words of the row's usable concepts to their numbers of tokens."""
        return {word: n for file in job.adapters for word, n in self._adapter(file)[1].items()}

    def _prompts(
        self, job: Job, reader: PromptReader, errors: list[FieldError], errors_only: bool
    ) -> tuple[list[FieldError], tuple[str, str] | None]:
        concepts = self.concepts(job)
        warnings: list[FieldError] = []
        if errors_only:
            if not self._allow_unknown and not _has_lora(job) and reader.is_empty(job.prompt, concepts):
                errors.append(("prompt", self._empty(reader, reader.review(job.prompt, (), concepts))))
            return [], None
        review = reader.review(job.prompt, self._suffixes(job), concepts)
        negative = reader.review(job.negative_prompt, (), concepts, positive=False)
        if review.empty and not self._allow_unknown and not _has_lora(job):
            errors.append(("prompt", self._empty(reader, review)))
        elif review.empty:
            warnings.append(("prompt", reader.emptiness(review)))
        warnings += [("prompt", text) for text in reader.warnings(review)]
        warnings += [("negative_prompt", text) for text in reader.warnings(negative)]
        warnings += [("concept", text) for text in reader.concept_warnings(job.prompt, concepts)]
        # A prompt that is seen whole differs from all others that are.
        cut = any((review.unknown, review.unseen, negative.unknown, negative.unseen))
        return warnings, (review.seen, negative.seen) if cut and not errors else None

    def _empty(self, reader: PromptReader, review: Review) -> str:
        return f"{reader.emptiness(review)}; name one, or {_HOW}"

    def _suffixes(self, job: Job) -> tuple[str, ...]:
        words = job.settings.get("view_words")
        if words is None:
            # A texture has no front or back.
            words = job.recipe != "material" and self._view_words[job.recipe == "generate"]
        # Texturing by patches asks for close-ups, whatever the row says of them.
        return _suffixes(bool(words), bool(job.settings.get("prompt_close_up", True)))

    @functools.cached_property
    def _view_words(self) -> tuple[bool, bool]:
        paint = read_defaults(self._folder, "paint", PaintDefaults)
        return paint.view_words, read_defaults(self._folder, "generate", GenerateDefaults).view_words

    def _adapter(self, adapter: AdapterFile) -> tuple[str, dict[str, int]]:
        """Returns the adapter's error or "", and its words with their numbers of tokens."""
        path = adapter.file.local()
        try:
            stat = path.stat()
        except OSError as error:
            return f"cannot be read ({error.strerror})", {}
        key = (adapter.kind, path, stat.st_size, stat.st_mtime_ns)
        if key not in self._files:
            if len(self._files) >= _REMEMBERED:
                self._files.clear()
            self._files[key] = self._read(adapter.kind, path)
        return self._files[key]

    def _read(self, kind: str, path: Path) -> tuple[str, dict[str, int]]:
        try:
            shapes = single_file.read_header(path, _LARGEST_HEADER).shapes
            if self._layers is None:
                return "", {}
            if kind == "lora":
                match_lora(shapes, self._layers.networks)
                return "", {}
            words = match_concepts(path.stem, shapes, self._layers.widths)
            return "", {word.lower(): vectors_of([shapes[n] for n in names]) for word, names in words.items()}
        except PriorError as error:
            return error.message.removeprefix(f"{path}: "), {}
        except ValueError as error:
            return str(error), {}


@functools.cache
def _suffixes(view_words: bool, close_up: bool) -> tuple[str, ...]:
    return tuple(suffixes(view_words=view_words, close_up=close_up))


def job_checker(spec: str, *, allow_unknown: bool = False) -> JobChecker:
    """Returns a checker for the prior ``spec`` of the command line. Raises PriorError if there is no such prior."""
    path = find_prior(spec)
    if path.is_file():
        return JobChecker(spec, single_file.sidecar(path), path, allow_unknown=allow_unknown)
    return JobChecker(spec, path, allow_unknown=allow_unknown)


def _has_lora(job: Job) -> bool:
    """Tells whether the row has a LoRA, which may determine its look whatever the words are."""
    return any(file.kind == "lora" for file in job.adapters)

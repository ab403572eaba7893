"""Ids of rows: which names are allowed, and the id of a row that has none."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Mapping

from pipeline.core.hashing import canonical_json, sha256_bytes
from pipeline.manifest.problems import quoted
from pipeline.manifest.schema import ID_ALLOWED, MAX_ID

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_ID - 1}}}(?<!\.)")
# Device names on Windows (with any ending), and names of the run's own files in the output root.
_DEVICES = frozenset(["con", "prn", "aux", "nul"] + [f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)])
_RESERVED_NAMES = frozenset(["run.json", "run.events.jsonl", "report.html"])


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


def _slug(text: str, longest: int) -> str:
    plain = unicodedata.normalize("NFKD", text[: 4 * longest]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(slug) <= longest:
        return slug
    cut = slug[: longest + 1]
    # Cut at the end of a word if there is one.
    return (cut.rsplit("-", 1)[0] if "-" in cut else cut[:longest]).strip("-")


def derive_id(recipe: str, prompt: str, negative: str, mesh: str, seed: int, own: Mapping[str, object]) -> str:
    """Derives a readable id for a row without one. Equal rows give equal ids.

    Uses the row's own values only, not defaults or ``--set``, which may change from run to run.
    """
    content = canonical_json([recipe, prompt, negative, mesh, seed, dict(own)])
    stem = posixpath.splitext(posixpath.basename(mesh))[0]
    pieces = [_slug(prompt, 40), _slug(stem, 24), sha256_bytes(content)[:12]]
    return "-".join(piece for piece in pieces if piece)

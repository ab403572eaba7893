"""Paths and URLs of files, and the rules for URLs. Imports no client library."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import UsageError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# Schemes that name this machine's own files.
_LOCAL = ("file", "local")


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at a URL (``s3://bucket/prefix/name``), without a slash at the end.

    ``/``, ``name``, ``parent`` and ``suffix`` work as those of a ``Path``. Access to the store is in ``storage``.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: object) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def scheme(self) -> str:
        """``s3`` of ``s3://bucket/key``."""
        return self.url.partition("://")[0]

    @property
    def key(self) -> str:
        """``bucket/key`` of ``s3://bucket/key``."""
        return self.url.partition("://")[2]

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder that contains this path. The parent of a bucket is the bucket itself."""
        folder = self.key.rpartition("/")[0]
        return RemotePath(f"{self.scheme}://{folder}") if folder else self

    @property
    def suffix(self) -> str:
        """The suffix of the name with its dot, or ""."""
        return Path(self.name).suffix


Location = Path | RemotePath


@dataclass(frozen=True)
class InputFile:
    """A file that a job reads: its location, the hash of its bytes, and this node's copy. Only the location counts in
    comparisons.

    ``location`` is an absolute path or a URL. ``sha256`` is the hash that the file must have (``mesh_sha256``), ""
    while it is unknown. ``copy`` is the copy on this node of a file at a URL, None before it was fetched.
    """

    location: Location
    sha256: str = field(default="", compare=False)
    copy: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return self.location.name

    @property
    def is_remote(self) -> bool:
        """Whether the location is a URL."""
        return isinstance(self.location, RemotePath)

    @property
    def is_local(self) -> bool:
        """Whether the file can be read on this node: it is at a path, or it was fetched."""
        return self.copy is not None or not self.is_remote

    def local(self) -> Path:
        """Return the file's path on this node. Raises ValueError for a file at a URL that was not fetched."""
        if isinstance(self.location, Path):
            return self.location
        if self.copy is None:
            raise ValueError(f"{self.location} was not fetched")
        return self.copy


def is_url(text: str) -> bool:
    """Return whether ``text`` is a URL and not a path."""
    return _URL.match(text) is not None


def url_problem(text: str) -> str:
    """Return what is wrong with the URL ``text``; "" if it can be used.

    Never repeats a part that may be secret: a password before an ``@``, or a signature after a ``?``.
    """
    match = _URL.match(text)
    if match is None:
        return "it is not a URL; allowed: SCHEME://BUCKET/NAME"
    scheme, path_text = match[1].lower(), match[2]
    host, _, path = path_text.partition("/")
    if "@" in host:
        return f"the {scheme} URL contains a user name or password; remove it and put credentials into the environment"
    if "?" in path_text or "#" in path_text:
        return f"the {scheme} URL contains '?' or '#'; allowed: a URL without query or signature"
    if "::" in text:
        return "the URL chains several file systems ('::'); allowed: a single one"
    if not host:
        return f"'{scheme}://' names no bucket; allowed: {scheme}://BUCKET/NAME"
    if not text.isprintable() or "\\" in path_text:
        return f"the {scheme} URL contains a control character or a backslash; allowed: printable text and '/'"
    if any(part in ("", ".", "..") for part in path.rstrip("/").split("/")) and path.rstrip("/"):
        return f"the {scheme} URL contains an empty part, '.' or '..'; allowed: plain names between slashes"
    return ""


def require_folder(location: Location) -> None:
    """Raise UsageError if ``location`` (``--out``) cannot be a folder.

    Either it or one of its parents is a file, or libraries cannot open its name.
    """
    if isinstance(location, RemotePath):
        return
    if not is_encodable(str(location.absolute())):
        raise UsageError(
            f"--out {location}: its name is not UTF-8 in this locale; choose another, or set LC_ALL=C.UTF-8"
        )
    for path in (location, *location.parents):
        if path.is_dir():
            return
        if os.path.lexists(path):
            raise UsageError(f"--out {location}: {path} is not a folder; name a folder (a missing one is created)")


def is_encodable(name: str) -> bool:
    """Return whether a file's ``name`` is UTF-8. Python decodes others to lone surrogates, which C libraries refuse."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_location(text: str) -> Location:
    """Return a ``Path`` for a path or a ``file://`` URL, and a ``RemotePath`` for any other URL.

    Raises UsageError for a URL that cannot be used.
    """
    match = _URL.match(text)
    if match is None:
        return Path(text)
    if match[1].lower() in _LOCAL:
        return Path(match[2])
    if problem := url_problem(text):
        raise UsageError(problem)
    return RemotePath(f"{match[1].lower()}://{match[2].rstrip('/')}")

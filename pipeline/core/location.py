"""Names of things at a URL, and what may stand in such a name. Light: no client library is imported here."""

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

    ``/``, ``name``, ``parent`` and ``suffix`` are those of a ``Path``; what asks the store is in ``storage``.
    ``sha256``, where known, is the content that a file has to have; it is no part of the name.
    """

    url: str
    sha256: str = field(default="", compare=False)

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
        """The folder this lies in; the bucket's is the bucket."""
        folder = self.key.rpartition("/")[0]
        return RemotePath(f"{self.scheme}://{folder}") if folder else self

    @property
    def suffix(self) -> str:
        """The ending of the name with its dot, or nothing."""
        return Path(self.name).suffix


Location = Path | RemotePath


def is_url(text: str) -> bool:
    """Whether ``text`` is an address rather than a path."""
    return _URL.match(text) is not None


def url_problem(text: str) -> str:
    """Empty when the address ``text`` can be used, else what is wrong with it.

    Never repeats a part of it that may be secret: a password before an ``@``, or a signature after a ``?``.
    """
    match = _URL.match(text)
    if match is None:
        return "it is no address; allowed: SCHEME://BUCKET/NAME"
    scheme, path_text = match[1].lower(), match[2]
    host, _, path = path_text.partition("/")
    if "@" in host:
        return f"the {scheme} address has a user or password in it; leave it out, the environment holds credentials"
    if "?" in path_text or "#" in path_text:
        return f"the {scheme} address has a '?' or '#' in it; allowed: an address without query or signature"
    if "::" in text:
        return "the address is a chain of file systems ('::'); allowed: a single one"
    if not host:
        return f"'{scheme}://' names no bucket; allowed: {scheme}://BUCKET/NAME"
    if not text.isprintable() or "\\" in path_text:
        return f"the {scheme} address has a control character or backslash in it; allowed: printable text and '/'"
    if any(part in ("", ".", "..") for part in path.rstrip("/").split("/")) and path.rstrip("/"):
        return f"the {scheme} address has an empty part, '.' or '..' in it; allowed: plain names between slashes"
    return ""


def require_folder(location: Location) -> None:
    """Raises UsageError where ``location`` (``--out``) can be no folder: a file stands there, or on the way to it, or
    its name is one that libraries cannot open."""
    if isinstance(location, RemotePath):
        return
    if not is_encodable(str(location.absolute())):
        raise UsageError(
            f"--out {location}: its name is no UTF-8 in this locale; choose another, or set LC_ALL=C.UTF-8"
        )
    for path in (location, *location.parents):
        if path.is_dir():
            return
        if os.path.lexists(path):
            raise UsageError(f"--out {location}: {path} is no folder; name a folder, which may not exist yet")


def is_encodable(name: str) -> bool:
    """Whether a file's ``name`` is UTF-8: others reach Python as lone surrogates, and libraries in C refuse them."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_location(text: str) -> Location:
    """A ``Path`` for a path or a ``file://`` address, a ``RemotePath`` for any other address.

    Raises UsageError for an address that cannot be used.
    """
    match = _URL.match(text)
    if match is None:
        return Path(text)
    if match[1].lower() in _LOCAL:
        return Path(match[2])
    if problem := url_problem(text):
        raise UsageError(problem)
    return RemotePath(f"{match[1].lower()}://{match[2].rstrip('/')}")

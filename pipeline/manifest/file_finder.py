"""Resolves the files that a row names to local paths or URLs, and checks that they are allowed."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.files import path_on_disk
from pipeline.core.location import Location, RemotePath, is_url, parse_location, url_problem
from pipeline.manifest.problems import join_or, quoted
from pipeline.manifest.schema import MAX_PATH

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class FileFinder:
    """Finds files relative to a manifest.

    Args:
        manifest: path or URL of the manifest.
        allow_outside: whether files may lie outside the manifest's folder.
        check_files: whether local files must exist, and be readable and not empty.
    """

    def __init__(self, manifest: Location, *, allow_outside: bool = False, check_files: bool = True):
        # A manifest at a URL has a remote folder.
        self.base = manifest.parent if isinstance(manifest, RemotePath) else None
        self.folder = str(self.base) if isinstance(manifest, RemotePath) else os.path.realpath(manifest.parent)
        self.allow_outside = allow_outside
        self.check_files = check_files

    def find(self, text: str, label: str, endings: Sequence[str]) -> tuple[Location | None, str]:
        """Returns the location of the file named ``text`` and "", or None and the error.

        ``label`` names the kind of file in errors; ``endings`` are its allowed endings, in lower case.
        """
        if self.base is not None or is_url(text):
            return self._find_remote(text, label, endings)
        return self._find_local(text, label, endings)

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

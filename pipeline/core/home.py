"""The user's cache folders, also for users without a home (containers, system-wide installations).

Code caches (numba's, compiled networks) lie only in folders that no other user can write.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

from pipeline.core.private import is_own, lasting_folder, make_own

CACHE_VARIABLE = "LATENTKILN_CACHE"
PACKAGE = Path(__file__).resolve().parent.parent


def settle() -> None:
    """Sets environment variables so that libraries have a home, and a code cache that no other user can write.

    A private temporary folder replaces a missing home, and a code cache that this user cannot write or others can. It
    is removed when this process ends. Child processes inherit the variables. Call this before numba is imported. Never
    raises: without a temporary folder, the code that needs one reports it.
    """
    with contextlib.suppress(OSError):
        if not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "/")):
            del os.environ["XDG_CACHE_HOME"]
        if not _has_home():
            os.environ["HOME"] = str(lasting_folder())
        _settle_code_cache("NUMBA_CACHE_DIR", "numba", _is_writable(PACKAGE / "core" / "__pycache__"))
        _settle_code_cache("WARP_CACHE_PATH", "warp", _is_usable(_caches_of_libraries() / "warp"))
        # By default torch uses a folder of a predictable name in the temporary directory.
        _settle_code_cache("TORCHINDUCTOR_CACHE_DIR", "compiled", False)


def _settle_code_cache(variable: str, name: str, default_is_good: bool) -> None:
    """Points ``variable`` to our own cache if the library's default, or the folder it names, is unsafe or unusable."""
    named = os.environ.get(variable)
    if not (make_own(Path(named).absolute()) if named else default_is_good):
        os.environ[variable] = str(code_cache(name))


def cache_root() -> Path:
    """Returns the root of this user's caches: $LATENTKILN_CACHE, $XDG_CACHE_HOME/latentkiln or ~/.cache/latentkiln.

    Returns a private temporary folder if this user cannot write that one, or others can. It may not exist yet.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).absolute()
    folder = _caches_of_libraries() / "latentkiln"
    return folder if _is_usable(folder, trust_group=True) else lasting_folder() / "latentkiln"


def code_cache(name: str) -> Path:
    """Returns a folder for a library's compiled code that only this user can write. It may not exist yet.

    Returns a temporary folder if ``cache_root`` is not safe.
    """
    folder = cache_root() / name
    return folder if _is_usable(folder) else lasting_folder() / name


def home() -> Path:
    """Returns this user's home, or a private temporary folder if there is none."""
    return Path.home() if _has_home() else lasting_folder()


def _caches_of_libraries() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard ignores relative paths.
    return Path(base) if os.path.isabs(base) else home() / ".cache"


def _has_home() -> bool:
    """Tells whether libraries will find a home that is a folder.

    Without one they would create ``~`` in the current folder, which may be untrusted.
    """
    named = os.environ.get("HOME")
    if named is None:
        try:
            named = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return False
    return os.path.isabs(named) and os.path.isdir(named)


def _is_usable(folder: Path, *, trust_group: bool = False) -> bool:
    """Tells whether this user, and no other, can write into ``folder`` or create it."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    return is_own(existing, trust_group=trust_group) and _is_writable(existing)


def _is_writable(folder: Path) -> bool:
    """Tells whether files can be created in ``folder``, or the folder itself if it is missing."""
    existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)

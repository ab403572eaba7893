"""Where this user's caches are, also for a user without a home: in containers, and where an administrator installed us.

Caches that hold code (numba's, compiled networks) are only ever read from folders that nobody else can write.
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
    """Sees to it that no library of this process, or of one it starts, fails for want of a home or a cache, or keeps
    code it compiled where others can change it.

    A home that is missing becomes a private temporary folder, as does a cache that cannot be written or that others
    can write; both go when this process ends. Called before numba is imported. Never raises: where there is no
    temporary folder either, what needs one says so.
    """
    with contextlib.suppress(OSError):
        if not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "/")):
            del os.environ["XDG_CACHE_HOME"]
        if not _has_home():
            os.environ["HOME"] = str(lasting_folder())
        _settle_code_cache("NUMBA_CACHE_DIR", "numba", _is_writable(PACKAGE / "core" / "__pycache__"))
        _settle_code_cache("WARP_CACHE_PATH", "warp", _is_usable(_caches_of_libraries() / "warp"))
        # By itself torch makes a folder in the temporary directory, of a name that everybody knows.
        _settle_code_cache("TORCHINDUCTOR_CACHE_DIR", "compiled", False)


def _settle_code_cache(variable: str, name: str, default_is_good: bool) -> None:
    """Names a cache of ours in the environment where the library's own, or the one named there, will not do."""
    named = os.environ.get(variable)
    if not (make_own(Path(named).absolute()) if named else default_is_good):
        os.environ[variable] = str(code_cache(name))


def cache_root() -> Path:
    """The folder of this user's caches: $LATENTKILN_CACHE, $XDG_CACHE_HOME/latentkiln or ~/.cache/latentkiln, and a
    private temporary one where that cannot be written or others can write it. It need not exist."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).absolute()
    folder = _caches_of_libraries() / "latentkiln"
    return folder if _is_usable(folder, trust_group=True) else lasting_folder() / "latentkiln"


def code_cache(name: str) -> Path:
    """A folder for code that a library compiled, which only this user can change; a temporary one at need. It need not
    exist."""
    folder = cache_root() / name
    return folder if _is_usable(folder) else lasting_folder() / name


def home() -> Path:
    """This user's home; a private temporary folder where there is none."""
    return Path.home() if _has_home() else lasting_folder()


def _caches_of_libraries() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # As the standard says: a path that is not absolute counts as none.
    return Path(base) if os.path.isabs(base) else home() / ".cache"


def _has_home() -> bool:
    """Whether the home that libraries will find is a folder. Without one they would take ``~`` for a name in the
    current folder, which may be a stranger's."""
    named = os.environ.get("HOME")
    if named is None:
        try:
            named = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return False
    return os.path.isabs(named) and os.path.isdir(named)


def _is_usable(folder: Path, *, trust_group: bool = False) -> bool:
    """Whether this user, and nobody else, can write into ``folder`` or make it."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    return is_own(there, trust_group=trust_group) and _is_writable(there)


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``; where it is missing, whether it can be made."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)

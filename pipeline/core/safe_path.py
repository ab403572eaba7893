"""Keeps Python from importing modules of the current folder, such as a ``numpy.py`` beside an untrusted manifest.

Imports only modules that Python has loaded at its start.
"""

import os
import sys


def without_current_folder(path: list[str]) -> list[str]:
    """Returns ``path`` (a value of ``sys.path`` or PYTHONPATH) without the entries of the current folder.

    Keeps one that follows the standard library: ``pip install --editable`` adds a checkout there.
    """
    here, library = os.path.realpath(os.curdir), os.path.dirname(os.path.abspath(os.__file__))
    first = path.index(library) if library in path else len(path)
    return [
        entry
        for number, entry in enumerate(path)
        if os.path.isabs(entry) and (number > first or os.path.realpath(entry) != here)
    ]


def leave_out_current_folder() -> None:
    """Removes the current folder from the import path of this process and of its child processes.

    Python puts it first for ``python -m`` and ``python -c``, and for empty or relative entries of PYTHONPATH. In a
    checkout, this package still imports its own modules, because it is already loaded.
    """
    sys.path[:] = without_current_folder(sys.path)
    if named := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(without_current_folder(named.split(os.pathsep)))
    # Since Python 3.11: adds neither the script's folder nor the current one.
    os.environ["PYTHONSAFEPATH"] = "1"

"""Keeps Python from importing what lies in the current folder: manifests come from strangers, and so may a ``numpy.py``
beside one.

Imports nothing but what Python itself has loaded when it starts.
"""

import os
import sys


def without_current_folder(path: list[str]) -> list[str]:
    """``path``, the value of ``sys.path`` or of PYTHONPATH, without the entries that mean the current folder.

    One behind the standard library stays: there an installation (``pip install --editable``) names a checkout.
    """
    here, library = os.path.realpath(os.curdir), os.path.dirname(os.path.abspath(os.__file__))
    first = path.index(library) if library in path else len(path)
    return [
        entry
        for number, entry in enumerate(path)
        if os.path.isabs(entry) and (number > first or os.path.realpath(entry) != here)
    ]


def leave_out_current_folder() -> None:
    """Takes the current folder off the path that modules are imported from, here and in processes started from here.

    Python puts it first for ``python -m`` and ``python -c``; an empty or relative entry of PYTHONPATH means it, too.
    Where this package itself lies there, a checkout, what is imported already finds its siblings without the path.
    """
    sys.path[:] = without_current_folder(sys.path)
    if named := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(without_current_folder(named.split(os.pathsep)))
    # Of Python 3.11 and newer: no script's folder, no current folder.
    os.environ["PYTHONSAFEPATH"] = "1"

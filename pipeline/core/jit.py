"""Imports numba without reading a configuration file from the current folder.

By default numba reads ``.numba_config.yaml`` of the current folder, which may be untrusted: the file could name a
folder of machine code that numba would load and run.
"""

from __future__ import annotations

import sys
import threading
import warnings
from types import ModuleType
from typing import Any

_lock = threading.Lock()


def _import_numba() -> ModuleType:
    with _lock:
        if "numba" not in sys.modules:
            # numba skips the file if it cannot import YAML.
            known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "yaml"}
            sys.modules["yaml"] = None  # type: ignore[assignment]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    import numba
            finally:
                del sys.modules["yaml"]
                sys.modules.update(known)
        import numba

        config: Any = numba.core.config
        # numba looks for the file again at each compilation. An empty name disables that.
        config._config_fname = ""
        config.reload_config()
        return numba


numba = _import_numba()
njit, prange = numba.njit, numba.prange

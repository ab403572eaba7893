"""numba, imported so that nothing that lies in the current folder decides what it does.

By itself numba reads ``.numba_config.yaml`` of the current folder, which is often a stranger's: the file could name a
folder of prepared machine code, which numba would load and run.
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
            # The file is read while numba is imported, unless there is no YAML then.
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
        # It is looked for again at each compilation; a file of no name does not exist.
        config._config_fname = ""
        config.reload_config()
        return numba


numba = _import_numba()
njit, prange = numba.njit, numba.prange

"""latentkiln: lists of prompts and meshes in, finished glTF assets out.

Importing the package loads nothing heavy (no torch, Ray or diffusers).

The method and its equations: docs/method.md. The layout of the code: docs/architecture.md.
"""

import os

# Idle OpenMP threads sleep instead of spinning. On cores that anything else uses, too, a spinning thread waits for
# one that is not scheduled, and a paint step takes many times longer. Read once, when torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

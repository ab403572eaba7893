"""Plain backgrounds behind rendered views."""

from __future__ import annotations

import numpy as np

from pipeline.core.rng import numpy_generator


def plain_backgrounds(seed: int, step: int, count: int) -> np.ndarray:
    """(count, 3) RGB in [0, 1]: one plain backdrop per view, and others at each step, so that a scene cannot adapt to
    its background."""
    return numpy_generator(seed, "plain", step).uniform(0.0, 1.0, (count, 3))

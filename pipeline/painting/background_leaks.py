"""Finds where a drawn view shows its background on the surface.

The prior does not know the mesh's outline. Of several objects it may draw one, and what it leaves of the mesh gets the
colour of the background. Such pixels must not be painted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from pipeline.core.arrays import Float32Array

# Largest difference in any channel from the background's colour.
_NEAR = 0.15
# Width in cells of what is left out around such pixels: there both colours mix.
_MARGIN = 1.5
# Smallest share of a view that is background: of fewer pixels its colour is not known.
_LEAST_OUTSIDE = 0.01


def background_share(images: Float32Array, masks: NDArray[np.bool_], size: int) -> Float32Array:
    """Share of background on the surface in the cells of views, (N, size, size) float32 in [0, 1].

    Args:
        images: (N, 3, H, H) RGB in [0, 1], H a multiple of ``size``.
        masks: (N, H, H) true where a pixel shows nothing but the surface.

    A pixel counts if its colour is the background's and it joins the background outside the surface through pixels of
    that colour, and so do pixels near it. So a grey window in a wall does not count.
    """
    cell = masks.shape[-1] // size
    leaks = np.zeros(masks.shape, np.float32)
    for image, mask, leak in zip(images, masks, leaks, strict=True):
        if (~mask).mean() < _LEAST_OUTSIDE:
            continue
        colour = np.median(image[:, ~mask], axis=1)
        near = np.abs(image - colour[:, None, None]).max(axis=0) < _NEAR
        regions, _ = label(near | ~mask)
        # Outside the surface all is background, whatever its colour is at the outline.
        outside = np.unique(regions[~mask & near])
        shown = mask & near & np.isin(regions, outside[outside > 0])
        leak[mask & binary_dilation(shown, iterations=round(_MARGIN * cell))] = shown.any()
    return np.asarray(leaks.reshape(len(leaks), size, cell, size, cell).mean(axis=(2, 4)), np.float32)

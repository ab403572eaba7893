"""Background that a view shows on the surface is found, and parts of the same colour inside are not."""

from __future__ import annotations

import numpy as np

from pipeline.painting.background_leaks import background_share

GREY, RED = np.float32(0.25), np.array([0.8, 0.1, 0.1], np.float32)


def view() -> tuple[np.ndarray, np.ndarray]:
    """A surface of 64 by 64 pixels in a view of 128, red but for its left quarter and a grey window in its middle."""
    mask = np.zeros((1, 128, 128), bool)
    mask[:, 32:96, 32:96] = True
    image = np.full((1, 3, 128, 128), GREY)
    image[:, :, 32:96, 48:96] = RED[:, None, None]
    image[:, :, 60:68, 60:68] = GREY
    return image, mask


def test_what_joins_the_background_is_background_and_a_window_is_not() -> None:
    share = background_share(*view(), 32)[0]
    expected = np.zeros((32, 32), np.float32)
    expected[8:24, 8:12] = 1
    assert (share >= expected).all() and not share[:, 14:].any() and not share[:8].any()


def test_a_surface_in_other_colours_or_that_fills_its_view_has_none() -> None:
    image, mask = view()
    image[:, :, 32:96, 32:48] = RED[:, None, None]
    assert not background_share(image, mask, 32).any()
    assert not background_share(np.full_like(image, GREY), np.ones_like(mask), 32).any()

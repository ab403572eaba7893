"""Pictures get back the colours and the contrast of a sample."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.painting.tone_matching import match_tones, sharpen

RED, WHITE = np.array([0.6, 0.1, 0.1]), np.array([0.9, 0.85, 0.8])


def pictures(low: float, high: float, count: int = 2) -> NDArray[np.float32]:
    """Stripes of two mixtures of RED and WHITE, (count, 3, 16, 16)."""
    share = np.where(np.arange(16) % 4 < 2, low, high)[None, :, None]
    image = np.broadcast_to(RED * (1 - share) + WHITE * share, (16, 16, 3))
    return np.repeat(image.transpose(2, 0, 1)[None], count, axis=0).astype(np.float32)


def test_faded_stripes_become_the_samples() -> None:
    sample = np.ascontiguousarray(pictures(0.0, 1.0, 1)[0].transpose(1, 2, 0))
    faded = pictures(0.3, 0.6)
    everywhere = np.ones((2, 16, 16), bool)
    np.testing.assert_allclose(match_tones(faded, everywhere, sample, 1.0), pictures(0.0, 1.0), atol=0.02)
    half = match_tones(faded, everywhere, sample, 0.5)
    np.testing.assert_allclose(half, (faded + pictures(0.0, 1.0)) / 2, atol=0.02)
    assert match_tones(faded, everywhere, sample, 0.0) is faded
    assert match_tones(faded, ~everywhere, sample, 1.0) is faded


def test_a_tint_across_the_contrast_goes() -> None:
    sample = np.ascontiguousarray(pictures(0.0, 1.0, 1)[0].transpose(1, 2, 0))
    across = np.cross(WHITE - RED, [0.0, 0.0, 1.0])
    tinted = pictures(0.0, 1.0) + (0.1 * across / np.linalg.norm(across))[:, None, None].astype(np.float32)
    np.testing.assert_allclose(
        match_tones(tinted, np.ones((2, 16, 16), bool), sample, 1.0), pictures(0.0, 1.0), atol=0.02
    )


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_plain_pictures_stay_finite(level: float) -> None:
    plain = np.full((1, 3, 8, 8), level, np.float32)
    matched = match_tones(plain, np.ones((1, 8, 8), bool), np.full((8, 8, 3), 0.7, np.float32), 0.8)
    np.testing.assert_allclose(matched, level + 0.8 * (0.7 - level), atol=1e-3)


def test_sharpening_steepens_edges_and_leaves_plain_places() -> None:
    edge = np.repeat(np.where(np.arange(16) < 8, 0.2, 0.6)[None], 16, axis=0)[None, None].repeat(3, axis=1)
    sharp = sharpen(edge.astype(np.float32), 0.5)
    assert sharp[0, 0, 8, 8] - sharp[0, 0, 8, 7] > 0.45
    np.testing.assert_allclose(sharp[..., :3], 0.2, atol=1e-5)
    assert sharpen(edge, 0.0) is edge

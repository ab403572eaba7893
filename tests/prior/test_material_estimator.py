"""The estimator of materials: its interface, its folder, and what it says where it knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.core.errors import PriorError
from pipeline.prior.material_estimator import (
    MaterialMaps,
    integrate_slopes,
    load_estimator,
    replace_unsure,
)
from pipeline.prior.material_net import MaterialNet

WIDTHS, BLOCKS = (8, 12, 16), (1, 1, 1)


def write_folder(prior: Path, *, scale: float = 1.0, **config: object) -> Path:
    """A network with random weights in ``prior``/material."""
    torch.manual_seed(3)
    own = prior / "material"
    own.mkdir(parents=True)
    weights = {k: (scale * v).half().contiguous() for k, v in MaterialNet(WIDTHS, BLOCKS).state_dict().items()}
    save_file(weights, own / "model.safetensors")
    (own / "config.json").write_text(json.dumps({"widths": WIDTHS, "blocks": BLOCKS, **config}))
    return own


def pictures(count: int = 2, side: int = 48) -> np.ndarray:
    return np.random.default_rng(5).random((count, 3, side, side), np.float32)


def test_maps_have_the_pictures_size_and_sane_values(tmp_path: Path) -> None:
    write_folder(tmp_path)
    estimator = load_estimator(tmp_path)
    assert estimator is not None and estimator.identity.startswith("material:")
    maps = estimator.estimate(pictures(2, 44))
    for name, channels in (("base_colour", 3), ("roughness", 1), ("metalness", 1), ("height", 1), ("confidence", 3)):
        values = getattr(maps, name)
        assert values.shape == (2, channels, 44, 44) and values.dtype == np.float32 and np.isfinite(values).all()
        if name != "height":
            assert values.min() >= 0 and values.max() <= 1
    np.testing.assert_allclose(maps.height.mean(axis=(2, 3)), 0, atol=1e-5)


def test_a_picture_has_the_same_maps_in_any_company(tmp_path: Path) -> None:
    write_folder(tmp_path)
    estimator = load_estimator(tmp_path)
    assert estimator is not None
    both, second = estimator.estimate(pictures()), estimator.estimate(pictures()[1:])
    assert (both.base_colour[1] == second.base_colour[0]).all() and (both.height[1] == second.height[0]).all()


def test_maps_of_a_tileable_picture_shift_with_it(tmp_path: Path) -> None:
    write_folder(tmp_path)
    estimator = load_estimator(tmp_path)
    assert estimator is not None
    picture = pictures(1, 64)
    maps = estimator.estimate(picture, tileable=True)
    # By a multiple of the network's coarsest pixel: across the border as inside.
    shifted = estimator.estimate(np.roll(picture, (24, 40), axis=(2, 3)), tileable=True)
    for name in ("base_colour", "roughness", "metalness", "height"):
        expected = np.roll(getattr(maps, name), (24, 40), axis=(2, 3))
        np.testing.assert_allclose(getattr(shifted, name), expected, atol=2e-4, err_msg=name)
    plain = estimator.estimate(picture)
    assert np.abs(plain.roughness - maps.roughness).max() > 1e-3


def test_what_it_is_not_sure_of_is_matt_and_flat_and_has_the_pictures_colours() -> None:
    picture = pictures(1, 16)
    ones = np.ones((1, 1, 16, 16), np.float32)
    confidence = np.concatenate([0.01 * ones, 0.9 * ones, 0.02 * ones], axis=1)
    wild = MaterialMaps(1 - picture, 0.2 * ones, ones, np.nan * ones, confidence)
    maps = replace_unsure(wild, picture)
    assert (maps.base_colour == picture).all() and (maps.height == 0).all()
    np.testing.assert_allclose(maps.roughness, 0.2, atol=1e-6)
    np.testing.assert_allclose(maps.metalness, 1, atol=1e-6)
    unsure = replace_unsure(MaterialMaps(picture, 0.2 * ones, ones, ones, 0 * confidence), picture)
    assert unsure.metalness.max() == 0 and unsure.roughness.min() > 0.7
    lost = replace_unsure(MaterialMaps(picture, np.nan * ones, ones, ones, np.nan * confidence), picture)
    assert np.isfinite(lost.roughness).all() and lost.confidence.max() == 0


@pytest.mark.parametrize("tileable", [True, False])
def test_a_height_is_found_again_from_its_slopes(tileable: bool) -> None:
    y, x = np.mgrid[:48, :64].astype(float)
    height = np.sin(2 * np.pi * 3 * x / 64) * 2 + np.cos(2 * np.pi * 2 * y / 48 + 0.3)
    if not tileable:
        height += 0.1 * x - 0.05 * y
    mode = "wrap" if tileable else "edge"
    around = np.pad(height, 1, mode=mode)
    right = (around[1:-1, 2:] - around[1:-1, :-2]) / 2
    up = (around[:-2, 1:-1] - around[2:, 1:-1]) / 2
    # The longest waves are the relief's.
    relief = np.zeros_like(height) if tileable else height
    found = integrate_slopes(np.stack([right, up]), relief, tileable=tileable)
    error = found - (height - height.mean())
    inside = error if tileable else error[4:-4, 4:-4]
    assert np.abs(inside).max() < 0.15 * np.ptp(height) and error.std() < 0.05 * height.std()


def test_a_prior_without_the_folder_has_no_estimator(tmp_path: Path) -> None:
    assert load_estimator(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": [8, 12]}, "widths is"),
        ({"widths": [8, 12, 100_000_000]}, "from 1 to 512"),
        ({"blocks": [1, 1, 0]}, "from 1 to 16"),
        ({"blocks": [1, True, 1]}, "blocks is"),
        ({"widths": 3}, "not a JSON object"),
        ({"widths": [8, 12, 24]}, "does not fit config.json"),
    ],
)
def test_a_config_that_is_wrong_is_one_line(tmp_path: Path, config: dict, message: str) -> None:
    write_folder(tmp_path, **config)
    with pytest.raises(PriorError, match=message) as error:
        load_estimator(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    own = write_folder(tmp_path)
    weights = (own / "model.safetensors").read_bytes()
    (own / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(PriorError, match="truncated"):
        load_estimator(tmp_path)
    (own / "model.safetensors").unlink()
    with pytest.raises(PriorError, match="missing"):
        load_estimator(tmp_path)
    (own / "config.json").write_text("[1")
    with pytest.raises(PriorError, match="not a JSON object"):
        load_estimator(tmp_path)
    (own / "config.json").unlink()
    with pytest.raises(PriorError, match="cannot be read"):
        load_estimator(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, scale=float("inf"))
    with pytest.raises(PriorError, match="not finite"):
        load_estimator(tmp_path)

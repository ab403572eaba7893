"""Estimates the material in pictures: unlit base colour, roughness, metalness and height.

``MaterialEstimator`` is the interface; ``load_estimator`` reads the network that a prior's folder brings along in
``material/`` (``config.json`` and ``model.safetensors``). Unsure estimates are replaced by a matt, flat surface with
the picture's own colours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import PriorError
from pipeline.core.hashing import sha256_file
from pipeline.prior.material_folder import CONFIG_FILE, MATERIAL_FOLDER, WEIGHTS_FILE
from pipeline.prior.material_net import MaterialNet, estimate
from pipeline.prior.single_file import read_header

# Limits of the network in a folder: bytes of its files, channels of a level and blocks of a level.
_LARGEST_CONFIG, _LARGEST_WEIGHTS, _LARGEST_HEADER = 64 << 10, 256 << 20, 1 << 20
_WIDEST, _MOST_BLOCKS = 512, 16
# Over this range of the mean confidence an estimate's weight rises from 0 to 1.
_UNSURE, _SURE = 0.12, 0.3
# Roughness where the estimate is unsure.
_PLAIN_ROUGHNESS = 0.8
# Weights of the network's own relief and of smoothness beside its slopes, when heights are integrated.
_RELIEF_WEIGHT, _DAMPING = 3e-4, 1e-2


@dataclass(frozen=True)
class MaterialMaps:
    """Estimated material of N pictures, float32.

    Attributes:
        base_colour: (N, 3, H, W) unlit, sRGB in [0, 1].
        roughness: (N, 1, H, W) perceptual, in [0, 1].
        metalness: (N, 1, H, W) in [0, 1].
        height: (N, 1, H, W) in pixels of the picture, 0 on average, greater towards the viewer.
        confidence: (N, 3, H, W) in [0, 1]: of the base colour, of roughness and metalness, of the height.
    """

    base_colour: NDArray[np.float32]
    roughness: NDArray[np.float32]
    metalness: NDArray[np.float32]
    height: NDArray[np.float32]
    confidence: NDArray[np.float32]


class MaterialEstimator(Protocol):
    """Estimates materials in pictures."""

    @property
    def identity(self) -> str:
        """Names the estimator and its weights, for records."""
        ...

    def estimate(self, pictures: NDArray[np.float32], *, tileable: bool = False) -> MaterialMaps:
        """Estimate the maps of ``pictures`` (N, 3, H, W), float32 sRGB in [0, 1], each independently.

        ``tileable`` pictures wrap around, and so do their maps.
        """
        ...


class NetworkEstimator:
    """The estimator of a prior's ``material/`` folder, a ``MaterialNet``."""

    def __init__(self, net: MaterialNet, identity: str, device: torch.device) -> None:
        self.identity, self._device = identity, device
        # torch's stubs do not know the memory format.
        placed: MaterialNet = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._net = placed.eval().requires_grad_(False)

    @torch.no_grad()
    def estimate(self, pictures: NDArray[np.float32], *, tileable: bool = False) -> MaterialMaps:
        """As ``MaterialEstimator.estimate``."""
        estimates = [
            self._estimate_one(torch.from_numpy(np.array(picture, np.float32))[None], tileable) for picture in pictures
        ]
        names = MaterialMaps.__dataclass_fields__
        return MaterialMaps(*(np.concatenate([getattr(maps, name) for maps in estimates]) for name in names))

    def _estimate_one(self, picture: Tensor, tileable: bool) -> MaterialMaps:
        maps = estimate(self._net, picture.to(self._device), tileable=tileable)
        rise = -maps.normal[:, :2] / maps.normal[:, 2:].clamp_min(0.1)
        slopes, relief = (x[0].double().cpu().numpy() for x in (rise, maps.relief))
        height = integrate_slopes(slopes, relief[0], tileable=tileable)[None, None]
        arrays = (maps.albedo, maps.roughness, maps.metalness)
        colour, roughness, metalness = (x.float().cpu().numpy() for x in arrays)
        confidence = maps.confidence.float().cpu().numpy()
        raw = MaterialMaps(colour, roughness, metalness, height.astype(np.float32), confidence)
        return replace_unsure(raw, picture.numpy())


def replace_unsure(maps: MaterialMaps, pictures: NDArray[np.float32]) -> MaterialMaps:
    """Replace unsure estimates in ``maps`` by a matt, flat surface with the colours of ``pictures`` (N, 3, H, W).

    Numbers that are not finite count as unsure.
    """
    confidence = np.nan_to_num(maps.confidence, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1)
    share = np.clip((confidence.mean(axis=(2, 3), keepdims=True) - _UNSURE) / (_SURE - _UNSURE), 0, 1)
    share = (share * share * (3 - 2 * share)).astype(np.float32)

    def blend(estimate: NDArray[np.float32], plain: NDArray[np.float32] | float, group: int) -> NDArray[np.float32]:
        weight, finite = share[:, group : group + 1], np.isfinite(estimate)
        value = np.where(finite, estimate, plain)
        return np.asarray(plain + weight * (value - plain), np.float32)

    height = blend(maps.height, 0.0, 2)
    return MaterialMaps(
        blend(maps.base_colour, pictures, 0).clip(0, 1),
        blend(maps.roughness, _PLAIN_ROUGHNESS, 1).clip(0, 1),
        blend(maps.metalness, 0.0, 1).clip(0, 1),
        height - height.mean(axis=(2, 3), keepdims=True),
        confidence.astype(np.float32),
    )


def integrate_slopes(
    slopes: NDArray[np.float64], relief: NDArray[np.float64], *, tileable: bool
) -> NDArray[np.float64]:
    """Integrate ``slopes`` (2, H, W), to the right and up, to a height (H, W) by least squares.

    Follows Frankot and Chellappa ("A Method for Enforcing Integrability in Shape from Shading Algorithms", 1988). At
    the longest wavelengths the height follows ``relief`` (H, W). All are in pixels; the mean height is 0. Slopes are
    central differences. Pictures that are not ``tileable`` are continued by mirroring.
    """
    right, down = slopes[0], -slopes[1]
    height, width = relief.shape
    if not tileable:
        right = np.block([[right, -right[:, ::-1]], [right[::-1], -right[::-1, ::-1]]])
        down = np.block([[down, down[:, ::-1]], [-down[::-1], -down[::-1, ::-1]]])
        relief = np.block([[relief, relief[:, ::-1]], [relief[::-1], relief[::-1, ::-1]]])
    rows, columns = relief.shape
    across = 1j * np.sin(2 * np.pi * np.fft.fftfreq(columns))[None, :]
    along = 1j * np.sin(2 * np.pi * np.fft.fftfreq(rows))[:, None]
    gx, gy, relief_waves = (np.fft.fft2(x) for x in (right, down, relief))
    # Central differences ignore the shortest wavelengths, so second differences damp those.
    waves = 2 - np.cos(2 * np.pi * np.fft.fftfreq(columns))[None, :] - np.cos(2 * np.pi * np.fft.fftfreq(rows))[:, None]
    square = np.abs(across) ** 2 + np.abs(along) ** 2 + _RELIEF_WEIGHT + _DAMPING * waves**2
    total = (np.conj(across) * gx + np.conj(along) * gy + _RELIEF_WEIGHT * relief_waves) / square
    total[0, 0] = 0
    result: NDArray[np.float64] = np.fft.ifft2(total).real[:height, :width]
    return np.asarray(result - result.mean(), np.float64)


def load_estimator(folder: Path, device: torch.device | str = "cpu") -> NetworkEstimator | None:
    """Load the estimator in ``folder / "material"``; None if there is no such folder.

    Raises PriorError, in one line, for missing or damaged files and for networks above the size limits.
    """
    material_folder = folder / MATERIAL_FOLDER
    if not material_folder.is_dir():
        return None
    config, weights = material_folder / CONFIG_FILE, material_folder / WEIGHTS_FILE
    net = _network(config)
    if not weights.is_file() or weights.stat().st_size > _LARGEST_WEIGHTS:
        raise PriorError(f"{weights}: missing, or larger than {_LARGEST_WEIGHTS >> 20} MiB; copy the prior again")
    shapes, expected = read_header(weights, _LARGEST_HEADER).shapes, net.state_dict()
    different = [name for name in expected if shapes.get(name) != tuple(expected[name].shape)]
    if different or len(shapes) != len(expected):
        name = next(iter(different), "another tensor than it needs")
        raise PriorError(f"{weights}: it does not fit {CONFIG_FILE} beside it (the first difference: {name})")
    from safetensors.torch import load_file

    tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise PriorError(f"{weights}: it contains numbers that are not finite; copy the prior again")
    net.load_state_dict(tensors)
    return NetworkEstimator(net, f"{MATERIAL_FOLDER}:{sha256_file(weights)[:16]}", torch.device(device))


def _network(config: Path) -> MaterialNet:
    """The network that ``config`` describes, with random weights. Raises PriorError."""
    try:
        if config.stat().st_size > _LARGEST_CONFIG:
            raise PriorError(f"{config}: larger than {_LARGEST_CONFIG >> 10} KiB; not a description of a network")
        value = json.loads(config.read_text(encoding="utf-8"))
        widths, blocks = (tuple(value[name]) for name in ("widths", "blocks"))
    except OSError as error:
        raise PriorError(f"{config}: cannot be read ({error.strerror}); copy the prior again") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PriorError(f"{config}: not a JSON object with lists 'widths' and 'blocks'") from None
    for name, numbers, most in (("widths", widths, _WIDEST), ("blocks", blocks, _MOST_BLOCKS)):
        if len(numbers) != 3 or any(type(n) is not int or not 1 <= n <= most for n in numbers):
            raise PriorError(
                f"{config}: {name} is {str(list(numbers))[:60]}; allowed: three whole numbers from 1 to {most}"
            )
    return MaterialNet(widths, blocks)

"""The network that estimates the material in a picture.

It is fully convolutional, for pictures with sides divisible by 8. It has no normalisation layers, so the estimate of a
pixel depends on its surroundings and on the mean of the picture, not on how the picture was cropped.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of the output: base colour (added to the picture), roughness and metalness (logits), relief in pixels,
#: slopes of the relief to the right and up the picture, log error scales of colour, of roughness and metalness, of the
#: slopes.
CHANNELS = 3 + 1 + 1 + 1 + 2 + 3
MULTIPLE = 8


@dataclass
class Maps:
    """Estimates of the network for N pictures, float32.

    Attributes:
        albedo: (N, 3, H, W) sRGB in [0, 1].
        roughness, metalness: (N, 1, H, W) in [0, 1].
        relief: (N, 1, H, W) height in pixels, without an absolute level.
        normal: (N, 3, H, W) unit vectors, x right, y up the picture, z towards the viewer.
        confidence: (N, 3, H, W) in (0, 1]: of colour, of roughness and metalness, of the normal.
    """

    albedo: Tensor
    roughness: Tensor
    metalness: Tensor
    relief: Tensor
    normal: Tensor
    confidence: Tensor


class _Block(nn.Module):
    """Residual block of two convolutions; begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.gain = nn.Parameter(torch.full((width, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.gain * self.two(F.silu(self.one(F.silu(x))))
        return result


class MaterialNet(nn.Module):
    """A small U-Net at half, quarter and eighth resolution; the mean of the picture joins at its bottom."""

    def __init__(self, widths: tuple[int, int, int] = (48, 96, 160), blocks: tuple[int, int, int] = (2, 2, 3)) -> None:
        super().__init__()
        a, b, c = widths
        self.widths, self.blocks = tuple(widths), tuple(blocks)
        self.stem = nn.Conv2d(12, a, 3, 1, 1)
        self.down1, self.down2 = nn.Conv2d(4 * a, b, 1), nn.Conv2d(4 * b, c, 1)
        self.enter1, self.enter2 = self._row(a, blocks[0] // 2), self._row(b, blocks[1] // 2)
        self.middle = self._row(c, blocks[2])
        self.whole = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c))
        self.up2, self.up1 = nn.Conv2d(c, 4 * b, 1), nn.Conv2d(b, 4 * a, 1)
        self.leave2, self.leave1 = self._row(b, blocks[1]), self._row(a, blocks[0])
        self.fine = nn.Conv2d(a, 4 * 16, 1)
        self.last = nn.Sequential(nn.Conv2d(16 + 3, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, CHANNELS, 3, 1, 1))

    @staticmethod
    def _row(width: int, count: int) -> nn.Sequential:
        return nn.Sequential(*[_Block(width) for _ in range(max(count, 1))])

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), sRGB in [0, 1], to the raw output (N, `CHANNELS`, H, W)."""
        x = picture * 2 - 1
        one = self.enter1(self.stem(F.pixel_unshuffle(x, 2)))
        two = self.enter2(self.down1(F.pixel_unshuffle(one, 2)))
        low = self.middle[0](self.down2(F.pixel_unshuffle(two, 2)))
        low = self.middle[1:](low + self.whole(low.mean((2, 3)))[:, :, None, None])
        two = self.leave2(two + F.pixel_shuffle(self.up2(F.silu(low)), 2))
        one = self.leave1(one + F.pixel_shuffle(self.up1(F.silu(two)), 2))
        fine = F.pixel_shuffle(self.fine(F.silu(one)), 2)
        output: Tensor = self.last(torch.cat([fine, x], 1))
        return output


#: Log error scales are kept within these bounds.
LOG_SCALES = (-4.0, 1.0)
#: Error scales at which the confidence is a half: of colours, of roughness and metalness, of slopes.
_HALF = (0.06, 0.15, 0.25)


def log_scales(raw: Tensor) -> Tensor:
    """Log error scales (N, 3, H, W) of a raw output, bounded."""
    low, high = LOG_SCALES
    return low + (high - low) * torch.sigmoid(raw[:, 8:11] - math.log((high + 2) / (-2 - low)))


def maps_of(raw: Tensor, picture: Tensor) -> Maps:
    """Convert a raw output (N, `CHANNELS`, H, W) for pictures (N, 3, H, W) to maps."""
    slopes = raw[:, 6:8]
    n = torch.cat([-slopes, torch.ones_like(slopes[:, :1])], 1)
    half = torch.tensor(_HALF, dtype=raw.dtype, device=raw.device).view(1, 3, 1, 1)
    return Maps(
        (picture + raw[:, :3]).clamp(0, 1),
        torch.sigmoid(raw[:, 3:4]),
        torch.sigmoid(raw[:, 4:5]),
        raw[:, 5:6],
        F.normalize(n, dim=1),
        1 / (1 + log_scales(raw).exp() / half),
    )


@torch.no_grad()
def estimate(net: MaterialNet, picture: Tensor, *, tileable: bool = False) -> Maps:
    """Estimate the maps of pictures (N, 3, H, W) of any size, which are padded by mirroring to a multiple of 8.

    ``tileable`` pictures wrap around, and so do their maps.
    """
    h, w = picture.shape[-2:]
    bottom, right = -h % MULTIPLE, -w % MULTIPLE
    mode = "circular" if tileable else "reflect"
    whole = F.pad(picture, (0, right, 0, bottom), mode=mode) if bottom or right else picture
    with _wrapping(net) if tileable else contextlib.nullcontext():
        maps = maps_of(net(whole).float(), whole.float())
    return Maps(*(getattr(maps, name)[..., :h, :w] for name in Maps.__dataclass_fields__))


@contextlib.contextmanager
def _wrapping(net: nn.Module) -> Iterator[None]:
    """Inside the block, convolutions of ``net`` use circular padding."""
    padded = [m for m in net.modules() if isinstance(m, nn.Conv2d) and any(m._reversed_padding_repeated_twice)]
    try:
        for module in padded:
            module.padding_mode = "circular"
        yield
    finally:
        for module in padded:
            module.padding_mode = "zeros"

"""Converts an optimised latent texture to the maps of the finished asset."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.bake.atlas import Edges, TexelMap, shared_edges, surface_share, texel_map
from pipeline.bake.decode import Decoder, decode_texture
from pipeline.bake.inpainting import dilate, extend_nearest, inpaint
from pipeline.bake.seams import LEVEL_MARGIN, level_seams, seam_ratio, seam_step
from pipeline.core.job import Reporter, no_report
from pipeline.mesh.mesh import UVMesh

BASE_COLOUR = "base_colour"
# Tangent space, +Y up. Occlusion in red, roughness in green, metalness in blue. Occlusion as grey. Light sent out.
NORMAL, METALLIC_ROUGHNESS, OCCLUSION, EMISSIVE = "normal", "metallic_roughness", "occlusion", "emissive"
# A file of its own, which glTF does not use.
HEIGHT = "height"
# Width, in latent texels, of the gutter that is filled from the neighbour chart: about a decoder's receptive field.
PADDING = 12.0
# The steps that are reported: fill, decode, level, spread.
_STEPS = 4


@dataclass
class BakedMaps:
    """Named maps of one asset, (H, W, 3) uint8, row 0 at the top; ``notes`` go to the asset's record. ``height`` is
    (H, W) uint16, or None."""

    maps: dict[str, NDArray[np.uint8]]
    notes: dict[str, Any] = field(default_factory=dict)
    height: NDArray[np.uint16] | None = None


def bake_base_colour(
    latent: torch.Tensor,
    coverage: NDArray[np.bool_],
    uvmesh: UVMesh,
    prior: Decoder,
    texture_size: int,
    report: Reporter = no_report,
) -> BakedMaps:
    """The base colour map (``BASE_COLOUR``) of a latent texture.

    Args:
        latent: (C, s, s) scaled latents.
        coverage: (s, s) texels that the optimisation has touched.
        texture_size: side of the map. If it is not s times the VAE's scale factor, the decoded image is resampled.

    Fills the texels that no view reached, and the gutters with the latents across the border on the surface. Then runs
    the decoder, which so never sees an unset texel. Levels the remaining differences along the borders. Last, spreads
    the colours over all empty texels, so that mip levels do not bleed.
    """
    started = time.perf_counter()
    borders, _ = shared_edges(uvmesh)
    size = latent.shape[-1]
    report("bake", 0, _STEPS)
    coarse = texel_map(uvmesh, size)
    prepared = prepare_latents(latent.detach().float().cpu().numpy(), coverage, uvmesh, coarse, borders)
    report("bake", 1, _STEPS)
    decoded = decode_texture(torch.from_numpy(prepared).to(latent.device), prior)
    image = resize(decoded.float().cpu().numpy(), texture_size)
    report("bake", 2, _STEPS)
    pixels, before, after = level_and_dilate(image, uvmesh, borders, report)
    on_surface = int(coarse.mask.sum())
    notes = {
        "texture_size": texture_size,
        "latent_size": size,
        "decoded_size": int(decoded.shape[-1]),
        "texels_on_surface": on_surface,
        "texels_unreached": int((coarse.mask & ~coverage).sum()),
        "unreached_share": round(surface_share(uvmesh, coarse, ~coverage), 4),
        "chart_borders": len(borders),
        "seam_ratio_decoded": round(seam_ratio(*before), 3),
        "seam_ratio": round(seam_ratio(*after), 3),
        "seconds": round(time.perf_counter() - started, 2),
    }
    return BakedMaps({BASE_COLOUR: pixels}, notes)


def bake_refined(texture: torch.Tensor, uvmesh: UVMesh, report: Reporter = no_report) -> BakedMaps:
    """The base colour map of an RGB texture (3, S, S) in [0, 1] with all texels set. Levels seams, fills gutters."""
    borders, _ = shared_edges(uvmesh)
    image = texture.detach().float().clamp(0, 1).cpu().numpy()
    pixels, before, after = level_and_dilate(image, uvmesh, borders, report)
    notes = {"seam_ratio_refined": round(seam_ratio(*before), 3), "seam_ratio": round(seam_ratio(*after), 3)}
    return BakedMaps({BASE_COLOUR: pixels}, notes)


def level_and_dilate(
    image: NDArray[np.float32], uvmesh: UVMesh, borders: Edges, report: Reporter
) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[float, float]]:
    """(S, S, 3) uint8 from (3, S, S) in [0, 1], and ``seam_step``'s (across, inside) before and after."""
    fine = texel_map(uvmesh, image.shape[-1], LEVEL_MARGIN)
    colours = np.ascontiguousarray(image.transpose(1, 2, 0))
    before = seam_step(colours, uvmesh)
    levelled = level_seams(colours, uvmesh, fine, borders)
    report("bake", 3, _STEPS)
    spread = extend_nearest(np.ascontiguousarray(levelled.transpose(2, 0, 1)), fine.mask)
    pixels = np.ascontiguousarray(np.clip(np.rint(spread.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8))
    after = seam_step(pixels, uvmesh)
    report("bake", _STEPS, _STEPS)
    return pixels, before, after


def prepare_latents(
    latent: NDArray[np.float32], coverage: NDArray[np.bool_], uvmesh: UVMesh, texels: TexelMap, borders: Edges
) -> NDArray[np.float32]:
    """Latents (C, s, s) with all texels set: missing ones inpainted, gutters taken from the neighbour charts.

    Texels on a chart's margin, whose centres lie outside the chart, count as gutter. The optimisation saw them with
    small weights only, so the neighbour chart's texels are better. (On a brick pattern fitted through views this
    reduced the step across borders after decoding from 2.6 to 1.7 times the step inside.)
    """
    filled = inpaint(latent, texels, coverage, borders)
    strict = texel_map(uvmesh, texels.size, margin=0.0)
    thin = texels.mask & ~np.isin(texels.chart, np.unique(strict.chart[strict.mask]))
    guttered, known = dilate(filled, texels, borders, PADDING, own_texels=strict.mask | thin)
    return extend_nearest(guttered, known | texels.mask)


def resize(image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(C, H, W) to (C, size, size) with Lanczos filtering (area-aware when shrinking), clamped to [0, 1]."""
    if image.shape[1:] == (size, size):
        return image
    planes = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.LANCZOS)) for p in image]
    resized: NDArray[np.float32] = np.clip(np.stack(planes), 0, 1)
    return resized

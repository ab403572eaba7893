"""Texture lookups by nvdiffrast (CUDA): a thin layer, used only on request (LATENTKILN_TEXTURE=nvdiffrast).

Its backward pass adds with atomics, so two runs differ in the last digits; ``torch_backend`` adds in a fixed order. Its
texture is (N, H, W, C), like ours with v = 0 at row 0 and texel centres at (x + 0.5) / W. Its boundary mode "clamp" is
our rule beyond the outermost centres. Licence: research and evaluation only.
"""

from __future__ import annotations

from torch import Tensor


def sample(texture: Tensor, uv: Tensor, nearest: bool) -> Tensor:
    """Values (M, C) of ``texture`` (C, H, W) at ``uv`` (M, 2), both on CUDA; computed in float32.

    Differentiable in ``texture``; M may be 0.
    """
    import nvdiffrast.torch as dr

    if not len(uv):
        return texture[:, :0, :0].reshape(0, texture.shape[0])
    image = texture.float().permute(1, 2, 0)[None].contiguous()
    lookups = uv.detach().float()[None, None].contiguous()
    mode = "nearest" if nearest else "linear"
    values: Tensor = dr.texture(image, lookups, filter_mode=mode, boundary_mode="clamp")
    return values[0, 0].to(texture.dtype)

"""Measures whether RGB refinement starts from the decoded latents, and whether it keeps their colours.

    python benchmarks/refine.py [--prior embedded] [--prompt TEXT] [--steps 300] [--refine-steps 150]

A mushroom of two solids is grown in latent space and then refined. The program prints the PSNR, against decoded latent
renders of the same views, of:

* the first refined renders (the field's linear map, no decoder) at the resolution of the encoder's input;
* the prior's linear map of the same latents;
* the first refined renders with one ray per pixel, as they are baked, and the same averaged to the latents' sampling.

It also prints the PSNR of the linear map on pictures like those it is fitted on, and the object's mean chroma (CIE LCh,
D65) before and after refinement.

Then it paints a mesh without and with refinement, which starts from the decoded texture, and prints the mean chroma of
both textures.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pygltflib import GLTF2
from scipy.ndimage import binary_erosion
from skimage.color import rgb2lab

from benchmarks.sketch import MUSHROOM
from pipeline.bake.decode import decode_texture
from pipeline.core.job import Job, RowLocation, no_report
from pipeline.core.location import InputFile
from pipeline.fields.radiance_field_scene import RadianceFieldScene
from pipeline.optimize.loop import optimize
from pipeline.prior.latent_rgb_fit import picture as made_picture
from pipeline.prior.load import Prior, load_prior
from pipeline.raster.camera import Cameras, orbit
from pipeline.recipes.asset_build import RowContext
from pipeline.recipes.build import begin_next_phase, start
from pipeline.recipes.generate import FieldVariant, Generate, render_picture
from pipeline.recipes.generate_settings import GenerateOptions
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions

_AZIMUTHS = 6
# Width in pixels of the margin along outlines, where clamping before or after mixing with the background matters.
_MARGIN = 6


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """PSNR in dB between images (N, 3, H, W) in [0, 1] over the pixels ``where`` (N, H, W)."""
    error = ((a - b) ** 2).transpose(0, 2, 3, 1)[where].mean()
    return float(-10 * np.log10(max(error, 1e-12)))


def chroma(images: np.ndarray, where: np.ndarray) -> float:
    """Mean CIE chroma of the pixels ``where`` (N, H, W) of images (N, 3, H, W) in [0, 1]."""
    lab = rgb2lab(images.transpose(0, 2, 3, 1))
    return float(np.hypot(lab[..., 1], lab[..., 2])[where].mean())


def views(prior: Prior) -> Cameras:
    """A ring of cameras, slightly closer than those of the optimisation."""
    azimuth = np.arange(_AZIMUTHS) * 2 * np.pi / _AZIMUTHS
    return orbit(
        np.full(_AZIMUTHS, np.pi / 2 - 0.2), azimuth, np.full(_AZIMUTHS, 2.0), np.full(_AZIMUTHS, np.radians(45))
    )


def pictures(scene: RadianceFieldScene, cameras: Cameras, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Decoded (or refined) images (N, 3, H, W) in [0, 1], and the object's mask (N, H, W)."""
    size = 2 * prior.sample_size if prior.sample_size < 64 else prior.sample_size
    rendered = [render_picture(scene, cameras[i : i + 1], size, prior) for i in range(len(cameras))]
    images = np.concatenate([image for image, _ in rendered])
    depth = torch.from_numpy(np.concatenate([depth for _, depth in rendered]))[:, None]
    inside = torch.nn.functional.interpolate(depth.isfinite().float(), size=images.shape[-2:], mode="nearest")
    return images, inside[:, 0].numpy() > 0


@torch.no_grad()
def mapped(scene: RadianceFieldScene, cameras: Cameras, prior: Prior, side: int) -> np.ndarray:
    """The prior's linear map of the latent renders, upsampled: (N, 3, side, side) in [0, 1]."""
    return upsample_linear(scene.render_views(cameras, side // prior.vae_scale_factor)[0].cpu(), prior, side)


def upsample_linear(latents: torch.Tensor, prior: Prior, side: int) -> np.ndarray:
    """Linear colours (N, 3, side, side) in [0, 1] of latents (N, C, h, w), repeated over each latent's block."""
    linear = prior.latent_rgb
    rgb = torch.einsum("nchw,cd->ndhw", latents, torch.from_numpy(linear.matrix).float())
    rgb = rgb + torch.from_numpy(linear.bias).float()[:, None, None]
    big = torch.nn.functional.interpolate(rgb, size=(side, side), mode="bilinear", align_corners=False)
    return big.clamp(0, 1).numpy()


@torch.no_grad()
def refined_as_encoded(scene: RadianceFieldScene, cameras: Cameras, prior: Prior, side: int) -> np.ndarray:
    """Refined views at the latent views' number of rays, upsampled as for the encoder: (N, 3, side, side)."""
    rays = side // prior.vae_scale_factor * scene.settings.supersample
    image = scene.render_views(cameras, rays, supersample=1)[0].cpu()
    return torch.nn.functional.interpolate(image, size=(side, side), mode="bilinear", align_corners=False).numpy()


@torch.no_grad()
def fit_psnr(prior: Prior, images: int = 32) -> float:
    """PSNR of the linear map against the decoder, on pictures like those of ``latentkiln prior fit-rgb``."""
    side = prior.sample_size * prior.vae_scale_factor
    latents = torch.cat([prior.encode(made_picture(1, i, side)[None]).cpu() for i in range(images)])
    decoded = np.stack([decode_texture(z.to(prior.device), prior).cpu().numpy() for z in latents])
    return psnr(upsample_linear(latents, prior, side), decoded, np.ones((images, side, side), bool))


def at_latent_sampling(images: np.ndarray, scale_factor: int) -> np.ndarray:
    """Images (N, 3, H, W) averaged to the latents' sampling and upsampled as in ``mapped``."""
    big = torch.from_numpy(images)
    small = torch.nn.functional.avg_pool2d(big, scale_factor)
    return torch.nn.functional.interpolate(small, size=big.shape[-2:], mode="bilinear", align_corners=False).numpy()


def texture_of(glb: Path) -> np.ndarray:
    """The base colour texture of an asset, (1, 3, H, W) in [0, 1]."""
    gltf = GLTF2().load(glb)
    view = gltf.bufferViews[gltf.images[0].bufferView]
    data = gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255
    return pixels.transpose(2, 0, 1)[None]


def painted(prior: Prior, mesh: Path, prompt: str, refine_steps: int, out: Path) -> None:
    """Print the mean chroma of a painted texture without and with refinement."""
    jobs = []
    for refine in (False, True):
        more = {"refine_steps": refine_steps} if refine else {}
        values = PaintOptions(preview=False, refine=refine, **more).model_dump(mode="json")  # type: ignore[arg-type]
        name = f"{mesh.stem}-{'refined' if refine else 'decoded'}"
        jobs.append(Job(name, "paint", prompt, "", 0, InputFile(mesh.resolve()), values, RowLocation("benchmark", 1)))
    outcomes = paint(jobs, prior, out, fingerprints=[job.id for job in jobs], lockstep=len(jobs))
    if failed := [outcome.message for outcome in outcomes if outcome.state != "done"]:
        raise SystemExit("\n".join(failed))
    before, after = (texture_of(out / job.id / "asset.glb") for job in jobs)
    colours = [chroma(texture, np.ones((1, *texture.shape[2:]), bool)) for texture in (before, after)]
    print(f"{mesh.name}, {prompt!r}: mean chroma decoded {colours[0]:.1f}, refined {colours[1]:.1f}: ", end="")
    print(f"{colours[1] / colours[0] - 1:+.1%}")


def grown(prior: Prior, prompt: str, steps: int, refine_steps: int, out: Path) -> FieldVariant:
    """A field after its latent steps, before refinement."""
    settings = GenerateOptions(steps=steps, refine=True, refine_steps=refine_steps, shapes=MUSHROOM)  # type: ignore[arg-type]
    job = Job("refine", "generate", prompt, "", 0, None, settings.model_dump(mode="json"), RowLocation("benchmark", 1))
    asset_build = start(Generate(), RowContext(job, "benchmark", out / job.id, no_report), prior, out, 1)
    variant = asset_build.variants[0]
    growing = variant.optimizations[0]
    growing.checkpoint = None
    optimize([growing], prior, lockstep=1)
    begin_next_phase(asset_build, prior, 1)
    if growing.error:
        raise growing.error
    return variant


def main() -> None:
    """Print the figures and write before.png and after.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--prompt", default="a red mushroom")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--refine-steps", type=int, default=150)
    parser.add_argument("--mesh", type=Path, default=Path("manifests/meshes/vase.obj"))
    parser.add_argument("--paint-prompt", default="a red brick object")
    parser.add_argument("--paint-refine-steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("outputs") / "bench-refine")
    args = parser.parse_args()
    prior = load_prior(args.prior)
    variant = grown(prior, args.prompt, args.steps, args.refine_steps, args.out)
    latent_scene, refined_scene, refinement = variant.scenes.grown, variant.scenes.refined, variant.optimizations[1]
    assert latent_scene is not None and refined_scene is not None
    refinement.checkpoint = None
    cameras = views(prior)
    decoded, inside = pictures(latent_scene, cameras, prior)
    first, _ = pictures(refined_scene, cameras, prior)
    linear = mapped(latent_scene, cameras, prior, decoded.shape[-1])
    coarse = at_latent_sampling(first, prior.vae_scale_factor)
    within = np.stack([binary_erosion(mask, iterations=_MARGIN) for mask in inside])
    inner = f"{_MARGIN} pixels and more inside its outline"
    print(f"PSNR against the decoded latents: all of the object / {inner} / whole pictures")
    for name, images in (
        ("first refined, as the encoder gets it", refined_as_encoded(refined_scene, cameras, prior, decoded.shape[-1])),
        ("the linear map of the latents", linear),
        ("first refined, one ray per pixel", first),
        ("the same at the latents' sampling", coarse),
    ):
        decibels = (psnr(images, decoded, where) for where in (inside, within, np.ones_like(inside)))
        print(f"  {name:37s} {' / '.join(f'{value:.1f}' for value in decibels)} dB")
    print(f"linear map on pictures like those it is fitted on, whole pictures: {fit_psnr(prior):.1f} dB")
    optimize([refinement], prior, lockstep=1)
    after, still_inside = pictures(refined_scene, cameras, prior)
    colours = chroma(decoded, inside), chroma(first, inside), chroma(after, still_inside)
    print(f"mean chroma: decoded {colours[0]:.1f}, first refined {colours[1]:.1f}, refined {colours[2]:.1f}")
    print(f"after refinement {colours[2] / colours[0] - 1:+.1%} of before")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, images in (("before", decoded), ("after", after)):
        row = (np.concatenate(list(images.transpose(0, 2, 3, 1)), axis=1) * 255).round().astype(np.uint8)
        Image.fromarray(row).save(args.out / f"{name}.png")
    painted(prior, args.mesh, args.paint_prompt, args.paint_refine_steps, args.out)


if __name__ == "__main__":
    main()

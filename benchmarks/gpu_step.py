"""Times the parts of a step on a GPU, to compare with the lower bounds of docs/cost.md. Also runs on the CPU.

    python -m benchmarks.gpu_step --prior /models/stable-diffusion-v1-5 [--lockstep 1,2,4,8] [--repeats 20]

Each part is timed alone, with synchronisation before and after. The median of the repeats is printed. Operations of the
prior's parts are counted in the same run, so the last column gives the share of the device's published rate. Not yet
run on a GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost import GPUS
from pipeline.core import backends
from pipeline.core.rng import numpy_generator, torch_generator
from pipeline.fields import grid, volume
from pipeline.fields.grid.layout import GridSettings
from pipeline.fields.occupancy import OccupancyGrid
from pipeline.fields.radiance_field import FieldSettings, RadianceField
from pipeline.mesh.load import load_mesh
from pipeline.mesh.normalise import normalise
from pipeline.prior.load import Prior, load_prior
from pipeline.raster import camera, rasterise
from pipeline.raster.camera import ray_directions
from pipeline.raster.texture import sample_texture

MESHES = Path(__file__).parent.parent / "manifests" / "meshes"
CELLS, RAYS = 128, 64  # a side, of the occupancy grid and of a radiance field's view: the defaults of generate
SUPERSAMPLE = 4  # texture lookups along a latent pixel, as in scene.painted_mesh

Part = tuple[str, Callable[[], object], bool]  # name, what to time, whether its operations are counted


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of ``call`` in seconds, after two warm-up calls, with the device idle at both ends."""
    taken = []
    for turn in range(repeats + 2):
        _wait(device)
        start_time = time.perf_counter()
        call()
        _wait(device)
        if turn >= 2:
            taken.append(time.perf_counter() - start_time)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scene_parts(prior: Prior, mesh: Path, views: int = 1) -> Iterator[Part]:
    """A scene's part of a step: drawing views with each working backend, and texture lookups with their gradient."""
    loaded = load_mesh(mesh)
    frame = normalise(loaded.vertices, radius=0.6)
    vertices = np.ascontiguousarray(frame.apply(loaded.vertices))
    cameras = camera.sample_paint_cameras(numpy_generator(0, "bench"), views, camera.CameraSettings())
    side = prior.defaults.view_size * SUPERSAMPLE
    for backend in backends.BACKENDS:
        if backend.operation == "rasterise" and backend.name != "torch" and not backends.unavailable_reason(backend):

            def draw(name: str = backend.name) -> object:
                return rasterise.rasterise(vertices, loaded.faces, cameras, side, side, backend=name)

            yield f"rasterise {views} x {side}^2, {len(loaded.faces)} faces, {backend.name}", draw, False
    texels = prior.defaults.texture_size // prior.vae_scale_factor
    texture = torch.zeros(prior.latent_channels, texels, texels, device=prior.device, requires_grad=True)
    uv = torch.rand(views * side * side, 2, generator=torch_generator(0, "bench")).to(prior.device)

    def look() -> object:
        return torch.autograd.grad(sample_texture(texture, uv).sum(), texture)

    yield f"texture lookups of {len(uv)} pixels, with gradient", look, False


def prior_parts(prior: Prior, lockstep: int) -> Iterator[Part]:
    """The UNet call that ``lockstep`` scenes of one view share."""
    size, count = prior.defaults.view_size, 2 * lockstep
    noisy = torch.randn(count, prior.latent_channels, size, size, generator=torch_generator(0, "bench"))
    noisy, t = noisy.to(prior.device), torch.full((count,), prior.train_steps // 2, device=prior.device)
    text = prior.embed(["a red brick"] * count)
    yield f"UNet, K {lockstep}, batch {count} of {size}^2", lambda: prior.predict_noise(noisy, t, text), True


def image_parts(prior: Prior) -> Iterator[Part]:
    """Decoding, once per asset, and encoding, at each step of a refinement."""
    texels = prior.defaults.texture_size // prior.vae_scale_factor
    latents = torch.zeros(1, prior.latent_channels, texels, texels, device=prior.device)

    def decode() -> object:
        with torch.no_grad():
            return prior.decode(latents)

    side = prior.sample_size * prior.vae_scale_factor
    image = torch.full((1, 3, side, side), 0.5, device=prior.device, requires_grad=True)

    def encode() -> object:
        return torch.autograd.grad(prior.encode(image).sum(), image)

    yield f"decode {texels}^2 latents", decode, True
    yield f"encode {side}^2 pixels, with gradient", encode, True


def grid_parts(device: torch.device, points: int, settings: GridSettings) -> Iterator[Part]:
    """The radiance field's encoding with each working backend, alone and with its MLP, with gradients."""
    places = torch.rand(points, 3, generator=torch_generator(0, "bench")).to(device)
    table = torch.zeros(settings.parameter_count, device=device, requires_grad=True)
    for name in ("tinycudann", "numba", "torch"):
        backend = next(b for b in backends.BACKENDS if (b.operation, b.name) == ("grid", name))
        if backends.unavailable_reason(backend) or (name == "numba" and device.type != "cpu"):
            continue

        def encode(chosen: str = name) -> object:
            return torch.autograd.grad(grid.encode(places, table, settings, backend=chosen).sum(), table)

        yield f"grid of {points} points, with gradient, {name}", encode, False
    for backend in backends.BACKENDS:
        if backend.operation != "network" or backends.unavailable_reason(backend):
            continue
        field = RadianceField(FieldSettings(settings, channels=4), seed=0, network_backend=backend.name).to(device)

        def evaluate(made: RadianceField = field) -> object:
            sigma, latent = made(places * 2 - 1)
            return torch.autograd.grad(sigma.sum() + latent.sum(), [made.table, *made.network.parameters()])

        yield f"grid and MLP of {points} points, with gradient, {backend.name}", evaluate, False


def volume_parts(device: torch.device, settings: GridSettings, step: float = 0.0068) -> Iterator[Part]:
    """The other parts of a radiance field's step: marching the rays of a view, and compositing with its gradient.

    The object is a ball of radius 0.5, which has about as many samples as a typical object.
    """
    occupancy = OccupancyGrid(CELLS, device=device)
    centres = (np.arange(occupancy.resolution) + 0.5) / occupancy.resolution * 2 - 1
    occupancy.binary[:] = sum(np.meshgrid(*[centres**2] * 3, indexing="ij")) < 0.25
    cameras = camera.orbit(np.radians([60.0]), np.radians([30.0]), 1.25, np.radians(55.0))
    directions = torch.from_numpy(ray_directions(cameras, RAYS, RAYS).reshape(-1, 3).astype(np.float32)).to(device)
    origins = torch.from_numpy(np.repeat(cameras.eye.astype(np.float32), RAYS * RAYS, axis=0)).to(device)

    def march() -> volume.PackedSamples:
        return volume.march(origins, directions, occupancy, step=step, nearest=0.1)

    packed = march()
    samples = torch.rand(len(packed.t), 5, generator=torch_generator(0, "bench")).to(device).requires_grad_(True)

    def composite() -> object:
        made = volume.composite(samples[:, 0], samples[:, 1:], packed)
        return torch.autograd.grad(made.values.sum() + made.weight.sum(), samples)

    yield f"march {RAYS}^2 rays", march, False
    yield f"composite {len(packed.t)} samples, with gradient", composite, False
    field = RadianceField(FieldSettings(settings, channels=4), seed=0).to(device)
    yield "update of the occupancy grid (1 step in 16)", lambda: occupancy.update(field.density, 0, 0), False


def measure(parts: Iterator[Part], device: torch.device, repeats: int) -> Iterator[tuple[str, float, float]]:
    """Measure each part: name, seconds, and operations (nan if not counted)."""
    for name, call, counted in parts:
        flops = math.nan
        if counted:
            with FlopCounterMode(display=False) as counter:
                call()
            flops = float(counter.get_total_flops())
        yield name, seconds(call, device, repeats), flops


def published_rate(device: torch.device) -> float:
    """Peak float16 operations per second of this device; nan if benchmarks.cost does not list it."""
    if device.type != "cuda":
        return math.nan
    name = torch.cuda.get_device_name(device)
    return next((gpu.flops for gpu in GPUS if gpu.name.split()[0] in name), math.nan)


def every_part(prior: Prior, mesh: Path, locksteps: list[int], points: int, settings: GridSettings) -> Iterator[Part]:
    """All parts, in the order of the table."""
    yield from scene_parts(prior, mesh)
    for lockstep in locksteps:
        yield from prior_parts(prior, lockstep)
    yield from image_parts(prior)
    yield from grid_parts(prior.device, points, settings)
    yield from volume_parts(prior.device, settings)


def report(
    prior: Prior,
    mesh: Path,
    locksteps: list[int],
    repeats: int,
    points: int = 1 << 18,
    settings: GridSettings | None = None,
) -> list[str]:
    """The lines of the table."""
    rate = published_rate(prior.device)
    parts = every_part(prior, mesh, locksteps, points, settings or GridSettings())
    lines = [f"{'part':<56} {'ms':>9} {'T operations':>13} {'of peak':>8}"]
    for name, taken, flops in measure(parts, prior.device, repeats):
        reached = flops / taken / rate
        share = "-" if math.isnan(reached) else f"{reached:.0%}"
        counted = "-" if math.isnan(flops) else f"{flops / 1e12:.3f}"
        lines.append(f"{name:<56} {taken * 1e3:>9.2f} {counted:>13} {share:>8}")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--mesh", type=Path, default=MESHES / "teapot.obj")
    parser.add_argument("--lockstep", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--points", type=int, default=1 << 18, help="samples of a radiance field's step")
    args = parser.parse_args()
    prior = load_prior(args.prior)
    where = torch.cuda.get_device_name(prior.device) if prior.device.type == "cuda" else "CPU"
    print(f"prior {prior.name}, {str(prior.dtype).removeprefix('torch.')} on {where}, torch {torch.__version__}")
    for line in report(prior, args.mesh, [int(k) for k in args.lockstep.split(",")], args.repeats, args.points):
        print(line)


if __name__ == "__main__":
    main()

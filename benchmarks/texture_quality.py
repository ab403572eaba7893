"""Compares the ways of painting with each other and with a simple baseline: sharpness, evenness, cost.

    python benchmarks/texture_quality.py outputs/quality [--rows benchmarks/texture_quality.json] [--only ID ...]

For each row (mesh, prompt, seed) this measures the prior's own sample, the *triplanar* baseline (one sample, mirrored
so that it tiles, projected along three axes), and each way of painting that `latentkiln run` has. Measures are taken
from pictures by another renderer (`texture_measures`). Prints a table of geometric means, writes `measures.json` and a
contact sheet per row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from texture_measures import cast, measures, sample_pictures

from pipeline.bake.atlas import texel_map
from pipeline.bake.bake import BASE_COLOUR
from pipeline.bake.inpainting import extend_nearest
from pipeline.export.gltf import write_glb
from pipeline.mesh.normalise import normalise
from pipeline.prior.load import Prior, load_prior
from pipeline.prior.sample import sample_images
from pipeline.raster.rasterise import interpolate
from pipeline.uv.cache import load_unwrapped

WAYS = ("material", "patches")
SIZE, RADIUS = 1024, 0.6
COLUMNS = ("gradient", "laplacian", "contrast", "faded", "scale_spread", "seconds")


def triplanar(row: dict[str, Any], mesh: Path, prior: Prior, out: Path) -> np.ndarray:
    """Write the baseline's GLB. Returns its sample (H, W, 3)."""
    prompt = f"{prior.surface_prompt(row['prompt'])}, close up"
    own = prior.material_defaults
    sample = sample_images(prior, [prompt], steps=own.steps, seed=row["seed"], size=own.size or None)[0]
    image = np.ascontiguousarray(sample.permute(1, 2, 0).numpy())
    mirrored = np.concatenate([image, image[:, ::-1]], axis=1)
    mirrored = np.concatenate([mirrored, mirrored[::-1]])
    uvmesh = load_unwrapped(mesh, out / ".cache", texture_size=SIZE)
    frame = normalise(uvmesh.mesh.vertices, radius=RADIUS, up_axis=row.get("up_axis", "y"))
    texels = texel_map(uvmesh, SIZE)
    position = interpolate(texels.face, texels.bary, frame.apply(uvmesh.mesh.vertices), uvmesh.mesh.faces)
    normal = texels.normal[texels.mask].astype(np.float64) @ frame.matrix[:3, :3].T
    weight = np.abs(normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)) ** 4
    weight /= weight.sum(axis=1, keepdims=True)
    tile = 2 * own.coverage * RADIUS
    colours = np.zeros((len(position), 3))
    for axis, (u, v) in enumerate(((2, 1), (0, 2), (0, 1))):
        pixel = (position[:, [u, v]] / tile * len(mirrored)).astype(int) % len(mirrored)
        colours += weight[:, axis, None] * mirrored[-1 - pixel[:, 1], pixel[:, 0]]
    texture = np.zeros((SIZE, SIZE, 3), np.float32)
    texture[texels.mask] = colours
    spread = extend_nearest(np.ascontiguousarray(texture.transpose(2, 0, 1)), texels.mask).transpose(1, 2, 0)
    pixels = np.rint(np.clip(spread, 0, 1) * 255).astype(np.uint8)
    write_glb(out / "asset.glb", uvmesh, {BASE_COLOUR: pixels}, name=row["id"], provenance={})
    return image


def run_way(way: str, manifest: Path, out: Path) -> None:
    """Paint all rows in one way with the command."""
    command = [sys.executable, "-m", "pipeline", "run", str(manifest), "--out", str(out), "--allow-outside", "--serial"]
    subprocess.run([*command, "--set", f"distillation={way}", "--set", "preview=false"], check=True)


def measure_row(row: dict[str, Any], prior: Prior, out: Path) -> dict[str, dict[str, float]]:
    """The measures of one row, by way of painting."""
    folder = out / "triplanar" / row["id"]
    folder.mkdir(parents=True, exist_ok=True)
    start_time = time.perf_counter()
    image = triplanar(row, Path(row["mesh"]), prior, folder)
    seconds = time.perf_counter() - start_time
    own = prior.material_defaults
    near = len(image) / own.coverage
    far = len(image) / float(prior.defaults.patch_height)
    measures_by_way: dict[str, dict[str, float]] = {}
    sheet = [np.asarray(Image.fromarray(np.rint(image * 255).astype(np.uint8)).resize((320, 320)))]
    for way in ("triplanar", *WAYS):
        pictures = cast(out / way / row["id"] / "asset.glb")
        sample = measures(sample_pictures(image, far if way == "patches" else near))
        own_measures = measures(pictures)
        measures_by_way[way] = own_measures | {f"{name}_share": own_measures[name] / max(sample[name], 1e-6)
                                     for name in ("gradient", "laplacian", "contrast")}  # fmt: skip
        if way == "triplanar":
            measures_by_way[way]["seconds"] = seconds
        else:
            record = json.loads((out / way / row["id"] / "record.json").read_text())
            measures_by_way[way]["seconds"] = record["finished"] - record["started"]
        white = np.where(pictures.mask[..., None], pictures.rgb, 255)
        sheet.append(np.concatenate([np.rint(white[n]).astype(np.uint8) for n in (0, 1)], axis=1))
    (out / "sheets").mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(sheet, axis=1)).save(out / "sheets" / f"{row['id']}.jpg", quality=90)
    return measures_by_way


def main() -> None:
    """Command line of this program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--meshes", type=Path, default=Path(__file__).parent.parent / "manifests" / "meshes")
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in json.loads(args.rows.read_text()) if not args.only or row["id"] in args.only]
    for row in rows:
        row["mesh"] = str((args.meshes / row["mesh"]).resolve())
    manifest = args.out / "rows.json"
    manifest.write_text(json.dumps({"rows": rows}, indent=1))
    for way in WAYS:
        run_way(way, manifest, args.out / way)
    prior = load_prior("embedded")
    measures_by_way = {}
    for row in rows:
        measures_by_way[row["id"]] = measure_row(row, prior, args.out)
        print(
            row["id"], {way: round(m["gradient_share"], 2) for way, m in measures_by_way[row["id"]].items()}, flush=True
        )
    (args.out / "measures.json").write_text(json.dumps(measures_by_way, indent=1))
    columns = [*(f"{name}_share" for name in ("gradient", "laplacian", "contrast")), *COLUMNS]
    print("| way | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for way in ("triplanar", *WAYS):
        means = []
        for column in columns:
            values = np.array([measures_by_way[row][way][column] for row in measures_by_way])
            means.append(values.mean() if column == "faded" else np.exp(np.log(values.clip(1e-6)).mean()))
        print(f"| {way} | " + " | ".join(f"{value:.2f}" for value in means) + " |")


if __name__ == "__main__":
    main()

"""Writes what a row became: everything under temporary names first, and the record last, which makes it exist."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.asset_layout import WORK_DIR
from pipeline.core.atomic import atomic_write, naming
from pipeline.core.hashing import sha256_file
from pipeline.export.gltf import write_glb
from pipeline.export.obj import obj_files
from pipeline.export.ply import ply_files
from pipeline.export.preview import preview_png
from pipeline.export.record import read_record, write_record
from pipeline.export.turntable import turntable_files
from pipeline.prior.adapter_hashes import adapter_hashes
from pipeline.prior.load import Prior
from pipeline.recipes import LIMIT_SETTINGS, RECIPE_VERSIONS
from pipeline.recipes.asset_build import Asset, AssetBuild, Variant
from pipeline.recipes.record import backends, done_record


def write_outputs(recipe: str, asset_build: AssetBuild, built: list[Variant], prior: Prior, lockstep: int) -> None:
    """Writes assets, previews and record of a row into its folder. Raises LatentkilnError.

    ``built``: its variants, the best first. The best becomes ``asset.glb``; another one ``seed-<seed>.glb``.
    """
    folder = asset_build.folder
    with contextlib.ExitStack() as stack:
        new: dict[str, Path] = {}
        for rank, variant in enumerate(built):
            stem = "asset" if rank == 0 else f"seed-{variant.seed}"
            preview = "preview.png" if rank == 0 else f"{stem}.png"
            _write_variant(recipe, asset_build, variant, prior, stem, preview, new, stack)
        outputs = {n: {"sha256": sha256_file(p), "bytes": p.stat().st_size} for n, p in new.items()}
        before = read_record(folder) or {}
        # From here to the new record there is no record: a crash leaves garbage that is rebuilt, never a lie.
        (folder / "record.json").unlink(missing_ok=True)
        for name in set(before.get("outputs", ())) - set(outputs):
            (folder / name).unlink(missing_ok=True)
    # Before the record: once that is there, no run looks into this folder again.
    shutil.rmtree(folder / WORK_DIR, ignore_errors=True)
    write_record(folder, done_record(asset_build, built, prior, lockstep, outputs))


def _write_variant(
    recipe: str,
    asset_build: AssetBuild,
    variant: Variant,
    prior: Prior,
    stem: str,
    preview: str,
    new: dict[str, Path],
    stack: contextlib.ExitStack,
) -> None:
    asset, settings, folder = variant.asset, asset_build.settings, asset_build.folder
    assert asset is not None
    crease_angle = float(np.radians(settings.crease_angle))
    with asset_build.stage("export"):
        path = new[f"{stem}.glb"] = stack.enter_context(atomic_write(folder / f"{stem}.glb"))
        with naming(folder / f"{stem}.glb"):
            write_glb(
                path,
                asset.uvmesh,
                asset.maps,
                name=asset_build.job.id,
                provenance=_provenance(recipe, asset_build, variant, prior),
                crease_angle=crease_angle,
                image_format=settings.image_format,
            )
        for name, data in _additional_files(asset_build, asset, stem).items():
            path = new[name] = stack.enter_context(atomic_write(folder / name))
            with naming(folder / name):
                path.write_bytes(data)
    if settings.preview:
        with asset_build.stage("preview"):
            path = new[preview] = stack.enter_context(atomic_write(folder / preview))
            with naming(folder / preview):
                preview_png(path, asset.uvmesh, asset.maps, asset.frame, crease_angle=crease_angle)


def _additional_files(asset_build: AssetBuild, asset: Asset, stem: str) -> dict[str, bytes]:
    """What a row asks for besides the GLB: other formats, and sheets of depth and normals."""
    settings, files = asset_build.settings, dict[str, bytes]()
    crease_angle = float(np.radians(settings.crease_angle))
    if "obj" in settings.formats:
        files |= obj_files(
            stem,
            asset.uvmesh,
            asset.maps,
            name=asset_build.job.id,
            crease_angle=crease_angle,
            image_format=settings.image_format,
        )
    if "ply" in settings.formats:
        files |= ply_files(stem, asset.uvmesh, asset.maps)
    if settings.turntable:
        prefix = "" if stem == "asset" else f"{stem}-"
        sheets = turntable_files(asset.uvmesh.mesh, asset.frame)
        files |= {f"{prefix}{name}": data for name, data in sheets.items()}
    return files


def _provenance(recipe: str, asset_build: AssetBuild, variant: Variant, prior: Prior) -> dict[str, Any]:
    """What stands in the asset itself: no clock time, host or path, so that the same job gives the same bytes."""
    job = asset_build.job
    return {
        "fingerprint": asset_build.fingerprint,
        "id": job.id,
        "recipe": recipe,
        "recipe_version": RECIPE_VERSIONS[recipe],
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": variant.seed,
        "prior": {"name": prior.name, "identity": prior.identity},
        "mesh_sha256": asset_build.input_sha256,
        **({"adapters": adapter_hashes(job.adapters)} if job.adapters else {}),
        # Limits change no byte, so they must not stand in the bytes either.
        "settings": asset_build.settings.model_dump(mode="json", exclude=set(LIMIT_SETTINGS[recipe])),
        "backends": backends(prior, asset_build),
    }

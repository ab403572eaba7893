"""Write a row's outputs: all files under temporary names first, then the record, which makes the asset exist."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.core.asset_layout import WORK_DIR, map_file
from pipeline.core.atomic import atomic_write, naming
from pipeline.core.hashing import sha256_file
from pipeline.export.gltf import (
    BASE_COLOUR,
    NORMAL,
    MaterialFactors,
    encode_data,
    encode_image,
    encode_maps,
    green_down,
    write_glb,
)
from pipeline.export.material_preview import material_preview
from pipeline.export.obj import obj_files
from pipeline.export.ply import ply_files
from pipeline.export.preview import preview_png
from pipeline.export.record import read_record, write_record
from pipeline.export.turntable import turntable_files
from pipeline.prior.adapter_hashes import adapter_hashes
from pipeline.prior.load import Prior
from pipeline.recipes import LIMIT_SETTINGS, recipe_version
from pipeline.recipes.asset_build import Asset, AssetBuild, InputsT, Json, ScenesT, SettingsT, Variant
from pipeline.recipes.map_settings import MapSettings
from pipeline.recipes.quality import asset_quality
from pipeline.recipes.recipe import Recipe
from pipeline.recipes.record import backends, done_record
from pipeline.recipes.shared_settings import CommonSettings, SharedSettings

# The crease angle of meshes that have normals of their own, which it does not concern.
_SMOOTH = float(np.pi)


def write_outputs(
    recipe: Recipe[SettingsT, InputsT, ScenesT],
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT],
    built: list[Variant[ScenesT]],
    prior: Prior,
    lockstep: int,
) -> None:
    """Write assets, previews and record of a row into its folder. Raises LatentkilnError, and OSError for the record.

    ``built`` holds the finished variants, the best one first. The best one becomes ``asset.glb``, each other one
    ``seed-<seed>.glb``.
    """
    folder = asset_build.row.folder
    with asset_build.row.stage("measure"):
        assert built[0].asset is not None
        quality = asset_quality(built[0].asset)
    with contextlib.ExitStack() as stack:
        new: dict[str, Path] = {}
        for rank, variant in enumerate(built):
            stem = "asset" if rank == 0 else f"seed-{variant.seed}"
            preview = "preview.png" if rank == 0 else f"{stem}.png"
            _write_variant(recipe, asset_build, variant, prior, stem, preview, new, stack)
        outputs = {n: {"sha256": sha256_file(p), "bytes": p.stat().st_size} for n, p in new.items()}
        before = read_record(folder) or {}
        # Until the new record is written there is none: a crash leaves files that are rebuilt, never a wrong record.
        (folder / "record.json").unlink(missing_ok=True)
        for name in set(before.get("outputs", ())) - set(outputs):
            (folder / name).unlink(missing_ok=True)
    # Before the record: no run looks into a folder that has one.
    shutil.rmtree(folder / WORK_DIR, ignore_errors=True)
    write_record(folder, done_record(recipe, asset_build, built, prior, lockstep, outputs, quality))


def _write_variant(
    recipe: Recipe[SettingsT, InputsT, ScenesT],
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT],
    variant: Variant[ScenesT],
    prior: Prior,
    stem: str,
    preview: str,
    new: dict[str, Path],
    stack: contextlib.ExitStack,
) -> None:
    """Write one variant's files; ``new`` and ``stack`` take their temporary paths by name, and their renaming."""
    asset, settings, row = variant.asset, asset_build.settings, asset_build.row
    folder = row.folder
    assert asset is not None
    crease_angle = float(np.radians(settings.crease_angle)) if isinstance(settings, SharedSettings) else _SMOOTH
    with row.stage("export"):
        encoded = encode_maps(asset.maps, settings.image_format)
        files: dict[str, bytes] = {}
        provenance = _provenance(recipe, asset_build, variant, prior)
        if asset.document is not None:
            files = asset.document.write(provenance, stem)
        else:
            path = new[f"{stem}.glb"] = stack.enter_context(atomic_write(folder / f"{stem}.glb"))
            with naming(folder / f"{stem}.glb"):
                write_glb(
                    path,
                    asset.uvmesh,
                    asset.maps,
                    name=row.job.id,
                    provenance=provenance,
                    crease_angle=crease_angle,
                    image_format=settings.image_format,
                    tiling=asset.tiling,
                    factors=_factors(settings),
                    encoded=encoded,
                )
        files |= _additional_files(row.job.id, settings, asset, stem, encoded)
        for name, data in files.items():
            path = new[name] = stack.enter_context(atomic_write(folder / name))
            with naming(folder / name):
                path.write_bytes(data)
    if settings.preview:
        with row.stage("preview"):
            path = new[preview] = stack.enter_context(atomic_write(folder / preview))
            with naming(folder / preview):
                if asset.tiling is not None:
                    path.write_bytes(
                        material_preview(asset.uvmesh, asset.maps, asset.frame, asset.tiling, _factors(settings))
                    )
                else:
                    preview_png(
                        path,
                        asset.uvmesh,
                        asset.maps,
                        asset.frame,
                        factors=_factors(settings),
                        crease_angle=crease_angle,
                    )


def _additional_files(
    job_id: str, settings: CommonSettings, asset: Asset, stem: str, encoded: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The files besides the GLB, by name: tileable maps, or other formats and sheets of depth and normals."""
    files: dict[str, bytes] = {}
    if asset.tiling is not None or len(asset.maps) > 1:
        files |= {map_file(stem, name): data for name, data in encoded.items()}
        if settings.image_format != "png":
            files[map_file(stem, BASE_COLOUR)] = encode_image(asset.maps[BASE_COLOUR], "png")
    if NORMAL in asset.maps and isinstance(settings, MapSettings) and settings.normal_convention == "directx":
        files[map_file(stem, NORMAL)] = encode_data(green_down(asset.maps[NORMAL]))
    if asset.height is not None:
        files[map_file(stem, "height")] = encode_data(asset.height)
    if not isinstance(settings, SharedSettings):
        return files
    crease_angle = float(np.radians(settings.crease_angle))
    if "obj" in settings.formats:
        files |= obj_files(
            stem,
            asset.uvmesh,
            asset.maps,
            name=job_id,
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


def _factors(settings: CommonSettings) -> MaterialFactors:
    """What the row says of its material."""
    if not isinstance(settings, MapSettings):
        return MaterialFactors()
    metallic = 0.0 if settings.metallic is None else settings.metallic
    roughness = 1.0 if settings.roughness is None else settings.roughness
    return MaterialFactors(metallic, roughness, settings.occlusion_strength)


def _provenance(
    recipe: Recipe[SettingsT, InputsT, ScenesT],
    asset_build: AssetBuild[SettingsT, InputsT, ScenesT],
    variant: Variant[ScenesT],
    prior: Prior,
) -> Json:
    """The provenance inside the asset. It has no clock time, host or path: the same job gives the same bytes."""
    job = asset_build.row.job
    return {
        "fingerprint": asset_build.row.fingerprint,
        "id": job.id,
        "recipe": recipe.name,
        "recipe_version": recipe_version(recipe.name, job.mesh.name if job.mesh else ""),
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": variant.seed,
        "prior": {"name": prior.name, "identity": prior.identity},
        "mesh_sha256": asset_build.row.input_sha256,
        **({"adapters": adapter_hashes(job.adapters)} if job.adapters else {}),
        # Without limits: an asset built under another limit has the same bytes.
        "settings": asset_build.settings.model_dump(mode="json", exclude=set(LIMIT_SETTINGS[recipe.name])),
        "backends": backends(recipe, asset_build.settings, prior),
    }

"""Write painted parts back into the document that they came from: only what was painted changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import SettingError
from pipeline.core.terminal import excerpt
from pipeline.document.garbage import drop_unused, used_entries
from pipeline.document.kept import GltfDocument
from pipeline.document.materials import (
    NO_FACTORS,
    NORMAL,
    Factors,
    ImageFile,
    TextureTable,
    TextureUse,
    add_variant,
    paint_material,
    plain_material,
    show_in_variant,
)
from pipeline.document.parts import VARIANTS, Part
from pipeline.document.references import DRACO
from pipeline.document.surface import DocumentSurface, Key
from pipeline.document.vertices import add_uv_set, next_uv_set


@dataclass(frozen=True)
class PartPaint:
    """What a part is painted with.

    images           files by name of the map; the base colour is among them.
    corner_uv        by primitive, (F, 3, 2) float32 new texture coordinates of its own faces' corners, NaN where a
                     corner has none; None: the part keeps its own.
    keeps_transform  whether the artist's transform of the base colour stays, because kept coordinates need it.
    """

    part: Part
    images: Mapping[str, ImageFile]
    corner_uv: Mapping[Key, NDArray[np.float32]] | None = None
    keeps_transform: bool = False


@dataclass(frozen=True)
class Repainted:
    """The document with painted parts, and what was changed in it: an entry for each part, JSON values only."""

    document: GltfDocument
    changes: list[dict[str, object]]
    notes: list[str]


def repaint(
    document: GltfDocument,
    surface: DocumentSurface,
    paints: Sequence[PartPaint],
    *,
    title: str,
    factors: Factors = NO_FACTORS,
    variant: str | None = None,
) -> Repainted:
    """A copy of ``document`` in which ``paints`` are painted. ``surface`` is the document's.

    title    names new materials and textures.
    variant  name of a new variant (KHR_materials_variants) that shows the paint; the default look stays. None: the
             paint is the default look.

    Raises SettingError for a variant that exists, MeshError for damaged vertex data.
    """
    result = document.copy()
    if variant is not None and variant in variant_names(document):
        raise SettingError(f"variant {excerpt(variant)!r} exists in {document.name} already; choose another name")
    before = used_entries(result.json)
    textures = TextureTable(result, title)
    number = add_variant(result, variant) if variant is not None else None
    changes = [_paint_part(result, surface, paint, textures, title, factors, number) for paint in paints]
    kept = drop_unused(result, before)
    notes = [f"replaced textures stay in the file: {', '.join(kept)} may use them"] if kept else []
    if variant is not None:
        changes = [{**change, "variant": variant} for change in changes]
    return Repainted(result, changes, notes)


def variant_names(document: GltfDocument) -> list[str]:
    """The names of the document's variants of materials."""
    extension = (document.json.get("extensions") or {}).get(VARIANTS) or {}
    return [str(each.get("name")) for each in extension.get("variants") or () if isinstance(each, dict)]


def _paint_part(
    document: GltfDocument,
    surface: DocumentSurface,
    paint: PartPaint,
    textures: TextureTable,
    title: str,
    factors: Factors,
    variant: int | None,
) -> dict[str, object]:
    """Paint one part. Returns what was changed."""
    part = paint.part
    change: dict[str, object] = {"material": part.name, "primitives": len(part.primitives)}
    uv_set = part.uv_set
    if paint.corner_uv is not None:
        uv_set = next_uv_set(document, part.primitives)
        compressed = sum(_is_compressed(document, key) for key in part.primitives)
        splits = sum(add_uv_set(document, surface, key, paint.corner_uv[key], uv_set) for key in part.primitives)
        change |= {"uv": f"new TEXCOORD_{uv_set}", "added_vertices": splits}
        if compressed:
            change["decompressed_primitives"] = compressed
        if NORMAL in paint.images and variant is None:
            _drop_tangents(document, part.primitives)
    else:
        change["uv"] = f"kept TEXCOORD_{uv_set}"
    number, split = _own_material(document, part, title, factors, keep=variant is not None)
    use = TextureUse(uv_set, paint.keeps_transform, paint.corner_uv is None)
    paint_material(document, document.json["materials"][number], paint.images, use, factors, textures)
    if variant is not None:
        show_in_variant(document, part.primitives, variant, number)
    else:
        for mesh, primitive in part.primitives:
            document.json["meshes"][mesh]["primitives"][primitive]["material"] = number
    change["number"] = number
    if split:
        change["split"] = True
    return {**change, "maps": sorted(paint.images)}


def _own_material(document: GltfDocument, part: Part, title: str, factors: Factors, *, keep: bool) -> tuple[int, bool]:
    """(number, whether others keep the old one) of the material that is painted: the part's, or a copy of it."""
    if part.material is None:
        return document.add("materials", plain_material(title, factors)), False
    if not (part.others or keep):
        return part.material, False
    twin = copy.deepcopy(document.json["materials"][part.material])
    if isinstance(twin.get("name"), str):
        twin["name"] += " (painted)"
    return document.add("materials", twin), part.others


def _is_compressed(document: GltfDocument, key: Key) -> bool:
    primitive = document.json["meshes"][key[0]]["primitives"][key[1]]
    return DRACO in (primitive.get("extensions") or {})


def _drop_tangents(document: GltfDocument, keys: Sequence[Key]) -> None:
    """Without tangents a viewer computes those of the new normal map's coordinates, as the specification says."""
    for mesh, number in keys:
        document.json["meshes"][mesh]["primitives"][number]["attributes"].pop("TANGENT", None)

"""Paint what comes in a glTF document, and write it back into that document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.asset_layout import UNWRAP_CACHE
from pipeline.core.errors import MeshError
from pipeline.document.kept import ENDINGS, GltfDocument, add_provenance, document_errors, load_document
from pipeline.document.layout import DocumentLayout, PartLayout, corner_coordinates, lay_out
from pipeline.document.look import own_look
from pipeline.document.materials import Factors, ImageFile
from pipeline.document.parts import find_parts
from pipeline.document.repaint import PartPaint, Repainted, repaint, variant_names
from pipeline.document.surface import DocumentSurface, read_surface
from pipeline.export.gltf import BASE_COLOUR, encode_data, encode_image
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.mesh.mesh_hash import mesh_sha256
from pipeline.recipes.asset_build import Json, RowContext
from pipeline.recipes.paint_settings import PaintSettings
from pipeline.uv.cache import unwrap_cached
from pipeline.uv.unwrap import uneven_density

_MIMES = {"png": "image/png", "jpeg": "image/jpeg"}


@dataclass(frozen=True)
class DocumentInput:
    """A document that is painted: as it came, its surface, and the layout of its parts in the working atlas."""

    document: GltfDocument
    surface: DocumentSurface
    layout: DocumentLayout

    def with_own_look(self, maps: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
        """``maps`` in which what is not painted has the artist's look, for pictures of the whole asset."""
        result = dict(maps)
        if self.layout.context.any():
            colour = maps[BASE_COLOUR].copy()
            look, mask = own_look(self.document, self.surface, self.layout.uvmesh, len(colour), self.layout.context)
            colour[mask] = look[mask][:, :3]
            result[BASE_COLOUR] = colour
        return result


def is_document(path: Path) -> bool:
    """Whether the mesh at ``path`` comes in a document."""
    return path.suffix.lower() in ENDINGS


def prepare_document(row: RowContext, settings: PaintSettings, path: Path, out: Path) -> DocumentInput:
    """Read the document and lay its parts out. Adds warnings to ``row``. Raises LatentkilnError."""
    with document_errors(path.name):
        return _prepared(row, settings, path, out)


def _prepared(row: RowContext, settings: PaintSettings, path: Path, out: Path) -> DocumentInput:
    document = load_document(path, max_faces=settings.max_faces)
    row.input_sha256 = mesh_sha256(path)
    surface = read_surface(document, max_faces=settings.max_faces, source_sha256=row.input_sha256)
    parts = find_parts(surface, settings.target or (), settings.uv_set)
    if settings.variant is not None and settings.variant in variant_names(document):
        raise MeshError(f"{path.name}: it has a variant {settings.variant!r} already; choose another name")

    def new_layout(mesh: Mesh, size: int, mode: str) -> UVMesh:
        return unwrap_cached(
            mesh,
            out / UNWRAP_CACHE,
            texture_size=max(size, 64),
            mode=mode,
            time_limit=settings.unwrap_seconds,
            report=row.report,
            shared=row.unwrap_cache,
        )

    layout = lay_out(surface, parts, texture_size=settings.texture_size, mode=settings.unwrap, new_layout=new_layout)
    said = [line for line in surface.mesh.warnings if "have no texture coordinates" not in line]
    row.warnings += said + [f"mesh: {line}" for line in document.warnings]
    for laid in layout.parts:
        row.warn(_uneven(layout, laid))
        if any("COLOR_0" in surface.primitive(key).attributes.accessors for key in laid.part.primitives):
            row.warn(f"{laid.part.name}: its vertex colours stay, and tint what is painted")
        if settings.metallic is None and "metallic_roughness" not in settings.maps and _is_metal(document, laid):
            row.warn(f"{laid.part.name}: the material is a metal, and so is what is painted; metallic: 0 changes that")
    return DocumentInput(document, surface, layout)


def _is_metal(document: GltfDocument, laid: PartLayout) -> bool:
    """Whether the artist's material is a metal all over, which is what glTF means by a factor that is left out."""
    if laid.part.material is None:
        return False
    pbr = document.json["materials"][laid.part.material].get("pbrMetallicRoughness") or {}
    return "metallicRoughnessTexture" not in pbr and pbr.get("metallicFactor", 1) >= 0.5


def _uneven(layout: DocumentLayout, laid: PartLayout) -> str:
    """One line where a part keeps coordinates that give parts of it few texels; else ""."""
    if not laid.keeps_uv:
        return ""
    mesh, whole = layout.uvmesh.mesh, layout.uvmesh
    own = Mesh(mesh.vertices, mesh.faces[laid.faces], whole.uv, whole.uv_faces[laid.faces])
    uneven = uneven_density(own)
    return f"{laid.part.name}: {uneven}; unwrap: xatlas makes new ones" if uneven else ""


def repainted(
    source: DocumentInput,
    settings: PaintSettings,
    maps: Mapping[str, NDArray[np.uint8]],
    *,
    title: str,
    provenance: Json,
) -> Repainted:
    """The document with the maps (S, S, 3) of the working atlas on its painted parts. Raises LatentkilnError."""
    layout, single = source.layout, settings.textures == "atlas"
    shared = {name: _encoded(name, image, settings.image_format) for name, image in maps.items()} if single else {}
    paints = []
    for laid in layout.parts:
        images = dict(shared)
        cut = {} if single else {name: image[laid.cell.pixels(len(image))] for name, image in maps.items()}
        images |= {name: _encoded(name, image, settings.image_format) for name, image in cut.items()}
        if _is_transparent(source.document, laid):
            colour = _with_alpha(source, laid, maps[BASE_COLOUR])
            shown = colour if single else colour[laid.cell.pixels(len(colour))]
            images[BASE_COLOUR] = _encoded(BASE_COLOUR, shown, "png")
        stays = laid.keeps_uv and not (single and laid.cell.side < 1)
        corners = None if stays else corner_coordinates(source.surface, layout, laid, whole_atlas=single)
        paints.append(PartPaint(laid.part, images, corners, laid.keeps_transform and stays))
    factors = Factors(settings.metallic, settings.roughness, settings.occlusion_strength)
    with document_errors(source.document.name):
        result = repaint(
            source.document, source.surface, paints, title=title, factors=factors, variant=settings.variant
        )
    add_provenance(result.document, {**provenance, "document": document_notes(source, result)})
    return result


def document_notes(source: DocumentInput, result: Repainted) -> dict[str, object]:
    """What the record and the provenance say of the document: each painted part, and what else was changed."""
    surface, context = source.surface, source.layout.context
    left = {surface.keys()[number] for number in np.unique(surface.placement[context])}
    return {
        "painted": [
            {**change, "method": laid.method, "reason": laid.reason}
            for change, laid in zip(result.changes, source.layout.parts, strict=True)
        ],
        "primitives_left": len(left),
        "notes": [*result.notes, *source.document.warnings],
    }


def _encoded(name: str, image: NDArray[np.uint8], image_format: str) -> ImageFile:
    if name != BASE_COLOUR:
        return ImageFile(encode_data(image), "image/png")
    return ImageFile(encode_image(image, image_format), _MIMES[image_format])


def _is_transparent(document: GltfDocument, laid: PartLayout) -> bool:
    if laid.part.material is None:
        return False
    return document.json["materials"][laid.part.material].get("alphaMode") in ("MASK", "BLEND")


def _with_alpha(source: DocumentInput, laid: PartLayout, colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(S, S, 4) of the working atlas: ``colour`` with the part's own transparency, without that of its factor, which
    stays in the material."""
    chosen = np.zeros(len(source.layout.context), bool)
    chosen[laid.faces] = True
    look, _ = own_look(source.document, source.surface, source.layout.uvmesh, len(colour), chosen)
    material = source.document.json["materials"][laid.part.material]
    factor = (material.get("pbrMetallicRoughness") or {}).get("baseColorFactor") or (1, 1, 1, 1)
    alpha = look[..., 3].astype(np.float32) / max(float(factor[3]), 1e-6)
    return np.concatenate([colour, np.clip(np.rint(alpha), 0, 255).astype(np.uint8)[..., None]], axis=2)

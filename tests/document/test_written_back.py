"""Documents of every feature come back with another texture, and with nothing else changed."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import FEATURES, Document, box, png
from gltf_compare import Glb, read, same_but_for_materials
from meshes import glb_bytes
from real.validator import complaints, reports

from pipeline import cli
from pipeline.core.errors import LatentkilnError
from pipeline.document.kept import GltfDocument, add_provenance, document_errors, load_document
from pipeline.document.layout import DocumentLayout, corner_coordinates, lay_out
from pipeline.document.materials import ImageFile
from pipeline.document.parts import find_parts
from pipeline.document.repaint import PartPaint, Repainted, repaint
from pipeline.document.surface import DocumentSurface, read_surface
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.mesh.mesh_hash import mesh_sha256
from pipeline.uv.unwrap import unwrap

BASES = ("kept", "welded", "bare")
# Features that change how vertices are stored or materials used, in pairs; and each with what it may meet.
CROSSED = (
    "skinned", "morphed", "sparse_morphed", "instanced", "mirrored", "quantised", "variants", "two_materials",
    "shared_material", "shared_table", "normal_map", "second_uv", "coloured", "strip", "texture_transform",
)  # fmt: skip
# Pairs of which the second undoes or damages what the first has made.
IMPOSSIBLE = {frozenset(pair) for pair in [("strip", "shared_table"), ("variants", "two_materials")]}
CASES = [
    *((base, (name,)) for base in BASES for name in FEATURES),
    *(("welded", pair) for pair in itertools.combinations(CROSSED, 2) if frozenset(pair) not in IMPOSSIBLE),
]


def boxes(mesh: Mesh, size: int, mode: str) -> UVMesh:
    """A layout that takes no time."""
    return unwrap(mesh, texture_size=max(size, 64), mode="box")


def paint_all(
    path: Path, *, target: tuple[str, ...] = (), variant: str | None = None, maps: tuple[str, ...] = ()
) -> tuple[GltfDocument, DocumentSurface, DocumentLayout, Repainted]:
    document = load_document(path)
    surface = read_surface(document)
    layout = lay_out(surface, find_parts(surface, target), texture_size=256, mode="auto", new_layout=boxes)
    paints = [
        PartPaint(
            laid.part,
            {name: ImageFile(png(100 + number + 50 * i), "image/png") for i, name in enumerate(("base_colour", *maps))},
            None if laid.keeps_uv else corner_coordinates(surface, layout, laid, whole_atlas=False),
            laid.keeps_transform,
        )
        for number, laid in enumerate(layout.parts)
    ]
    result = repaint(document, surface, paints, title="paint", variant=variant)
    add_provenance(result.document, {"prompt": "x"})
    return document, surface, layout, result


def make(base: str, names: tuple[str, ...], path: Path) -> Document:
    made = box(base)
    for name in sorted(names, key=lambda each: each in ("two_materials", "shared_material")):
        FEATURES[name](made)
    path.write_bytes(made.glb())
    return made


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[Path, Path, DocumentLayout, Repainted]]:
    """Every case painted: its file, the file that came out, and what was done."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.mktemp("documents")))
    result = {}
    for number, case in enumerate(CASES):
        path, out = folder / f"{number}.glb", folder / f"{number}-out.glb"
        make(*case, path)
        _, _, layout, repainted = paint_all(path)
        out.write_bytes(repainted.document.glb())
        result[case] = (path, out, layout, repainted)
    return result


def test_there_are_many_cases() -> None:
    assert len(CASES) > 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([case[0], *case[1]]))
def test_only_the_material_differs(case: Any, painted: dict[Any, Any]) -> None:
    path, out, layout, _ = painted[case]
    keys = {key for laid in layout.parts for key in laid.part.primitives}
    before, after = read(path), read(out)
    counts = same_but_for_materials(before, after, keys)
    new = sum(not laid.keeps_uv for laid in layout.parts for _ in laid.part.primitives)
    assert counts["coordinates"] == new
    assert after.json["asset"]["extras"]["author"] == "somebody"
    for number, laid in enumerate(layout.parts):
        for mesh, place in laid.part.primitives:
            primitive = after.json["meshes"][mesh]["primitives"][place]
            colour = after.json["materials"][primitive["material"]]["pbrMetallicRoughness"]
            assert after.texture(colour["baseColorTexture"])[0] == png(100 + number)
            assert colour.get("baseColorFactor", [1, 1, 1, 1])[:3] == [1, 1, 1]
            assert f"TEXCOORD_{colour['baseColorTexture'].get('texCoord', 0)}" in primitive["attributes"]
            _only_the_colour_differs(before, after, laid.part.material, primitive["material"])


def _only_the_colour_differs(before: Glb, after: Glb, old: int | None, new: int) -> None:
    if old is None:
        return
    was, now = before.material(old), after.material(new)
    for each in (was, now):
        each["name"] = each["name"].removesuffix(" (painted)")
        each["pbrMetallicRoughness"].pop("baseColorTexture", None)
        each["pbrMetallicRoughness"].pop("baseColorFactor", None)
    assert was == now


def test_the_validator_finds_nothing_new(painted: dict[Any, Any]) -> None:
    paths = [path for entry in painted.values() for path in entry[:2]]
    found = reports(paths)
    for case, path, before, after in zip(painted, paths[::2], found[::2], found[1::2], strict=True):
        known = {issue["code"] for issue in before["issues"]["messages"]}
        for issue, line in zip(after["issues"]["messages"], complaints(after), strict=True):
            # The artist's coordinates stay although no texture of the file looks them up any more, and so does all that
            # an unknown extension may use, and faces without area by which a strip turns.
            stays = "TEXCOORD_" in issue["pointer"] or "unknown_extension" in case[1]
            mine = issue["code"] in known or (issue["code"] == "UNUSED_OBJECT" and stays)
            mine |= issue["code"] == "ACCESSOR_INDEX_TRIANGLE_DEGENERATE" and "strip" in case[1]
            assert mine, f"{path}: {line}"


def test_what_replaced_textures_held_is_gone(painted: dict[Any, Any]) -> None:
    path, out, _, _ = painted["kept", ("skinned",)]
    assert png(1) in path.read_bytes() and png(1) not in out.read_bytes()
    after = read(out)
    assert len(after.json["images"]) == len(after.json["textures"]) == 1


def test_a_texture_that_another_slot_shows_stays(painted: dict[Any, Any]) -> None:
    out = painted["kept", ("normal_map",)][1]
    assert png(1) in out.read_bytes() and png(7) in out.read_bytes()


def test_nothing_is_dropped_where_an_unknown_extension_may_use_it(painted: dict[Any, Any]) -> None:
    _, out, _, repainted = painted["kept", ("unknown_extension",)]
    assert png(1) in out.read_bytes()
    assert repainted.notes == ["replaced textures stay in the file: ACME_wear may use them"]


def test_a_shared_material_is_split_and_said_so(tmp_path: Path) -> None:
    make("welded", ("shared_material",), tmp_path / "a.glb")
    _, _, layout, result = paint_all(tmp_path / "a.glb", target=("lid *",))
    (tmp_path / "b.glb").write_bytes(result.document.glb())
    before, after = read(tmp_path / "a.glb"), read(tmp_path / "b.glb")
    same_but_for_materials(before, after, {(1, 0)})
    assert result.changes[0]["split"] is True
    assert [m["name"] for m in after.json["materials"]] == ["hull", "hull (painted)"]
    assert layout.context.sum() == 12


def test_a_variant_leaves_the_default_look(tmp_path: Path) -> None:
    make("welded", ("variants", "normal_map"), tmp_path / "a.glb")
    _, _, _, result = paint_all(tmp_path / "a.glb", variant="rust", maps=("normal",))
    (tmp_path / "b.glb").write_bytes(result.document.glb())
    before, after = read(tmp_path / "a.glb"), read(tmp_path / "b.glb")
    same_but_for_materials(before, after, {(0, 0)})
    primitive = after.json["meshes"][0]["primitives"][0]
    assert before.material(0) == after.material(primitive["material"])
    names = [v["name"] for v in after.json["extensions"]["KHR_materials_variants"]["variants"]]
    assert names == ["day", "night", "rust"]
    mapping = primitive["extensions"]["KHR_materials_variants"]["mappings"][-1]
    assert mapping["variants"] == [2]
    shown = after.json["materials"][mapping["material"]]["pbrMetallicRoughness"]["baseColorTexture"]
    assert after.texture(shown)[0] == png(100)


@pytest.mark.parametrize("feature", ["mirrored", "instanced", "strip", "parented", "unindexed", "draco"])
@pytest.mark.parametrize("base", BASES)
def test_a_texel_lies_where_it_was_painted(base: str, feature: str, tmp_path: Path) -> None:
    """What the world's surface has at a texel, the file's own triangles have there, too: nothing is mirrored or upside
    down, in any instance's handedness."""
    make(base, (feature,), tmp_path / "a.glb")
    _, surface, layout, result = paint_all(tmp_path / "a.glb")
    after = Glb(result.document.glb())
    primitive = after.json["meshes"][0]["primitives"][0]
    number = after.json["materials"][primitive["material"]]["pbrMetallicRoughness"]["baseColorTexture"].get(
        "texCoord", 0
    )
    corner = after.corners(primitive)
    first = surface.placement == surface.first[0, 0]
    world = surface.mesh.vertices[surface.mesh.faces[first]]
    uv = layout.uvmesh.uv[layout.uvmesh.uv_faces[first]]
    local, there = corner["POSITION"].reshape(-1, 3, 3), corner[f"TEXCOORD_{number}"].reshape(-1, 3, 2)
    node = {"mirrored": np.diag([-1.5, 1, 1]), "parented": np.array([[0, 0, 2], [0, 2, 0], [-2, 0, 0]])}.get(
        feature, np.eye(3)
    )
    offset = (1, 2, 3) if feature == "parented" else (0, 0, 0)
    place = {tuple(np.round(p, 4)): set() for p in (local.reshape(-1, 3) @ node.T + offset)}
    for point, coordinate in zip(local.reshape(-1, 3) @ node.T + offset, there.reshape(-1, 2), strict=True):
        place[tuple(np.round(point, 4))].add(tuple(np.round(coordinate, 4)))
    for point, coordinate in zip(world.reshape(-1, 3), uv.reshape(-1, 2), strict=True):
        assert any(np.allclose(coordinate, other, atol=1e-3) for other in place[tuple(np.round(point, 4))])


@pytest.mark.xdist_group("cluster")
def test_a_skinned_and_animated_man_is_painted_by_the_command(shared_meshes: Path, tmp_path: Path) -> None:
    """The command with default settings and the embedded prior; the man is CesiumMan where it is at hand."""
    mesh = shared_meshes / "CesiumMan.glb"
    (tmp_path / "man.glb").write_bytes(mesh.read_bytes())
    (tmp_path / "m.csv").write_text("id,prompt,mesh\nman,red brick,man.glb\n")
    out = tmp_path / "out"
    assert cli.main(["run", str(tmp_path / "m.csv"), "--out", str(out), "--workers", "1"]) == 0
    before, after = read(mesh), read(out / "man" / "asset.glb")
    before.json["asset"].setdefault("extras", {})
    same_but_for_materials(before, after, {(0, 0)})
    assert (out / "man" / "preview.png").stat().st_size > 10_000


def test_files_beside_a_gltf_go_into_one_glb(tmp_path: Path) -> None:
    made = box("welded")
    FEATURES["skinned"](made)
    whole = made.glb()
    plain = Glb(whole)
    image = plain.view(made.json["images"][0].pop("bufferView"))
    (tmp_path / "tex tures").mkdir()
    (tmp_path / "tex tures" / "a.png").write_bytes(image)
    made.json["images"][0] = {"uri": "tex%20tures/a.png", "name": "picture 1"}
    made.json["images"].append({"uri": "missing.png"})
    made.json["buffers"] = [{"uri": "data.bin", "byteLength": len(made.binary), "name": "store"}]
    (tmp_path / "data.bin").write_bytes(made.binary)
    path = tmp_path / "a.gltf"
    path.write_text(json.dumps(made.json))
    digest = mesh_sha256(path)
    document, _, _, result = paint_all(path)
    same_but_for_materials(plain, Glb(result.document.glb()), {(0, 0)})
    assert result.document.json["buffers"][0]["name"] == "store"
    assert document.warnings == [
        "its image 'missing.png' does not exist; copy it beside the file; it stays a reference"
    ]
    (tmp_path / "tex tures" / "a.png").write_bytes(png(2))
    assert mesh_sha256(path) != digest


def test_damaged_documents_end_in_one_line(tmp_path: Path) -> None:
    """Values of a wrong kind anywhere in the JSON: the document is painted, or refused in one line."""
    made = box("welded")
    for name in ("skinned", "variants", "normal_map", "two_materials", "gpu_instanced"):
        FEATURES[name](made)
    made.json["buffers"] = [{"byteLength": len(made.binary)}]
    text, binary = json.dumps(made.json), made.binary
    generator, refused = np.random.default_rng(1), 0
    for _ in range(250):
        made.json = json.loads(text)
        holder, key = _any_place(made.json, generator)
        holder[key] = [None, -1, 10**12, "x", [], {}, [None], 1.5, True][generator.integers(9)]
        path = tmp_path / "a.glb"
        path.write_bytes(glb_bytes(json.dumps(made.json).encode(), binary))
        try:
            with document_errors("a.glb"):
                paint_all(path)
        except LatentkilnError as error:
            refused += 1
            assert "\n" not in error.message and len(error.message) < 600
    assert 20 < refused < 250


def _any_place(value: Any, generator: np.random.Generator) -> tuple[Any, Any]:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[generator.integers(len(keys))]
        if not isinstance(value[key], dict | list) or not value[key] or generator.random() < 0.15:
            return value, key
        value = value[key]

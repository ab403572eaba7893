"""The GLB writer: the Khronos validator finds nothing to say, and what is read back is what went in."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from real.validator import complaints, reports, validate_glb, validate_glbs

from pipeline.core.errors import ExportError
from pipeline.export.gltf import BASE_COLOUR, split_corners, write_glb
from pipeline.mesh.mesh import Mesh, UVMesh
from pipeline.mesh.normals import corner_normals, is_closed, smooth_normals

PROVENANCE = {"schema": 1, "inputs": {"job": {"prompt": "a red cube", "negative_prompt": "", "seed": 7}}}


def uv_mesh(vertices, faces, uv=None, uv_faces=None, **mesh) -> UVMesh:
    """A UVMesh; without ``uv``, every face is a chart of its own on a grid."""
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    if uv is None:
        side = math.ceil(math.sqrt(len(faces)))
        place = np.stack([np.arange(len(faces)) % side, np.arange(len(faces)) // side], axis=1)[:, None]
        uv = ((place + np.array([[0.1, 0.1], [0.1, 0.9], [0.9, 0.9]])) / side).reshape(-1, 2)
        uv_faces = np.arange(3 * len(faces)).reshape(-1, 3)
    return UVMesh(
        mesh=Mesh(vertices=vertices, faces=faces, **mesh),
        uv=np.asarray(uv, np.float32),
        uv_faces=np.asarray(uv_faces, np.int64),
        method="input",
        reason="test",
        charts=np.zeros(len(faces), np.int32),
    )


def cube(size: float = 1.0, centre=(0.0, 0.0, 0.0)) -> UVMesh:
    vertices = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float) * size + centre
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return uv_mesh(vertices, [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])


def grid(columns: int, rows: int, height=lambda u, v: 0 * u) -> UVMesh:
    """An open sheet facing +Y, one vertex per grid point."""
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    vertices = np.stack([u, height(u, v), v], axis=-1).reshape(-1, 3)
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    a, b, c, d = corner, corner + 1, corner + columns, corner + columns + 1
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    return uv_mesh(vertices, faces, np.stack([u, v], -1).reshape(-1, 2), faces)


def sphere(columns: int = 24, rows: int = 12, radius: float = 1.0) -> UVMesh:
    """A globe with one seam: the first and the last meridian are one position and two texture coordinates."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    theta, phi = math.pi * v, 2 * math.pi * u
    ring = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], -1) * radius
    number = (np.arange(rows + 1)[:, None] * columns + np.arange(columns + 1) % columns).astype(np.int64)
    number[0], number[-1] = 0, rows * columns
    corner = np.arange(rows * columns)
    a = corner // columns * (columns + 1) + corner % columns
    b, c, d = a + 1, a + columns + 1, a + columns + 2
    uv_faces = np.concatenate([np.stack([a, c, b], 1)[columns:], np.stack([b, c, d], 1)[:-columns]])
    faces = number.reshape(-1)[uv_faces]
    vertices = np.zeros((rows * columns + 1, 3))
    vertices[number.reshape(-1)] = ring.reshape(-1, 3)
    used, faces = np.unique(faces, return_inverse=True)
    return uv_mesh(vertices[used], faces.reshape(-1, 3), np.stack([u, v], -1).reshape(-1, 2), uv_faces)


def fan_of_three() -> UVMesh:
    """Three sheets on one edge, which no manifold has."""
    return uv_mesh([[0, 0, 0], [0, 1, 0], [1, 0, 0], [-1, 0, 1], [-1, 0, -1]], [[0, 1, 2], [0, 1, 3], [0, 1, 4]])


def with_degenerate_faces() -> UVMesh:
    """A sheet, a face with a repeated corner, one on a line, one that is a point, one alone on a line."""
    vertices = [[0, 0, 0], [1, 0, 0], [0, 0, -1], [2, 0, 0], [5, 5, 5], [6, 6, 6], [7, 7, 7]]
    return uv_mesh(vertices, [[0, 1, 2], [0, 0, 1], [0, 1, 3], [1, 1, 1], [4, 5, 6]])


def degenerate_in_one_texel() -> UVMesh:
    """As before, with one texture coordinate for all: repeated corners are then alike in everything."""
    mesh = with_degenerate_faces()
    return uv_mesh(mesh.mesh.vertices, mesh.mesh.faces, [[0.5, 0.5]], np.zeros((5, 3)))


def picture(height: int = 64, width: int = 64) -> np.ndarray:
    """Asymmetric in every way: red to the right, green downwards, a blue block top left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    pixels[: height // 4, : width // 4, 2] = 255
    return pixels


# Every file of this module as it was written, each once.
WRITTEN: dict[bytes, None] = {}


@pytest.fixture(scope="module", autouse=True)
def every_file_written_here_is_valid(tmp_path_factory):
    """At the end, all at once: the validator takes longer to start than to read them."""
    yield
    folder = tmp_path_factory.mktemp("written")
    paths = [folder / f"{number}.glb" for number in range(len(WRITTEN))]
    for path, data in zip(paths, WRITTEN, strict=True):
        path.write_bytes(data)
    validate_glbs(paths, infos=True)
    WRITTEN.clear()


def write(path: Path, mesh: UVMesh, **options) -> Path:
    options = {"name": "thing", "provenance": PROVENANCE} | options
    write_glb(path, mesh, {BASE_COLOUR: options.pop("image", picture())}, **options)
    WRITTEN[path.read_bytes()] = None
    return path


def parse(path: Path) -> tuple[dict, bytes]:
    """Our own reading of the container: JSON and binary chunk."""
    data = path.read_bytes()
    magic, version, total, length, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON")
    rest = data[20 + length :]
    size, kind = struct.unpack("<I4s", rest[:8])
    assert kind == b"BIN\0" and len(rest) == 8 + size
    return json.loads(data[20 : 20 + length]), rest[8:]


def accessor(document: dict, binary: bytes, index: int) -> np.ndarray:
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    assert view["byteOffset"] % 4 == 0
    dtype = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[entry["componentType"]]
    columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[entry["type"]]
    data = np.frombuffer(binary, dtype, entry["count"] * columns, view["byteOffset"])
    return data.reshape(-1, columns) if columns > 1 else data


def parts(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    document, binary = parse(path)
    primitive = document["meshes"][0]["primitives"][0]
    arrays = {k: accessor(document, binary, i) for k, i in primitive["attributes"].items()}
    arrays["faces"] = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    image = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    arrays["image"] = np.asarray(Image.open(io.BytesIO(image)))
    return document, arrays


SHAPES = {
    "cube": cube,
    "sphere": sphere,
    "sheet": lambda: grid(9, 7, lambda u, v: 0.1 * np.sin(9 * u) * v),
    "non-manifold": fan_of_three,
    "degenerate": with_degenerate_faces,
    "degenerate in one texel": degenerate_in_one_texel,
    "one face": lambda: uv_mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]),
    "only a line": lambda: uv_mesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]),
    "minute": lambda: cube(1e-12),
    "huge": lambda: cube(1e14),
    "far away": lambda: cube(1.0, (4_500_000.123, 5_400_000.456, 312.789)),
    "negative zeros": lambda: uv_mesh([[-0.0, 0, 0], [1, -0.0, 0], [0, 1, -0.0]], [[0, 1, 2]]),
}


def test_validator_has_nothing_to_say(tmp_path):
    paths = [write(tmp_path / f"{name}.glb", make(), name=name) for name, make in SHAPES.items()]
    paths.append(write(tmp_path / "jpeg.glb", sphere(), image_format="jpeg"))
    paths.append(write(tmp_path / "wide.glb", sphere(), image=picture(32, 128)))
    paths.append(write(tmp_path / "nameless.glb", cube(), name="", provenance={}))
    paths.append(write(tmp_path / "words.glb", cube(), name='ünï "quoted" \\ 木', provenance={"p": "\ud800"}))
    validate_glbs(paths)
    # Sizes that are no powers of two are worth a note to the validator, and nothing worse.
    validate_glb(write(tmp_path / "odd.glb", cube(), image=picture(192, 192)), infos=True)


def test_the_validator_does_find_faults(tmp_path):
    path = write(tmp_path / "cube.glb", cube())
    data = bytearray(path.read_bytes())
    at = data.index(b'"max":[')
    data[at : at + 8] = b'"max":[9'
    path.write_bytes(data)
    assert complaints(reports([path])[0])
    with pytest.raises(pytest.fail.Exception, match="is not clean"):
        validate_glb(path)
    path.write_bytes(b"no glTF")
    with pytest.raises(pytest.fail.Exception, match="is not clean"):
        validate_glb(path)


def test_more_vertices_than_sixteen_bits_count(tmp_path):
    small = grid(255, 257)
    assert len(small.mesh.vertices) == 65_535
    large = grid(264, 265)
    assert len(large.mesh.vertices) > 69_000
    kinds = {}
    for name, mesh in (("small", small), ("large", large)):
        path = write(tmp_path / f"{name}.glb", mesh)
        document, arrays = parts(path)
        indices = document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]
        kinds[name] = indices["componentType"]
        assert len(arrays["POSITION"]) == len(mesh.mesh.vertices)  # a smooth sheet splits nothing
        assert arrays["faces"].max() == len(arrays["POSITION"]) - 1
        expected = mesh.mesh.vertices[mesh.mesh.faces].astype("f4")
        np.testing.assert_array_equal(arrays["POSITION"][arrays["faces"]], expected)
    assert kinds == {"small": 5123, "large": 5125}
    validate_glbs([tmp_path / "small.glb", tmp_path / "large.glb"])


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "far away"])
def test_corners_come_back_as_they_went_in(tmp_path, name):
    mesh = SHAPES[name]()
    document, arrays = parts(write(tmp_path / "a.glb", mesh))
    assert "translation" not in document["nodes"][0]
    faces = arrays["faces"]
    np.testing.assert_array_equal(arrays["POSITION"][faces], mesh.mesh.vertices[mesh.mesh.faces].astype("f4"))
    np.testing.assert_array_equal(arrays["TEXCOORD_0"][faces], mesh.uv[mesh.uv_faces])
    np.testing.assert_allclose(np.linalg.norm(arrays["NORMAL"], axis=1), 1, atol=1e-6)
    assert (np.sort(faces, axis=1)[:, 1:] > np.sort(faces, axis=1)[:, :-1]).all()
    # One vertex per distinct corner, and none that no face uses (faces without area keep their own).
    assert len(np.unique(faces)) == len(arrays["POSITION"])
    if "degenerate" not in name:
        rows = np.concatenate([arrays[k] for k in ("POSITION", "TEXCOORD_0", "NORMAL")], axis=1)
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_a_seam_costs_one_column_of_vertices(tmp_path):
    columns, rows = 24, 12
    _, arrays = parts(write(tmp_path / "a.glb", sphere(columns, rows)))
    # Each pole has one texture coordinate per face there, each inner ring one more than positions.
    assert len(arrays["POSITION"]) == (rows - 1) * (columns + 1) + 2 * columns


def test_far_coordinates_keep_their_precision(tmp_path):
    mesh = cube(1.0, (4_500_000.123, 5_400_000.456, 312.789))
    mesh.mesh.vertices[3] += (1e-5, 0, 0)
    path = write(tmp_path / "a.glb", mesh)
    document, arrays = parts(path)
    shift = np.array(document["nodes"][0]["translation"])
    assert (shift == shift.astype(np.float32)).all()
    world = arrays["POSITION"].astype(np.float64)[arrays["faces"]] + shift
    np.testing.assert_allclose(world, mesh.mesh.vertices[mesh.mesh.faces], rtol=0, atol=1e-7)
    scene = trimesh.load_scene(path, process=False)
    np.testing.assert_allclose(scene.bounds[0], mesh.mesh.vertices.min(axis=0), rtol=0, atol=1e-6)
    # Far away, but on numbers that float32 holds: nothing is lost, so nothing is moved.
    exact, _ = parts(write(tmp_path / "b.glb", cube(1.0, (4096.0, 0.5, -8192.0))))
    assert "translation" not in exact["nodes"][0]


def test_coordinates_beyond_float32_are_refused(tmp_path):
    with pytest.raises(ExportError, match="beyond"):
        write(tmp_path / "a.glb", cube(1e39))
    assert not list(tmp_path.iterdir())


def test_trimesh_reads_the_same_asset(tmp_path):
    mesh, image = sphere(), picture()
    loaded = trimesh.load_scene(write(tmp_path / "a.glb", mesh, image=image), process=False)
    (geometry,) = loaded.geometry.values()
    np.testing.assert_array_equal(
        geometry.vertices[geometry.faces].astype("f4"), mesh.mesh.vertices[mesh.mesh.faces].astype("f4")
    )
    # trimesh has its origin at the bottom left.
    expected = mesh.uv[mesh.uv_faces] * (1, -1) + (0, 1)
    np.testing.assert_allclose(geometry.visual.uv[geometry.faces], expected, atol=1e-6)
    material = geometry.visual.material
    np.testing.assert_array_equal(np.asarray(material.baseColorTexture), image)
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 1.0)
    assert material.name == "thing material"


def test_the_image_stands_upright(tmp_path):
    """A texel is found where the mesh's top-left coordinates say, and its bytes are the ones given."""
    image = picture(32, 64)
    mesh = grid(5, 5)
    _, arrays = parts(write(tmp_path / "a.glb", mesh, image=image))
    np.testing.assert_array_equal(arrays["image"], image)
    near_origin = np.argmin(np.abs(arrays["POSITION"]).sum(axis=1))
    u, v = arrays["TEXCOORD_0"][near_origin]
    assert (u, v) == (0, 0)
    assert arrays["image"][int(v * 31), int(u * 63)].tolist() == [0, 0, 255]
    far = np.argmax(arrays["POSITION"].sum(axis=1))
    u, v = arrays["TEXCOORD_0"][far]
    assert arrays["image"][int(v * 31), int(u * 63)].tolist() == [255, 255, 0]


def test_jpeg_is_near_and_smaller(tmp_path):
    noise = np.random.Generator(np.random.Philox(1)).normal(0, 12, (256, 256, 3))
    image = np.clip(picture(256, 256) + noise, 0, 255).astype(np.uint8)
    png = write(tmp_path / "a.glb", cube(), image=image)
    jpeg = write(tmp_path / "b.glb", cube(), image=image, image_format="jpeg")
    document, arrays = parts(jpeg)
    assert document["images"][0]["mimeType"] == "image/jpeg"
    assert np.abs(arrays["image"].astype(int) - image).mean() < 6
    assert jpeg.stat().st_size < 0.8 * png.stat().st_size
    with pytest.raises(ExportError, match="jpeg, png"):
        write(tmp_path / "c.glb", cube(), image_format="webp")


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_same_job_same_bytes(tmp_path, image_format):
    first = write(tmp_path / "one" / "a.glb", sphere(), image_format=image_format)
    second = write(tmp_path / "another place" / "b.glb", sphere(), image_format=image_format)
    assert first.read_bytes() == second.read_bytes()
    other = write(tmp_path / "c.glb", sphere(), image_format=image_format, provenance={"seed": 8})
    assert other.read_bytes() != first.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == ["a.glb"]  # no temporary file stays


def test_document_says_what_it_is(tmp_path):
    path = write(tmp_path / "a.glb", cube(), name="red cube")
    document, _ = parse(path)
    assert document["asset"]["generator"].startswith("latentkiln ")
    assert document["asset"]["version"] == "2.0"
    assert document["asset"]["extras"] == {"latentkiln": PROVENANCE}  # with its empty negative prompt
    assert str(tmp_path) not in path.read_bytes().decode("latin-1")
    material = document["materials"][0]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == 1
    assert material["alphaMode"] == "OPAQUE"
    sampler = document["samplers"][0]
    assert (sampler["magFilter"], sampler["minFilter"]) == (9729, 9987)
    assert (sampler["wrapS"], sampler["wrapT"]) == (33071, 33071)
    named = "accessors bufferViews images materials meshes nodes samplers scenes textures"
    for kind in named.split():
        assert all("red cube" in entry["name"] for entry in document[kind]), kind


@pytest.mark.parametrize(
    ("make", "double"), [(cube, False), (sphere, False), (lambda: grid(4, 4), True), (fan_of_three, True)]
)
def test_open_surfaces_are_seen_from_both_sides(tmp_path, make, double):
    mesh = make()
    assert is_closed(mesh.mesh) is not double
    document, _ = parse(write(tmp_path / "a.glb", mesh))
    assert document["materials"][0]["doubleSided"] is double


def test_a_surface_turned_inside_out_is_not_closed():
    mesh = cube().mesh
    mesh.faces = mesh.faces[:, ::-1].copy()
    assert not is_closed(mesh)


def test_a_cube_is_sharp_and_a_sphere_smooth():
    mesh = cube().mesh
    normals, index = smooth_normals(mesh.vertices, mesh.faces, math.radians(60))
    corners = mesh.vertices[mesh.faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(normals[index], np.repeat(flat[:, None], 3, axis=1), atol=1e-6)
    # Above 90 degrees everything is smooth, and the triangulation of the sides does not show.
    normals, index = smooth_normals(mesh.vertices, mesh.faces, math.radians(91))
    outward = (mesh.vertices - 0.5) / np.linalg.norm(mesh.vertices - 0.5, axis=1, keepdims=True)
    np.testing.assert_allclose(normals[index], outward[mesh.faces], atol=1e-6)
    ball = sphere(48, 24).mesh
    normals, index = smooth_normals(ball.vertices, ball.faces)
    np.testing.assert_allclose(normals[index], ball.vertices[ball.faces], atol=0.01)


def test_crease_follows_the_angle_and_not_the_shading_neighbour():
    """A roof of 100 degrees bend next to one of 30: each side of the sharp ridge keeps its own normal."""
    bends = np.radians([0, 30, 130])
    profile = np.concatenate([[[0, 0]], np.cumsum(np.stack([np.cos(bends), -np.sin(bends)], 1), axis=0)])
    vertices = np.array([[x, y, z] for x, y in profile for z in (0.0, 1.0)])
    faces = [f for i in (0, 2, 4) for f in ((i, i + 1, i + 2), (i + 1, i + 3, i + 2))]
    normals, index = smooth_normals(vertices, np.array(faces), math.radians(60))
    corner = normals[index]
    up = [0, 1, 0]
    np.testing.assert_allclose(corner[0, 0], up, atol=1e-6)
    mean = np.radians(15)
    np.testing.assert_allclose(corner[0, 2], [np.sin(mean), np.cos(mean), 0], atol=1e-6)
    np.testing.assert_allclose(corner[2, 0], corner[0, 2], atol=1e-6)
    np.testing.assert_allclose(corner[4, 0], [np.sin(bends[2]), np.cos(bends[2]), 0], atol=1e-6)


def test_faces_without_direction_borrow_one():
    mesh = with_degenerate_faces().mesh
    normals, index = smooth_normals(mesh.vertices, mesh.faces)
    assert np.isfinite(normals).all()
    np.testing.assert_allclose(normals[index][:3], np.broadcast_to([0, 1, 0], (3, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)


def test_opposite_sheets_keep_their_own_side():
    """Two faces back to back: their sum is nothing, so each keeps its own direction."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)
    normals, index = smooth_normals(vertices, np.array([[0, 1, 2], [0, 2, 1]]), math.pi)
    np.testing.assert_allclose(normals[index][0], [[0, 0, 1]] * 3, atol=1e-6)
    np.testing.assert_allclose(normals[index][1], [[0, 0, -1]] * 3, atol=1e-6)


def test_the_inputs_own_normals_are_kept_where_usable(tmp_path):
    mesh = cube()
    given = np.array([[0, 3, 4], [0, 0, 0], [np.nan, 0, 1], [1, 0, 0]], np.float32)
    mesh.mesh.normals = given
    index = np.zeros_like(mesh.mesh.faces)
    index[1], index[2], index[3], index[4] = 1, 2, 3, -1
    mesh.mesh.normal_faces = index
    normals, normal_faces = corner_normals(mesh.mesh, math.radians(60))
    flat, flat_faces = smooth_normals(mesh.mesh.vertices, mesh.mesh.faces)
    for face in range(12):
        expected = flat[flat_faces[face]] if face in (1, 2, 4) else [[0, 0.6, 0.8]] * 3
        expected = [[1, 0, 0]] * 3 if face == 3 else expected
        np.testing.assert_allclose(normals[normal_faces][face], expected, atol=1e-6, err_msg=str(face))
    validate_glb(write(tmp_path / "a.glb", mesh))


def test_good_normals_of_the_input_come_out_as_they_are(tmp_path):
    mesh = cube()
    mesh.mesh.normals = np.array([[0, 0.6, 0.8], [1, 0, 0]], np.float32)
    mesh.mesh.normal_faces = np.arange(36).reshape(12, 3) % 2
    _, arrays = parts(write(tmp_path / "a.glb", mesh))
    expected = mesh.mesh.normals[mesh.mesh.normal_faces]
    np.testing.assert_allclose(arrays["NORMAL"][arrays["faces"]], expected, atol=1e-7)


def test_a_large_smooth_mesh_keeps_its_vertices():
    mesh = grid(410, 406, lambda u, v: 0.05 * np.sin(40 * u) * np.sin(30 * v))
    assert len(mesh.mesh.faces) > 330_000
    corners = split_corners(mesh, math.radians(60))
    assert len(corners.position) == len(mesh.mesh.vertices)

"""A scene between a foreign file and glTF: what a reader found, in plain arrays, before it becomes a document.

Frame: right-handed, the file's own axes and units; a node at the root converts them to glTF's (metres, +Y up). The
origin of texture coordinates is the bottom left, as in FBX, OBJ and USD. Quaternions are (x, y, z, w).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.arrays import Float64Array
from pipeline.core.errors import MeshError

Ints = NDArray[np.int64]
Object = dict[str, Any]
# Bounds on a scene from a child, beyond real files.
_MOST_NODES = 200_000


@dataclass
class Layer:
    """Values at polygon corners: ``values`` (n, k) and the row of each corner, ``corners`` (C,)."""

    name: str
    values: Float64Array
    corners: Ints


@dataclass
class Skin:
    """Joints as node numbers; ``inverse_bind`` (J, 4, 4); weights as triples of (vertex, joint, weight)."""

    joints: list[int]
    inverse_bind: Float64Array
    vertex: Ints
    joint: Ints
    weight: Float64Array


@dataclass
class Shape:
    """A morph target: ``offsets`` (n, 3) of the vertices ``vertex`` (n,). ``element`` is its number in animations."""

    name: str
    weight: float
    vertex: Ints
    offsets: Float64Array
    normal_offsets: Float64Array | None = None
    element: int = -1


@dataclass
class SceneMesh:
    """Polygons: ``positions`` (P, 3), vertex of each corner (C,), corners of each polygon (N,), its material (N,).

    ``face_material`` counts in ``materials``, which lists numbers of the scene's materials; -1 is none.
    """

    name: str
    positions: Float64Array
    corners: Ints
    counts: Ints
    face_material: Ints
    materials: list[int]
    normals: Layer | None = None
    uvs: list[Layer] = field(default_factory=list)
    colours: list[Layer] = field(default_factory=list)
    skin: Skin | None = None
    shapes: list[Shape] = field(default_factory=list)
    extras: Object = field(default_factory=dict)


@dataclass
class SceneNode:
    """A node. Either ``matrix`` (4, 4) or translation, rotation and scale. ``parent`` None: at the top."""

    name: str
    parent: int | None = None
    translation: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    rotation: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 1.0])
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    matrix: Float64Array | None = None
    mesh: int | None = None
    # Materials of this instance in place of the mesh's own.
    materials: list[int] = field(default_factory=list)
    camera: Object | None = None
    light: Object | None = None
    extras: Object = field(default_factory=dict)


@dataclass
class TextureRef:
    """A texture of a material. ``transform`` (2, 3) maps texture coordinates to the image, origin bottom left."""

    image: int
    uv_set: str = ""
    # r, g, b or a; "" for colours, and for the brightness where one number is wanted.
    channel: str = ""
    clamp: tuple[bool, bool] = (False, False)
    transform: Float64Array | None = None


@dataclass
class SceneMaterial:
    """A material. Slots of ``textures``: base_colour, opacity, normal, metallic, roughness, occlusion, emissive."""

    name: str
    base_colour: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    alpha: float = 1.0
    metallic: float = 0.0
    roughness: float = 1.0
    emissive: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    double_sided: bool = False
    alpha_cutoff: float | None = None
    textures: dict[str, TextureRef] = field(default_factory=dict)
    extras: Object = field(default_factory=dict)


@dataclass
class SceneImage:
    """An image: its bytes, or the names of files under which it may be found beside the source."""

    name: str
    data: bytes = b""
    files: list[str] = field(default_factory=list)


@dataclass
class Channel:
    """Keys of one property: ``times`` (K,) in seconds and ``values`` (K, n). ``element`` for the weight of a shape."""

    path: str
    times: Float64Array
    values: Float64Array
    node: int = -1
    element: int = -1


@dataclass
class Animation:
    """An animation by name."""

    name: str
    channels: list[Channel]


@dataclass
class Scene:
    """All that was read from a file. ``losses`` says in words what could not be read."""

    nodes: list[SceneNode] = field(default_factory=list)
    meshes: list[SceneMesh] = field(default_factory=list)
    materials: list[SceneMaterial] = field(default_factory=list)
    images: list[SceneImage] = field(default_factory=list)
    animations: list[Animation] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    source: str = ""


def scene_from_child(text: bytes, data: bytes | memoryview, name: str) -> Scene:
    """The scene that a child wrote (see ``child_scene.py``). Raises MeshError if it contradicts itself."""
    import json

    try:
        return _scene(_with_arrays(json.loads(text), data))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise MeshError(f"{name}: its contents contradict each other: damaged; export the file again") from None


def _with_arrays(value: object, data: bytes | memoryview) -> Any:
    """``value`` with each reference to an array replaced by the array. Raises ValueError beyond the data."""
    if isinstance(value, list):
        return [_with_arrays(item, data) for item in value]
    if not isinstance(value, dict):
        return value
    if list(value) != ["array"]:
        return {key: _with_arrays(item, data) for key, item in value.items()}
    offset, dtype, shape = value["array"]
    return np.frombuffer(data, np.dtype(dtype), int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)


def _scene(json: Object) -> Scene:
    scene = Scene(
        nodes=[_node(item) for item in json["nodes"]],
        meshes=[_mesh(item) for item in json["meshes"]],
        materials=[_material(item) for item in json["materials"]],
        images=[_image(item) for item in json["images"]],
        animations=[
            Animation(str(item["name"]), [Channel(**channel) for channel in item["channels"]])
            for item in json["animations"]
        ],
        losses=list(dict.fromkeys(str(loss) for loss in json["losses"])),
        source=str(json["source"]),
    )
    _check(scene)
    return scene


def _check(scene: Scene) -> None:
    """Raises ValueError for numbers beyond what they count, and for nodes above themselves."""
    count = len(scene.nodes)
    if count > _MOST_NODES:
        raise ValueError("too many nodes")
    for number, node in enumerate(scene.nodes):
        # Readers list a parent before its children, so there is no circle.
        if node.parent is not None and not 0 <= node.parent < number:
            raise ValueError("a parent after its child")
        if node.mesh is not None and not 0 <= node.mesh < len(scene.meshes):
            raise ValueError("no such mesh")
    for mesh in scene.meshes:
        if any(not 0 <= material < len(scene.materials) for material in mesh.materials):
            raise ValueError("no such material")
        if mesh.skin and any(not 0 <= joint < count for joint in mesh.skin.joints):
            raise ValueError("no such joint")
    for material in scene.materials:
        if any(not 0 <= texture.image < len(scene.images) for texture in material.textures.values()):
            raise ValueError("no such image")
    for animation in scene.animations:
        if any(channel.path != "weights" and not 0 <= channel.node < count for channel in animation.channels):
            raise ValueError("no such node")


def _node(json: Object) -> SceneNode:
    values = {key: value for key, value in json.items() if value is not None}
    if "matrix" in values:
        values["matrix"] = np.asarray(values["matrix"], np.float64).reshape(4, 4)
    return SceneNode(**values)


def _layer(json: Object | None) -> Layer | None:
    return None if json is None else Layer(str(json["name"]), json["values"], json["corners"])


def _mesh(json: Object) -> SceneMesh:
    values = dict(json)
    values["normals"] = _layer(json.get("normals"))
    for key in ("uvs", "colours"):
        values[key] = [layer for item in json.get(key, ()) if (layer := _layer(item)) is not None]
    if json.get("skin"):
        values["skin"] = skin = Skin(**json["skin"])
        skin.inverse_bind = skin.inverse_bind.reshape(-1, 4, 4)
        if len(skin.inverse_bind) != len(skin.joints) or not len(skin.vertex) == len(skin.joint) == len(skin.weight):
            raise ValueError("a skin of other lengths")
    values["shapes"] = [Shape(**item) for item in json.get("shapes", ())]
    return SceneMesh(**values)


def _material(json: Object) -> SceneMaterial:
    textures = {}
    for slot, item in json.get("textures", {}).items():
        transform = item.get("transform")
        textures[slot] = TextureRef(
            int(item["image"]),
            str(item.get("uv_set") or ""),
            str(item.get("channel") or ""),
            (bool(item["clamp"][0]), bool(item["clamp"][1])),
            None if transform is None else np.asarray(transform, np.float64).reshape(2, 3),
        )
    return SceneMaterial(**{**json, "textures": textures})


def _image(json: Object) -> SceneImage:
    data = json.get("data")
    return SceneImage(str(json["name"]), b"" if data is None else data.tobytes(), [str(f) for f in json["files"] if f])

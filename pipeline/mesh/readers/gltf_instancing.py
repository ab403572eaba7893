"""The instances of a node with EXT_mesh_gpu_instancing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.readers.gltf_buffers import Buffers
from pipeline.mesh.readers.gltf_file import Object
from pipeline.mesh.readers.gltf_json import GltfJson
from pipeline.mesh.readers.gltf_nodes import rotation_matrix

INSTANCING = "EXT_mesh_gpu_instancing"
_WIDTHS = {"TRANSLATION": 3, "ROTATION": 4, "SCALE": 3}


def instance_matrices(
    json: GltfJson, buffers: Buffers, index: int, node: Object, most: int
) -> NDArray[np.float64] | None:
    """(N, 4, 4) matrices of the instances of node ``index`` in its coordinates; None if it has none of its own.

    Raises MeshError for damaged or unequal attributes, and for more than ``most`` instances.
    """
    where = f"node {index}"
    extension = json.object(json.object(node, "extensions", where), INSTANCING, where)
    attributes = json.object(extension, "attributes", where)
    values: dict[str, NDArray[np.float64]] = {}
    for name, width in _WIDTHS.items():
        if attributes.get(name) is None:
            continue
        if buffers.layout(attributes[name])[1] > most:
            raise json.error(f"{where} has more than {most} instances")
        array = buffers.accessor(attributes[name]).astype(np.float64)
        if array.shape[1] != width or not np.isfinite(array).all():
            raise json.error(f"the {name} of the instances of {where} cannot be used")
        values[name] = array
    if not values:
        return None
    if len({len(array) for array in values.values()}) > 1:
        raise json.error(f"the attributes of the instances of {where} differ in length")
    count = len(next(iter(values.values())))
    matrices = np.tile(np.eye(4), (count, 1, 1))
    if "ROTATION" in values:
        matrices[:, :3, :3] = [rotation_matrix(row) for row in values["ROTATION"]]
    if "SCALE" in values:
        matrices[:, :3, :3] *= values["SCALE"][:, None, :]
    if "TRANSLATION" in values:
        matrices[:, :3, 3] = values["TRANSLATION"]
    return matrices

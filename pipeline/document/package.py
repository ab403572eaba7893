"""A document as a .gltf with its buffer and images in files beside it."""

from __future__ import annotations

from pipeline.document.garbage import drop_unused, used_entries
from pipeline.document.kept import GltfDocument, image_bytes, json_bytes

_ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/ktx2": "ktx"}


def gltf_files(document: GltfDocument, stem: str) -> dict[str, bytes]:
    """The files by name: ``stem``.gltf, ``stem``.bin, and an image ``stem``-image-<number> for each that is embedded.

    Images stay in the buffer where an extension that we do not know may look for them there. Raises MeshError.
    """
    result, files = document.copy(), dict[str, bytes]()
    before = used_entries(result.json)
    for number, image in enumerate(result.json.get("images") or ()):
        data, ending = image_bytes(result, number), _ENDINGS.get(str(image.get("mimeType")))
        if data is None or ending is None or "bufferView" not in image:
            continue
        name = f"{stem}-image-{number}.{ending}"
        files[name] = data
        place = list(image).index("bufferView")
        entries = [(key, value) for key, value in image.items() if key != "bufferView"]
        image.clear()
        image.update([*entries[:place], ("uri", name), *entries[place:]])
    drop_unused(result, before)
    if result.data and result.json.get("buffers"):
        files[f"{stem}.bin"] = bytes(result.data)
        first = result.json["buffers"][0]
        result.json["buffers"][0] = {"uri": f"{stem}.bin", **first, "byteLength": len(result.data)}
    return {f"{stem}.gltf": json_bytes(result.json), **files}

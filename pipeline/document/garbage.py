"""Drops what a change of a document has left without any use: images, textures, accessors and their bytes.

What nothing used before the change stays: it is the artist's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.document.kept import GltfDocument
from pipeline.document.references import DRACO, KINDS, references, unknown_extensions
from pipeline.mesh.readers.gltf_file import MESHOPT, Object

Used = dict[str, set[int]]
# Extensions that a change may leave without any use, and that nothing but their name in an object needs.
_DROPPABLE = (DRACO, "KHR_texture_transform", "EXT_texture_webp", "EXT_texture_avif", "KHR_texture_basisu", *MESHOPT)


def used_entries(document: Object) -> Used:
    """The numbers of the entries that the document refers to, by kind."""
    used: Used = {kind: set() for kind in KINDS}
    for reference in references(document):
        used[reference.kind].add(reference.number)
    return used


def drop_unused(document: GltfDocument, before: Used) -> list[str]:
    """Drop entries that were used in ``before`` and are not any more, and their bytes.

    Returns the extensions because of which nothing was dropped: they may use what looks unused.
    """
    json = document.json
    if unknown := unknown_extensions(json):
        return unknown
    before = {kind: set(numbers) for kind, numbers in before.items()}
    views: list[Object] = []
    # A texture's image is unused only when the texture is gone; and so on.
    for _ in KINDS:
        after = used_entries(json)
        gone = {kind: sorted(_newly_unused(json, kind, before[kind], after[kind])) for kind in KINDS}
        if not any(gone.values()):
            break
        views += [json["bufferViews"][number] for number in gone["bufferViews"]]
        before = _dropped(json, gone, before)
    _cut(document, views)
    _drop_fallbacks(json, {number for view in views if (number := view.get("buffer"))})
    for name in _DROPPABLE:
        _forget_extension(json, name)
    return []


def _newly_unused(json: Object, kind: str, before: set[int], after: set[int]) -> set[int]:
    return {number for number in before - after if 0 <= number < len(json.get(kind) or ())}


def _dropped(json: Object, gone: Mapping[str, Sequence[int]], before: Used) -> Used:
    """Remove the entries ``gone`` and renumber what stays; returns ``before`` in the new numbers."""
    number_of: dict[str, dict[int, int]] = {}
    for kind, numbers in gone.items():
        if numbers:
            left = [number for number in range(len(json[kind])) if number not in set(numbers)]
            number_of[kind] = {old: new for new, old in enumerate(left)}
    seen: set[tuple[int, str]] = set()
    for reference in references({**json, **{k: _without(json, k, gone[k]) for k in gone}}):
        slot = (id(reference.holder), reference.key)
        if reference.kind in number_of and reference.number >= 0 and slot not in seen:
            seen.add(slot)
            reference.holder[reference.key] = number_of[reference.kind][reference.number]
    for kind, numbers in gone.items():
        if numbers:
            json[kind] = _without(json, kind, numbers)
            if not json[kind]:
                del json[kind]
    return {
        kind: {number_of[kind][n] for n in numbers if n in number_of[kind]} if kind in number_of else numbers
        for kind, numbers in before.items()
    }


def _without(json: Object, kind: str, numbers: Sequence[int]) -> list[Object]:
    gone = set(numbers)
    return [item for number, item in enumerate(json.get(kind) or ()) if number not in gone]


def _ranges(views: Sequence[Object]) -> list[tuple[int, int]]:
    """(start, end) of what ``views`` occupy in buffer 0, compressed data included."""
    found = []
    for view in views:
        extensions = view.get("extensions") or {}
        for holder in (view, *(extensions[name] for name in MESHOPT if name in extensions)):
            if holder.get("buffer") == 0:
                start = holder.get("byteOffset", 0)
                found.append((start, start + holder["byteLength"]))
    return sorted(found)


def _cut(document: GltfDocument, dropped: Sequence[Object]) -> None:
    """Cut the bytes of ``dropped`` views out of the buffer, in multiples of four, where no other view uses them."""
    views: list[Object] = document.json.get("bufferViews") or []
    busy = _ranges(views)
    cuts: list[tuple[int, int]] = []
    for start, end in _ranges(dropped):
        start = -(-max(start, cuts[-1][1] if cuts else 0) // 4) * 4
        # Up to what pads it.
        end = min(-(-end // 4) * 4, len(document.data))
        for low, high in busy:
            if low < end and high > start:
                if low > start:
                    cuts.append((start, low // 4 * 4))
                start = -(-high // 4) * 4
        if end > start:
            cuts.append((start, end))
    cuts = [(start, end) for start, end in cuts if end > start]
    if not cuts:
        return
    for view in views:
        extensions = view.get("extensions") or {}
        for holder in (view, *(extensions[name] for name in MESHOPT if name in extensions)):
            if holder.get("buffer") == 0 and (shift := _shift(cuts, holder.get("byteOffset", 0))):
                holder["byteOffset"] -= shift
    for start, end in reversed(cuts):
        del document.data[start:end]
    document.json["buffers"][0]["byteLength"] = len(document.data)
    if not document.data and not views:
        del document.json["buffers"]


def _drop_fallbacks(json: Object, numbers: set[int]) -> None:
    """Drop those of the buffers ``numbers``, which have no data, that no view stands in any more."""
    views = json.get("bufferViews") or []
    gone = numbers - {view.get("buffer") for view in views}
    left = [number for number in range(len(json.get("buffers") or ())) if number not in gone]
    if not gone:
        return
    json["buffers"] = [json["buffers"][number] for number in left]
    for view in views:
        view["buffer"] = left.index(view["buffer"])


def _shift(cuts: Sequence[tuple[int, int]], offset: int) -> int:
    return sum(end - start for start, end in cuts if end <= offset)


def _forget_extension(json: Object, name: str) -> None:
    """Remove ``name`` from the lists of extensions if no object has it."""
    if name not in (json.get("extensionsUsed") or ()) or _occurs(json, name):
        return
    for key in ("extensionsUsed", "extensionsRequired"):
        names = [each for each in json.get(key) or () if each != name]
        if names:
            json[key] = names
        else:
            json.pop(key, None)


def _occurs(value: object, name: str) -> bool:
    if isinstance(value, dict):
        extensions = value.get("extensions")
        if isinstance(extensions, dict) and name in extensions:
            return True
        return any(_occurs(each, name) for key, each in value.items() if key != "extras")
    return isinstance(value, list) and any(_occurs(each, name) for each in value)

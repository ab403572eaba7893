"""One reader per file format; each turns bytes into a ``RawMesh`` and raises MeshError for what it cannot read.

The readers are ours and small, because general loaders change what a painter must keep: they drop the UVs of a
file that has them on some faces only, split or merge vertices at seams, refuse mixed polygons, follow paths to
textures, or take a truncated file for an empty one. None of them opens anything but the bytes it is given, except
for the buffers of a .gltf, which must lie in its folder. Sizes are checked against the bytes at hand before
anything is allocated.
"""

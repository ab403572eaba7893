"""One reader per file format. Each converts bytes to a ``RawMesh`` and raises MeshError for unreadable data.

We use our own small readers because general loaders drop UVs that cover only some faces, split or merge vertices at
seams, refuse mixed polygons, follow paths to textures, or read a truncated file as an empty one. A reader opens no
other file, except a .gltf's buffers in its folder. It checks claimed sizes against the available bytes before it
allocates memory.
"""

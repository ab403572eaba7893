"""Read and write at URLs: outputs, manifests and meshes in any store that fsspec can open, S3 first.

``core.location`` has the names of files at a URL. ``store`` reads and writes them, with retries and with conditional
writes if the store supports them. ``lease`` gives each asset one builder, ``publish`` publishes an asset so that no
reader sees half of it, ``sync`` copies checkpoints and run files while they change, ``input_cache`` and ``inputs``
fetch inputs once per node, and ``shared_cache`` shares files that any node can make. Local paths use none of this.

Importing this package imports neither fsspec nor a client of any store.
"""

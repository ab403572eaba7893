"""Outputs, manifests and meshes that do not lie on this machine: any URL that fsspec can open, S3 first.

``core.location`` names what lies at a URL; ``store`` reads and writes it with retries and, where the store has them,
conditional writes. Above these: ``lease`` (one builder per asset), ``publish`` (publishing so that no reader sees
half an asset), ``sync`` (checkpoints and run files copied while they change), ``input_cache`` (inputs fetched once per
node). A local path goes through none of this: it is a ``Path``, and its code asks only whether it is one.

Importing this package imports neither fsspec nor a client of any store.
"""

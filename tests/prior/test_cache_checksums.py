"""Whatever this user's caches keep is used only while its checksum is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.hashing import sha256_arrays
from pipeline.mesh import winding_grid
from pipeline.mesh.primitives import combine
from pipeline.prior.cache import CACHE_VARIABLE, file_hash, read_entry, write_entry


def test_the_checksum_of_arrays_sees_names_dtypes_shapes_and_values() -> None:
    base = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.zeros((0, 2))}
    digest = sha256_arrays("head", base)
    assert sha256_arrays("head", {"b": base["b"], "a": np.asfortranarray(base["a"])}) == digest
    others = [
        ("tail", base),
        ("head", {"c": base["a"], "b": base["b"]}),
        ("head", base | {"a": base["a"].view(np.float32)}),
        ("head", base | {"a": base["a"].reshape(3, 2)}),
        ("head", base | {"a": base["a"] + 1}),
        ("head", base | {"b": np.zeros((2, 0))}),
    ]
    assert len({digest, *(sha256_arrays(head, arrays) for head, arrays in others)}) == len(others) + 1


def test_a_flipped_bit_in_a_measured_sketch_is_noticed(tmp_path: Path) -> None:
    shape = {"shape": "box", "position": [0, 0, 0], "rotation": [0, 0, 0], "size": [1, 1, 1]}
    vertices, faces = combine([shape])
    first = winding_grid.build_winding_grid(vertices, faces, cache=tmp_path, resolution=8)
    (entry,) = tmp_path.iterdir()
    good = entry.read_bytes()
    bad = bytearray(good)
    bad[-2] ^= 1
    entry.write_bytes(bad)
    again = winding_grid.build_winding_grid(vertices, faces, cache=tmp_path, resolution=8)
    assert np.array_equal(again.winding, first.winding) and np.array_equal(again.distance, first.distance)
    assert entry.read_bytes() == good


def test_a_flipped_bit_in_an_entry_makes_it_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    write_entry("some.json", {"a": 1, "b": "text"})
    assert read_entry("some.json") == {"a": 1, "b": "text"}
    path = tmp_path / "some.json"
    good = path.read_bytes()
    for damaged in (good.replace(b": 1", b": 3"), b'{"a": 1}', b"[]", b"", b"\xff", b"[" * 100_000):
        path.write_bytes(damaged)
        assert read_entry("some.json") == {}
    write_entry("some.json", read_entry("some.json") | {"c": 2})
    assert read_entry("some.json") == {"c": 2}


def test_a_changed_hash_in_the_cache_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashes of large files name the prior, and with it every asset."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.prior.cache.LARGE_FILE_BYTES", 10)
    monkeypatch.setattr("pipeline.prior.cache.known_hashes", {})
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * 100)
    digest = file_hash(weights)
    kept = tmp_path / "cache" / "hashes.json"
    kept.write_text(kept.read_text().replace(digest, digest[::-1]))
    monkeypatch.setattr("pipeline.prior.cache.known_hashes", {})
    assert file_hash(weights) == digest

"""What other nodes left at a URL for a row to go on from is checked before it is used: checkpoints and layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from s3_server import connect
from test_checkpoint import DAMAGES, interrupt, job

from pipeline.core.location import RemotePath
from pipeline.plan import PlanItem
from pipeline.prior.load import Prior
from pipeline.scheduler import runner
from pipeline.scheduler.runner import RunSettings
from pipeline.scheduler.tasks import Hooks
from pipeline.storage import publish
from pipeline.storage.shared_cache import SharedCache
from pipeline.storage.store import store_of
from pipeline.uv import cache


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    monkeypatch.setenv("LATENTKILN_CACHE", str(tmp_path / "cache"))
    connect()
    return RemotePath("memory://bucket/checkpoints") / tmp_path.name


def build(made, prior: Prior, out: RemotePath):  # type: ignore[no-untyped-def]
    """Builds one row at a URL, in this process: its asset and record."""
    toolbox = Hooks(load_prior=lambda spec, threads: prior)
    settings = RunSettings(lockstep=2, threads=1, serial=True)
    item = PlanItem(made, "build", "new", "print")  # type: ignore[arg-type]
    assert runner.run([item], out, prior_spec="tiny", settings=settings, hooks=toolbox).built == 1
    return publish.read_output(out / "one", "asset.glb")


@pytest.mark.parametrize("name", [None, "bit of data", "last byte", "empty", "another format"])
def test_a_shipped_checkpoint_is_used_only_if_it_is_good(
    prior: Prior, cube: Path, tmp_path: Path, out: RemotePath, name: str | None
) -> None:
    made = job(cube)
    expected, _ = build(made, prior, out / "whole")
    path = interrupt(made, prior, tmp_path / "node", 9)
    if name:
        DAMAGES[name][0](path)
    store_of(out).write(out / "parts" / "one" / ".work" / "0" / path.name, path.read_bytes())
    data, record = build(made, prior, out / "parts")
    assert data == expected
    told = [text for text in record["warnings"] if "was dropped" in text]
    assert (len(told), record["resumed_from_step"] > 0) == ((1, False) if name else (0, True))
    assert not [name for name in store_of(out).files(out / "parts") if ".work" in name]


def content(data: bytes) -> tuple[object, bytes]:
    """The header and the numbers of a safetensors file, whose header has its names in no fixed order."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def push_out_of_memory(cube: Path, folder: Path) -> None:
    """Lays ``cube`` out for two other folders: as many layouts as this process keeps in memory."""
    for name in "xy":
        cache.load_unwrapped(cube, folder / name, texture_size=64)


def test_a_damaged_layout_that_is_shared_is_replaced(cube: Path, tmp_path: Path, out: RemotePath) -> None:
    def load(node: str):  # type: ignore[no-untyped-def]
        folder = tmp_path / node
        folder.mkdir()
        return cache.load_unwrapped(cube, folder, texture_size=64, shared=SharedCache(folder, out / "unwrap"))

    first = load("one")
    ((name, _),) = store_of(out).files(out / "unwrap").items()
    good = store_of(out).read(out / "unwrap" / name)[0]
    bad = bytearray(good)
    bad[-4] ^= 1
    store_of(out).write(out / "unwrap" / name, bytes(bad))
    assert (load("two").uv == first.uv).all()
    mended = store_of(out).read(out / "unwrap" / name)[0]
    assert len(mended) == len(good) and mended == (tmp_path / "two" / name).read_bytes()
    assert content(mended) == content(good)


def test_a_flipped_bit_in_a_kept_layout_is_noticed(cube: Path, tmp_path: Path) -> None:
    first = cache.load_unwrapped(cube, tmp_path / "a", texture_size=64)
    (entry,) = (tmp_path / "a").iterdir()
    (tmp_path / "b").mkdir()
    data = entry.read_bytes()
    # In the numbers, and in the notes.
    for at in (-4, data.index(b"xatlas")):
        flipped = bytearray(data)
        flipped[at] ^= 1
        (tmp_path / "b" / entry.name).write_bytes(flipped)
        again = cache.load_unwrapped(cube, tmp_path / "b", texture_size=64)
        assert (again.uv == first.uv).all()
        assert content((tmp_path / "b" / entry.name).read_bytes()) == content(data)  # written again
        push_out_of_memory(cube, tmp_path / f"other{at}")


def test_what_was_laid_out_now_is_what_is_read_later(
    cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal in dtype and memory layout, too: what is computed with it rounds alike."""
    new = cache.load_unwrapped(cube, tmp_path / "a", texture_size=64)
    push_out_of_memory(cube, tmp_path / "other")
    monkeypatch.setattr(cache, "unwrap", None)  # nothing is laid out any more
    read = cache.load_unwrapped(cube, tmp_path / "a", texture_size=64)
    assert read is not new
    for name in ("uv", "uv_faces", "charts"):
        one, other = getattr(new, name), getattr(read, name)
        assert (one == other).all() and one.dtype == other.dtype and one.strides == other.strides

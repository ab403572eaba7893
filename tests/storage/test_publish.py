"""Publishing: readers see an old asset, a new one or none, wherever a publisher is killed; on S3 and in memory."""

from __future__ import annotations

import threading
import time

import pytest
from test_lease import owner

from pipeline.core.hashing import sha256_bytes
from pipeline.core.location import RemotePath
from pipeline.export.record import describe_outputs, write_record
from pipeline.storage import lease, publish
from pipeline.storage.errors import StorageError
from pipeline.storage.store import store_of


def make_asset(folder, text, *, preview=True, mark="f1"):
    folder.mkdir(parents=True, exist_ok=True)
    names = ["asset.glb"] + ["preview.png"] * preview
    for name in names:
        (folder / name).write_text(f"{name} {text}")
    record = {"id": "boot", "fingerprint": mark, "outputs": describe_outputs(folder, names)}
    write_record(folder, record)
    return folder


def names(root):
    return sorted(store_of(root).files(root / "boot"))


def test_a_new_asset_then_a_rebuilt_one(root, tmp_path):
    place = root / "boot"
    store_of(root).write(place / ".work" / "checkpoint", b"half way")
    store_of(root).write(place / "failure.json", b"{}")
    store_of(root).write(place / "notes.txt", b"the user's own")
    publish.publish_asset(make_asset(tmp_path / "a", "one"), place)
    assert names(root) == ["asset.glb", "notes.txt", "preview.png", "record.json"]
    data, record = publish.read_output(place, "asset.glb")
    assert data == b"asset.glb one" and record["outputs"]["asset.glb"]["sha256"] == sha256_bytes(data)
    assert not publish.is_partly_published(record, names(root))
    publish.publish_asset(make_asset(tmp_path / "b", "two", preview=False, mark="f2"), place)
    assert names(root) == ["asset.glb", "notes.txt", "record.json"]
    assert publish.read_output(place, "asset.glb")[0] == b"asset.glb two"
    assert publish.publish_asset(tmp_path / "b", place)["fingerprint"] == "f2"
    assert list(publish.asset_ids(root)) == ["boot"]
    publish.remove_asset(root, "boot")
    assert store_of(root).files(root) == {}


class Killed(BaseException):
    """Where a publisher died."""


def test_killed_between_any_two_steps_a_reader_sees_old_or_new_and_the_next_run_goes_on(root, tmp_path, monkeypatch):
    place = root / "boot"
    store = store_of(root)
    first, second = make_asset(tmp_path / "a", "one"), make_asset(tmp_path / "b", "two", preview=False, mark="f2")
    states = set()
    for fresh in (True, False):
        for step in range(20):
            for name in names(root):
                store.delete(place / name)
            if not fresh:
                publish.publish_asset(first, place)
            left = [step]

            def dying(real, left=left):
                def call(*arguments, **options):
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                    return real(*arguments, **options)

                return call

            with monkeypatch.context() as patch:
                patch.setattr(store, "write", dying(store.write))
                patch.setattr(store, "delete", dying(store.delete))
                try:
                    publish.publish_asset(second, place)
                    finished = True
                except Killed:
                    finished = False
            try:
                data, record = publish.read_output(place, "asset.glb")
                assert (data, record["fingerprint"]) in ((b"asset.glb one", "f1"), (b"asset.glb two", "f2"))
                states.add((fresh, record["fingerprint"]))
                for name in record["outputs"]:
                    publish.read_output(place, name)
            except FileNotFoundError:
                assert fresh
                states.add((fresh, "nothing"))
                record = None
            if record and record["fingerprint"] == "f2" and not finished:
                assert publish.finish_publish(place) or not publish.is_partly_published(record, names(root))
            else:
                publish.publish_asset(second, place)
            assert names(root) == ["asset.glb", "record.json"]
            data, record = publish.read_output(place, "asset.glb")
            assert data == b"asset.glb two" and "object" not in record["outputs"]["asset.glb"]
            assert "replaces" not in record and not publish.finish_publish(place)
            if finished:
                break
        assert finished
    assert states == {(True, "nothing"), (True, "f2"), (False, "f1"), (False, "f2")}


def test_readers_that_look_all_the_time_never_see_half_an_asset(s3, tmp_path):
    # On the server alone: fsspec's memory:// hands the same file object to all threads, which is no store's promise.
    root = RemotePath(s3)
    place, seen, faults, end = root / "boot", set(), [], threading.Event()
    versions = [make_asset(tmp_path / str(n), f"version {n}", preview=True, mark=f"f{n}") for n in range(6)]

    def look():
        while not end.is_set():
            try:
                glb, record = publish.read_output(place, "asset.glb")
                seen.add(record["fingerprint"])
                if glb.decode() != f"asset.glb version {record['fingerprint'][1:]}":
                    faults.append((glb, record))
            except FileNotFoundError:
                if seen:
                    faults.append("an asset that was there is gone")

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in versions:
        publish.publish_asset(version, place)
        time.sleep(0.02)
    end.set()
    for thread in threads:
        thread.join()
    assert not faults and len(seen) >= 2


def test_a_publisher_that_lost_its_lease_writes_nothing(root, tmp_path):
    place = root / "boot"
    publish.publish_asset(make_asset(tmp_path / "a", "one"), place)
    with pytest.raises(StorageError, match="another run has taken this row over"):
        publish.publish_asset(make_asset(tmp_path / "b", "two"), place, held=lambda: False)
    # It does not know: between its look and its first write another one publishes.
    late, first = make_asset(tmp_path / "d", "late"), [make_asset(tmp_path / "c", "three")]

    def held() -> bool:
        if first:
            publish.publish_asset(first.pop(), place)
        return True

    with pytest.raises(StorageError, match="another run"):
        publish.publish_asset(late, place, held=held)
    assert publish.read_output(place, "asset.glb")[0] == b"asset.glb three"


def test_an_asset_being_built_is_not_removed(root, tmp_path):
    publish.publish_asset(make_asset(tmp_path / "a", "one"), root / "boot")
    mine = lease.acquire(root / "boot", owner())
    with pytest.raises(StorageError, match="a run is building it"):
        publish.remove_asset(root, "boot")
    mine.release()
    publish.remove_asset(root, "boot")
    assert not names(root)


def test_a_damaged_output_is_not_published_and_a_changed_one_not_read(root, tmp_path):
    folder = make_asset(tmp_path / "a", "one")
    (folder / "asset.glb").write_text("asset.glb 0ne")
    with pytest.raises(StorageError, match="does not match the hash in its record"):
        publish.publish_asset(folder, root / "boot")
    assert not names(root)
    publish.publish_asset(make_asset(tmp_path / "a", "one"), root / "boot")
    store_of(root).write(root / "boot" / "asset.glb", b"vandal")
    with pytest.raises(StorageError, match="build it again"):
        publish.read_output(root / "boot", "asset.glb")


def test_a_record_cannot_point_outside_its_folder():
    good = f".next/{'0' * 64}-asset.glb"
    for held, expected in (
        (good, good),
        ("../x", "asset.glb"),
        (f".next/{'0' * 64}-../x", "asset.glb"),
        (3, "asset.glb"),
    ):
        assert publish.object_name("asset.glb", {"object": held}) == expected

"""Stores: names, conditional writes, retries, leases, publishing; against a real S3 server and fsspec's memory."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from s3_server import ACCESS_KEY, SECRET_KEY, connect, free_ports

from pipeline.core.errors import UsageError
from pipeline.core.location import RemotePath, parse_location
from pipeline.storage import sync
from pipeline.storage.errors import PreconditionFailed, StorageError, describe_error
from pipeline.storage.secrets import scrub
from pipeline.storage.store import ABSENT, deadline, store_of

# --- names ---


def test_a_place_has_the_parts_of_a_path():
    place = parse_location("S3://bucket/shop/boot.glb/")
    assert str(place) == "s3://bucket/shop/boot.glb"
    assert (place.name, place.suffix, str(place.parent), place.scheme) == ("boot.glb", ".glb", "s3://bucket/shop", "s3")
    assert str(place.parent.parent.parent) == "s3://bucket" and str(place / "a") == "s3://bucket/shop/boot.glb/a"


@pytest.mark.parametrize("text", ["outputs", "/tmp/a b", "C:\\x", "a://"[:1], "./s3:/x"])
def test_a_path_stays_a_path(text):
    assert parse_location(text) == Path(text)


def test_an_address_of_a_local_file_is_its_path():
    assert parse_location("file:///tmp/out") == Path("/tmp/out")


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3:///x", "s3://key:pw-very-secret@b/x", "https://h/x?X-Amz-Signature=pw-very-secret", "s3://b/a/../c",
     "s3://b/a//c", "zip://a::s3://b/c", "s3://b/x#pw-very-secret", "s3://b/a\nb"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_without_repeating_secrets(text):
    with pytest.raises(UsageError) as caught:
        parse_location(text)
    assert "pw-very-secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_secrets_of_the_environment_never_come_through(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefgh-secret")
    monkeypatch.setenv("FSSPEC_S3_PASSWORD", "password-in-config")
    line = "at s3://joe:hunter22@b/x?X-Amz-Signature=0123abc&a=1 with abcdefgh-secret and password-in-config"
    told = scrub(line)
    assert not any(word in told for word in ("hunter22", "0123abc", "abcdefgh-secret", "password-in-config"))
    assert told.startswith("at s3://") and "&a=1" in told
    assert scrub("a red brick boot at s3://bucket/key") == "a red brick boot at s3://bucket/key"


# --- reading and writing ---


def test_what_is_written_is_read_and_listed(root):
    store = store_of(root)
    assert store.stat(root / "x") is None and store.files(root) == {} and store.folders(root) == []
    tag = store.write(root / "a" / "x.txt", b"one")
    data, found = store.read(root / "a" / "x.txt")
    assert data == b"one" and found.etag == tag and found.size == 3
    assert found.now == pytest.approx(found.modified, abs=5)  # by the store's own clock
    store.write(root / "b" / "y", b"")
    assert {name: f.etag for name, f in store.files(root).items()}["a/x.txt"] == tag
    assert store.folders(root) == ["a", "b"]
    store.delete(root / "a" / "x.txt")
    store.delete(root / "a" / "x.txt")
    assert list(store.files(root)) == ["b/y"]
    with pytest.raises(FileNotFoundError):
        store.read(root / "a" / "x.txt")
    with pytest.raises(StorageError, match="allowed: at most 2"):
        store.write(root / "c", b"123")
        store.read(root / "c", 2)


def test_a_listing_goes_on_behind_its_first_page(root, monkeypatch):
    monkeypatch.setattr("pipeline.storage.store.PAGE_SIZE", 7)
    store = store_of(root)
    expected = sorted(f"{folder}/{n}" for folder in "abcdefgh" for n in "12")
    for name in expected:
        store.write(root / name, b"")
    assert sorted(store.files(root)) == expected and store.folders(root) == list("abcdefgh")


def test_a_write_meets_its_expectation_or_clashes(root):
    store = store_of(root)
    first = store.write(root / "x", b"one", expect=ABSENT)
    with pytest.raises(PreconditionFailed):
        store.write(root / "x", b"two", expect=ABSENT)
    second = store.write(root / "x", b"two", expect=first)
    with pytest.raises(PreconditionFailed):
        store.write(root / "x", b"three", expect=first)
    with pytest.raises(PreconditionFailed):
        store.write(root / "gone", b"three", expect=second)
    with pytest.raises(PreconditionFailed):
        store.delete(root / "x", expect=first)
    assert store.read(root / "x")[0] == b"two"
    store.delete(root / "x", expect=second)


def test_of_many_writers_one_wins(root):
    store = store_of(root)
    for expect in (ABSENT, None):
        expected = expect if expect is not None else store.stat(root / "x").etag
        won = []

        def attempt(number, expected=expected, won=won):
            try:
                store.write(root / "x", f"writer {number}".encode(), expect=expected)
                won.append(number)
            except PreconditionFailed:
                pass

        threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8 if expect is None else 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and store.read(root / "x")[0] == f"writer {won[0]}".encode()
        store.write(root / "x", b"again")


# --- faults ---


@pytest.mark.parametrize("fault", [500, 503, "drop", "lose", "half"])
def test_passing_faults_are_lived_through(proxy, s3, fault):
    place, left = RemotePath(s3) / "x", [2]

    def rule(method, path):
        if left[0] > 0 and "list-type" not in path:
            left[0] -= 1
            return fault
        return None

    proxy.rule = rule
    first = store_of(place).write(place, b"one" * 100, expect=ABSENT)
    left[0] = 2
    store_of(place).write(place, b"two" * 100, expect=first)
    left[0] = 2
    assert store_of(place).read(place)[0] == b"two" * 100
    assert store_of(place).files(place.parent).keys() == {"x"}


def test_a_store_that_stays_away_is_one_clear_line_in_time(proxy, s3, monkeypatch):
    monkeypatch.setenv("LATENTKILN_STORAGE_SECONDS", "1.5")
    place = RemotePath(s3) / "x"
    proxy.rule = lambda method, path: 503
    with pytest.raises(
        StorageError, match=r"x: writing failed \d+ times in 1.5 s; the last error was SlowDown 503"
    ) as caught:
        store_of(place).write(place, b"x")
    assert len(proxy.seen) < 12 and "\n" not in str(caught.value)


def test_a_store_that_is_not_there_at_all(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    connect()
    with pytest.raises(StorageError, match="run again when the store answers") as caught, deadline(0.5):
        store_of(RemotePath(s3)).read(RemotePath(s3) / "x")
    assert "\n" not in str(caught.value)


def test_a_slow_answer_is_waited_for_and_a_missing_one_not(proxy, s3, monkeypatch):
    place = RemotePath(s3) / "x"
    store_of(place).write(place, b"x")
    proxy.rule = lambda method, path: "slow"
    assert store_of(place).read(place)[0] == b"x"
    proxy.slow_seconds = 20  # an answer that was waited for would come
    with pytest.raises(StorageError, match="no answer in time"), deadline(1.0):
        store_of(place).read(place)


def test_a_library_that_has_no_words_for_a_time_limit_gets_ours():
    from fsspec.exceptions import FSTimeoutError

    assert describe_error(FSTimeoutError()) == describe_error(TimeoutError()) == "no answer in time"
    assert describe_error(ConnectionResetError("by peer")) == "ConnectionResetError: by peer"


def test_wrong_credentials_are_told_without_showing_them(proxy, s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    connect()
    with pytest.raises(StorageError, match="check the credentials in the environment") as caught:
        store_of(RemotePath(s3)).write(RemotePath(s3) / "x", b"x")
    assert len(proxy.seen) <= 3  # more attempts would not help
    assert "wrong-secret-value" not in str(caught.value) and ACCESS_KEY not in str(caught.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    connect()
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        store_of(RemotePath(s3)).read(RemotePath(s3) / "x")


def test_a_bucket_or_scheme_that_is_not_there(s3):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x: .*"):
        store_of(RemotePath(s3)).write(RemotePath("s3://no-such-bucket/x"), b"x")
    with pytest.raises(StorageError, match="fsspec knows no file system 'nonsense'"):
        store_of(RemotePath("nonsense://b/x"))


# --- shipping ---


def test_changed_files_are_shipped_and_come_back(root, tmp_path):
    (tmp_path / "w").mkdir()
    path = tmp_path / "w" / "checkpoint"
    path.write_bytes(b"1")
    (tmp_path / "w" / ".tmp-1-x").write_bytes(b"unfinished")
    with sync.FileSync(lambda: sync.files_below(tmp_path / "w", root / ".work"), seconds=0.05) as shipper:
        deadline = time.monotonic() + 10
        while store_of(root).stat(root / ".work" / "checkpoint") is None:
            assert time.monotonic() < deadline
        path.write_bytes(b"22")
    shipper.sync()
    assert sync.download_folder(root / ".work", tmp_path / "back") == 1
    assert (tmp_path / "back" / "checkpoint").read_bytes() == b"22"


def test_a_store_that_is_away_stops_no_work(proxy, s3, tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"1")
    proxy.rule = lambda method, path: 500
    shipper = sync.FileSync(lambda: [(tmp_path / "checkpoint", RemotePath(s3) / "c")])
    with deadline(0.5):
        shipper.sync()
    assert "InternalError" in shipper.problem and SECRET_KEY not in shipper.problem
    proxy.rule = lambda method, path: None
    shipper.sync()
    assert not shipper.problem and json.loads(store_of(RemotePath(s3)).read(RemotePath(s3) / "c")[0]) == 1

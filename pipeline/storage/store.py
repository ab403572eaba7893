"""Read and write at a URL, with limits on size and time, retries, and conditional writes if the store has them.

A write may *expect* that the object does not exist, or that it still has the tag it was seen with. On S3 this is one
request (``If-None-Match: *``, ``If-Match``), so exactly one of several writers wins. On other stores the write follows
a separate check. The attribute ``exact`` tells which one it is.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, cast

from pipeline.core.location import RemotePath
from pipeline.storage.errors import PreconditionFailed, StorageError, classify_error, describe_error, error_code

LIMIT_VARIABLE = "LATENTKILN_STORAGE_SECONDS"
# How long one operation is tried in all, and how long a single attempt may take; the latter grows with the size.
LIMIT_SECONDS = 120.0
_ATTEMPT_SECONDS = 30.0
_SLOWEST_BYTES = 256 << 10  # a second
_FIRST_BACKOFF, _MAX_BACKOFF = 0.1, 8.0
# Refusals are retried a few times, because a store that is just starting does not know its users yet.
_MAX_REFUSED_ATTEMPTS = 3
PAGE_SIZE = 1000  # names per page of a listing; the maximum of S3

ABSENT = ""
"""The tag that a write expects if it must not replace anything."""

# Stores with atomic writes. Elsewhere a file is written under another name and moved.
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory")

T = TypeVar("T")
# An answer of the S3 client or of fsspec: nested, with values that differ between stores.
Response = Mapping[str, Any]


@dataclass(frozen=True)
class ObjectMeta:
    """The state of a file at a URL.

    ``size`` is in bytes. ``etag`` is the store's tag of the content, "" if it has none. ``modified`` (0 if unknown) and
    ``now`` are in seconds by the store's clock.
    """

    size: int
    etag: str = ""
    modified: float = 0.0
    now: float = 0.0


def limit_seconds() -> float:
    """Return how long one operation is tried: $LATENTKILN_STORAGE_SECONDS or 120, or less inside ``deadline``."""
    try:
        limit = max(0.1, float(os.environ.get(LIMIT_VARIABLE, "")))
    except ValueError:
        limit = LIMIT_SECONDS
    shorter = getattr(_local, "limit", None)
    return limit if shorter is None else min(limit, shorter)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Limit each operation of this thread inside the block to ``seconds``."""
    before = getattr(_local, "limit", None)
    _local.limit = seconds if before is None else min(seconds, before)
    try:
        yield
    finally:
        _local.limit = before


_local = threading.local()


class Store:
    """Any file system of fsspec. Methods raise FileNotFoundError, PreconditionFailed or StorageError only."""

    exact = False
    """Whether a conditional write is atomic."""

    def __init__(self, fs: Any):
        self._fs = fs
        self._lock = threading.Lock()

    def stat(self, location: RemotePath) -> ObjectMeta | None:
        """Return the state of ``location``, None if it does not exist."""
        try:
            return self._retry("asking", location, lambda seconds: self._stat(location, seconds))
        except FileNotFoundError:
            return None

    def read(self, location: RemotePath, limit: int = 1 << 30) -> tuple[bytes, ObjectMeta]:
        """Return the content of ``location``, at most ``limit`` bytes, and its state. Raises FileNotFoundError."""
        return self._retry("reading", location, lambda seconds: self._read(location, limit, seconds))

    def write(self, location: RemotePath, data: bytes, *, expect: str | None = None) -> str:
        """Write ``data`` to ``location`` and return its tag. Raises PreconditionFailed if ``expect`` does not hold.

        ``expect`` is None for any content, ABSENT for none, or the tag of the content to replace. A write that arrived
        although its answer was lost counts as done.
        """
        try:
            return self._retry("writing", location, lambda s: self._write(location, data, expect, s), size=len(data))
        except PreconditionFailed:
            try:
                current, meta = self.read(location, len(data))
            except (FileNotFoundError, StorageError):
                current, meta = b"", ObjectMeta(0)
            if current == data and data:
                return meta.etag
            raise

    def delete(self, location: RemotePath, *, expect: str | None = None) -> None:
        """Remove ``location``, which may be gone already. Raises PreconditionFailed if its tag is not ``expect``."""
        try:
            self._retry("deleting", location, lambda seconds: self._delete(location, expect, seconds))
        except FileNotFoundError:
            return

    def files(self, folder: RemotePath) -> dict[str, ObjectMeta]:
        """Return every file below ``folder`` by its relative name; none if there is no such folder."""
        try:
            return self._retry("listing", folder, lambda seconds: dict(self._list(folder, seconds)))
        except FileNotFoundError:
            return {}

    def list_at_most(self, folder: RemotePath, most: int) -> dict[str, ObjectMeta] | None:
        """As ``files``, but return None if there are more than ``most``."""

        def call(seconds: float) -> dict[str, ObjectMeta] | None:
            files = dict(islice(self._list(folder, seconds), most + 1))
            return files if len(files) <= most else None

        try:
            return self._retry("listing", folder, call)
        except FileNotFoundError:
            return {}

    def folders(self, folder: RemotePath) -> list[str]:
        """Return the names of the folders in ``folder``, sorted."""
        try:
            return self._retry("listing", folder, lambda seconds: sorted(self._folders(folder, seconds)))
        except FileNotFoundError:
            return []

    def _retry(self, verb: str, location: RemotePath, call: Callable[[float], T], size: int = 0) -> T:
        """Call ``call(seconds)`` until it returns, an error is final, or the time is up."""
        start_time, pause, refused, attempts = time.monotonic(), _FIRST_BACKOFF, 0, 0
        limit = limit_seconds()
        while True:
            attempts += 1
            left = limit - (time.monotonic() - start_time)
            try:
                return call(max(0.1, min(left, _ATTEMPT_SECONDS + size / _SLOWEST_BYTES)))
            except StorageError:
                raise
            except Exception as error:
                kind = classify_error(error)
                if kind == "absent":
                    raise FileNotFoundError(f"{location}: there is no file at this URL") from None
                if kind == "clash":
                    raise PreconditionFailed(f"{location}: another writer changed it first") from None
                refused += kind == "refused"
                left = limit - (time.monotonic() - start_time)
                if refused >= _MAX_REFUSED_ATTEMPTS or (refused and not _is_transient(error)):
                    raise StorageError(f"{location}: {verb} was refused: {describe_error(error)}") from None
                if left <= pause:
                    raise StorageError(
                        f"{location}: {verb} failed {attempts} time{'s' * (attempts > 1)} in {limit:g} s; "
                        f"the last error was {describe_error(error)}; run again when the store answers"
                    ) from None
            # Randomised, so that many workers that failed together do not retry together.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _MAX_BACKOFF)

    def _stat(self, location: RemotePath, seconds: float) -> ObjectMeta:
        self._fs.invalidate_cache()
        return _meta_from_info(self._fs.info(location.url))

    def _read(self, location: RemotePath, limit: int, seconds: float) -> tuple[bytes, ObjectMeta]:
        meta = self._stat(location, seconds)
        _check_size(location, meta.size, limit)
        return self._fs.cat_file(location.url), meta

    def _write(self, location: RemotePath, data: bytes, expect: str | None, seconds: float) -> str:
        with self._lock:
            if expect is not None:
                try:
                    current = self._stat(location, seconds).etag or "?"
                except FileNotFoundError:
                    current = ABSENT
                if current != expect:
                    raise PreconditionFailed
            if location.scheme in _OBJECT_STORES:
                self._fs.pipe_file(location.url, data)
            else:
                temporary = location.parent / f".tmp-{uuid.uuid4().hex[:12]}"
                self._fs.makedirs(location.parent.url, exist_ok=True)
                self._fs.pipe_file(temporary.url, data)
                self._fs.mv(temporary.url, location.url)
            return self._stat(location, seconds).etag or "?"

    def _delete(self, location: RemotePath, expect: str | None, seconds: float) -> None:
        if expect is not None and (self._stat(location, seconds).etag or "?") != expect:
            raise PreconditionFailed
        self._fs.rm_file(location.url)

    def _list(self, folder: RemotePath, seconds: float) -> Iterator[tuple[str, ObjectMeta]]:
        self._fs.invalidate_cache()
        root = str(self._fs._strip_protocol(folder.url)).rstrip("/") + "/"
        for path, info in self._fs.find(folder.url, detail=True).items():
            if path.startswith(root):
                yield path.removeprefix(root), _meta_from_info(info)

    def _folders(self, folder: RemotePath, seconds: float) -> Iterator[str]:
        self._fs.invalidate_cache()
        for info in self._fs.ls(folder.url, detail=True):
            if info.get("type") == "directory":
                yield str(info["name"]).rstrip("/").rpartition("/")[2]


class S3Store(Store):
    """S3 and compatible stores. Uses single requests, which give conditional writes and the store's clock."""

    exact = True

    def _call(self, seconds: float, method: str, **arguments: object) -> Response:
        from fsspec.asyn import sync

        return cast(Response, sync(self._fs.loop, self._fs._call_s3, method, timeout=seconds, **arguments))

    def _stat(self, location: RemotePath, seconds: float) -> ObjectMeta:
        response = self._call(seconds, "head_object", **_bucket_and_key(location))
        return _meta_from_response(response, int(response["ContentLength"]))

    def _read(self, location: RemotePath, limit: int, seconds: float) -> tuple[bytes, ObjectMeta]:
        from fsspec.asyn import sync

        async def get() -> tuple[bytes, ObjectMeta]:
            response = await self._fs._call_s3("get_object", **_bucket_and_key(location))
            async with response["Body"] as body:
                _check_size(location, int(response["ContentLength"]), limit)
                data = await body.read()
            if len(data) != response["ContentLength"]:
                raise ConnectionError(f"{len(data)} of {response['ContentLength']} bytes came")
            return data, _meta_from_response(response, len(data))

        return cast("tuple[bytes, ObjectMeta]", sync(self._fs.loop, get, timeout=seconds))

    def _write(self, location: RemotePath, data: bytes, expect: str | None, seconds: float) -> str:
        if expect is not None and not self.exact:
            return self._write_after_check(location, data, expect, seconds)
        condition = {}
        if expect is not None:
            condition = {"IfNoneMatch": "*"} if expect == ABSENT else {"IfMatch": f'"{expect}"'}
        try:
            response = self._call(seconds, "put_object", **_bucket_and_key(location), Body=data, **condition)
        except Exception as error:
            if condition and classify_error(error) == "no-conditions":
                self.exact = False
                return self._write_after_check(location, data, str(expect), seconds)
            if condition and expect != ABSENT and classify_error(error) == "absent":
                raise PreconditionFailed from None
            raise
        return str(response["ETag"]).strip('"')

    def _write_after_check(self, location: RemotePath, data: bytes, expect: str, seconds: float) -> str:
        try:
            current = self._stat(location, seconds).etag
        except FileNotFoundError:
            current = ABSENT
        if current != expect:
            raise PreconditionFailed
        return self._write(location, data, None, seconds)

    def _delete(self, location: RemotePath, expect: str | None, seconds: float) -> None:
        if expect is not None and self._stat(location, seconds).etag != expect:
            raise PreconditionFailed
        self._call(seconds, "delete_object", **_bucket_and_key(location))

    def _list(self, folder: RemotePath, seconds: float) -> Iterator[tuple[str, ObjectMeta]]:
        prefix = _prefix(folder)
        for page in self._pages(folder, prefix, seconds):
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(prefix)
                # Web consoles create empty objects with the names of folders.
                if name and not name.endswith("/"):
                    modified = item["LastModified"].timestamp()
                    yield name, ObjectMeta(int(item["Size"]), str(item.get("ETag", "")).strip('"'), modified)

    def _folders(self, folder: RemotePath, seconds: float) -> Iterator[str]:
        prefix = _prefix(folder)
        for page in self._pages(folder, prefix, seconds, Delimiter="/"):
            for item in page.get("CommonPrefixes", ()):
                yield item["Prefix"].removeprefix(prefix).rstrip("/")

    def _pages(self, folder: RemotePath, prefix: str, seconds: float, **arguments: object) -> Iterator[Response]:
        bucket = folder.key.partition("/")[0]
        while True:
            page = self._call(seconds, "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE_SIZE, **arguments)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]


def store_of(location: RemotePath) -> Store:
    """Return the store of ``location``, one per scheme and process. Raises StorageError if it cannot be used."""
    key = (os.getpid(), location.scheme)
    with _opening:
        if key not in open_stores:
            open_stores[key] = _open(location)
        return open_stores[key]


open_stores: dict[tuple[int, str], Store] = {}
_opening = threading.Lock()


def _open(location: RemotePath) -> Store:
    scheme = location.scheme
    try:
        import fsspec
        from fsspec.config import conf
    except ImportError:
        raise StorageError(f"{location}: fsspec is not installed; pip install 'latentkiln[s3]'") from None
    options: dict[str, object] = {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        # The client makes one attempt with short timeouts. ``Store`` alone decides about retries.
        ours = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1, "mode": "standard"}}
        options["config_kwargs"] = ours | {"max_pool_connections": 64} | conf.get(scheme, {}).get("config_kwargs", {})
    try:
        if scheme not in fsspec.available_protocols():
            raise StorageError(f"{location}: fsspec knows no file system '{scheme}'")
        fs = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        hint = "pip install 'latentkiln[s3]'" if scheme in ("s3", "s3a") else f"install what fsspec needs for {scheme}"
        raise StorageError(f"{location}: {' '.join(str(error).split())}; {hint}") from None
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"{location}: its store cannot be opened: {describe_error(error)}") from None
    if scheme in ("s3", "s3a"):
        fs.retries = 1
        _connect(fs)
        return S3Store(fs)
    return Store(fs)


def _connect(fs: Any) -> None:
    """Load the client's model of S3. It takes seconds on a busy machine, which must not count as a slow store."""
    from fsspec.asyn import sync

    # The first request reports an error of the configuration, with its location.
    with contextlib.suppress(Exception):
        sync(fs.loop, fs.set_session)


def _is_transient(error: Exception) -> bool:
    """Return whether a store that is starting up gives this refusal: it does not know its users or buckets yet."""
    return error_code(error)[1] in (403, 404)


def _bucket_and_key(location: RemotePath) -> dict[str, str]:
    bucket, _, key = location.key.partition("/")
    if not key:
        raise StorageError(f"{location}: it names only a bucket; allowed: s3://BUCKET/NAME")
    return {"Bucket": bucket, "Key": key}


def _prefix(folder: RemotePath) -> str:
    key = folder.key.partition("/")[2]
    return f"{key}/" if key else ""


def _check_size(location: RemotePath, size: int, limit: int) -> None:
    if size > limit:
        raise StorageError(f"{location}: it has {size} bytes; allowed: at most {limit}")


def _meta_from_response(response: Response, size: int) -> ObjectMeta:
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        now = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        now = time.time()
    modified = response.get("LastModified")
    return ObjectMeta(size, str(response.get("ETag", "")).strip('"'), modified.timestamp() if modified else 0.0, now)


def _meta_from_info(info: Response) -> ObjectMeta:
    """Convert fsspec's description of a file. Each file system has its own names for the same values."""
    if info.get("type") == "directory":
        raise FileNotFoundError(info.get("name", ""))
    modified = next(
        (info[key] for key in ("mtime", "modified", "LastModified", "updated", "created") if key in info), 0
    )
    stamp = modified.timestamp() if hasattr(modified, "timestamp") else modified
    seconds = float(stamp) if isinstance(stamp, (int, float)) else 0.0
    size = int(info.get("size") or 0)
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("generation")
    return ObjectMeta(size, str(tag or f"{size}-{seconds:.6f}").strip('"'), seconds, time.time())

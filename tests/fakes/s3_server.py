"""A real S3 server for tests (SeaweedFS, bound to the loopback), and a proxy before it that misbehaves on demand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACCESS_KEY = "kiln-test-access"
SECRET_KEY = "kiln-test-secret-0123456789"
ADMIN_KEY, ADMIN_SECRET = "kiln-admin-access", "kiln-admin-secret"
BUCKET = "kiln"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class S3Server:
    """One SeaweedFS process with its data in ``folder``; may be killed and started again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._ports = free_ports(8)
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True, exist_ok=True)
        people = [(ADMIN_KEY, ADMIN_SECRET, ["Admin"]), (ACCESS_KEY, SECRET_KEY, ["Read", "Write", "List"])]
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for key, secret, actions in people
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    def start(self) -> None:
        """Starts the server and waits until it answers a signed request."""
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        options = {
            "dir": self.folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1",
            "s3.config": self.folder / "s3.json", "s3.port": s3, "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0, "s3.port.lance": 0, "filer.port": filer, "filer.port.grpc": filer_grpc,
            "master.port": master, "master.port.grpc": master_grpc, "master.volumeSizeLimitMB": 64,
            # The only master is elected at once after a restart; by default it waits for others for 10 to 20 s.
            "master.electionTimeout": "500ms", "master.heartbeatInterval": "100ms",
            "volume.port": volume, "volume.port.grpc": volume_grpc, "volume.max": 30,
        }  # fmt: skip
        weed = Path(sys.executable).with_name("weed")
        # It dies with us, however we die, and not of a signal that is sent to our process group.
        guard = '"$@" </dev/null & server=$!; read end; kill -9 $server'
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                ["sh", "-c", guard, "sh", str(weed), "server", "-s3", *(f"-{n}={v}" for n, v in options.items())],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client().list_buckets()
                self.client().put_object(Bucket=BUCKET, Key="ready", Body=b"")
                self.process = process
                return
            except Exception as error:
                if type(error).__name__ == "NoSuchBucket":
                    with contextlib.suppress(Exception):
                        self.client().create_bucket(Bucket=BUCKET)
                if time.monotonic() > deadline or process.poll() is not None:
                    tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                    process.communicate()
                    raise RuntimeError(f"the S3 server does not come up: {error}\n{tail}") from error
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, as when its machine goes."""
        if self.process is not None:
            self.process.communicate()  # closes its input: the guard kills the server
            self.process = None

    def client(self, endpoint: str | None = None):
        """A plain botocore client of an administrator, to look at what is there with other eyes than ours."""
        from botocore.config import Config
        from botocore.session import get_session

        return get_session().create_client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=ADMIN_KEY,
            aws_secret_access_key=ADMIN_SECRET,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def names(self, prefix: str) -> list[str]:
        """The keys below ``prefix``, without it."""
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        return [item["Key"].removeprefix(f"{prefix}/") for item in found]


def environment(endpoint: str) -> dict[str, str]:
    """What a user's environment holds to reach ``endpoint``."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


# What the proxy does with a request: None lets it pass, a number answers with that status, "slow" waits first,
# "drop" cuts the connection before the server sees it, "lose" after the server has done it, "half" sends half the
# answer.
Rule = Callable[[str, str], "int | str | None"]


class FaultProxy:
    """Hands HTTP requests on to ``target``; ``rule(method, path)`` says what goes wrong."""

    def __init__(self, target: str):
        self.reset()
        host = target.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append((self.command, self.path))
                fault = proxy.rule(self.command, self.path)
                if isinstance(fault, int):
                    code = {503: "SlowDown", 500: "InternalError", 403: "AccessDenied"}.get(fault, "Error")
                    text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                    self.answer(fault, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text)
                    return
                if fault == "slow":
                    time.sleep(proxy.slow_seconds)
                if fault == "drop":
                    self.cut()
                    return
                try:
                    # Once a request: a server that was killed in between is asked anew.
                    connection = http.client.HTTPConnection(host, timeout=20)
                    connection.request(self.command, self.path, body, dict(self.headers.items()))
                    answer = connection.getresponse()
                    data = answer.read()
                    connection.close()
                except OSError:
                    self.cut()
                    return
                if fault == "lose":
                    self.cut()
                    return
                self.answer(answer.status, answer.getheaders(), data, half=fault == "half")

            def answer(self, status, headers, data, half=False):
                with contextlib.suppress(OSError):
                    self.send_response_only(status)
                    length = None
                    for name, value in headers:
                        if name.lower() == "content-length":
                            length = value
                        elif name.lower() not in ("transfer-encoding", "connection"):
                            self.send_header(name, value)
                    self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(data[: len(data) // 2] if half else data)
                    if half:
                        self.cut()

            def cut(self):
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """Lets all pass, and forgets what it has seen."""
        self.rule: Rule = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self.slow_seconds = 0.5

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()


def connect(endpoint: str | None = None) -> None:
    """Makes stores of this process be reached as the environment says now.

    A connection to a known ``endpoint`` is used again: making one takes a second.
    """
    from pipeline.storage import store

    store.open_stores.clear()
    with contextlib.suppress(ImportError):
        import fsspec

        fsspec.get_filesystem_class("memory").store.clear()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    if endpoint is not None:
        from pipeline.core.location import RemotePath

        if endpoint not in _known:
            _known[endpoint] = store.store_of(RemotePath("s3://any"))
        store.open_stores[(os.getpid(), "s3")] = _known[endpoint]


_known: dict[str, object] = {}

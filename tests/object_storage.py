"""A real server of S3's kind for tests, in a process of its own, behind a gate of ours by which a
test holds up its answers or takes it away."""

import contextlib
import itertools
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.settings import env
from tests.processes import ROOT, stop
from tests.waiting import wait_until

KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-key-that-nobody-is-to-see"}
_numbers = itertools.count()
# Its log is coloured where a status is not 200.
_GET = re.compile(r"GET (/\S+) HTTP/1\.1\S*\" (2\d\d) ")


@dataclass
class ObjectServer:
    port: int
    log: Path


class Gate:
    """Between clients and a server: ``hold`` lets so many bytes of answers pass, then none until
    ``open``; ``shut`` refuses connections and ends those that there are, until ``open``."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._changed = threading.Condition()
        self._left: int | None = None
        self._sockets: set[socket.socket] = set()
        self._listener = _listening(0)
        self.port: int = self._listener.getsockname()[1]
        self._begin()

    def hold(self, n_bytes: int) -> None:
        with self._changed:
            self._left = n_bytes

    def open(self) -> None:
        with self._changed:
            self._left = None
            self._changed.notify_all()
        if self._listener.fileno() < 0:
            self._listener = _listening(self.port)
            self._begin()

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _begin(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._sockets |= {client, server}
            for source, sink in ((client, server), (server, client)):
                work = threading.Thread(target=self._pump, args=(source, sink), daemon=True)
                work.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        is_answer = source.getpeername()[1] == self._server_port
        with contextlib.suppress(OSError):
            while data := source.recv(16 << 10):
                if is_answer:
                    self._wait(len(data))
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _wait(self, n_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left is None or self._left >= n_bytes)
            if self._left is not None:
                self._left -= n_bytes


@dataclass
class ObjectStorage:
    """One bucket of the server. ``client`` goes past the gate."""

    server: ObjectServer
    gate: Gate
    client: Any
    bucket: str

    @property
    def url(self) -> str:
        endpoint = f"http://127.0.0.1:{self.gate.port}"
        return f"s3://{self.bucket}/models?endpoint={endpoint}&region=us-east-1"

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "ARTIFACTS_URL": self.url}

    def objects(self) -> list[str]:
        """Every object, below the prefix."""
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return sorted(entry["Key"].removeprefix("models/") for entry in found)

    def n_uploads_open(self) -> int:
        """Uploads of which parts are there."""
        return len(self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))

    def read(self, key: str) -> bytes:
        found: bytes = self.client.get_object(Bucket=self.bucket, Key=f"models/{key}")[
            "Body"
        ].read()
        return found

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"models/{key}", Body=data)

    def gets(self, ending: str) -> list[int]:
        """The status of each GET of objects with such a name, in order; 206 is of a part."""
        found = _GET.findall(self.server.log.read_text())
        mine = f"/{self.bucket}/models/"
        return [
            int(code) for path, code in found if path.startswith(mine) and path.endswith(ending)
        ]


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with _listening(0) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "server.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/", timeout=5).status_code < 500
        return False

    try:
        wait_until("the object storage", answers, timeout_s=60)
        yield ObjectServer(port=port, log=log)
    finally:
        stop(process)


@pytest.fixture
def object_storage(
    object_server: ObjectServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStorage]:
    """A bucket of the test's own, which is where artifacts are."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{object_server.port}",
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    bucket = f"bucket-{next(_numbers)}"
    client.create_bucket(Bucket=bucket)
    gate = Gate(object_server.port)
    storage = ObjectStorage(server=object_server, gate=gate, client=client, bucket=bucket)
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    settings.STORAGES = settings.STORAGES | {"artifacts": env.artifacts("ARTIFACTS_URL")}
    yield storage
    gate.shut()
    gate.open()
    gate.shut()


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener

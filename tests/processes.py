"""Real processes for tests: an engine on a socket, the platform's server on a port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import connection

from config.server import listening_socket
from engine_service import protocol
from tests.models import random_llama_dir
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
# Long enough that a test can look at a request while it runs.
CONTEXT_LENGTH = 16_384
# Takes seconds also on a fast machine: for tests of what happens meanwhile.
LONG_ANSWER = 16_000


@dataclass
class EngineRun:
    """An engine process that answers at ``socket_path``."""

    process: "subprocess.Popen[bytes]"
    socket_path: Path
    epoch: int
    log: Path

    def stats(self) -> protocol.EngineStats:
        """Counters from a round trip through the step loop, over a connection of its own."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(10)
            wire.connect(str(self.socket_path))
            hello = protocol.Hello(protocol_version=protocol.PROTOCOL_VERSION, client="test")
            for message in (hello, protocol.Ping(nonce=1)):
                wire.sendall(protocol.encode_frame(message))
            while not isinstance(message := _read(wire), protocol.Pong):
                pass
            return message.stats

    def is_idle(self) -> bool:
        """No sequence runs or waits, and none holds a block."""
        stats = self.stats()
        return (
            stats.n_running == 0
            and stats.n_waiting == 0
            and stats.n_blocks_free == stats.n_blocks_total
        )

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It stands until the block ends, and loses nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@dataclass
class ServerRun:
    """The platform's server, listening."""

    process: "subprocess.Popen[bytes]"
    host: str
    port: int
    log: Path

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://{self.host}:{self.port}/v1/stream"

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def running_engine(
    model_dir: Path, directory: Path, *options: str, epoch: int = 1
) -> Iterator[EngineRun]:
    """Run an engine until the block ends; ``options`` go to its command line."""
    socket_dir = Path(tempfile.mkdtemp(prefix="engine-"))  # short: socket paths have a bound
    path, log = socket_dir / "engine.sock", directory / f"engine-{epoch}.log"
    command = [sys.executable, "-m", "engine_service", "--model", str(model_dir)]
    command += ["--socket", str(path), "--epoch", str(epoch), "--threads", "1", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _wait_for_socket(process, path, log)
        yield EngineRun(process=process, socket_path=path, epoch=epoch, log=log)
    finally:
        stop(process)
        path.unlink(missing_ok=True)
        socket_dir.rmdir()


@contextlib.contextmanager
def running_server(directory: Path, env: Mapping[str, str] | None = None) -> Iterator[ServerRun]:
    """Run the server on the database of this test until the block ends."""
    listener = listening_socket(host="127.0.0.1", port=0)
    host, port = listener.getsockname()[:2]
    log = directory / "server.log"
    command = [sys.executable, "-m", "config.server", "--fd", str(listener.fileno())]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **server_environment(), **(env or {})},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    listener.close()
    run = ServerRun(process=process, host=host, port=port, log=log)
    try:
        wait_until("the server to answer", lambda: _is_up(run), timeout_s=60)
        yield run
    finally:
        stop(process)


def server_environment() -> dict[str, str]:
    """What a platform process needs to share this test's settings and database."""
    return {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "config.settings.test",
        "VAR": str(settings.VAR_DIR),
        "DATABASE_URL": _database_url(),
    }


def stop(process: "subprocess.Popen[bytes]", *, timeout_s: float = 15.0) -> int:
    """Ask a process to stop, insist when it does not, and return its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@pytest.fixture(scope="session")
def engine_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRun]:
    """One engine with a tiny random model, shared by the tests of a session."""
    directory = tmp_path_factory.mktemp("engine")
    model_dir = random_llama_dir(directory, max_position_embeddings=CONTEXT_LENGTH)
    with running_engine(model_dir, directory, "--dtype", "float32") as engine:
        yield engine


def _wait_for_socket(process: "subprocess.Popen[bytes]", path: Path, log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, f"the engine ended: {log.read_text()[-2000:]}"
        with socket.socket(socket.AF_UNIX) as wire:
            try:
                wire.connect(str(path))
            except OSError:
                return False
        return True

    wait_until("the engine's socket", answers, timeout_s=60)


def _is_up(run: ServerRun) -> bool:
    assert run.process.poll() is None, f"the server ended: {run.log.read_text()[-2000:]}"
    try:
        return httpx.get(f"{run.base_url}/healthz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def _database_url() -> str:
    found: dict[str, Any] = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite://{found['NAME']}"
    place = f"{found['HOST']}:{found['PORT'] or 5432}"
    user = f"{found['USER']}:{found['PASSWORD']}@" if found["USER"] else ""
    return f"postgresql://{user}{place}/{found['NAME']}"


def _read(wire: socket.socket) -> protocol.FromEngine:
    header = _read_exactly(wire, protocol.HEADER.size)
    return protocol.decode_from_engine(_read_exactly(wire, protocol.frame_length(header)))


def _read_exactly(wire: socket.socket, n_bytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < n_bytes:
        part = wire.recv(n_bytes - len(parts))
        assert part, "the engine closed the connection"
        parts += part
    return bytes(parts)

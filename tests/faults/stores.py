"""A PostgreSQL and a Redis of a test's own, which it may stop and start: the servers that other
tests share are never touched."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.serve import free_port
from tests.waiting import wait_until

_COMMANDS = Path("/usr/lib/postgresql")  # where Debian puts what is not on the PATH


@dataclass(slots=True)
class PostgresCluster:
    """directory: belongs to whom it runs as, which is never root. commands: of initdb, pg_ctl."""

    directory: Path
    commands: Path
    port: int = field(default_factory=free_port)
    is_running: bool = False

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")

    def start(self) -> None:
        """Return once it takes connections."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port}"
        options += f" -c unix_socket_directories={self.directory}"
        log = self.directory / "server.log"
        self._run("pg_ctl", "start", "--wait", f"--log={log}", f"--options={options}")
        self.is_running = True

    def stop(self, mode: Literal["fast", "immediate"]) -> None:
        """Return once it is gone. fast: sessions are ended first; immediate: as in a crash."""
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")
        self.is_running = False

    def _run(self, command: str, *options: str) -> None:
        done = subprocess.run(
            [self.commands / command, f"--pgdata={self.directory / 'data'}", *options],
            user=_unprivileged(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            # No pipe: the server would inherit it, and whoever reads it would wait for its end.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
        assert done.returncode == 0, f"{command} {options} failed: {done.returncode}"


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresCluster]:
    """Run a new, empty cluster until the block ends; skips where there is no PostgreSQL."""
    commands, user = _postgres_commands(), _unprivileged()
    if commands is None or (os.geteuid() == 0 and user is None):
        pytest.skip("no initdb of PostgreSQL, or nobody to run it as")
    directory = Path(tempfile.mkdtemp(prefix="soak-pg-"))
    try:
        if user is not None:
            shutil.chown(directory, user=user)
        cluster = PostgresCluster(directory=directory, commands=commands)
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            if cluster.is_running:
                cluster.stop("immediate")
    finally:
        shutil.rmtree(directory)


@dataclass(slots=True)
class RedisServer:
    """It keeps nothing on the disk: what it held is gone when it stops."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.directory)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until("Redis", lambda: _listens(self.port), timeout_s=20)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_redis(directory: Path) -> Iterator[RedisServer]:
    """Run one until the block ends; skips the test where there is none."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server")
    server = RedisServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _postgres_commands() -> Path | None:
    found = sorted(_COMMANDS.glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    on_path = shutil.which("initdb")
    file = found[-1] if found else Path(on_path) if on_path else None
    return file.parent if file else None


def _unprivileged() -> str | None:
    """Whom to run PostgreSQL as; None: as whoever we are, which it refuses only to root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

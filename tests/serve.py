"""The whole product for tests: a real ``manage.py serve`` in a directory of its own."""

import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from apps.engines.client import EngineClient
from apps.engines.health import EngineHealth
from tests.furnished import furnished_var, inherited_environment
from tests.models import minilm_wheel, smollm2_wheel
from tests.processes import ROOT
from tests.waiting import wait_until

START_TIMEOUT_S = 180.0
CHAT_ENGINE = "smollm2-0"
EMBEDDING_ENGINE = "minilm-0"
STALL_TIMEOUT_S = 5
BATCH_LEASE_S = 4


@dataclass(frozen=True, slots=True)
class EngineRow:
    """An engine process as the agent recorded it."""

    name: str
    state: str
    pid: int
    epoch: int
    socket_path: str
    stats: dict[str, Any]


@dataclass(slots=True)
class RunningProduct:
    """A product that said it is ready, and what may be asked of it from outside.

    database_url: of a PostgreSQL of its own; None is the embedded default, SQLite.
    """

    process: "subprocess.Popen[bytes]"
    var: Path
    host: str
    port: int
    stall_timeout_s: int = STALL_TIMEOUT_S
    model: str = "smollm2-135m-instruct"
    embedding_model: str = "all-minilm-l6-v2"
    database_url: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a command of ours needs to work on this product."""
        own = {"VAR": str(self.var)}
        if self.database_url is not None:
            own["DATABASE_URL"] = self.database_url
        return inherited_environment() | own

    @property
    def log(self) -> str:
        return (self.var / "serve.log").read_text()

    @property
    def access(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.var / "bootstrap.json").read_text())
        return found

    @property
    def origin(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        return str(self.access["base_url"])

    @property
    def ws_url(self) -> str:
        return str(self.access["ws_url"])

    @property
    def api_token(self) -> str:
        return str(self.access["api_token"])

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.origin}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read the database as it stands, without Django."""
        if self.database_url is not None:
            with psycopg.connect(self.database_url, connect_timeout=5) as connection:
                return connection.execute(query.encode()).fetchall()
        with contextlib.closing(sqlite3.connect(self.var / "db.sqlite3", timeout=20)) as database:
            return database.execute(query).fetchall()

    def engine(self, name: str = CHAT_ENGINE) -> EngineRow:
        """The engine process of a deployment's one replica."""
        columns = "name, state, pid, epoch, socket_path, stats"
        ((*row, stats),) = self.rows(
            f"SELECT {columns} FROM engines_engineprocess WHERE name = '{name}'"
        )
        return EngineRow(*row, stats if isinstance(stats, dict) else json.loads(stats))

    async def engine_stats(self, name: str = CHAT_ENGINE) -> EngineHealth:
        """Counters from the engine itself, in a round trip of our own."""
        client = EngineClient(self.engine(name).socket_path, name="test")
        await client.connect()
        try:
            return await client.ping(10)
        finally:
            await client.close()

    def n_open_usage_rows(self) -> int:
        query = "SELECT count(*) FROM metering_usagerecord WHERE state = 'reserved'"
        return int(self.rows(query)[0][0])

    def usage_outcomes(self) -> Counter[str]:
        return Counter(
            outcome for (outcome,) in self.rows("SELECT outcome FROM metering_usagerecord")
        )

    def web_pid(self) -> int:
        return self._child("config.server").pid

    def agent_pid(self) -> int:
        return self._child("run_engines").pid

    def worker_pids(self) -> list[int]:
        """The Celery worker; none while it is about to be started again."""
        found = []
        for child in self.descendants():
            with contextlib.suppress(psutil.Error):  # it ended while we looked
                if child.cmdline()[1:4] == ["-m", "config.worker", "worker"]:
                    found.append(child.pid)
        return found

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def _child(self, word: str) -> psutil.Process:
        return next(child for child in self.descendants() if word in child.cmdline())


def in_django(product: RunningProduct, code: str, *arguments: str) -> str:
    """Run code in the product's Django, in a process of its own; return what it prints."""
    prelude = (
        "import os, sys; sys.path[:0] = ['.', 'platform']; "
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'config.settings.development'; "
        "import django; from config.loading import loading\n"
        "with loading(): django.setup()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *arguments],
        cwd=ROOT,
        env=product.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def manage(product: RunningProduct, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of ``manage.py`` on the product."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=product.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_start(
    var: Path, *, port: int, env: Mapping[str, str] | None = None, log_name: str = "serve.log"
) -> "subprocess.Popen[bytes]":
    """Start ``manage.py serve`` as a person would; it is the leader of a session of its own."""
    var.mkdir(parents=True, exist_ok=True)
    with (var / log_name).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port", str(port)],
            cwd=ROOT,
            env={
                **inherited_environment(),
                "VAR": str(var),
                "GATEWAY_STALL_TIMEOUT_S": str(STALL_TIMEOUT_S),
                "BATCH_LEASE_S": str(BATCH_LEASE_S),
                "ENGINE_CRASHES": "1000",  # tests kill its engines one after another
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextlib.contextmanager
def running_product(var: Path, *, env: Mapping[str, str] | None = None) -> Iterator[RunningProduct]:
    """Run the product in ``var`` until the block ends, and see that it leaves nothing behind."""
    smollm2_wheel()  # below the project's own var, where serve looks as well
    minilm_wheel()
    port = free_port()
    process = serve_start(var, port=port, env=env)
    product = RunningProduct(
        process=process,
        var=var,
        host="127.0.0.1",
        port=port,
        database_url=(env or {}).get("DATABASE_URL"),
    )
    try:
        wait_until("serve's banner", lambda: _has_banner(product), timeout_s=START_TIMEOUT_S)
        yield product
    finally:
        serve_stop(process)


def serve_stop(process: "subprocess.Popen[bytes]", *, timeout_s: float = 60) -> int:
    """Stop it as Ctrl-C or a service manager does; it must manage in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
        raise


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """One product for all tests that leave it as they found it."""
    with running_product(furnished_var(tmp_path_factory, "product")) as running:
        yield running


def _has_banner(product: RunningProduct) -> bool:
    assert product.process.poll() is None, f"serve ended:\n{product.log}"
    return "Ctrl-C stops everything" in product.log

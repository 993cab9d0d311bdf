"""`kill -9` of the engine, of the server and of both while clients stream: every row is settled by
what was made, by the engine's own record where nobody else is left to say, and nothing is held."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.utils import timezone

from apps.core.hop import database_hop
from apps.engines.models import EngineProcess, JournalEntry
from apps.metering.models import Meter, UsageRecord
from apps.metering.selectors import ledger_findings, reconciled_since
from apps.rbac.models import ApiToken
from tests.factories import (
    ApiTokenFactory,
    DeploymentFactory,
    ModelVersionFactory,
    RouteFactory,
)
from tests.models import smollm2_dir
from tests.processes import ROOT, ServerRun, running_server, server_environment, stop
from tests.rows import all_of
from tests.waiting import wait_until_async

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

MODEL = "lab/smollm2"
N_STREAMS = 8
SETTLED_S = 60.0


@dataclass(slots=True)
class Client:
    """What one client saw. n_tokens: those that had a logprob in an event that arrived."""

    request_id: str = ""
    n_tokens: int = 0
    errors: list[str] = field(default_factory=list)
    is_done: bool = False

    async def run(self, server: ServerRun, token: ApiToken, *, number: int, n: int) -> None:
        body = {
            "model": MODEL, "stream": True, "logprobs": True, "max_tokens": n, "ignore_eos": True,
            "temperature": 1.0, "seed": number,
            "messages": [{"role": "user", "content": f"Tell story number {number}."}],
        }  # fmt: skip
        headers = {"Authorization": f"Bearer {token.secret}"}
        url = f"{server.base_url}/v1/chat/completions"
        with contextlib.suppress(httpx.TransportError):  # the server is killed
            async with (
                httpx.AsyncClient(timeout=60) as http,
                http.stream("POST", url, json=body, headers=headers) as answer,
            ):
                self.request_id = answer.headers["x-request-id"]
                async for line in answer.aiter_lines():
                    self._read(line)

    def _read(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            event: dict[str, Any] = json.loads(line[6:])
            if "error" in event:
                self.errors.append(event["error"]["code"])
            for choice in event.get("choices", ()):
                self.n_tokens += len((choice.get("logprobs") or {}).get("content") or ())


@dataclass(frozen=True, slots=True)
class Platform:
    directory: Path
    token: ApiToken
    environment: dict[str, str]


@pytest.fixture
def platform(tmp_path: Path, settings: Any) -> Iterator[Platform]:
    """An agent of its own, as a process, with the real small model."""
    model_dir = smollm2_dir()
    settings.MODELS_DIR = model_dir.parent
    version = ModelVersionFactory(path=model_dir.name)
    deployment = DeploymentFactory(name="smollm2", model_version=version)
    RouteFactory(name=MODEL, deployment=deployment)
    environment = {"VAR": str(tmp_path), "MODELS_DIR": str(model_dir.parent)}
    with (tmp_path / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "manage.py", "run_engines"],
            cwd=ROOT,
            env={**os.environ, **server_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield Platform(directory=tmp_path, token=ApiTokenFactory(), environment=environment)
    finally:
        stop(agent, timeout_s=60)


@contextlib.asynccontextmanager
async def streaming(platform: Platform, server: ServerRun) -> AsyncIterator[list[Client]]:
    """Run streams, each some way into its answer; all have ended after the block."""
    clients = [Client() for _ in range(N_STREAMS)]
    tasks = [
        asyncio.create_task(client.run(server, platform.token, number=number, n=1500))
        for number, client in enumerate(clients)
    ]
    await wait_until_async(
        "twenty tokens of each", lambda: min(c.n_tokens for c in clients) >= 20, timeout_s=90
    )
    yield clients
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks)


async def engine_ready(server: ServerRun, *, epoch: int) -> EngineProcess:
    async def is_ready() -> EngineProcess | None:
        found: EngineProcess | None = await database_hop(
            EngineProcess.objects.filter(state="ready", epoch=epoch).first
        )
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(timeout=5) as http:
                answer = await http.get(f"{server.base_url}/readyz")
            return found if answer.status_code == 200 else None
        return None

    found = await wait_until_async(f"epoch {epoch} to be ready", is_ready, timeout_s=90)
    assert found is not None
    return found


async def rows_of(clients: list[Client], *, n_wait_s: float) -> list[tuple[Any, Any]]:
    """Return each client's row and its journal's one entry, once both are there and settled."""
    ids = [client.request_id for client in clients]

    def read() -> list[tuple[Any, Any]] | None:
        rows = {row.request_id: row for row in all_of(UsageRecord).filter(request_id__in=ids)}
        entries = {each.request_id: each for each in JournalEntry.objects.all()}
        if any(row.state != "settled" for row in rows.values()) or not set(ids) <= set(entries):
            return None
        return [(rows[each], entries[each]) for each in ids]

    started = time.monotonic()
    found = await wait_until_async(
        "rows and journal", lambda: database_hop(read), timeout_s=n_wait_s
    )
    print(f"{len(ids)} rows settled and in the journal after {time.monotonic() - started:.1f} s")
    assert found is not None
    return found


def counts_of(row: Any) -> tuple[int, int, int]:
    return row.n_prompt_tokens, row.n_cached_tokens, row.n_completion_tokens


async def test_whoever_is_killed_what_was_made_is_charged(
    platform: Platform, tmp_path: Path
) -> None:
    with running_server(tmp_path, platform.environment) as server:
        engine = await engine_ready(server, epoch=1)

        # One whole answer, to compare with: what its client was told is all three.
        whole = Client()
        await whole.run(server, platform.token, number=99, n=12)
        assert (whole.n_tokens, whole.is_done) == (12, True)
        ((row, entry),) = await rows_of([whole], n_wait_s=30)
        assert (row.outcome, row.finish_reason, entry.finish_reason) == (
            "completed", "length", "length",
        )  # fmt: skip
        assert counts_of(row) == counts_of(entry) == (row.n_prompt_tokens, 0, 12)
        assert 0 < entry.first_step < entry.last_step
        assert entry.started_at < entry.first_token_at < entry.ended_at

        # The engine: the server settles by what it sent on, which is what clients saw.
        async with streaming(platform, server) as killed_engine:
            os.kill(engine.pid or 0, signal.SIGKILL)
        for client, (row, entry) in zip(
            killed_engine, await rows_of(killed_engine, n_wait_s=40), strict=True
        ):
            assert client.errors == ["engine_unavailable"]
            assert (row.outcome, row.error_code) == ("failed", "engine_unavailable")
            assert (entry.error_code, entry.finish_reason) == ("engine_died", "")
            assert client.n_tokens == row.n_completion_tokens
            # At most what the step in which it died had made, some of it guessed ahead.
            assert 0 <= entry.n_completion_tokens - row.n_completion_tokens <= 32
            assert entry.n_prompt_tokens == row.n_prompt_tokens
        engine = await engine_ready(server, epoch=2)

        # The server: the engine ends what nobody reads any more, and its record is the charge.
        async with streaming(platform, server) as killed_server:
            server.process.kill()
            server.process.wait()
    ended_at = time.monotonic()

    # Both, with no moment between in which either could settle for the other.
    with running_server(tmp_path, platform.environment) as server:
        engine = await engine_ready(server, epoch=2)
        async with streaming(platform, server) as killed_both:
            server.process.send_signal(signal.SIGSTOP)
            os.kill(engine.pid or 0, signal.SIGKILL)
            server.process.kill()
            server.process.wait()
    for client, (row, entry) in zip(
        killed_server, await rows_of(killed_server, n_wait_s=SETTLED_S), strict=True
    ):
        assert (row.outcome, row.error_code) == ("interrupted", "connection_lost")
        assert counts_of(row) == counts_of(entry)
        assert row.n_completion_tokens >= client.n_tokens
    for client, (row, entry) in zip(
        killed_both, await rows_of(killed_both, n_wait_s=SETTLED_S), strict=True
    ):
        assert (row.outcome, row.error_code) == ("failed", "engine_died")
        assert counts_of(row) == counts_of(entry)
        assert row.n_completion_tokens >= client.n_tokens
    print(f"all settled {time.monotonic() - ended_at:.0f} s after the server's end")
    for name, clients in (("server", killed_server), ("both", killed_both)):
        pairs = await rows_of(clients, n_wait_s=1)
        more = [
            row.n_completion_tokens - client.n_tokens
            for client, (row, _) in zip(clients, pairs, strict=True)
        ]
        print(f"tokens charged that a client had not seen yet, {name} killed: {sorted(more)}")
    await database_hop(check_ledger, n_rows=1 + 3 * N_STREAMS)


def check_ledger(*, n_rows: int) -> None:
    """Nothing is held, what is used is what was charged, and reconciliation finds nothing."""
    rows = list(all_of(UsageRecord).all())
    assert len(rows) == n_rows == JournalEntry.objects.count()
    for row in rows:
        assert row.n_charged_tokens == row.n_prompt_tokens + row.n_completion_tokens
    meters = all_of(Meter).all()
    assert {meter.n_held for meter in meters} == {0}
    used = {meter.n_used for meter in meters if meter.period != "open"}
    assert used == {sum(row.n_charged_tokens for row in rows)}
    now = timezone.now() + timedelta(minutes=3)
    found = ledger_findings(since=reconciled_since(now), now=now)
    assert [(finding.kind.value, finding.said) for finding in found] == []

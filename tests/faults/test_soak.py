"""Soak: many clients at a time while engines and servers are killed and the stores go away. No
request is lost or counted twice, every stream ends, and what clients were told is what the ledger
and the engines' journals say. The long form is run by ``make soak``, on stores of its own."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.gateway.admission import ORPHAN_GRACE_S
from tests.faults.soak_checks import counts, entries_of, problems, rows_of
from tests.faults.soak_client import Clients
from tests.faults.soak_faults import Faults, Kind, Step
from tests.faults.stores import running_postgres, running_redis
from tests.processes import ROOT
from tests.serve import RunningProduct, in_django, manage, running_product
from tests.waiting import wait_until_async

pytestmark = pytest.mark.e2e

N_AT_ONCE = 64
REQUEST_TIMEOUT_S = 120
# Servers early, so that their orphans' time is over soon after the last request.
PLAN: tuple[Step, ...] = (
    "engine", "web", "engine", "database", "engine", "web", "engine", "cache",
    "engine", "database, web", "engine", "engine", "engine", "engine", "engine",
)  # fmt: skip
RESULT = ROOT / "benchmarks" / "results" / "soak.json"

# Limits that nobody reaches, so that each request is counted, held and given back everywhere.
_TENANT = """
import json, sys
from apps.audit.types import SYSTEM
from apps.rbac.services import api_token_issue
from apps.tenants.selectors import plan_by_slug
from apps.tenants.services import tenant_create
tenant = tenant_create(
    name=sys.argv[1], slug=sys.argv[1], plan=plan_by_slug("enterprise"), actor=SYSTEM,
    requests_per_minute=1_000_000, tokens_per_day=10**9, tokens_per_month=10**10,
    max_concurrent_requests=1_000,
)
secrets = [api_token_issue(tenant=tenant, name=f"soak {n}", actor=SYSTEM).secret for n in range(8)]
print(json.dumps([tenant.id, secrets]))
"""
# As if the time of grace of what killed servers left were over.
_SWEEP = """
from datetime import timedelta
from django.utils import timezone
from apps.metering.services import orphans_close
orphans_close(timezone.now() + timedelta(hours=1))
"""


@pytest.fixture(autouse=True)
def quiet_client(caplog: pytest.LogCaptureFixture) -> None:
    """The library says every request; the log of the clients says more."""
    caplog.set_level(logging.WARNING, logger="httpx")


def made_tenant(product: RunningProduct, name: str) -> tuple[int, list[str]]:
    tenant_id, secrets = json.loads(in_django(product, _TENANT, name).splitlines()[-1])
    return tenant_id, secrets


async def soaked(clients: Clients, faults: Faults, plan: Sequence[Step]) -> float:
    """Run clients and faults to the end of both; return the seconds that it took."""
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(clients.run())
        group.create_task(faults.run(plan))
    return time.monotonic() - began_s


def n_open(product: RunningProduct, tenant_id: int) -> int:
    query = "SELECT count(*) FROM metering_usagerecord WHERE state = 'reserved' AND tenant_id = "
    ((n,),) = product.rows(f"{query}{tenant_id}")
    return int(n)


async def journals_read(product: RunningProduct) -> None:
    """Wait until the agent has read all that engines have recorded until now."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}+00"
    unread = (
        "SELECT count(*) FROM engines_enginejournal WHERE closed_at IS NULL "
        f"AND (read_at IS NULL OR read_at < '{now}')"
    )
    await wait_until_async(
        "the journals to be read",
        lambda: asyncio.to_thread(lambda: product.rows(unread) == [(0,)]),
        timeout_s=60,
    )


def meters_check(product: RunningProduct, tenant_id: int) -> None:
    """Nothing is held, and what was used is what the rows were charged, of the day and month."""
    meters = product.rows(
        f"SELECT period, n_held, n_used FROM metering_meter WHERE scope = 'tenant:{tenant_id}'"
    )
    charged = sum(row.n_charged for row in rows_of(product, tenant_id=tenant_id))
    assert {period: n_held for period, n_held, _ in meters if n_held} == {}
    for length in (len("2026-01-31"), len("2026-01")):
        assert sum(n_used for period, _, n_used in meters if len(period) == length) == charged


def reconciled(product: RunningProduct) -> list[Any]:
    """What ``manage.py reconcile`` finds: ledger, budgets and roll-ups, each against the others."""
    done = manage(product, "reconcile", "--json")
    found: list[Any] = json.loads(done.stdout)["findings"]
    return found


def probe(product: RunningProduct, secrets: list[str], kind: Kind) -> None:
    """Ask with tokens that no memory holds: a good one is not called wrong, and gets nothing."""
    chat = {"model": product.model, "messages": [{"role": "user", "content": "Hello"}]}
    asked: list[tuple[str, str, Any]] = [("POST", "/chat/completions", chat)]
    if kind == "database":
        asked += [("GET", "/models", None), ("GET", "/batches", None), ("POST", "/auth/token", {})]
    for secret in (secrets.pop(), secrets.pop()):
        for method, path, body in asked:
            headers = {"Authorization": f"Bearer {secret}"}
            answer = httpx.request(
                method, f"{product.base_url}{path}", headers=headers, json=body, timeout=60
            )
            said = f"{path} without {kind}: {answer.status_code} {answer.text}"
            assert answer.status_code == 503, said
            assert answer.headers["x-should-retry"] == "true", said
            assert int(answer.headers["retry-after"]) >= 1, said


async def check(product: RunningProduct, clients: Clients, faults: Faults, tenant_id: int) -> None:
    """Nothing open any more: every side says the same."""
    rows = rows_of(product, tenant_id=tenant_id)
    found = problems(clients.attempts, rows, entries_of(product), faults.made)
    assert found == [], f"{len(found)} problems, such as\n" + "\n".join(found[:10])
    meters_check(product, tenant_id)
    await wait_until_async(
        "the roll-ups, and the ledger to agree with itself",
        lambda: asyncio.to_thread(lambda: reconciled(product) == []),
        timeout_s=60,
    )


async def test_short_soak(product: RunningProduct) -> None:
    """On SQLite: engines and the server are killed, and another process holds the write lock."""
    tenant_id, secrets = made_tenant(product, "soak-short")
    clients = Clients(product, secret=secrets[0], n_requests=150, n_at_once=N_AT_ONCE)
    faults = Faults(product, clients, away_s=3.0)
    took_s = await soaked(clients, faults, ["engine", "lock", "web", "engine"])
    await journals_read(product)
    await asyncio.to_thread(in_django, product, _SWEEP)
    print(f"{clients.n_requests} requests in {took_s:.0f} s")
    print(json.dumps(figures(product, clients, tenant_id)))
    await check(product, clients, faults, tenant_id)


@pytest.mark.prove
@pytest.mark.timeout(1800)
async def test_long_soak(tmp_path: Path) -> None:
    """Engines killed ten times, the server three times, the database away twice, the cache once."""
    with running_postgres() as postgres, running_redis(tmp_path) as redis:
        env = {
            "DATABASE_URL": postgres.url,
            "CACHE_URL": redis.url,
            "GATEWAY_REQUEST_TIMEOUT_S": str(REQUEST_TIMEOUT_S),
        }
        with running_product(tmp_path / "var", env=env) as product:
            tenant_id, secrets = made_tenant(product, "soak")
            clients = Clients(product, secret=secrets.pop(), n_requests=2_000, n_at_once=N_AT_ONCE)
            faults = Faults(
                product,
                clients,
                postgres=postgres,
                redis=redis,
                while_away=partial(probe, product, secrets),
            )
            took_s = await soaked(clients, faults, PLAN)
            await wait_until_async(
                "the sweeper to close what killed servers left",
                lambda: asyncio.to_thread(lambda: n_open(product, tenant_id) == 0),
                timeout_s=REQUEST_TIMEOUT_S + ORPHAN_GRACE_S + 30,
            )
            await journals_read(product)
            figures_write(product, clients, faults, took_s=took_s, tenant_id=tenant_id)
            await check(product, clients, faults, tenant_id)


def figures(product: RunningProduct, clients: Clients, tenant_id: int) -> dict[str, Any]:
    rows = rows_of(product, tenant_id=tenant_id)
    return counts(clients.attempts, rows, entries_of(product))


def figures_write(
    product: RunningProduct, clients: Clients, faults: Faults, *, took_s: float, tenant_id: int
) -> None:
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "n_requests": clients.n_requests,
        "n_at_once": clients.n_at_once,
        "seconds": round(took_s),
        **figures(product, clients, tenant_id),
        "faults": [
            {"kind": fault.kind, "ready_again_s": round(fault.back_s, 1)} for fault in faults.made
        ],
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))

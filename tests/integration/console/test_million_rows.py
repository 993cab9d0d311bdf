"""Every list and page of the admin beside a ledger of a million rows, judged by what it costs: the
processor's time and the rows that the database looks at, not a clock that others slow down."""

import json
import os
import re
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.forms import model_to_dict
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from apps.core.admin import COUNT_BOUND
from apps.metering.models import UsageRecord
from tests.factories import MembershipFactory, TenantFactory, UsageRecordFactory, UserFactory
from tests.integration.console.test_admin_lists import MAKERS
from tests.processes import ROOT
from tests.rows import all_of

pytestmark = [pytest.mark.django_db, pytest.mark.prove, pytest.mark.timeout(1800)]

RESULT = ROOT / "benchmarks" / "results" / "lists.json"
N_ROWS = 1_000_000
N_SEEDS = 16
N_OLD = 4_096
N_OF_EACH = 20
N_LISTED = 60  # more than a page
N_LOOKS = 5
MOST_CPU_MS = 200.0
MOST_QUERIES = 30
# Beside the same page with a ledger that just fills it.
MOST_RATIO, MOST_MORE_MS = 1.5, 60.0
# Of the newest 20,000 rows a filter may look at each, and count it.
MOST_ROWS = 50_000
STEPS_PER_ROW = 10  # of SQLite's machine; a row that is passed over takes five


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one look at a page, the medians. cpu_ms: of this process and of the database's. n_looked:
    rows that the database looked at; of SQLite, steps of its machine."""

    cpu_ms: float
    n_queries: int
    n_looked: int


def add(n: int, **fields: Any) -> None:
    facts = model_to_dict(UsageRecordFactory.build(**fields), exclude=["id"])
    n_before = all_of(UsageRecord).count()
    UsageRecord.objects.bulk_create(
        [UsageRecord(**facts | {"request_id": f"added-{n_before + i}"}) for i in range(n)],
        batch_size=512,
    )


def fill(old_tenant_id: int) -> None:
    """Double the ledger until it has its rows: ids follow one another, so that an id and how many
    there are make a request id that is not there yet. One tenant has asked for nothing since."""
    add(N_OLD, tenant_id=old_tenant_id)
    seeds = [
        UsageRecordFactory(
            tenant_id=TenantFactory().pk,
            created_at=timezone.now() - timedelta(days=n),
            outcome="failed" if n == 0 else "completed",
        )
        for n in range(N_SEEDS)
    ]
    columns = [field.column for field in UsageRecord._meta.concrete_fields if field.name != "id"]
    names = ", ".join(f'"{each}"' for each in columns)
    values = ", ".join(
        "'big-' || CAST(id + %s AS varchar(20))" if each == "request_id" else f'"{each}"'
        for each in columns
    )
    n_rows, first = N_SEEDS, seeds[0].pk
    with connection.cursor() as cursor:
        while n_rows < N_ROWS:
            cursor.execute(
                f"INSERT INTO metering_usagerecord ({names}) SELECT {values} "
                "FROM metering_usagerecord WHERE id >= %s ORDER BY id LIMIT %s",
                [n_rows, first, N_ROWS - n_rows],
            )
            n_rows += min(n_rows, N_ROWS - n_rows)
        cursor.execute("ANALYZE")
    assert all_of(UsageRecord).filter(id__gte=first).count() == N_ROWS


class Meter:
    """What the database has done for this connection so far."""

    def __init__(self) -> None:
        connection.ensure_connection()
        self._n_steps = 0
        if connection.vendor == "sqlite":
            connection.connection.set_progress_handler(self._on_steps, 100)
        else:
            with connection.cursor() as cursor:
                cursor.execute("SET max_parallel_workers_per_gather = 0")  # others would not count
                cursor.execute("SELECT pg_backend_pid()")
                self._schedule = Path(f"/proc/{cursor.fetchone()[0]}/schedstat")

    def _on_steps(self) -> int:
        self._n_steps += 100
        return 0

    def cpu_s(self) -> float:
        own_s = time.process_time()
        if connection.vendor == "sqlite":
            return own_s
        return own_s + int(self._schedule.read_text().split()[0]) / 1e9

    def n_looked(self) -> int:
        if connection.vendor == "sqlite":
            return self._n_steps
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT sum(pg_stat_get_xact_tuples_returned(oid)) FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')"
            )
            return int(cursor.fetchone()[0])


def cost_of(client: Client, address: str, meter: Meter) -> Cost:
    looks = []
    for _ in range(N_LOOKS):
        cache.clear()  # what is read once in a while for all is read anew
        n_before, began_s = meter.n_looked(), meter.cpu_s()
        with CaptureQueriesContext(connection) as queries:
            assert client.get(address).status_code == 200, address
        cpu_ms = (meter.cpu_s() - began_s) * 1000
        looks.append((cpu_ms, len(queries), meter.n_looked() - n_before))
    cpu_ms, n_queries, n_looked = map(statistics.median, zip(*looks, strict=True))
    return Cost(cpu_ms=round(cpu_ms, 1), n_queries=int(n_queries), n_looked=int(n_looked))


def person_of_two_tenants(tenant_id: int) -> Client:
    """Somebody of the staff who may see the requests of one tenant, and of another that has
    none."""
    user = UserFactory(is_staff=True)
    for pk in (tenant_id, TenantFactory().pk):
        MembershipFactory(user=user, tenant_id=pk, role="viewer")
    client = Client()
    client.force_login(user)
    return client


def lists_of(row: UsageRecord) -> dict[str, str]:
    """Address every list, and that of the ledger as people narrow it down."""
    ledger = reverse("admin:metering_usagerecord_changelist")
    last_page = min(all_of(UsageRecord).count(), COUNT_BOUND) // 50
    return {name: reverse(f"admin:{name}_changelist") for name in MAKERS} | {
        "ledger, last page": f"{ledger}?p={last_page}",
        "ledger, failed": f"{ledger}?outcome__exact=failed",
        "ledger, in flight": f"{ledger}?state__exact=reserved",
        "ledger, of no door": f"{ledger}?door=websocket",
        "ledger, one tenant": f"{ledger}?tenant={row.tenant_id}",
        "ledger, one request": f"{ledger}?q={row.request_id}",
        "ledger, no such request": f"{ledger}?q=nothing-like-this",
        "requests of quarantine": f"{reverse('admin:engines_quarantinedrequest_changelist')}?q=x",
    }


def pages_of(row: UsageRecord, made: dict[str, Any]) -> dict[str, str]:
    """Address the page of one object of each kind, and those that are of none."""
    plain = (
        "index", "overview", "playground", "account", "access_review", "metering_usage",
        "metering_reconcile",
    )  # fmt: skip
    version = made["registry_modelversion"]
    return {
        **{f"{name}, one": reverse(f"admin:{name}_change", args=[made[name].pk]) for name in made},
        **{name: reverse(f"admin:{name}") for name in plain},
        "try limits": f"{reverse('admin:metering_try_limits')}?tenant={row.tenant_id}",
        "compare": f"{reverse('admin:registry_modelversion_compare')}?left={version.pk}"
        f"&right={version.pk}",
        "request": reverse("admin:request_page", args=[row.request_id]),
        "watch": reverse("admin:deployment_watch", args=[made["deployments_deployment"].pk]),
        "search": f"{reverse('admin:search')}?s=tenant",
    }


def costs_of(
    admin: Client, row: UsageRecord, made: dict[str, Any], *, old_tenant_id: int
) -> tuple[dict[str, Cost], dict[str, Cost]]:
    """Return what lists and what pages cost."""
    meter, ledger = Meter(), reverse("admin:metering_usagerecord_changelist")
    lists = {name: cost_of(admin, url, meter) for name, url in lists_of(row).items()}
    for name, tenant_id in {
        "two tenants": row.tenant_id,
        "two tenants of long ago": old_tenant_id,
        "two tenants without a row": TenantFactory().pk,
    }.items():
        lists[f"ledger, {name}"] = cost_of(person_of_two_tenants(tenant_id), ledger, meter)
    return lists, {name: cost_of(admin, url, meter) for name, url in pages_of(row, made).items()}


def keep(costs: dict[str, tuple[Cost, Cost]]) -> None:
    """Write the figures of this database beside those of the other, a line for each."""
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found[connection.vendor] = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "n_rows": [N_LISTED, N_ROWS],
        "pages": {
            name: {key: [asdict(few)[key], asdict(many)[key]] for key in asdict(few)}
            for name, (few, many) in costs.items()
        },
    }
    text = json.dumps(found, indent=1)
    RESULT.write_text(re.sub(r"\[\s+(\S+)\s+(\S+)\s+\]", r"[\1 \2]", text) + "\n")


def wrong_with(*, few: Cost, many: Cost, is_list: bool) -> list[str]:
    """Say in which way a page costs too much, or more for there being many rows."""
    rows = many.n_looked / (STEPS_PER_ROW if connection.vendor == "sqlite" else 1)
    found = {
        f"{many.n_queries} queries": many.n_queries > MOST_QUERIES,
        f"{many.cpu_ms} ms": is_list and many.cpu_ms > MOST_CPU_MS,
        f"{many.cpu_ms} ms instead of {few.cpu_ms}": many.cpu_ms
        > MOST_RATIO * few.cpu_ms + MOST_MORE_MS,
        f"about {rows:,.0f} rows looked at": rows > MOST_ROWS,
    }
    return [said for said, is_so in found.items() if is_so]


def test_no_list_costs_more_for_a_million_rows(admin_client: Client) -> None:
    made = {name: [make() for _ in range(N_OF_EACH)][-1] for name, make in MAKERS.items()}
    old = {"old_tenant_id": TenantFactory().pk}
    add(N_LISTED, tenant_id=old["old_tenant_id"])
    add(N_LISTED, tenant_id=TenantFactory().pk, outcome="failed")
    made["metering_usagerecord"] = all_of(UsageRecord).latest("id")
    lists, pages = costs_of(admin_client, made["metering_usagerecord"], made, **old)
    fill(**old)
    row = all_of(UsageRecord).latest("id")
    many_lists, many_pages = costs_of(admin_client, row, made, **old)
    all_many = many_lists | many_pages
    costs = {name: (few, all_many[name]) for name, few in (lists | pages).items()}
    for name, (few, many) in costs.items():
        print(name, f"few rows: {few}", f"a million: {many}", sep="; ")
    keep(costs)
    wrong = {
        name: said
        for name, (few, many) in costs.items()
        if (said := wrong_with(few=few, many=many, is_list=name in lists))
    }
    assert wrong == {}

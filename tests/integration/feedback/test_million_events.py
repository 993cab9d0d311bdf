"""The list of feedback and events beside a million of them, judged by what it costs, as
``test_million_rows`` judges the lists beside the ledger."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.core.admin import COUNT_BOUND
from apps.feedback.models import MetricEvent
from apps.feedback.services import events_take
from tests.factories import MetricEventFactory, TenantFactory, UsageRecordFactory
from tests.integration.console.test_million_rows import (
    N_LISTED,
    N_ROWS,
    Cost,
    Meter,
    cost_of,
    person_of_two_tenants,
    wrong_with,
)
from tests.rows import all_of

pytestmark = [pytest.mark.django_db, pytest.mark.prove, pytest.mark.timeout(1800)]

N_SEEDS = 16
LIST = reverse("admin:feedback_metricevent_changelist")
ARMS = {"experiment_arm": "exp:b:5a", "rollout_arm": "7:0:candidate"}
COUNTED = {"is_in_experiments": True, "is_in_rollout": True, "value_in_rollout": 1.0}


def fill(old_tenant_id: int) -> None:
    """Double the events until they are a million; one tenant has said nothing since."""
    MetricEventFactory.create_batch(512, tenant_id=old_tenant_id, **ARMS, **COUNTED)
    now = timezone.now()
    seeds = [
        MetricEventFactory(
            tenant_id=TenantFactory().pk,
            request_id=f"seed-{n}",
            end_user=f"user-{n}",
            created_at=now - timedelta(days=n),
            value=float(n % 2),
            comment="because" if n % 5 == 0 else "",
            **ARMS,
            **COUNTED,
        )
        for n in range(N_SEEDS)
    ]
    columns = [field.column for field in MetricEvent._meta.concrete_fields if field.name != "id"]
    listed = ", ".join(f'"{each}"' for each in columns)
    values = ", ".join(
        "'big-' || CAST(id + %s AS varchar(20))" if each == "request_id" else f'"{each}"'
        for each in columns
    )
    n_rows, first = N_SEEDS, seeds[0].pk
    with connection.cursor() as cursor:
        while n_rows < N_ROWS:
            cursor.execute(
                f"INSERT INTO feedback_metricevent ({listed}) SELECT {values} "
                "FROM feedback_metricevent WHERE id >= %s ORDER BY id LIMIT %s",
                [n_rows, first, N_ROWS - n_rows],
            )
            n_rows += min(n_rows, N_ROWS - n_rows)
        cursor.execute("ANALYZE")
    assert all_of(MetricEvent).filter(id__gte=first).count() == N_ROWS


def costs_of(admin: Client, row: MetricEvent, *, old_tenant_id: int) -> dict[str, Cost]:
    meter = Meter()
    last_page = min(all_of(MetricEvent).count(), COUNT_BOUND) // 50
    addresses = {
        "list": LIST,
        "last page": f"{LIST}?p={last_page}",
        **{f"kind {kind}": f"{LIST}?kind={kind}" for kind in ("up", "commented", "judge", "event")},
        "one tenant": f"{LIST}?tenant={row.tenant_id}",
        "one request": f"{LIST}?q={row.request_id}",
        "no such request": f"{LIST}?q=nothing-like-this",
        "one event": reverse("admin:feedback_metricevent_change", args=[row.pk]),
        "request": reverse("admin:request_page", args=[row.request_id]),
    }
    costs = {name: cost_of(admin, url, meter) for name, url in addresses.items()}
    for name, tenant_id in {
        "two tenants": row.tenant_id,
        "two tenants of long ago": old_tenant_id,
        "two tenants without a row": TenantFactory().pk,
    }.items():
        costs[name] = cost_of(person_of_two_tenants(tenant_id), LIST, meter)
    return costs


def taking_cost(n_waiting: int) -> int:
    """Return how much the database looks at to hand out the few events that wait among a million
    that were counted."""
    MetricEventFactory.create_batch(n_waiting, **ARMS)
    meter = Meter()
    before = meter.n_looked()
    assert len(events_take("experiment", limit=100)) == n_waiting
    return meter.n_looked() - before


def test_no_look_costs_more_for_a_million_events(admin_client: Client) -> None:
    old_tenant_id = TenantFactory().pk
    MetricEventFactory.create_batch(N_LISTED, tenant_id=TenantFactory().pk, **ARMS, **COUNTED)
    few_row = all_of(MetricEvent).latest("id")
    UsageRecordFactory(request_id=few_row.request_id, tenant_id=few_row.tenant_id)
    few = costs_of(admin_client, few_row, old_tenant_id=old_tenant_id)
    fill(old_tenant_id)
    row = all_of(MetricEvent).latest("id")
    UsageRecordFactory(request_id=row.request_id, tenant_id=row.tenant_id)
    many = costs_of(admin_client, row, old_tenant_id=old_tenant_id)
    for name, cost in many.items():
        print(name, f"few: {few[name]}", f"a million: {cost}", sep="; ")
    wrong = {
        name: said
        for name, cost in many.items()
        if (said := wrong_with(few=few[name], many=cost, is_list=name != "request"))
    }
    assert wrong == {}
    n_looked = taking_cost(5)
    print("looked at to take five events:", n_looked)
    assert n_looked < 5_000

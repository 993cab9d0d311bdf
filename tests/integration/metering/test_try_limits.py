"""Limits tried on the last week: from what stands in the form of a plan or a tenant, read from the
ledger within bounds, for who may change plans; nothing is saved."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.core.limits import UNLIMITED, Limits
from apps.metering.models import Meter, UsageRecord
from apps.metering.trial import LimitsTrial, TrialSubject, limits_trial
from apps.tenants.models import Plan, Tenant
from tests.factories import MembershipFactory, PlanFactory, TenantFactory, UsageRecordFactory
from tests.integration.console.pages import staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db

URL = "admin:metering_try_limits"
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def rows(tenant: Tenant, n: int, *, last: datetime = NOON, step_s: int = 60, **fields: Any) -> None:
    """Requests of a tenant, a minute apart."""
    for number in reversed(range(n)):
        at = last - timedelta(seconds=number * step_s)
        UsageRecordFactory(tenant_id=tenant.pk, created_at=at, n_charged_tokens=80, **fields)


def rows_now(tenant: Tenant) -> None:
    """Two at once, so that no midnight comes between them."""
    rows(tenant, 2, last=timezone.now(), step_s=0)


def subject(tenant: Tenant, **limits: Any) -> TrialSubject:
    return TrialSubject(
        tenant_id=tenant.pk, name=tenant.name, proposed=Limits(**limits), current=UNLIMITED
    )


def refusals(trial: LimitsTrial) -> dict[str, dict[str, int]]:
    return {
        tenant.name: {each.limit: each.n for each in tenant.proposed.refused}
        for tenant in trial.tenants
    }


def state() -> list[Any]:
    tables = (Plan, Tenant, UsageRecord, Meter, AuditEvent)
    return [list(all_of(table).order_by("pk").values()) for table in tables]


def test_a_week_of_each_tenant_and_no_more() -> None:
    acme, other = TenantFactory(name="Acme"), TenantFactory(name="Other")
    rows(acme, 3)
    rows(acme, 1, last=NOON - timedelta(days=8), route_name="x")
    rows(other, 2)
    rows(other, 1, last=NOON - timedelta(days=2), route_name="x")
    allowed = frozenset({"smollm2-135m-instruct"})
    trial = limits_trial(
        [subject(each, tokens_per_day=100, allowed_routes=allowed) for each in (acme, other)],
        now=NOON,
    )
    assert refusals(trial) == {
        "Acme": {"tokens_per_day": 2},
        "Other": {"tokens_per_day": 1, "allowed_routes": 1},
    }
    assert (trial.proposed.n_requests, trial.proposed.n_refused) == (6, 4)
    assert trial.proposed.first_at == NOON - timedelta(days=2)
    assert (trial.current.n_refused, trial.is_cut) == (0, False)


def test_what_a_month_used_before_comes_from_its_meter() -> None:
    acme = TenantFactory(name="Acme")
    rows(acme, 2)
    meter = Meter.objects.create(scope=f"tenant:{acme.pk}", period=f"{NOON:%Y-%m}", n_used=160)
    asked = [subject(acme, tokens_per_month=1_000)]
    assert refusals(limits_trial(asked, now=NOON)) == {"Acme": {}}
    # 900 before them: one finds room for its prompt, not for all that it then was.
    all_of(Meter).filter(pk=meter.pk).update(n_used=900 + 160)
    trial = limits_trial(asked, now=NOON)
    assert refusals(trial) == {"Acme": {"tokens_per_month": 1}}
    all_of(Meter).filter(pk=meter.pk).update(n_used=980 + 160)
    assert refusals(limits_trial(asked, now=NOON)) == {"Acme": {"tokens_per_month": 2}}


def test_it_reads_no_more_rows_than_it_may_and_says_so() -> None:
    acme, other = TenantFactory(name="Acme"), TenantFactory(name="Other")
    rows(acme, 5)
    rows(other, 1)
    trial = limits_trial([subject(other), subject(acme)], now=NOON, rows_at_most=4)
    by_name = {each.name: each for each in trial.tenants}
    assert (by_name["Other"].proposed.n_requests, by_name["Other"].is_cut) == (1, False)
    assert (by_name["Acme"].proposed.n_requests, by_name["Acme"].is_cut) == (3, True)
    assert by_name["Acme"].read_since == NOON - timedelta(minutes=2)
    assert trial.is_cut


def test_it_stops_at_its_deadline_and_says_so() -> None:
    acme, other = TenantFactory(name="Acme"), TenantFactory(name="Other")
    rows(acme, 1)
    times = iter([0.0, 1.0, 9.0, 9.0])
    asked = [subject(acme), subject(other)]
    trial = limits_trial(asked, now=NOON, deadline_s=8.0, clock=lambda: next(times))
    assert [each.name for each in trial.tenants] == ["Acme"]
    assert (trial.not_reached, trial.is_cut) == (("Other",), True)


def test_a_tenants_rows_are_read_by_its_index() -> None:
    acme = TenantFactory()
    rows(acme, 1)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        limits_trial([subject(acme, tokens_per_day=1)], now=NOON)
    assert len(queries) == 2  # its rows, its meters
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {queries[0]['sql']}")
            assert "usage_tenant_idx" in str(cursor.fetchall())


def test_the_page_of_a_plan_tries_what_stands_in_its_form(admin_client: Client) -> None:
    plan = PlanFactory(requests_per_minute=60)
    acme = TenantFactory(name="Acme", plan=plan)
    mild = TenantFactory(name="Mild", plan=plan, tokens_per_day=1_000_000)
    for tenant in (acme, mild, TenantFactory(name="Stranger")):
        rows_now(tenant)
    before = state()
    page = admin_client.get(reverse("admin:tenants_plan_change", args=[plan.pk])).content.decode()
    url = f"{reverse(URL)}?plan={plan.pk}"
    assert f'formaction="{url}"' in page and "Try on last week" in page
    form = admin_client.get(url)
    assert form.context["form"]["requests_per_minute"].value() == 60
    assert "trial" not in form.context
    # The admin's own form posts more than the limits.
    answer = admin_client.post(url, {"name": "x", "weight": "9", "tokens_per_day": "100"})
    assert answer.status_code == 200
    trial = answer.context["trial"]
    assert refusals(trial)["Mild"] == {}
    assert refusals(trial)["Acme"] == {"tokens_per_day": 1}
    assert set(refusals(trial)) == {"Acme", "Mild"}
    said = answer.content.decode()
    assert "has no row in the ledger" in said and "tokens_per_day" in said
    assert state() == before


def test_the_page_of_a_tenant_keeps_what_its_plan_says(admin_client: Client) -> None:
    tenant = TenantFactory(name="Acme", plan=PlanFactory(tokens_per_day=100))
    rows_now(tenant)
    url = f"{reverse(URL)}?tenant={tenant.pk}"
    page = admin_client.get(reverse("admin:tenants_tenant_change", args=[tenant.pk]))
    assert f'formaction="{url}"' in page.content.decode()
    answer = admin_client.post(url, {})
    assert refusals(answer.context["trial"]) == {"Acme": {"tokens_per_day": 1}}
    assert answer.context["trial"].current.n_refused == 1
    answer = admin_client.post(url, {"tokens_per_day": "1000000"})
    assert refusals(answer.context["trial"]) == {"Acme": {}}


def test_what_makes_no_sense_is_said(admin_client: Client) -> None:
    url = f"{reverse(URL)}?plan={PlanFactory().pk}"
    answer = admin_client.post(url, {"requests_per_minute": "0", "tokens_per_day": "-1"})
    assert answer.status_code == 200 and "trial" not in answer.context
    assert set(answer.context["form"].errors) == {"requests_per_minute", "tokens_per_day"}
    for query in ("", "?plan=987654", "?tenant=x", f"?plan={'9' * 40}"):
        assert admin_client.get(reverse(URL) + query).status_code == 404


def test_only_who_may_change_plans_and_see_the_ledger(admin_client: Client) -> None:
    plan = PlanFactory()
    url = f"{reverse(URL)}?plan={plan.pk}"
    owner = Client()
    member = MembershipFactory(role="owner", user__is_staff=True, tenant__plan=plan)
    owner.force_login(member.user)
    before = state()
    refused = (
        owner,
        staff("view_plan", "view_usagerecord"),
        staff("view_plan", "change_plan"),
        staff("view_tenant", "change_tenant", "view_usagerecord"),
    )
    for client in refused:
        for answer in (client.get(url), client.post(url, {"tokens_per_day": "1"})):
            assert answer.status_code == 403
            assert plan.name not in answer.content.decode()
        page = client.get(reverse("admin:tenants_plan_change", args=[plan.pk])).content.decode()
        assert "Try on last week" not in page
    assert state() == before
    assert staff("change_plan", "view_usagerecord").get(url).status_code == 200

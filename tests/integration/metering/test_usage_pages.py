"""The pages of usage and reconciliation: read from roll-ups, filtered, safe to open elsewhere."""

import csv
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.core.prices import MICROS
from apps.metering.models import Meter, UsageRecord
from apps.metering.services import usage_roll_up
from tests.factories import MembershipFactory, PlanFactory, TenantFactory, UsageRecordFactory
from tests.integration.console.pages import staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
DAYS = {"first": "2026-11-24", "last": "2026-11-25"}
USAGE, CSV = "admin:metering_usage", "admin:metering_usage_csv"
RECONCILE = "admin:metering_reconcile"


@pytest.fixture
def tenants() -> tuple[Any, Any]:
    acme = TenantFactory(name="Acme", plan=PlanFactory(tokens_per_day=1_000))
    other = TenantFactory(name="=2+5")
    for fields in (
        {"tenant_id": acme.pk, "api_token_id": 3, "ttft_ms": 60.0, "cost_micro": MICROS},
        {"tenant_id": acme.pk, "api_token_id": 3, "ttft_ms": 60.0, "route_name": "b"},
        {"tenant_id": acme.pk, "created_at": NOON - timedelta(days=1), "outcome": "failed"},
        {"tenant_id": other.pk, "route_name": "@sum", "cost_micro": MICROS // 2},
    ):
        UsageRecordFactory(**{"created_at": NOON, **fields})
    usage_roll_up()
    return acme, other


def lines(client: Client, **query: Any) -> list[tuple[Any, ...]]:
    """Of the page's lines: the day or the hour, whose it is, requests, failures, cost."""
    page = client.get(reverse(USAGE), {**DAYS, **query})
    assert page.status_code == 200
    return [
        (
            row.line.period_start and f"{row.line.period_start:%d %H}",
            row.subject,
            row.line.n_requests,
            row.line.n_failed,
            row.cost,
        )
        for row in page.context["rows"]
    ]


def test_a_page_without_a_question_shows_a_week(admin_client: Client) -> None:
    UsageRecordFactory(n_prompt_tokens=1234)
    usage_roll_up()
    page = admin_client.get(reverse(USAGE))
    assert page.status_code == 200
    assert "1,234" in page.content.decode()
    days = page.context["query"]
    assert (days.last - days.first, days.last) == (
        timedelta(days=6),
        timezone.now().date(),
    )


def test_lines_by_day_and_by_whom(admin_client: Client, tenants: Any) -> None:
    assert lines(admin_client) == [("25 00", "", 3, 0, "1.50"), ("24 00", "", 1, 1, "0.00")]
    assert lines(admin_client, by="tenant") == [
        ("25 00", "Acme", 2, 0, "1.00"),
        ("25 00", "=2+5", 1, 0, "0.50"),
        ("24 00", "Acme", 1, 1, "0.00"),
    ]
    assert lines(admin_client, by="token", per="span") == [
        (None, "no token", 2, 1, "0.50"),
        (None, "#3", 2, 0, "1.00"),
    ]
    assert lines(admin_client, by="route", per="hour", route="b") == [("25 12", "b", 1, 0, "0.00")]
    assert lines(admin_client, by="model", per="span") == [(None, "#1", 4, 1, "1.50")]
    UsageRecordFactory(model_version_id=0, created_at=NOON)
    usage_roll_up()
    assert lines(admin_client, by="model", per="span")[1:] == [
        (None, "at remote servers", 1, 0, "0.00")
    ]


def test_who_may_see_it_finds_the_page_of_whom_a_line_is_by(
    admin_client: Client, tenants: Any
) -> None:
    url = reverse("admin:tenants_tenant_change", args=[tenants[0].pk])
    query = {**DAYS, "by": "tenant"}
    assert f'href="{url}">Acme</a>' in admin_client.get(reverse(USAGE), query).content.decode()
    page = staff("view_usagerecord").get(reverse(USAGE), query).content.decode()
    assert "Acme" in page and url not in page


def test_filters(admin_client: Client, tenants: Any) -> None:
    acme, other = tenants
    assert [line[2] for line in lines(admin_client, tenant=acme.pk)] == [2, 1]
    assert [line[2] for line in lines(admin_client, plan=other.plan_id)] == [1]
    assert [line[2] for line in lines(admin_client, token="3")] == [2]
    assert [line[2] for line in lines(admin_client, token="0", last="2026-11-24")] == [1]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"first": "yesterday"}, "Enter a valid date."),
        ({"first": "2026-11-26"}, "The last day is before the first."),
        ({"first": "2024-01-01"}, "No more than 366 days at once."),
        ({"first": "2026-01-01", "per": "hour"}, "No more than 31 days at once."),
        ({"tenant": "99999"}, "Select a valid choice."),
        ({"by": "n_requests"}, "Select a valid choice."),
        ({"token": str(2**70)}, "Ensure this value is less than or equal to"),
    ],
)
def test_what_makes_no_sense_is_said(admin_client: Client, query: Any, said: str) -> None:
    page = admin_client.get(reverse(USAGE), DAYS | query)
    assert page.status_code == 200
    assert said in page.content.decode()
    assert "rows" not in page.context
    assert admin_client.get(reverse(CSV), DAYS | query).status_code == 302


def test_percentiles_of_what_was_counted(admin_client: Client, tenants: Any) -> None:
    page = admin_client.get(reverse(USAGE), {**DAYS, "token": "3", "per": "span"})
    (row,) = page.context["rows"]
    assert (row.line.ttft_p50_ms, row.line.ttft_p95_ms) == (62.5, 50 + 25 * 0.95)
    assert row.ttft == "62 ms / 74 ms"


def test_pages_never_look_at_the_ledger(admin_client: Client, tenants: Any) -> None:
    for name in (USAGE, CSV):
        for query in ({}, {"by": "tenant", "per": "hour", "tenant": tenants[0].pk}):
            with CaptureQueriesContext(connection) as queries:
                assert admin_client.get(reverse(name), DAYS | query).status_code == 200
            asked = [entry["sql"] for entry in queries.captured_queries]
            assert not [sql for sql in asked if "metering_usagerecord" in sql]
            assert len(asked) <= 13


def test_a_long_table_comes_in_pages(
    admin_client: Client, tenants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.metering.views.LINES_PER_PAGE", 2)
    query = {"by": "tenant"}
    assert len(lines(admin_client, **query)) == 2
    assert lines(admin_client, **query, page=2) == [("24 00", "Acme", 1, 1, "0.00")]
    page = admin_client.get(reverse(USAGE), {**DAYS, **query})
    assert "by=tenant&amp;page=2" in page.content.decode()


def test_budgets_of_a_tenant_and_of_a_plan(admin_client: Client, tenants: Any) -> None:
    acme, other = tenants
    today = f"{timezone.now():%Y-%m-%d}"
    Meter.objects.create(scope=f"tenant:{acme.pk}", period=today, n_used=600, n_held=100)
    for query in ({"tenant": acme.pk}, {"plan": acme.plan_id}):
        day, month = admin_client.get(reverse(USAGE), DAYS | query).context["budgets"]
        assert (day.tenant, day.label, day.limit, day.n_used, day.n_held, day.n_left) == (
            "Acme", "Tokens today", 1_000, 600, 100, 300,
        )  # fmt: skip
        assert day.percent == 70
        assert (month.limit, month.n_used, month.n_left, month.percent) == (None, 0, None, None)
    assert admin_client.get(reverse(USAGE), DAYS).context["budgets"] == []
    own = admin_client.get(reverse(USAGE), {**DAYS, "tenant": other.pk}).context["budgets"]
    assert [budget.limit for budget in own] == [None, None]


def test_the_file_is_as_fine_as_the_roll_ups_and_runs_nothing(
    admin_client: Client, tenants: Any
) -> None:
    acme, other = tenants
    response = admin_client.get(reverse(CSV), DAYS)
    assert response["Content-Disposition"] == (
        'attachment; filename="usage-2026-11-24-2026-11-25.csv"'
    )
    rows = list(csv.DictReader(StringIO(response.content.decode())))
    assert len(rows) == 4
    assert [row["period_start"] for row in rows] == [
        "2026-11-24T00:00:00Z", *["2026-11-25T00:00:00Z"] * 3,
    ]  # fmt: skip
    stranger = next(row for row in rows if row["tenant_id"] == str(other.pk))
    assert (stranger["tenant"], stranger["route"]) == ("'=2+5", "'@sum")
    assert (stranger["cost"], stranger["currency"], stranger["api_token_id"]) == ("0.50", "USD", "")
    assert (stranger["ttft_p50_ms"], stranger["requests"]) == ("125", "1")
    mine = admin_client.get(reverse(CSV), {**DAYS, "tenant": acme.pk, "route": "b"})
    assert len(mine.content.decode().strip().splitlines()) == 2


def test_a_file_that_would_be_too_long_is_refused(
    admin_client: Client, tenants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.metering.views.CSV_ROWS_MOST", 3)
    response = admin_client.get(reverse(CSV), DAYS)
    assert response["Location"].startswith(reverse(USAGE))
    page = admin_client.get(response["Location"])
    assert [str(each) for each in page.context["messages"]] == [
        "That would be more than 3 lines. Choose fewer days, or filter."
    ]


def test_an_hour_that_no_tenant_is_left_of_is_still_shown(admin_client: Client) -> None:
    UsageRecordFactory(created_at=NOON, tenant_id=99_999)
    usage_roll_up()
    assert lines(admin_client, by="tenant") == [("25 00", "#99999", 1, 0, "0.00")]


def test_who_belongs_to_a_tenant_sees_what_is_its(tenants: Any) -> None:
    acme, other = tenants
    member = MembershipFactory(tenant=acme, user__is_staff=True, role="viewer")
    client = Client()
    client.force_login(member.user)
    assert [line[1:3] for line in lines(client, by="tenant")] == [("Acme", 2), ("Acme", 1)]
    page = client.get(reverse(USAGE), DAYS)
    assert "=2+5" not in page.content.decode()
    assert "plan" not in page.context["form"].fields
    for query in ({"tenant": other.pk}, {"tenant": other.pk, "plan": other.plan_id}):
        asked = client.get(reverse(USAGE), DAYS | query)
        assert "rows" not in asked.context
        assert "=2+5" not in asked.content.decode()
        assert client.get(reverse(CSV), DAYS | query).status_code == 302
    # A plan is nobody's: asking for one changes nothing.
    assert [line[2] for line in lines(client, plan=other.plan_id)] == [2, 1]
    file = client.get(reverse(CSV), DAYS).content.decode()
    assert "@sum" not in file and len(file.strip().splitlines()) == 4
    own = client.get(reverse(USAGE), {**DAYS, "tenant": acme.pk}).context["budgets"]
    assert {budget.tenant for budget in own} == {"Acme"}
    ledger = client.get(reverse("admin:metering_usagerecord_changelist")).content.decode()
    assert "Acme" in ledger and "=2+5" not in ledger
    # What reconciliation reads belongs to all.
    assert client.get(reverse(RECONCILE)).status_code == 403


def orphan() -> UsageRecord:
    row: UsageRecord = UsageRecordFactory(
        open=True, request_id="r-open", expires_at=timezone.now() - timedelta(hours=1)
    )
    return row


def test_reconciliation_is_done_when_asked_for(admin_client: Client) -> None:
    orphan()
    url, since = reverse(RECONCILE), {"since": f"{timezone.now():%Y-%m-%d}"}
    with CaptureQueriesContext(connection) as queries:
        assert admin_client.get(url).status_code == 200
    assert not [q for q in queries.captured_queries if "metering_usagerecord" in q["sql"]]
    page = admin_client.post(url, since).content.decode()
    assert "1 finding" in page and "r-open" in page and "unsettled" in page
    assert all_of(UsageRecord).get().state == "reserved"
    page = admin_client.post(url, {**since, "correct": "1"}).content.decode()
    assert "1 corrected" in page and "The ledger agrees with itself" in page
    assert all_of(UsageRecord).get().outcome == "interrupted"
    event = all_of(AuditEvent).get()
    assert (event.action, event.actor_label) == ("ledger.corrected", "admin")
    assert event.changes["requests"] == "r-open"


def test_a_day_that_is_none_checks_nothing(admin_client: Client) -> None:
    orphan()
    page = admin_client.post(reverse(RECONCILE), {"since": "never", "correct": "1"})
    assert "Enter a valid date." in page.content.decode()
    assert all_of(UsageRecord).get().state == "reserved"


def test_pages_are_closed_to_those_without_permission() -> None:
    orphan()
    for name in (USAGE, CSV, RECONCILE):
        url = reverse(name)
        assert Client().get(url)["Location"] == f"{reverse('admin:login')}?next={url}"
        assert staff().get(url).status_code == 403
    for name in (USAGE, CSV):
        assert staff("view_usagerecord").get(reverse(name), DAYS).status_code == 200
        assert staff("view_usagerecord").post(reverse(name), DAYS).status_code == 405
    since = {"since": f"{timezone.now():%Y-%m-%d}"}
    reader = staff("view_usagerecord")
    page = reader.post(reverse(RECONCILE), since).content.decode()
    assert "r-open" in page and "Correct what is safe" not in page
    assert reader.post(reverse(RECONCILE), {**since, "correct": "1"}).status_code == 403
    assert all_of(UsageRecord).get().state == "reserved"
    assert not all_of(AuditEvent).exists()

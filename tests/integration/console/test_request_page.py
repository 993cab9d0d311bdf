"""A request's way on one page: what every room knows of it, for who may see its row."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.console.request_report import Span, timeline
from apps.gateway.models import IdempotentRequest
from apps.metering.models import Meter, UsageRecord
from apps.rbac.models import ApiToken
from apps.tenants.models import Tenant
from tests.factories import (
    ApiTokenFactory,
    AuditEventFactory,
    BatchFactory,
    DeploymentFactory,
    EngineJournalFactory,
    JournalEntryFactory,
    MembershipFactory,
    ReplicaFactory,
    RouteFactory,
    TenantFactory,
    UsageRecordFactory,
)
from tests.integration.console.pages import staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def url(record: UsageRecord) -> str:
    return reverse("admin:request_page", args=[record.request_id])


@pytest.fixture
def token() -> ApiToken:
    member = MembershipFactory(tenant=TenantFactory(name="Acme"), user__username="ann")
    made: ApiToken = ApiTokenFactory(tenant=member.tenant, name="laptop", owner=member.user)
    return made


def request_of(token: ApiToken, **fields: Any) -> UsageRecord:
    values = {
        "tenant_id": token.tenant_id,
        "api_token_id": token.pk,
        "created_at": NOON,
        "n_charged_tokens": 80,
        "end_user": "carl",
    }
    made: UsageRecord = UsageRecordFactory(**(values | fields))
    return made


def events(token: ApiToken, n: int) -> None:
    for number in range(n):
        AuditEventFactory(
            tenant_id=token.tenant_id, object_type="rbac.ApiToken", object_id=str(token.pk),
            action=f"api_token.change_{number}",
        )  # fmt: skip


def test_the_whole_way(admin_client: Client, token: ApiToken) -> None:
    replica = ReplicaFactory()
    deployment = replica.deployment
    route = RouteFactory(name="acme/chat", deployment=deployment)
    meter = Meter.objects.create(scope=f"key:{token.pk}", period="2026-11-25", n_used=80, n_held=7)
    record = request_of(
        token,
        route_name=route.name,
        deployment_id=deployment.pk,
        model_version_id=deployment.model_version_id,
        meter_ids=[meter.pk, meter.pk + 1],
        prompt_micro=10_000,
        cost_micro=300_000,
    )
    page = admin_client.get(url(record))
    assert page.status_code == 200
    report, said = page.context["report"], page.content.decode()
    assert (report.tenant.text, report.token.text, report.owner.text) == (
        "Acme", str(token), "ann",
    )  # fmt: skip
    for name, link, pk in (
        ("tenants_tenant", report.tenant, token.tenant_id),
        ("rbac_apitoken", report.token, token.pk),
        ("rbac_user", report.owner, token.owner_id),
        ("routing_route", report.route, route.pk),
        ("registry_modelversion", report.model_version, deployment.model_version_id),
        ("deployments_deployment", report.deployment, deployment.pk),
    ):
        assert link.url == reverse(f"admin:{name}_change", args=[pk])
        assert f'href="{link.url}"' in said
    assert [(each.whose, each.counts, each.n_used) for each in report.meters] == [
        ("API token", "tokens of 2026-11-25", 80)
    ]
    assert report.n_meters_gone == 1
    assert (report.cost, report.prices[0]) == ("0.00003", ("prompt", "1.00"))
    for text in ("carl", "rest, chat.completions", "smollm2/0, 1", "finish reason stop", "120 ms"):
        assert text in said, text


def test_a_request_to_a_remote_server(admin_client: Client, token: ApiToken) -> None:
    deployment = DeploymentFactory(elsewhere=True, name="far")
    record = request_of(token, deployment_id=deployment.pk, model_version_id=0)
    report = admin_client.get(url(record)).context["report"]
    assert (report.model_version.text, report.model_version.url) == ("at a remote server", "")
    assert report.deployment.text == "far"


def test_the_places_it_was_tried_at(admin_client: Client, token: ApiToken) -> None:
    first = request_of(token, outcome="failed", error_code="engine_died")
    again = {"request_id": f"{first.request_id}-2", "attempt": 2, "is_fallback": True}
    second = request_of(token, engine_name="other/0", **again)
    other = request_of(token, request_id=f"{first.request_id}1")
    for record, links in ((first, [second]), (second, [first])):
        answer = admin_client.get(url(record))
        assert list(answer.context["report"].attempts) == [first, second]
        page = answer.content.decode()
        assert "engine_died" in page and "other/0, a fallback" in page
        assert all(f'href="{url(each)}"' in page for each in links)
    assert "Tried at" not in admin_client.get(url(other)).content.decode()


def test_times_of_a_request() -> None:
    """900 ms in all, of which 700 with a row; the first token after 450."""
    values: dict[str, Any] = {
        "created_at": NOON,
        "settled_at": NOON + timedelta(milliseconds=700),
        "total_ms": 900.0,
        "ttft_ms": 450.0,
    }
    record = UsageRecord(**values)
    assert timeline(record) == (
        Span(name="Let in, and its prompt prepared", took_ms=200.0, start=0, width=222),
        Span(name="Waiting and reading the prompt, to the first token", took_ms=250.0, start=222,
             width=278),
        Span(name="Answering", took_ms=450.0, start=500, width=500),
    )  # fmt: skip
    # Settled late, and without a token: nothing is less than none.
    late = UsageRecord(**values | {"settled_at": NOON + timedelta(hours=1), "ttft_ms": None})
    assert [(each.start, each.width) for each in timeline(late)] == [(0, 1000)]
    assert timeline(UsageRecord(**values | {"total_ms": None})) == ()
    assert timeline(UsageRecord(**values | {"settled_at": None})) == ()


def test_what_its_engine_recorded(admin_client: Client, token: ApiToken) -> None:
    record = request_of(token)
    entry = {"request_id": record.request_id, "started_at": NOON, "waited_ms": 7.0}
    journal = EngineJournalFactory(epoch=record.engine_epoch)
    JournalEntryFactory(journal=journal, first_step=4123, last_step=4172, **entry)
    JournalEntryFactory(journal__epoch=record.engine_epoch + 1, first_step=999, **entry)
    JournalEntryFactory(journal=journal, first_step=888)
    page = admin_client.get(url(record)).content.decode()
    for text in ("12:00:00.000000", "7 ms", "1000 ms", "4123 to 4172", "12:00:02.000000, stop"):
        assert text in page, text
    assert "999" not in page and "888" not in page


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"is_from_cache": True, "engine_name": "", "engine_epoch": 0}, "the answer had been kept"),
        ({"open": True}, "once the engine is done with it"),
        ({}, "no engine began with it, or it is not read yet"),
    ],
)
def test_a_request_of_which_nothing_is_recorded(
    admin_client: Client, token: ApiToken, fields: dict[str, Any], said: str
) -> None:
    assert said in admin_client.get(url(request_of(token, **fields))).content.decode()


def test_the_last_ten_changes_before_it(admin_client: Client, token: ApiToken) -> None:
    events(token, 12)
    AuditEventFactory(tenant_id=token.tenant_id, object_type="rbac.ApiToken", object_id="0")
    last = all_of(AuditEvent).order_by("-id")[0].at
    record = request_of(token, created_at=last + timedelta(seconds=1))
    events(token, 1)
    later = all_of(AuditEvent).order_by("-id")[0]
    all_of(AuditEvent).filter(pk=later.pk).update(at=last + timedelta(hours=1))
    shown = admin_client.get(url(record)).context["report"].events
    assert [event.action for event in shown] == [f"api_token.change_{n}" for n in range(11, 1, -1)]
    assert later not in shown


def test_the_key_under_which_its_answer_is_kept(admin_client: Client, token: ApiToken) -> None:
    record = request_of(token)
    other: Tenant = TenantFactory()
    for tenant_id, key in ((token.tenant_id, "order-7"), (other.pk, "foreign")):
        IdempotentRequest.objects.create(
            tenant_id=tenant_id, key=key, state="kept", status=200, created_at=NOON,
            lease_until=NOON, expires_at=NOON + timedelta(hours=24, seconds=2),
            headers={"X-Request-Id": record.request_id}, body=b"secret answer",
        )  # fmt: skip
    page = admin_client.get(url(record)).content.decode()
    assert "order-7" in page and "Answered, kept until" in page
    assert "foreign" not in page and "secret answer" not in page
    other_page = admin_client.get(url(request_of(token))).content.decode()
    assert "Idempotency-Key" not in other_page


def test_the_batch_that_it_belongs_to(admin_client: Client, token: ApiToken) -> None:
    mine = {"tenant": token.tenant, "api_token_id": token.pk, "running": True}
    batch = BatchFactory(**mine)
    BatchFactory(tenant=token.tenant, api_token_id=token.pk + 1, running=True)
    BatchFactory(**mine, ended_at=NOON - timedelta(days=99))
    record = request_of(token, door="batch", created_at=batch.created_at + timedelta(seconds=1))
    page = admin_client.get(url(record))
    assert [link.text for link in page.context["report"].batches] == [batch.batch_id]
    assert "One of the batches" not in page.content.decode()


def test_a_request_in_flight_and_one_of_things_that_are_gone(admin_client: Client) -> None:
    record = UsageRecordFactory(open=True, tenant_id=77, api_token_id=78, user_id=79)
    page = admin_client.get(url(record))
    assert page.status_code == 200
    report, said = page.context["report"], page.content.decode()
    links = (report.tenant, report.token, report.user, report.deployment)
    assert [link.text for link in links] == ["#77", "#78", "#79", "#1"]
    assert "In flight" in said and "None, or none that you may see." in said


def test_the_list_leads_there_and_finds_it_by_its_id(admin_client: Client, token: ApiToken) -> None:
    record = request_of(token)
    request_of(token)
    found = admin_client.get(
        reverse("admin:metering_usagerecord_changelist"), {"q": record.request_id}
    ).content.decode()
    assert f'href="{url(record)}"' in found
    assert found.count('title="req-') == 1


def test_names_are_only_for_who_may_see_them(token: ApiToken) -> None:
    events(token, 1)
    record = request_of(token, created_at=all_of(AuditEvent).get().at + timedelta(seconds=1))
    page = staff("view_usagerecord").get(url(record))
    report, said = page.context["report"], page.content.decode()
    assert (report.tenant.url, report.token.text, report.token.url) == ("", f"#{token.pk}", "")
    assert (report.owner, report.events) == (None, ())
    assert "laptop" not in said and ">ann<" not in said


def test_a_member_sees_their_tenants_and_no_others(token: ApiToken) -> None:
    events(token, 1)
    at = all_of(AuditEvent).get().at + timedelta(seconds=1)
    record, foreign = request_of(token, created_at=at), UsageRecordFactory(tenant_id=987)
    client = Client()
    client.force_login(
        MembershipFactory(tenant=token.tenant, role="owner", user__is_staff=True).user
    )
    page = client.get(url(record))
    report = page.context["report"]
    assert (report.token.url != "", report.owner.text, report.owner.url) == (True, "ann", "")
    assert len(report.events) == 1
    before = list(all_of(UsageRecord).order_by("pk").values())
    missing = reverse("admin:request_page", args=["req-0"])
    assert [client.get(each).status_code for each in (url(foreign), missing)] == [404, 404]
    assert client.get(url(foreign)).content == client.get(missing).content
    assert client.get(f"{missing[:-1]}%00/").status_code == 404
    assert staff("view_tenant").get(url(record)).status_code == 403
    assert client.post(url(record)).status_code == 405
    assert list(all_of(UsageRecord).order_by("pk").values()) == before


def test_it_reads_a_bounded_number_of_times(admin_client: Client, token: ApiToken) -> None:
    record = request_of(token, door="batch")

    def n_queries() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert admin_client.get(url(record)).status_code == 200
        return len(queries)

    first = n_queries()
    events(token, 15)
    for _ in range(5):
        BatchFactory(tenant=token.tenant, api_token_id=token.pk, running=True)
    assert n_queries() == first
    assert first <= 20

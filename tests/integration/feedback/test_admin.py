"""The list of feedback and events, and their section on the page of a request."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.feedback.models import MetricEvent
from tests.factories import MembershipFactory, MetricEventFactory, TenantFactory, UsageRecordFactory
from tests.integration.console.pages import staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db

LIST = reverse("admin:feedback_metricevent_changelist")
ONE_LONG = "x" * 200


def page(request_id: str) -> str:
    return reverse("admin:request_page", args=[request_id])


def names(client: Client, **query: str) -> list[str]:
    found = client.get(LIST, query).context["cl"].result_list
    return [row.request_id for row in found]


@pytest.fixture
def said(db: None) -> None:
    """One of each kind, by what its request is called, the oldest first."""
    MetricEventFactory(request_id="up")
    MetricEventFactory(request_id="down", value=0.0)
    MetricEventFactory(request_id="commented", value=0.0, comment=ONE_LONG)
    MetricEventFactory(request_id="judge", name="judge:helpful", value=0.75)
    MetricEventFactory(request_id="event", name="clicks", value=1234567.0)


def test_the_list_says_what_was_said_of_what(admin_client: Client, said: None) -> None:
    tenant = TenantFactory(name="Acme")
    MetricEventFactory(tenant_id=tenant.pk, request_id="", name="basket", end_user="ann")
    text = admin_client.get(LIST).content.decode()
    shown = {"Thumbs up", "Thumbs down", "judge:helpful", "0.75", "1,234,567", "Acme", "ann"}
    assert {each for each in shown if each not in text} == set()
    assert ONE_LONG not in text and ONE_LONG[:79] + "…" in text
    assert f'href="{page("up")}"' in text


def test_it_is_narrowed_by_kind_tenant_and_request(admin_client: Client, said: None) -> None:
    tenant = TenantFactory(pk=7700)
    MetricEventFactory(tenant_id=tenant.pk, request_id="theirs")
    assert names(admin_client, kind="up") == ["theirs", "up"]
    assert names(admin_client, kind="down") == ["commented", "down"]
    assert names(admin_client, kind="commented") == ["commented"]
    assert names(admin_client, kind="judge") == ["judge"]
    assert names(admin_client, kind="event") == ["event"]
    assert len(names(admin_client, kind="nonsense")) == 6
    assert names(admin_client, tenant=str(tenant.pk)) == ["theirs"]
    assert names(admin_client, q=" down ") == ["down"]
    assert names(admin_client, q="dow") == []


def test_filters_look_at_the_newest_and_a_request_is_found_however_old(
    admin_client: Client, said: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.feedback.admin.LISTED_ROWS", 2)
    assert names(admin_client) == ["event", "judge"]
    assert names(admin_client, kind="up") == []
    assert names(admin_client, q="up") == ["up"]


def test_a_member_sees_their_tenants_and_no_others(said: None) -> None:
    member = MembershipFactory(role="developer", user__is_staff=True, tenant__pk=7700)
    mine = MetricEventFactory(tenant_id=member.tenant_id, request_id="mine")
    for _ in range(3):
        MetricEventFactory()
    client = Client()
    client.force_login(member.user)
    assert names(client) == ["mine"]
    assert names(client, q="up") == []
    one = reverse("admin:feedback_metricevent_change", args=[mine.pk])
    assert client.get(one).status_code == 200
    other = all_of(MetricEvent).get(request_id="up").pk
    hidden = client.get(reverse("admin:feedback_metricevent_change", args=[other]))
    assert hidden.status_code == 302  # as of one that is not there


def test_it_is_to_look_at_and_for_who_may(admin_client: Client, said: None) -> None:
    assert staff("view_usagerecord").get(LIST).status_code == 403
    assert staff("view_metricevent").get(LIST).status_code == 200
    before = list(all_of(MetricEvent).order_by("pk").values())
    row = all_of(MetricEvent).earliest("pk")
    for name in ("change", "delete"):
        url = reverse(f"admin:feedback_metricevent_{name}", args=[row.pk])
        posted = admin_client.post(url, {"value": "0", "comment": "forged", "post": "yes"})
        assert posted.status_code == 403
    assert admin_client.post(reverse("admin:feedback_metricevent_add"), {}).status_code == 403
    assert list(all_of(MetricEvent).order_by("pk").values()) == before


def test_the_page_of_a_request_shows_what_was_said_of_it(admin_client: Client) -> None:
    tenant_id = TenantFactory().pk
    UsageRecordFactory(request_id="r", tenant_id=tenant_id, outcome="failed")
    UsageRecordFactory(request_id="r-2", attempt=2, tenant_id=tenant_id)
    UsageRecordFactory(request_id="silent", tenant_id=tenant_id)
    thumb: Any = MetricEventFactory(
        request_id="r-2", tenant_id=tenant_id, value=0.0, comment="<b>wrong</b>"
    )
    MetricEventFactory(request_id="r-2", tenant_id=tenant_id, name="clicks", value=3)
    MetricEventFactory(request_id="r", tenant_id=tenant_id + 1, comment="elsewhere")
    for request_id in ("r", "r-2"):
        with CaptureQueriesContext(connection) as queries:
            response = admin_client.get(page(request_id))
        assert [each.name for each in response.context["report"].said] == ["clicks", "feedback"]
        text = response.content.decode()
        assert "Thumbs down" in text and "&lt;b&gt;wrong&lt;/b&gt;" in text
        assert "elsewhere" not in text
        assert reverse("admin:feedback_metricevent_change", args=[thumb.pk]) in text
        assert len(queries) <= 30
    assert "What was said of it" not in admin_client.get(page("silent")).content.decode()


def test_what_was_said_is_for_who_may_see_it() -> None:
    UsageRecordFactory(request_id="r")
    MetricEventFactory(request_id="r", comment="wrong")
    text = staff("view_usagerecord").get(page("r")).content.decode()
    assert "What was said of it" not in text and "wrong" not in text
    both = staff("view_usagerecord", "view_metricevent").get(page("r")).content.decode()
    assert "What was said of it" in both and "wrong" in both

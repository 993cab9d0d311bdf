"""The index and the part of it that renews itself."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.console.selectors import dashboard
from apps.metering.models import UsageRecord
from apps.metering.services import usage_roll_up
from apps.metering.types import UsageTotals
from config.middleware import CONTENT_SECURITY_POLICY
from tests.factories import (
    AuditEventFactory,
    DeploymentFactory,
    EngineProcessFactory,
    ReplicaFactory,
    RouteFactory,
    UsageRecordFactory,
    UserFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db

STATS = {"n_running": 3, "n_waiting": 2, "n_blocks_total": 200, "n_blocks_free": 150}


@pytest.fixture(autouse=True)
def fresh_totals() -> None:
    cache.clear()


def _replica(**fields: Any) -> Any:
    return ReplicaFactory(engine_process__stats=STATS, **fields)


def test_dashboard_reads_all_in_five_queries(django_assert_num_queries: Any) -> None:
    for _ in range(3):
        deployment = DeploymentFactory(n_replicas=2)
        _replica(deployment=deployment, index=0)
        _replica(deployment=deployment, index=1)
        RouteFactory(deployment=deployment, name=f"b-{deployment.name}")
        RouteFactory(deployment=deployment, name=f"a-{deployment.name}")
        RouteFactory(deployment=deployment, is_active=False)
    for _ in range(10):
        AuditEventFactory()
    with django_assert_num_queries(5):
        found = dashboard()
    assert (found.label, found.tone, found.n_open) == ("All deployments are ready", "good", 30)
    card = found.deployments[0]
    assert card.route_names == (f"a-{card.name}", f"b-{card.name}")
    assert [engine.n_blocks_used for engine in card.engines] == [50, 50]
    assert len(found.events) == 8


def test_todays_totals_leave_yesterday_out_and_are_taken_once_in_a_while(
    django_assert_num_queries: Any,
) -> None:
    yesterday = timezone.now() - timedelta(days=1)
    UsageRecordFactory(created_at=yesterday)
    UsageRecordFactory(n_prompt_tokens=10, n_completion_tokens=5)
    UsageRecordFactory(n_prompt_tokens=1, n_completion_tokens=2, outcome="failed")
    usage_roll_up()
    all_of(UsageRecord).all().delete()  # it reads the roll-ups, however many rows there are
    found = dashboard()
    assert found.today == UsageTotals(
        n_requests=2, n_failed=1, n_prompt_tokens=11, n_completion_tokens=7
    )
    assert (found.n_tokens_today, found.failed_percent) == (18, "50.0")
    with django_assert_num_queries(3):
        dashboard()


def test_index_shows_deployments_figures_and_changes(admin_client: Client) -> None:
    engine = EngineProcessFactory(
        name="smollm2-0", state="backing_off", last_error="exit <code> 1", n_restarts=3
    )
    deployment = DeploymentFactory(name="smollm2")
    ReplicaFactory(deployment=deployment, engine_process=engine)
    RouteFactory(deployment=deployment, name="chat")
    AuditEventFactory(action="api_token.issued", object_label="ci")
    response = admin_client.get(reverse("admin:index"))
    assert response.status_code == 200
    html = response.content.decode()
    for text in (
        "0 of 1 deployments ready",
        "smollm2-0",
        "Backing off",
        "chat",
        "API token issued",
    ):
        assert text in html
    assert "exit &lt;code&gt; 1" in html
    assert response["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


def test_the_live_part_is_a_fragment_that_is_not_kept(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    _replica(deployment=DeploymentFactory(name="smollm2"))
    with django_assert_max_num_queries(8):
        response = admin_client.get(reverse("admin:overview"))
    html = response.content.decode()
    assert "<html" not in html
    assert 'data-deployment="smollm2"' in html
    assert "no-store" in response["Cache-Control"]
    assert admin_client.post(reverse("admin:overview")).status_code == 405


def test_the_live_part_is_for_staff() -> None:
    url = reverse("admin:overview")
    client = Client()
    assert client.get(url).status_code == 302
    client.force_login(UserFactory())
    assert client.get(url).status_code == 302


def test_staff_without_permissions_see_no_deployment_figure_or_change() -> None:
    _replica(deployment=DeploymentFactory(name="smollm2"))
    AuditEventFactory(object_label="secret-thing")
    client = Client()
    client.force_login(UserFactory(is_staff=True))
    html = client.get(reverse("admin:index")).content.decode()
    assert "You may not see deployments." in html
    for text in ("smollm2", "secret-thing", "Requests today"):
        assert text not in html


def test_every_link_of_the_side_bar_leads_somewhere(admin_client: Client) -> None:
    navigation = admin_client.get(reverse("admin:index")).context["sidebar_navigation"]
    links = [item["link"] for group in navigation for item in group["items"]]
    assert len(links) == 39
    for link in links:
        assert admin_client.get(str(link)).status_code == 200, link


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("metering_usage", "Usage"),
        ("metering_reconcile", "Reconciliation"),
        ("metering_usagerecord_changelist", "Ledger"),
    ],
)
def test_side_bar_marks_the_page_of_the_ledger_that_is_shown(
    admin_client: Client, name: str, title: str
) -> None:
    navigation = admin_client.get(reverse(f"admin:{name}")).context["sidebar_navigation"]
    marked = [item["title"] for group in navigation for item in group["items"] if item["active"]]
    assert marked == [title]


def test_side_bar_shows_what_one_may_see() -> None:
    client = Client()
    client.force_login(UserFactory(is_staff=True))
    navigation = client.get(reverse("admin:index")).context["sidebar_navigation"]
    shown = [
        item["title"] for group in navigation for item in group["items"] if item["has_permission"]
    ]
    assert shown == ["Overview", "Playground", "API reference"]


def test_login_page_carries_the_products_name() -> None:
    html = Client().get(reverse("admin:login")).content.decode()
    assert settings.PRODUCT_NAME in html
    assert "console/logo.svg" in html

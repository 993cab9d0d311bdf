"""How a route's requests were shared, by the ledger, beside its weights."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.metering import selectors
from apps.routing.models import Route
from apps.routing.selectors import route_splits
from tests.factories import (
    DeploymentFactory,
    ReplicaFactory,
    RouteFactory,
    RouteTargetFactory,
    UsageRecordFactory,
)
from tests.integration.console.pages import staff

pytestmark = pytest.mark.django_db


@pytest.fixture
def route() -> Route:
    """70 % here, 30 % there, and one for failures; last changed three minutes ago."""
    made: Route = RouteFactory(name="chat", deployment=None)
    for name, weight, order in (("one", 70, None), ("two", 30, None), ("three", 0, 1)):
        deployment = DeploymentFactory(name=name)
        ReplicaFactory(deployment=deployment, index=0)
        RouteTargetFactory(route=made, deployment=deployment, weight=weight, fallback_order=order)
    _changed(made, minutes=3)
    return made


def _changed(route: Route, *, minutes: float) -> None:
    Route.objects.filter(pk=route.pk).update(updated_at=timezone.now() - timedelta(minutes=minutes))


def _ids(route: Route) -> dict[str, int]:
    return {str(each.deployment): each.deployment_id for each in route.targets.all()}


def _asked(route: Route, name: str, n: int, *, minutes: float = 1, **fields: Any) -> None:
    at = timezone.now() - timedelta(minutes=minutes)
    facts = {"route_name": route.name, "deployment_id": _ids(route)[name], "created_at": at}
    for _ in range(n):
        UsageRecordFactory(**facts | fields)


def lines(route: Route) -> dict[str, tuple[str, str, int, int, int]]:
    (split,) = route_splits([route.pk], now=timezone.now())
    return {
        each.name: (each.wanted, each.got, each.n_requests, each.n_open, each.n_failed)
        for each in split.lines
    }


def test_shares_stand_beside_weights(route: Route) -> None:
    _asked(route, "one", 6)
    _asked(route, "one", 1, open=True)
    _asked(route, "two", 2)
    _asked(route, "two", 1, outcome="failed")
    assert lines(route) == {
        "one": ("70.0 %", "70.0 %", 7, 1, 0),
        "two": ("30.0 %", "30.0 %", 3, 0, 1),
        "three": ("fallback", "0.0 %", 0, 0, 0),
    }


def test_what_is_no_answer_of_these_is_left_out(route: Route) -> None:
    _asked(route, "one", 1)
    _asked(route, "two", 4, minutes=4)  # before its last change
    _asked(route, "two", 1, is_from_cache=True)
    UsageRecordFactory(route_name="chat", deployment_id=987_654)
    UsageRecordFactory(route_name="other", deployment_id=_ids(route)["two"])
    assert {name: line[2] for name, line in lines(route).items()} == {
        "one": 1, "two": 0, "three": 0,
    }  # fmt: skip


def test_what_still_runs_counts_as_open_whenever_it_came(route: Route) -> None:
    _asked(route, "one", 2, minutes=8, open=True)
    _asked(route, "two", 1)
    assert {name: line[2:4] for name, line in lines(route).items()} == {
        "one": (0, 2), "two": (1, 0), "three": (0, 0),
    }  # fmt: skip


def test_of_a_change_that_is_long_ago_five_minutes_are_counted(route: Route) -> None:
    _changed(route, minutes=60)
    _asked(route, "one", 1, minutes=4.5)
    _asked(route, "two", 1, minutes=5.5)
    assert [line[2] for line in lines(route).values()] == [1, 0, 0]


def test_without_requests_there_is_no_share(route: Route) -> None:
    assert {line[1] for line in lines(route).values()} == {"-"}


def test_only_the_newest_rows_are_counted(route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "TRAFFIC_ROWS", 3)
    _asked(route, "one", 5, minutes=2)
    _asked(route, "two", 2, minutes=1)
    assert {name: line[2] for name, line in lines(route).items()} == {
        "one": 1, "two": 2, "three": 0,
    }  # fmt: skip


def test_many_routes_cost_as_many_queries_as_one(
    route: Route, django_assert_max_num_queries: Any
) -> None:
    others = [RouteFactory() for _ in range(3)]
    _asked(route, "one", 2)
    with django_assert_max_num_queries(7):
        found = route_splits([route.pk, *(each.pk for each in others)], now=timezone.now())
    assert {split.name: split.n_requests for split in found} == {
        "chat": 2, **{each.name: 0 for each in others},
    }  # fmt: skip


def test_the_page_of_a_route_shows_it_to_who_may_see_the_ledger(
    route: Route, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    _asked(route, "two", 3)
    url = reverse("admin:routing_route_change", args=[route.pk])
    with django_assert_max_num_queries(30):
        html = admin_client.get(url).content.decode()
    assert 'data-split="chat"' in html
    assert f'data-live-topic="route={route.pk}"' in html
    assert "100.0 %" in html
    reader = staff("view_route").get(url)
    assert reader.status_code == 200
    assert "data-split" not in reader.content.decode()

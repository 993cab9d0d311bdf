"""The page of a route: where it leads, by which shares, and whether anything is there."""

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.routing.models import Route, RouteAlias, RouteTarget
from tests.factories import (
    DeploymentFactory,
    ModelVersionFactory,
    ReplicaFactory,
    RouteFactory,
    RouteTargetFactory,
)
from tests.integration.console.pages import actions, inline, staff, targets_form
from tests.rows import all_of

pytestmark = pytest.mark.django_db

ADD = "/admin/routing/route/add/"
LIST = "/admin/routing/route/"


def page_of(route: Route) -> str:
    return reverse("admin:routing_route_change", args=[route.pk])


def form(*rows: Any, **changed: Any) -> dict[str, Any]:
    return {
        "name": "chat",
        "further_names": "",
        "default_values": "",
        "description": "",
        "is_active": "on",
        **targets_form(*rows),
        **inline("routeuserobjectpermission_set"),
        **changed,
    }


def to(deployment: Any, weight: int = 0, fallback: int | str = "") -> dict[str, Any]:
    return {"deployment": deployment.pk, "weight": weight, "fallback_order": fallback}


@pytest.fixture
def route() -> Route:
    """70 % here, 30 % there, and one for failures that is not ready."""
    made: Route = RouteFactory(name="chat", deployment=None)
    for name, weight, order in (("one", 700, None), ("two", 300, None), ("three", 0, 1)):
        deployment = DeploymentFactory(name=name)
        if name != "three":
            ReplicaFactory(deployment=deployment, index=0)
        RouteTargetFactory(route=made, deployment=deployment, weight=weight, fallback_order=order)
    return made


def test_a_route_is_made_with_all_that_it_has(admin_client: Client) -> None:
    one, two, three = (DeploymentFactory(name=name) for name in ("one", "two", "three"))
    sent = form(
        to(one, 70), to(two, 30), to(three, fallback=1),
        further_names="chat-latest  gpt chat-latest", default_values="temperature=0.2 top_k=5",
    )  # fmt: skip
    assert admin_client.post(ADD, sent).status_code == 302
    assert sorted(RouteAlias.objects.values_list("name", flat=True)) == ["chat-latest", "gpt"]
    assert Route.objects.get().defaults == {"temperature": 0.2, "top_k": 5}
    (event,) = all_of(AuditEvent)
    assert event.changes["targets"] == ["one=70", "three as fallback 1", "two=30"]
    page = admin_client.get(page_of(Route.objects.get())).content.decode()
    assert 'value="chat-latest gpt"' in page
    assert 'value="temperature=0.2 top_k=5"' in page


def test_the_page_shows_shares_and_states_in_bounded_queries(
    admin_client: Client, route: Route, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(30):
        page = admin_client.get(page_of(route)).content.decode()
    text = re.sub(r"<[^>]+>", " ", page)
    # Once where requests are shared, and once where the weights are set.
    assert re.findall(r"\d+\.\d %", text) == ["70.0 %", "30.0 %"] * 2
    assert (len(re.findall(r"\bReady\b", text)), len(re.findall(r"\bStarting\b", text))) == (4, 2)
    listed = re.sub(r"<[^>]+>", " ", admin_client.get(LIST).content.decode())
    assert "one 70 %, two 30 %; else three" in " ".join(listed.split())


def test_places_are_changed_and_one_is_left_out(admin_client: Client, route: Route) -> None:
    sent = form(route)
    by_name = {row.deployment.name: number for number, row in enumerate(route.targets.all())}
    one, two, three = by_name["one"], by_name["two"], by_name["three"]
    sent |= {
        f"targets-{one}-weight": 0, f"targets-{one}-fallback_order": 1,
        f"targets-{two}-DELETE": "on",
        f"targets-{three}-weight": 5, f"targets-{three}-fallback_order": "",
    }  # fmt: skip
    assert admin_client.post(page_of(route), sent).status_code == 302
    found = RouteTarget.objects.values_list("deployment__name", "weight", "fallback_order")
    assert sorted(found) == [("one", 0, 1), ("three", 5, None)]
    (event,) = all_of(AuditEvent)
    assert event.changes == {
        "targets": [
            ["one=700", "three as fallback 1", "two=300"],
            ["one as fallback 1", "three=5"],
        ]
    }


def test_saved_as_it_is_nothing_is_changed(admin_client: Client, route: Route) -> None:
    ids = set(RouteTarget.objects.values_list("pk", flat=True))
    assert admin_client.post(page_of(route), form(route)).status_code == 302
    assert set(RouteTarget.objects.values_list("pk", flat=True)) == ids
    assert actions() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"targets-0-weight": 0, "targets-1-weight": 0}, "At least one deployment needs a weight"),
        ({"targets-0-weight": -1}, "greater than or equal to 0"),
        ({"targets-0-fallback_order": 2}, "Give either a weight or a place"),
        ({"further_names": "chat"}, "is the name of a route"),
        ({"further_names": "no,name"}, "Use letters, digits"),
        ({"default_values": "temperature=3"}, "temperature must be a number from 0 to 2, not 3."),
        ({"default_values": "warm"}, "is not a name and a value"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    admin_client: Client, route: Route, changed: dict[str, Any], said: str
) -> None:
    before = list(RouteTarget.objects.order_by("pk").values())
    answer = admin_client.post(page_of(route), form(route, **changed), follow=True)
    assert said in answer.content.decode()
    assert list(RouteTarget.objects.order_by("pk").values()) == before
    assert actions() == []


def test_embeddings_beside_text_are_refused_where_they_are_chosen(
    admin_client: Client, route: Route
) -> None:
    embeds = DeploymentFactory(model_version=ModelVersionFactory(architecture="BertModel"))
    answer = admin_client.post(page_of(route), form(route, to(embeds, 5)))
    assert "Some generate text and some make embeddings" in answer.content.decode()
    assert RouteTarget.objects.count() == 3


def test_who_may_only_see_a_route_changes_nothing(route: Route) -> None:
    reader = staff("view_route")
    assert reader.get(page_of(route)).status_code == 200
    sent = form(route, **{"targets-0-weight": 1})
    assert reader.post(page_of(route), sent).status_code == 403
    assert sorted(RouteTarget.objects.values_list("weight", flat=True)) == [0, 300, 700]
    assert actions() == []

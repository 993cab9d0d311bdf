"""The page of a rollout, on which it is watched and moved, and what leads to it."""

import time
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from guardian.shortcuts import assign_perm

from apps.audit.types import Actor
from apps.rbac.models import User
from apps.rollouts.models import Rollout
from apps.rollouts.services import rollout_pause, rollout_start
from tests.factories import RolloutFactory, RouteFactory
from tests.integration.console.pages import messages, person
from tests.integration.rollouts.places import QUICK, Place, answered, everything, led, place
from tests.rows import copied

pytestmark = pytest.mark.django_db

ADD = "/admin/rollouts/rollout/add/"
LIST = "/admin/rollouts/rollout/"
MOST_QUERIES = 30
STARTER = ("view_rollout", "add_rollout", "view_route", "change_route", "view_deployment")
MOVER = ("view_rollout", "change_rollout", "approve_rollout", "view_route", "change_route")


@pytest.fixture
def here() -> Place:
    return place()


def running(here: Place, by: User, **fields: Any) -> Rollout:
    return rollout_start(
        route=here.route, candidate=here.new, by=by, actor=actor_named(by),
        **{"steps": QUICK, **fields},
    )  # fmt: skip


def actor_named(user: User) -> Actor:
    return Actor(kind="user", id=user.pk, label=user.username)


def page_of(rollout: Rollout) -> str:
    return reverse("admin:rollouts_rollout_change", args=[rollout.pk])


def press(client: Client, rollout: Rollout, act: str, **fields: Any) -> Any:
    url = reverse("admin:rollouts_rollout_act", args=[rollout.pk])
    return client.post(url, {"act": act, "seen": rollout.version, **fields})


# -- watching --------------------------------------------------------------------------------------


def test_its_page_says_how_it_goes(here: Place, django_assert_max_num_queries: Any) -> None:
    ann, client = person(*MOVER, "view_auditevent", name="ann")
    rollout = running(here, ann)
    answered(rollout, "candidate", 3)
    with django_assert_max_num_queries(MOST_QUERIES):
        page = client.get(page_of(rollout))
    text = page.content.decode()
    assert page.status_code == 200
    assert f'data-live-topic="rollout={rollout.pk}"' in text
    assert 'data-guard="error_rate"' in text and 'data-guard="ttft"' in text
    assert page.context["acts"] == {"pause", "abort"}
    assert [event.action for event in page.context["events"]][-1] == "rollout.started"
    assert page.context["report"].next_said in text
    assert "<script>" not in text and "onclick" not in text


def test_the_trail_is_for_who_may_read_it(here: Place) -> None:
    ann, client = person(*MOVER)
    assert client.get(page_of(running(here, ann))).context["events"] == []


def test_each_button_is_one_post(here: Place) -> None:
    ann, client = person(*MOVER)
    rollout = running(here, ann)
    assert press(client, rollout, "pause")["Location"] == page_of(rollout)
    rollout.refresh_from_db()
    assert rollout.state == "paused"
    assert client.get(page_of(rollout)).context["acts"] == {"resume", "abort"}
    press(client, rollout, "resume")
    rollout.refresh_from_db()
    assert rollout.state == "running"
    press(client, rollout, "abort", reason="Not today")
    rollout.refresh_from_db()
    assert (rollout.state, rollout.reason) == ("aborted", "Not today")
    assert led(here.route) == [("chat-old", 100, None, "")]
    page = client.get(page_of(rollout))
    assert (page.context["acts"], "Not today" in page.content.decode()) == (frozenset(), True)


@pytest.mark.parametrize("seen", ["1", "", "x", "-1", "9" * 30])
def test_a_stale_click_is_told_and_changes_nothing(here: Place, seen: str) -> None:
    ann, client = person(*MOVER)
    rollout = running(here, ann)
    rollout_pause(rollout=rollout, seen=rollout.version, actor=actor_named(ann), by=ann)
    before = everything()
    press(client, rollout, "abort", seen=seen)
    (said,) = messages(client, page_of(rollout))
    assert said == "The rollout was changed meanwhile; it is now: Paused. Look again."
    assert everything() == before


def test_whoever_started_it_sees_why_they_cannot_approve(here: Place) -> None:
    ann, client = person(*MOVER, name="ann")
    rollout = running(here, ann, needs_second_person=True)
    page = client.get(page_of(rollout))
    assert "You started it; somebody else has to approve it." in page.content.decode()
    assert page.context["acts"] == {"abort"}
    before = everything()
    press(client, rollout, "approve")
    assert messages(client, page_of(rollout)) == [
        "You started it; somebody else has to approve it."
    ]
    assert everything() == before
    _, second = person(*MOVER)
    assert second.get(page_of(rollout)).context["acts"] == {"approve", "abort"}
    press(second, rollout, "approve")
    rollout.refresh_from_db()
    assert rollout.state == "running"


@pytest.mark.parametrize(
    ("act", "needed"),
    [
        ("approve", "approve_rollout"),
        ("pause", "change_rollout"),
        ("abort", "change_rollout"),
        ("resume", "change_rollout"),
        ("pause", "change_route"),
        ("abort", "change_route"),
        ("approve", "change_route"),
    ],
)
def test_each_button_needs_its_permissions(here: Place, act: str, needed: str) -> None:
    ann, _ = person(*MOVER)
    rollout = running(here, ann, needs_second_person=act == "approve")
    if act == "resume":
        rollout = rollout_pause(
            rollout=rollout, seen=rollout.version, actor=actor_named(ann), by=ann
        )
    _, client = person(*[each for each in MOVER if each != needed])
    before = everything()
    assert press(client, rollout, act).status_code == 403
    assert everything() == before
    _, allowed = person(*MOVER)
    assert press(allowed, rollout, act).status_code == 302
    assert everything() != before


def test_what_is_no_button_is_not_there(here: Place) -> None:
    ann, client = person(*MOVER)
    rollout = running(here, ann)
    before = everything()
    assert press(client, rollout, "delete").status_code == 404
    assert client.get(reverse("admin:rollouts_rollout_act", args=[rollout.pk])).status_code == 405
    assert client.post(page_of(rollout)).status_code == 405
    for key in ("x", "999999", "9" * 30):
        assert client.get(f"{LIST}{key}/change/").status_code == 404
        assert client.post(f"{LIST}{key}/act/", {"act": "abort"}).status_code == 404
    assert everything() == before


def test_who_sees_a_route_sees_its_rollouts_and_no_other(here: Place) -> None:
    ann, _ = person(*MOVER)
    mine, other = running(here, ann), running(place(name="other"), ann)
    user, client = person("view_rollout")
    assign_perm("view_route", user, here.route)
    rows = client.get(LIST).context["cl"].result_list
    assert list(rows) == [mine]
    assert client.get(page_of(mine)).status_code == 200
    assert client.get(page_of(other)).status_code == 404


# -- beside it -------------------------------------------------------------------------------------


def test_the_route_s_page_leads_to_it(here: Place) -> None:
    user, client = person(*STARTER, "change_rollout")
    url = reverse("admin:routing_route_change", args=[here.route.pk])
    page = client.get(url).content.decode()
    assert "Roll out…" in page
    assert "A rollout decides" not in page
    action = reverse("admin:routing_route_roll_out", args=[here.route.pk])
    assert client.get(action)["Location"] == f"{ADD}?route={here.route.pk}"
    rollout = running(here, user)
    assert page_of(rollout) in client.get(url).content.decode()
    _, blind = person("view_route", "change_route")
    seen = blind.get(url).content.decode()
    assert page_of(rollout) not in seen
    assert "Roll out…" not in seen


def test_the_side_bar_counts_what_is_open(here: Place) -> None:
    ann, client = person(*MOVER)
    mark = '<span class="co-count">'
    assert mark not in client.get(LIST).content.decode()
    running(here, ann)
    assert f"{mark}1</span>" in client.get(LIST).content.decode()
    _, blind = person("view_route")
    assert mark not in blind.get("/admin/routing/route/").content.decode()


def test_a_long_list_is_quick(admin_client: Client) -> None:
    """10,000 of one route: a page of the list takes no more than 200 ms of a core, at best."""
    route = RouteFactory()
    one = RolloutFactory(
        route=route, baseline=None, candidate=None, baseline_name="a", candidate_name="b",
        started_by=None, started_by_name="ann",
    )  # fmt: skip
    copied(one, n=9_999)
    assert Rollout.objects.count() == 10_000
    admin_client.get(LIST)
    took_s = []
    for _ in range(5):
        began_s = time.process_time()
        assert admin_client.get(LIST).status_code == 200
        took_s.append(time.process_time() - began_s)
    assert min(took_s) < 0.2, took_s

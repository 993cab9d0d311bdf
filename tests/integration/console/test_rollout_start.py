"""The page that sets a rollout up: what it offers, what it says before anything is changed, and
what it starts."""

from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from guardian.shortcuts import assign_perm

from apps.metering.models import UsageRollup
from apps.rollouts.models import Rollout
from tests.factories import TenantFactory
from tests.integration.console.pages import actions, person
from tests.integration.rollouts.places import Place, everything, place, ready

pytestmark = pytest.mark.django_db

ADD = "/admin/rollouts/rollout/add/"
MOST_QUERIES = 30
STARTER = ("view_rollout", "add_rollout", "view_route", "change_route", "view_deployment")


@pytest.fixture
def here() -> Place:
    return place()


def page_of(rollout: Rollout) -> str:
    return reverse("admin:rollouts_rollout_change", args=[rollout.pk])


def form(here: Place, *steps: tuple[Any, Any, Any], **changed: Any) -> dict[str, Any]:
    steps = steps or ((10, 20, 0), (100, 0, 0))
    data: dict[str, Any] = {
        "route": here.route.pk,
        "candidate": here.new.pk,
        "baseline": "",
        "approval": "automatic",
        "alpha": "5",
        "tolerance_error_rate": "1",
        "tolerance_ttft": "25",
        "n_steps": len(steps),
    }
    for number, step in enumerate(steps):
        names = ("percent", "min_requests", "min_minutes")
        data |= {f"step-{number}-{name}": each for name, each in zip(names, step, strict=True)}
    return data | changed


def test_it_begins_with_sensible_answers(here: Place, django_assert_max_num_queries: Any) -> None:
    _, client = person(*STARTER, "view_usagerecord")
    with django_assert_max_num_queries(MOST_QUERIES):
        page = client.get(ADD, {"route": here.route.pk, "candidate": here.new.pk})
    offer, text = page.context["offer"], page.content.decode()
    assert (offer.form["route"].value(), offer.form["candidate"].value()) == (
        here.route.pk, here.new.pk,
    )  # fmt: skip
    assert [step["percent"].value() for step in offer.steps] == ["1", "10", "50", "100"]
    assert offer.form["tolerance_ttft"].value() == "25"
    assert "chat leads to chat-old 100 %." in text
    assert "chat-new is ready: 1 of 1 replicas." in text
    assert "It may start: 1 %, 10 %, 50 %, 100 % of what chat-old gets now." in text
    assert Rollout.objects.count() == 0


def test_of_a_route_alone_the_newest_deployment_of_its_model_is_offered(here: Place) -> None:
    _, client = person(*STARTER)
    other = ready("chat-next", model_version=here.old.model_version)
    page = client.get(ADD, {"route": here.route.pk})
    assert page.context["offer"].form["candidate"].value() == other.pk


@pytest.mark.parametrize("key", ["x", "9" * 30, "0", ""])
def test_an_address_that_names_nothing_offers_an_empty_form(here: Place, key: str) -> None:
    _, client = person(*STARTER)
    page = client.get(ADD, {"route": key, "candidate": key})
    assert (page.status_code, page.context["offer"].form["route"].value()) == (200, None)


def test_who_will_feel_it_and_how_long_it_takes(here: Place) -> None:
    """By the roll-ups of the hours: 600 since the last whole hour began, 60 before that."""
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    acme, beta = TenantFactory(name="Acme"), TenantFactory(name="Beta")
    for tenant, ago, n in ((acme, 1, 500), (beta, 0, 100), (beta, 20, 60), (acme, 40, 7000)):
        UsageRollup.objects.create(
            granularity="hour", period_start=hour - timedelta(hours=ago), tenant=tenant,
            route_name="chat", model_version_id=1, n_requests=n,
        )  # fmt: skip
    _, client = person(*STARTER, "view_usagerecord")
    page = client.get(ADD, {"route": here.route.pk, "candidate": here.new.pk})
    affected, forecasts = page.context["offer"].affected, page.context["offer"].forecasts
    assert [(each.name, each.n_hour, each.n_day) for each in affected.tenants] == [
        ("Acme", 500, 500), ("Beta", 100, 160),
    ]  # fmt: skip
    assert 300 <= affected.per_hour <= 600
    assert forecasts[1].per_hour == pytest.approx(affected.per_hour / 10)
    assert forecasts[0].minutes == pytest.approx(60 * 100 / (affected.per_hour / 100))
    _, blind = person(*STARTER)
    hidden = blind.get(ADD, {"route": here.route.pk, "candidate": here.new.pk})
    assert "Acme" not in hidden.content.decode()


def test_a_check_says_what_is_wrong_and_changes_nothing(
    here: Place, django_assert_max_num_queries: Any
) -> None:
    _, client = person(*STARTER)
    before = everything()
    with django_assert_max_num_queries(MOST_QUERIES):
        page = client.post(ADD, form(here, check="1"))
    assert "It may start: 10 %, 100 % of what chat-old gets now." in page.content.decode()
    wrong = client.post(ADD, form(here, (50, 1, 0), (10, 1, 0), candidate=here.old.pk, check="1"))
    offer = wrong.context["offer"]
    assert offer.form.errors["candidate"] == ["chat-old gets a share of this route already."]
    assert "Each step gives more than the one before." in offer.step_errors
    assert everything() == before


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"step-0-percent": "many"}, "steps"),
        ({"step-0-percent": "200"}, "steps"),
        ({"step-1-percent": "90"}, "steps"),
        ({"alpha": "90"}, "alpha"),
        ({"route": "x"}, "route"),
        ({"candidate": ""}, "candidate"),
        ({"approval": "never"}, "approval"),
        ({"tolerance_ttft": "-1"}, "tolerance_ttft"),
    ],
)
def test_what_cannot_start_is_told_at_its_field(
    here: Place, changed: dict[str, Any], where: str
) -> None:
    _, client = person(*STARTER)
    before = everything()
    page = client.post(ADD, form(here, **changed))
    offer = page.context["offer"]
    if where == "steps":
        assert offer.step_errors or any(step.errors for step in offer.steps)
    else:
        assert where in offer.form.errors
    assert everything() == before


def test_it_starts_as_it_was_filled_in(here: Place) -> None:
    ann, client = person(*STARTER, name="ann")
    steps = ((2.5, 30, 1), ("", "", ""), (100, "", ""))
    answer = client.post(ADD, form(here, *steps, approval="each", tolerance_ttft=""))
    rollout = Rollout.objects.get()
    assert answer["Location"] == page_of(rollout)
    assert rollout.steps == [
        {"percent": 2.5, "min_requests": 30, "min_minutes": 1.0},
        {"percent": 100.0, "min_requests": 0, "min_minutes": 0.0},
    ]
    assert rollout.guardrails == [{"metric": "error_rate", "tolerance": 0.01}]
    assert (rollout.approval, rollout.alpha, rollout.started_by) == ("each", 0.05, ann)
    assert "rollout.started" in actions()


def test_presets_and_one_more_step_keep_what_was_typed(here: Place) -> None:
    _, client = person(*STARTER)
    page = client.post(ADD, form(here, preset="quick", tolerance_ttft="7"))
    offer = page.context["offer"]
    assert [step["percent"].value() for step in offer.steps] == ["10", "100"]
    assert offer.form["tolerance_ttft"].value() == "7"
    more = client.post(ADD, form(here, (3, 4, 5), (100, 0, 0), add="1")).context["offer"]
    assert [step["percent"].value() for step in more.steps] == ["3", "100", None]
    assert Rollout.objects.count() == 0


@pytest.mark.parametrize("missing", ["add_rollout", "change_route", "view_deployment"])
def test_starting_needs_each_permission(here: Place, missing: str) -> None:
    """Who sees no deployment has none to choose."""
    _, client = person(*[each for each in STARTER if each != missing])
    before = everything()
    answer = client.post(ADD, form(here))
    if missing == "view_deployment":
        assert "candidate" in answer.context["offer"].form.errors
    else:
        assert answer.status_code == 403
        assert client.get(ADD).status_code == (403 if missing == "add_rollout" else 200)
    assert everything() == before


def test_a_route_that_was_given_can_be_rolled_out_and_no_other(here: Place) -> None:
    user, client = person("view_rollout", "add_rollout", "view_deployment")
    assign_perm("view_route", user, here.route)
    before = everything()
    assert client.post(ADD, form(here)).status_code == 403
    other = place(name="other")
    page = client.post(ADD, form(other))
    assert "route" in page.context["offer"].form.errors
    assert everything()["rollouts"] == before["rollouts"]
    assign_perm("change_route", user, here.route)
    assert client.post(ADD, form(here)).status_code == 302
    assert Rollout.objects.get().route == here.route

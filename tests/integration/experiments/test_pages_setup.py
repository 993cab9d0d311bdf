"""The page on which an experiment is set up: what it offers, says and refuses; and who may."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.models import ChangeStamp
from apps.experiments.models import Experiment, ExperimentMetric, Layer, Variant
from apps.routing.models import Route
from tests.factories import TenantFactory, UsageRecordFactory, UserFactory
from tests.factories.experiments import LayerFactory
from tests.integration.console.pages import actions, staff
from tests.integration.experiments.setting import drafted, ready, route_ready, two_arms
from tests.rows import all_of

pytestmark = pytest.mark.django_db

MOST_QUERIES = 30
ADD = "admin:experiments_experiment_add"


def state() -> dict[str, list[Any]]:
    models = (Experiment, Variant, ExperimentMetric, Layer, AuditEvent, ChangeStamp, Route)
    return {model.__name__: list(all_of(model).order_by("pk").values()) for model in models}


def page_of(experiment: Experiment) -> str:
    return reverse("admin:experiments_experiment_change", args=[experiment.pk])


def form(route: Route, act: str, **fields: Any) -> dict[str, Any]:
    """What a page with two variants posts, of which the second is cooler."""
    return {
        "act": act, "seen": "0", "route": route.pk, "name": "cooler", "subject": "end_user",
        "primary": "latency", "better": "", "min_effect": "5", "share_percent": "100",
        "alpha": "5", "power": "80", "pre_period_days": "0", "secondary": ["cost"],
        "n_variants": "2", "n_guardrails": "1", "variant-0-name": "control",
        "variant-0-weight": "50", "variant-1-name": "b", "variant-1-weight": "50",
        "variant-1-parameters": "temperature=0.2", "guardrail-0-metric": "error_rate",
        "guardrail-0-tolerance": "20", **fields,
    }  # fmt: skip


@pytest.fixture
def route() -> Route:
    """Of yesterday and today: 40 requests of 20 end users of one tenant, and 10 of nobody."""
    made = route_ready()
    tenant = TenantFactory(name="Acme", slug="acme")
    for number in range(40):
        UsageRecordFactory(
            tenant_id=tenant.pk,
            route_name=made.name,
            end_user=f"user-{number % 20}",
            total_ms=300.0 + 17 * (number % 13),
        )
    for _ in range(10):
        UsageRecordFactory(tenant_id=tenant.pk, route_name=made.name, end_user="")
    UsageRecordFactory(tenant_id=tenant.pk, route_name="another", end_user="user-21")
    return made


def test_an_empty_page_is_filled_in_already(
    route: Route, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(MOST_QUERIES):
        page = admin_client.get(reverse(ADD))
    setup = page.context["setup"]
    assert setup.form["name"].value() == "chat-1"
    assert setup.form["route"].value() == route.pk
    assert [each["name"].value() for each in setup.variants] == ["control", "b"]
    assert setup.form["primary"].value() == "thumbs_up_rate"
    assert [each["metric"].value() for each in setup.guardrails[:2]] == ["error_rate", "latency"]
    affected = setup.affected
    assert (affected.n_requests, affected.n_subjects, affected.n_nameless) == (50, 20, 10)
    assert [(each.name, each.n_requests, each.n_eligible) for each in affected.tenants] == [
        ("Acme", 50, 20)
    ]


def test_check_says_what_it_would_take_and_changes_nothing(
    route: Route, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    before = state()
    # It writes all and takes it back.
    with django_assert_max_num_queries(75):
        page = admin_client.post(reverse(ADD), form(route, "check"))
    html = page.content.decode()
    assert "It could start now, with 2 variants." in html
    assert "20 % of its requests name nobody of that kind" in html
    planned = page.context["setup"].planned
    assert planned.n_subjects > 20
    assert planned.days == pytest.approx(planned.n_subjects / 20)
    assert f"{planned.n_subjects:,}" in html
    assert state() == before


def test_a_greater_effect_takes_fewer_subjects_and_a_share_longer(
    route: Route, admin_client: Client
) -> None:
    def planned(**fields: Any) -> Any:
        return (
            admin_client.post(reverse(ADD), form(route, "check", **fields)).context["setup"].planned
        )

    usual = planned()
    assert planned(min_effect="20").n_subjects < usual.n_subjects / 10
    assert planned(share_percent="50").days == pytest.approx(2 * usual.days)
    typed = planned(planned_units="400")
    assert (typed.n_subjects, typed.days) == (400, 20)


def test_who_is_let_in_is_counted_as_the_gateway_does(route: Route, admin_client: Client) -> None:
    def eligible(**fields: Any) -> int:
        page = admin_client.post(reverse(ADD), form(route, "check", **fields))
        return int(page.context["setup"].affected.n_eligible)

    assert eligible(tenants="acme") == 20
    assert eligible(end_user_prefixes="user-1") == 11  # user-1 and user-10 to user-19
    assert eligible(doors=["websocket"]) == 0
    assert eligible(api_tokens="987654") == 0


def test_what_came_long_ago_does_not_count(admin_client: Client) -> None:
    route = route_ready()
    old = timezone.now() - timedelta(days=2)
    UsageRecordFactory(route_name=route.name, end_user="ann", created_at=old)
    page = admin_client.get(reverse(ADD), {"route": route.pk})
    assert page.context["setup"].affected.n_requests == 0
    assert "Nobody asked for this route" in page.content.decode()


def test_a_draft_is_saved_and_started_in_one_press(route: Route, admin_client: Client) -> None:
    LayerFactory(name="default")
    sent = form(route, "start", layer=Layer.objects.get().pk, hypothesis="Cooler is shorter.")
    answer = admin_client.post(reverse(ADD), sent)
    experiment = Experiment.objects.get()
    assert answer["Location"] == page_of(experiment)
    assert experiment.state == "running"
    assert experiment.hypothesis == "Cooler is shorter."
    assert experiment.planned_units > 20  # computed
    assert (experiment.alpha, experiment.power, experiment.min_effect) == (0.05, 0.8, 0.05)
    arms = Variant.objects.values_list("name", "is_control", "weight", "parameters")
    assert list(arms) == [("control", True, 50, {}), ("b", False, 50, {"temperature": 0.2})]
    metrics = ExperimentMetric.objects.values_list("metric", "role", "better", "tolerance")
    assert list(metrics) == [
        ("latency", "primary", "lower", 0.1),
        ("error_rate", "guardrail", "lower", 0.2),
        ("cost", "secondary", "lower", 0.1),
    ]
    assert actions() == ["experiment.created", "experiment.started"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "no good!"}, "Enter a valid"),
        ({"variant-1-weight": "0"}, "greater than or equal to 1"),
        ({"variant-1-parameters": "temperature=9"}, "temperature must be a number from 0 to 2"),
        ({"variant-1-parameters": "temperature"}, "is not a name and a value"),
        ({"variant-1-name": "control"}, "control is there twice"),
        ({"variant-1-name": "", "variant-1-parameters": ""}, "Give two at least"),
        ({"tenants": "nobody"}, "There is no tenant"),
        ({"api_tokens": "x"}, "is no number"),
        ({"primary_event": "feedback"}, "There is no metric"),
        ({"guardrail-0-tolerance": ""}, "This field is required"),
        ({"pre_period_days": "3", "subject": "conversation"}, "has no time before it began"),
    ],
)
def test_what_is_wrong_stands_where_it_is_and_nothing_is_kept(
    fields: dict[str, Any], said: str, route: Route, admin_client: Client
) -> None:
    before = state()
    for act in ("check", "start"):
        page = admin_client.post(reverse(ADD), form(route, act, **fields))
        assert page.status_code == 200, act
        assert said in page.content.decode(), act
    assert state() == before


def test_another_variant_is_a_further_row_and_loses_nothing(
    route: Route, admin_client: Client
) -> None:
    sent = form(route, "more", hypothesis="As typed", **{"variant-1-weight": "70"})
    page = admin_client.post(reverse(ADD), sent)
    setup = page.context["setup"]
    assert [each["name"].value() for each in setup.variants] == ["control", "b", "c"]
    assert setup.variants[1]["weight"].value() == "70"
    assert setup.form["hypothesis"].value() == "As typed"
    assert not Experiment.objects.exists()


def test_programs_numbers_decide_too(route: Route, admin_client: Client) -> None:
    sent = form(route, "save", primary_event="score", better="lower")
    admin_client.post(reverse(ADD), sent)
    primary = ExperimentMetric.objects.get(role="primary")
    assert (primary.metric, primary.better) == ("event:score", "lower")


def test_a_draft_is_changed_and_a_stale_page_is_told_so(
    route: Route, admin_client: Client, actor: Actor
) -> None:
    draft = drafted(actor, route)
    page = admin_client.get(page_of(draft))
    assert page.context["setup"].form["primary"].value() == "latency"
    assert page.context["setup"].variants[1]["parameters"].value() == "temperature=0.2"
    sent = form(route, "save", seen=str(draft.version), hypothesis="Mine")
    assert admin_client.post(page_of(draft), sent).status_code == 302
    draft.refresh_from_db()
    assert draft.hypothesis == "Mine"
    before = state()
    late = admin_client.post(page_of(draft), {**sent, "hypothesis": "Too late"})
    assert "was changed by someone else" in late.content.decode()
    assert state() == before


def test_where_two_are_wanted_another_starts_what_one_has_written(
    route: Route, admin_client: Client
) -> None:
    TenantFactory(needs_second_person=True)
    new = ready("newer")
    parts = {"variant-1-deployment": new.pk, "variant-1-parameters": ""}
    checked = admin_client.post(reverse(ADD), form(route, "check", **parts)).content.decode()
    assert "save it, and let somebody else start it" in checked
    assert admin_client.post(reverse(ADD), form(route, "save", **parts)).status_code == 302
    draft = Experiment.objects.get()
    before = state()
    sent = form(route, "start", seen=str(draft.version), **parts)
    page = admin_client.post(page_of(draft), sent)
    assert "You wrote it; somebody else has to start it." in page.content.decode()
    assert state() == before
    other = Client()
    other.force_login(UserFactory(admin=True))
    assert other.post(page_of(draft), sent).status_code == 302
    draft.refresh_from_db()
    assert draft.state == "running"


def test_duplicate_takes_all_but_the_name(route: Route, admin_client: Client, actor: Actor) -> None:
    other = ready("faster")
    first = drafted(
        actor,
        route,
        name="faster-1",
        variants=two_arms(other),
        min_effect=0.07,
        eligibility={"tenants": ["acme"], "doors": ["rest"]},
    )
    setup = admin_client.get(reverse(ADD), {"copy": first.pk}).context["setup"]
    assert setup.form["name"].value() == "faster-2"
    assert setup.form["min_effect"].value() == 7.0
    assert setup.form["tenants"].value() == "acme"
    assert setup.form["doors"].value() == ["rest"]
    assert setup.variants[1]["deployment"].value() == other.pk
    assert setup.affected.n_eligible == 20
    assert admin_client.get(reverse(ADD), {"copy": 987654}).status_code == 404


def test_a_draft_is_deleted_and_one_that_runs_is_not(
    route: Route, admin_client: Client, actor: Actor
) -> None:
    draft = drafted(actor, route)
    url = reverse("admin:experiments_experiment_delete", args=[draft.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 302
    assert not Experiment.objects.exists()
    assert actions()[-1] == "experiment.deleted"


def test_who_may_not_add_or_start_changes_nothing(route: Route, actor: Actor) -> None:
    draft = drafted(actor, route)
    before = state()
    looks = staff("view_experiment", "view_route", "change_route")
    assert looks.get(reverse(ADD)).status_code == 403
    assert looks.post(reverse(ADD), form(route, "save")).status_code == 403
    assert looks.post(page_of(draft), form(route, "save")).status_code in (403, 404)
    drafts = staff("view_experiment", "add_experiment", "change_experiment", "view_route")
    sent = form(route, "start", name="mine")
    assert drafts.post(reverse(ADD), sent).status_code == 403
    assert drafts.post(page_of(draft), {**sent, "seen": draft.version}).status_code == 403
    assert state() == before
    assert drafts.post(reverse(ADD), {**sent, "act": "save"}).status_code == 302
    assert Experiment.objects.get(name="mine").state == "draft"


def test_routes_and_deployments_that_somebody_does_not_see_cannot_be_taken(
    route: Route,
) -> None:
    drafts = staff("view_experiment", "add_experiment", "change_experiment")
    before = state()
    page = drafts.post(reverse(ADD), form(route, "save"))
    assert "Select a valid choice" in page.content.decode()
    assert state() == before


def test_a_conflict_at_the_start_leaves_no_draft(
    route: Route, admin_client: Client, actor: Actor
) -> None:
    """What is saved and started is one transaction."""
    first = drafted(actor, route, name="first")
    admin_client.post(page_of(first), form(route, "start", name="first", seen=first.version))
    assert Experiment.objects.get(name="first").state == "running"
    before = state()
    page = admin_client.post(reverse(ADD), form(route, "start", name="second"))
    assert "of the layer default is free" in page.content.decode()
    assert state() == before

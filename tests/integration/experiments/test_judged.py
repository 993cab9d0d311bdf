"""Experiments that a model judges: what their start asks of it, what the pages warn of, and the
rubric beside the number."""

from threading import Event
from typing import Any

import msgspec
import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.experiments.counting import rows_count
from apps.experiments.judged import judges_named, judging_warnings
from apps.experiments.models import Experiment
from apps.experiments.selectors import metrics_of
from apps.experiments.services import experiment_start
from apps.experiments.summary import experiment_results
from apps.experiments.types import MetricSpec
from apps.judging.exceptions import JudgeConflict
from apps.judging.models import Judge
from apps.judging.services import judge_delete, samples_take, score_record
from apps.management.wire.experiments import results_object
from apps.routing.models import Route
from apps.tenants.models import Tenant
from tests.factories import AnswerSampleFactory, ApiTokenFactory, JudgeFactory, TenantFactory
from tests.integration.console.pages import messages
from tests.integration.experiments.made import asked, experiment, said
from tests.integration.experiments.setting import (
    LATENCY,
    drafted,
    ready,
    route_ready,
    started,
    stored,
    two_arms,
)
from tests.integration.experiments.test_at_once import at_once
from tests.integration.experiments.test_pages_setup import ADD, form, page_of
from tests.integration.experiments.test_pages_setup import state as setup_state
from tests.rows import all_of

pytestmark = pytest.mark.django_db

KIND = MetricSpec(metric="judge:kind", role="secondary", better="higher")
RUBRIC = "5: answers <what> was asked.\n1: answers something else."


@pytest.fixture
def route(db: None) -> Route:
    return route_ready()


@pytest.fixture
def judge(db: None) -> Judge:
    made: Judge = JudgeFactory(name="kind", rubric=RUBRIC, route=route_ready("strict"))
    return made


@pytest.fixture
def acme(db: None) -> Tenant:
    tenant: Tenant = TenantFactory(name="Acme", slug="acme", allows_judging=True)
    return tenant


def warnings_of(made: Experiment) -> list[str]:
    return judging_warnings(made, judges_named(made))


def drafted_with(actor: Actor, route: Route, **fields: Any) -> Experiment:
    return drafted(actor, route, **{"metrics": [LATENCY, KIND], **fields})


# -- the start ---------------------------------------------------------------------------------


def test_one_that_can_be_judged_starts(
    actor: Actor, route: Route, judge: Judge, acme: Tenant
) -> None:
    made = started(actor, drafted_with(actor, route))
    assert (made.state, warnings_of(made)) == ("running", [])
    with pytest.raises(JudgeConflict, match="experiment cooler"):
        judge_delete(judge=judge, seen=judge.version, actor=actor)


def _off(judge: Judge) -> None:
    Judge.objects.update(is_on=False)


def _token(**fields: Any) -> Any:
    def change(judge: Judge) -> None:
        Judge.objects.update(api_token=ApiTokenFactory(**fields))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda judge: judge.delete(), "There is no judge 'kind'."),
        (_off, "The judge kind is switched off."),
        (lambda _: Judge.objects.update(api_token=None), "has no API token to ask with"),
        (_token(revoked_at=timezone.now()), "The API token of the judge kind: This API key was re"),
        (_token(scopes=["batches"]), "It is not, or no more, for inference."),
        (_token(allowed_routes="other"), "may not use strict, which it asks"),
        (lambda judge: Route.objects.filter(pk=judge.route_id).update(is_restricted=True),
         "may not use strict, which it asks"),
        (lambda judge: Route.objects.filter(pk=judge.route_id).update(is_active=False),
         "strict, which the judge kind asks, is switched off."),
        (lambda judge: judge.route.targets.get().deployment.replicas.all().delete(),
         "Nothing that strict leads to, which the judge kind asks, is ready."),
    ],
)  # fmt: skip
def test_one_whose_judge_could_not_score_does_not_start(
    actor: Actor, route: Route, judge: Judge, change: Any, says: str
) -> None:
    draft = drafted_with(actor, route)
    change(judge)
    before = stored(draft), all_of(AuditEvent).count()
    with pytest.raises(ValidationError) as refused:
        experiment_start(experiment=draft, seen=draft.version, actor=actor)
    [(field, [text])] = refused.value.message_dict.items()
    assert field == "metrics"
    assert says in text
    assert (stored(draft), all_of(AuditEvent).count()) == before


# -- what the page says ------------------------------------------------------------------------


def test_the_page_offers_judges_that_are_on(
    route: Route, judge: Judge, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    JudgeFactory(name="tired", is_on=False)
    with django_assert_max_num_queries(30):
        page = admin_client.get(reverse(ADD))
    setup = page.context["setup"]
    for field in (setup.form["primary"], setup.form["secondary"], setup.guardrails[0]["metric"]):
        choices = dict(field.field.choices)
        assert choices["judge:kind"] == "Score by kind"
        assert "judge:tired" not in choices


def test_a_draft_keeps_a_judge_that_was_switched_off(
    actor: Actor, route: Route, judge: Judge, admin_client: Client
) -> None:
    draft = drafted_with(actor, route, metrics=[MetricSpec(metric="judge:kind", role="primary")])
    _off(judge)
    page = admin_client.get(page_of(draft))
    assert page.context["setup"].form["primary"].value() == "judge:kind"
    sent = form(route, "save", seen=draft.version, primary="judge:kind", hypothesis="Kinder.")
    assert admin_client.post(page_of(draft), sent).status_code == 302
    assert metrics_of(draft)[0].metric == "judge:kind"
    sent |= {"act": "start", "seen": draft.version + 1}
    html = admin_client.post(page_of(draft), sent).content.decode()
    assert "The judge kind is switched off." in html
    assert Experiment.objects.get().state == "draft"


def test_check_refuses_and_changes_nothing(
    route: Route, judge: Judge, admin_client: Client
) -> None:
    _off(judge)
    before = setup_state()
    sent = form(route, "check", primary="judge:kind")
    Judge.objects.update(is_on=True, api_token=None)
    html = admin_client.post(reverse(ADD), sent).content.decode()
    assert "The judge kind has no API token to ask with." in html
    assert "It could not start as it is" in html
    assert setup_state() == before


@pytest.mark.parametrize("way", ["the route", "a deployment", "another route", "a fallback"])
def test_a_judge_that_is_compared_is_warned_of_and_starts(
    actor: Actor, route: Route, judge: Judge, acme: Tenant, way: str
) -> None:
    arms = two_arms(parameters={"temperature": 0.2})
    asked_of = judge.route.targets.get().deployment
    if way == "the route":
        Judge.objects.update(route=route)
        asked_of = route.targets.get().deployment
    elif way == "a deployment":
        arms = two_arms(asked_of)
    elif way == "another route":
        arms = two_arms(other_route=judge.route)
    else:
        asked_of = ready("spare")
        judge.route.targets.create(deployment=asked_of, weight=0, fallback_order=1)
        arms = two_arms(asked_of)
    made = started(actor, drafted_with(actor, route, variants=arms))
    [warning] = warnings_of(made)
    assert warning.startswith(f"The judge kind asks {asked_of}, which is compared here")
    [line] = experiment_results(made).judges
    assert line.warning == warning


def test_nobody_who_lets_themselves_be_judged_is_warned_of(
    actor: Actor, route: Route, judge: Judge, acme: Tenant, admin_client: Client
) -> None:
    TenantFactory(slug="other")
    TenantFactory(slug="gone", is_active=False, allows_judging=True)
    none_of = "None of the tenants that take part lets its answers be judged: there will be no"
    for slugs, says in (("acme", ""), ("other acme", ""), ("other", none_of), ("gone", none_of)):
        sent = form(route, "check", primary="judge:kind", tenants=slugs)
        page = admin_client.post(reverse(ADD), sent)
        warned = [each.said for each in page.context["setup"].checks if each.tone == "warn"]
        assert [each.startswith(none_of) for each in warned] == [True] * bool(says), slugs
        assert "It could start now" in page.content.decode()
    acme.allows_judging = False
    acme.save()
    answer = admin_client.post(reverse(ADD), form(route, "start", primary="judge:kind"))
    url = answer["Location"]
    assert "No tenant lets its answers be judged: there will be no score." in messages(
        admin_client, url
    )
    assert Experiment.objects.get().state == "running"


def test_without_a_judge_nothing_is_warned_of(actor: Actor, route: Route) -> None:
    assert warnings_of(drafted(actor, route)) == []


# -- results -----------------------------------------------------------------------------------


def test_scores_are_compared_and_their_rubric_stands_beside(
    judge: Judge, acme: Tenant, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    made = experiment(metrics=(("judge:kind", "primary", "higher"),))
    for number in range(12):
        row = asked(made, f"user-{number}", tenant_id=acme.pk)
        AnswerSampleFactory(judge=judge, tenant_id=acme.pk, request_id=row.request_id)
    Judge.objects.update(n_taken=12, n_failed=1, last_problem="It said nothing.")
    scores = [
        (sample, 2 + number % 3) for number, sample in enumerate(samples_take(limit=9, hold_s=60))
    ]
    for sample, score in scores:
        assert score_record(sample=sample, score=score, reason="Because.")
    rows_count()
    results = experiment_results(Experiment.objects.select_related("route").get(pk=made.pk))
    [line] = results.judges
    assert (line.n_counted, line.n_scored, line.n_failed, line.n_waiting) == (9, 9, 1, 3)
    assert (line.key, line.rubric, line.lowest, line.highest) == ("judge:kind", RUBRIC, 1, 5)
    assert (line.route, line.is_on, line.is_gone, line.warning) == ("strict", True, False, "")
    primary = results.primary
    assert primary is not None
    assert (primary.label, primary.key) == ("Score by kind", "judge:kind")
    sums = [sum(pair) for pair in zip(*primary.totals.values(), strict=True)]
    assert sums == [27 * 1_000_000, 9]
    with django_assert_max_num_queries(30):
        html = admin_client.get(page_of(made)).content.decode()
    assert "9 scores counted here." in html
    assert "9 are scored, 1 stays without a score, and 3 wait." in html
    assert "5: answers &lt;what&gt; was asked." in html
    assert '<details id="rubric-kind">' in html
    body = msgspec.to_builtins(results_object(results))
    assert body["judges"][0]["rubric"] == RUBRIC
    assert body["judges"][0]["n_waiting"] == 3


def test_what_a_terminal_says_of_a_judge(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    experiment(metrics=(("judge:kind", "primary", "higher"), ("judge:gone", "secondary", "higher")))
    call_command("experiment", "results", "shorter")
    out = capsys.readouterr().out
    assert "kind: 0 scores counted here\n   of all answers that it took: 0 scored, 0 with" in out
    assert "   1 to 5, by strict, which is told:\n   | 5: answers <what> was asked.\n   | 1:" in out
    assert "gone: 0 scores counted here\n   This judge was deleted, and its rubric with it." in out


def test_of_a_judge_that_is_gone_the_scores_stay(judge: Judge, admin_client: Client) -> None:
    made = experiment(metrics=(("judge:kind", "primary", "higher"),))
    said(asked(made, "ann"), "judge:kind", 4.0)
    rows_count()
    judge.delete()
    [line] = experiment_results(made).judges
    assert (line.is_gone, line.n_counted, line.rubric) == (True, 1, "")
    html = admin_client.get(page_of(made)).content.decode()
    assert "1 score counted here. The judge was deleted, and its rubric with it." in html


def test_results_without_a_judge_say_nothing_of_one(admin_client: Client) -> None:
    made = experiment()
    assert experiment_results(made).judges == ()
    assert "Judges</h2>" not in admin_client.get(page_of(made)).content.decode()


# -- at once -----------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_who_deletes_a_judge_waits_for_whoever_starts_with_it(actor: Actor) -> None:
    """A start that is not yet committed is seen by nobody, and keeps its judge all the same."""
    route = route_ready()
    judge = JudgeFactory(name="kind", route=route_ready("strict"))
    has_started, is_over = Event(), Event()

    def start() -> None:
        with transaction.atomic():
            started(actor, drafted_with(actor, route))
            has_started.set()
            is_over.wait(1)  # which it is not, as it waits for this

    def delete() -> None:
        assert has_started.wait(30)
        with pytest.raises(JudgeConflict, match="experiment cooler"):
            judge_delete(judge=judge, seen=1, actor=actor)
        is_over.set()

    assert at_once([start, delete]) == ["done", "done"]
    assert Experiment.objects.get().state == "running"
    assert Judge.objects.exists()

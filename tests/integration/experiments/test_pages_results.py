"""The page of an experiment that runs: its numbers, its buttons, who may press them, and lists."""

import csv
from io import StringIO
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.models import ChangeStamp
from apps.experiments.counting import rows_count
from apps.experiments.looks import looks_take
from apps.experiments.models import Assignment, Experiment, Variant
from apps.experiments.services import experiment_start
from apps.experiments.summary import experiment_results
from apps.rollouts.models import Rollout
from apps.routing.models import Route, RouteTarget
from tests.factories import UsageRecordFactory, UserFactory
from tests.factories.experiments import AssignmentFactory, ExperimentFactory, VariantFactory
from tests.integration.console.pages import actions, messages, staff
from tests.integration.experiments.made import arm_of
from tests.integration.experiments.setting import drafted, ready, route_ready, two_arms
from tests.rows import all_of

pytestmark = pytest.mark.django_db

MOST_QUERIES = 30


def state() -> dict[str, list[Any]]:
    models = (Experiment, Variant, AuditEvent, ChangeStamp, Route, RouteTarget, Rollout)
    return {model.__name__: list(all_of(model).order_by("pk").values()) for model in models}


def page_of(experiment: Experiment) -> str:
    return reverse("admin:experiments_experiment_change", args=[experiment.pk])


@pytest.fixture
def running(actor: Actor) -> Experiment:
    """``b`` leads to a version that answers in half the time, which 120 people have seen."""
    draft = drafted(actor, route_ready(), variants=two_arms(ready("faster")), hypothesis="Faster.")
    made = experiment_start(experiment=draft, seen=draft.version, actor=actor)
    control, b = made.variants.all()
    for number in range(120):
        arm = b if number % 2 else control
        UsageRecordFactory(
            tenant_id=1,
            route_name=made.route.name,
            end_user=f"user-{number}",
            experiment_arm=arm_of(made, f"user-{number}", variant=arm),
            total_ms=(300.0 if arm == b else 600.0) + 5 * (number % 17),
        )
    rows_count()
    looks_take()
    made.refresh_from_db()
    return made


def test_the_page_says_what_the_results_say(
    running: Experiment, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(MOST_QUERIES):
        page = admin_client.get(page_of(running))
    html = page.content.decode()
    results = experiment_results(running)
    assert results.verdict.best == "b"
    assert results.verdict.headline in html
    assert "Faster." in html
    shown = page.context["shown"]
    assert [arm.sets for arm in shown.arms] == ["as the route has it", "faster"]
    (row,) = shown.metrics[0].rows
    assert (row.arm, row.word, row.tone) == ("b", "Better", "good")
    assert row.effect.startswith("-4") and row.effect in html
    assert float(row.drawn.begin) + float(row.drawn.width) < 50  # left of the zero line
    assert 'data-number="subjects">120<' in html
    assert shown.effects.series[0].path and shown.exposure.series[0].path
    assert f'data-live-topic="experiment={running.pk}"' in html


def test_the_live_part_is_the_part_of_the_page(
    running: Experiment, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(MOST_QUERIES):
        part = admin_client.get(page_of(running), {"part": "live", "metric": "latency/primary"})
    html = part.content.decode()
    assert "<html" not in html
    assert 'data-number="subjects">120<' in html
    assert "no-store" in part["Cache-Control"]


def test_one_that_nobody_has_seen_has_a_page(actor: Actor, admin_client: Client) -> None:
    draft = drafted(actor, route_ready())
    made = experiment_start(experiment=draft, seen=draft.version, actor=actor)
    page = admin_client.get(page_of(made))
    assert page.status_code == 200
    assert "Nothing to draw yet." in page.content.decode()


def test_the_file_has_the_numbers_of_the_results(running: Experiment, admin_client: Client) -> None:
    response = admin_client.get(reverse("admin:experiments_experiment_csv", args=[running.pk]))
    assert response["Content-Disposition"] == 'attachment; filename="experiment-cooler.csv"'
    lines = list(csv.DictReader(StringIO(response.content.decode())))
    results = experiment_results(running)
    whole = [line for line in lines if not line["segment"]]
    assert [(line["metric"], line["variant"], line["is_control"]) for line in whole] == [
        ("latency", "control", "yes"), ("latency", "b", "no"),
    ]  # fmt: skip
    (effect,) = results.metrics[0].effects
    assert float(whole[1]["effect"]) == effect.effect
    assert float(whole[1]["effect_low"]) == effect.low
    assert float(whole[1]["effect_high"]) == effect.high
    assert sum(int(line["subjects"]) for line in whole) == 120
    assert {line["segment"] for line in lines} == {"", "door:rest", "tenant:1"}


def test_stop_needs_a_reason_and_says_it(running: Experiment, admin_client: Client) -> None:
    before = state()
    sent = {"act": "stop", "seen": running.version, "because": "", "winner": "b"}
    admin_client.post(page_of(running), sent)
    assert state() == before
    assert messages(admin_client, page_of(running)) == ["Say why; it is what others will read."]
    admin_client.post(page_of(running), {**sent, "because": "Fast enough."})
    running.refresh_from_db()
    assert (running.state, str(running.winner)) == ("stopped", "b")
    html = admin_client.get(page_of(running)).content.decode()
    assert "Fast enough." in html and "Winner: <b>b</b>" in html


def test_weights_are_set_with_the_version_that_was_seen(
    running: Experiment, admin_client: Client
) -> None:
    sent = {"act": "weights", "seen": running.version, "weight-control": "80", "weight-b": "20"}
    admin_client.post(page_of(running), sent)
    weights = dict(running.variants.values_list("name", "weight"))
    assert weights == {"control": 80, "b": 20}
    before = state()
    admin_client.post(page_of(running), {**sent, "weight-b": "30"})
    assert state() == before
    admin_client.post(page_of(running), {**sent, "seen": running.version + 1, "weight-b": "x"})
    assert state() == before
    said = messages(admin_client, page_of(running))
    assert said[0] == "The weights are set: only the subjects move that must."
    assert "was changed by someone else" in said[1]
    assert said[2] == "The weight of b must be a whole number, 1 to 1,000."


def test_the_winner_becomes_a_rollout_in_one_click(
    running: Experiment, admin_client: Client
) -> None:
    html = admin_client.get(page_of(running)).content.decode()
    assert "Promote b" in html
    sent = {"act": "promote", "seen": running.version, "variant": "b"}
    assert admin_client.post(page_of(running), sent)["Location"] == page_of(running)
    running.refresh_from_db()
    assert (running.state, str(running.winner)) == ("stopped", "b")
    rollout = Rollout.objects.get()
    assert (rollout.route_id, str(rollout.candidate)) == (running.route_id, "faster")
    assert actions()[-1] == "experiment.promoted"
    assert messages(admin_client, page_of(running)) == ["b won: its rollout has begun."]


def test_what_cannot_be_promoted_changes_nothing(running: Experiment, admin_client: Client) -> None:
    before = state()
    for variant in ("control", "nobody"):
        sent = {"act": "promote", "seen": running.version, "variant": variant}
        admin_client.post(page_of(running), sent)
    assert state() == before
    assert messages(admin_client, page_of(running)) == [
        "The control is what the route does already; stop the experiment instead.",
        "Say which variant.",
    ]


@pytest.mark.parametrize(
    ("held", "act", "status"),
    [
        ((), "stop", 403),
        (("view_experiment",), "stop", 403),
        (("view_experiment",), "weights", 403),
        (("view_experiment",), "promote", 403),
        (("view_experiment",), "nonsense", 404),
        (("view_experiment", "change_experiment"), "weights", 403),
        (("view_experiment", "change_experiment"), "promote", 403),
        (("view_experiment", "change_experiment", "change_route"), "promote", 403),
        (("view_experiment", "add_rollout", "change_route"), "promote", 403),
    ],
)
def test_who_may_not_changes_nothing(
    held: tuple[str, ...], act: str, status: int, running: Experiment
) -> None:
    before = state()
    sent = {
        "act": act, "seen": running.version, "variant": "b", "because": "No.",
        "weight-control": "1", "weight-b": "1",
    }  # fmt: skip
    assert staff(*held).post(page_of(running), sent).status_code == status
    assert state() == before


def test_who_only_looks_has_no_buttons(running: Experiment) -> None:
    html = staff("view_experiment").get(page_of(running)).content.decode()
    assert "Faster." in html
    assert 'name="act"' not in html
    stops = staff("view_experiment", "change_experiment").get(page_of(running)).content.decode()
    assert 'value="stop"' in stops and 'value="weights"' not in stops
    nobody = Client()
    nobody.force_login(UserFactory(is_staff=True))
    for url in (
        page_of(running),
        reverse("admin:experiments_experiment_csv", args=[running.pk]),
    ):
        assert nobody.get(url).status_code == 403


def test_the_list_says_how_each_stands(
    running: Experiment, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    for _ in range(5):
        ExperimentFactory()
    ExperimentFactory(stopped=True)
    with django_assert_max_num_queries(12):
        page = admin_client.get(reverse("admin:experiments_experiment_changelist"))
    html = page.content.decode()
    assert html.count("Not started") == 5
    assert "It is enough." in html
    row = next(row for row in page.context["cl"].result_list if row.pk == running.pk)
    assert row.last_look["subjects"]
    (effect,) = experiment_results(running).metrics[0].effects
    assert effect.low is not None
    assert f"b -{abs(100 * effect.low):.0f} %" in html
    assert ">120<" in html


def test_the_list_of_subjects_is_read_in_bounds(running: Experiment, admin_client: Client) -> None:
    url = reverse("admin:experiments_assignment_changelist")
    variant = VariantFactory(experiment=ExperimentFactory(running=True))
    rows = [
        AssignmentFactory.build(
            variant=variant, experiment=variant.experiment, subject=f"{n:016x}", tenant_id=1
        )
        for n in range(2_000)
    ]
    Assignment.objects.bulk_create(rows)
    for query in ({}, {"experiment": variant.experiment_id}, {"q": f"{7:016x}"}):
        with CaptureQueriesContext(connection) as queries:
            page = admin_client.get(url, query)
        assert page.status_code == 200
        assert len(queries) <= 12
        reads = [q["sql"] for q in queries if "experiments_assignment" in q["sql"]]
        assert reads
        assert all("LIMIT" in sql or f"{7:016x}" in sql for sql in reads)
    assert [row.subject for row in page.context["cl"].result_list] == [f"{7:016x}"]

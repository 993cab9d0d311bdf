"""Looks and results: what is kept, what stops, and what people read, from counted rows."""

from datetime import timedelta
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.experiments.counting import rows_count
from apps.experiments.looks import looks_take, looks_thin
from apps.experiments.models import Experiment, Look
from apps.experiments.series import MOST_LOOKS
from apps.experiments.summary import experiment_results
from apps.experiments.tasks import count
from tests.integration.experiments.made import (
    NOON,
    Metrics,
    asked,
    experiment,
    said,
    variants,
)
from tests.integration.experiments.plenty import plenty
from tests.rows import all_of

pytestmark = pytest.mark.django_db

LATENCY: Metrics = (("latency", "primary", "lower"), ("error_rate", "guardrail", "lower"))


def results_of(made: Experiment) -> Any:
    return experiment_results(Experiment.objects.select_related("route").get(pk=made.pk))


def test_a_better_arm_is_told_with_its_interval() -> None:
    made = experiment(metrics=LATENCY, min_effect=0.05)
    plenty(made, n_people=600, slower={"control": 1.0, "b": 0.8})
    rows_count()
    found = results_of(made)
    (effect,) = found.primary.effects
    assert effect.word == "better"
    assert effect.low < -0.2 < effect.high < 0
    assert effect.value < effect.control
    assert found.verdict.best == "b"
    assert found.verdict.may_stop
    assert found.verdict.headline.startswith("b is better: Time of the whole answer is ")
    assert found.verdict.headline.endswith(" % lower. You may stop.")
    assert found.n_subjects == 600
    assert found.n_requests == 1200
    assert sum(arm.share for arm in found.arms) == pytest.approx(1)
    assert not found.mismatch.is_alarm


def test_equal_arms_are_not_clear_and_say_how_many_more() -> None:
    made = experiment(metrics=LATENCY, min_effect=0.02, started_at=timezone.now())
    Experiment.objects.filter(pk=made.pk).update(
        started_at=timezone.now() - timedelta(days=1), weights_set_at=None
    )
    plenty(made, n_people=300, slower={})
    rows_count()
    found = results_of(made)
    assert found.primary.effects[0].word == "unclear"
    assert found.verdict.headline.startswith("Not clear yet in Time of the whole answer. b lies")
    assert not found.verdict.may_stop
    assert found.power.n_more > 0
    assert found.power.per_day == pytest.approx(300, rel=0.01)
    assert found.power.days == pytest.approx(found.power.n_more / 300, rel=0.01)
    assert found.power.detectable > 0.02
    assert " more subjects (" in found.verdict.what_next[0]
    assert "a difference of 2 %" in found.verdict.what_next[0]


def test_an_arm_that_breaks_a_guardrail_is_stopped_with_its_reason() -> None:
    made = experiment(metrics=LATENCY)
    before = made.version
    plenty(made, n_people=400, failing={"control": 0.01, "b": 0.4})
    rows_count()
    assert looks_take() == 1
    made.refresh_from_db()
    assert made.state == "stopped"
    assert made.version == before + 1
    assert made.stopped_because.startswith("b breaks a guardrail: Error rate is ")
    assert made.stopped_because.endswith(" higher; 10 % worse was allowed.")
    event = all_of(AuditEvent).get(action="experiment.stopped")
    assert event.actor_kind == "system"
    assert event.changes["because"] == made.stopped_because
    found = results_of(made)
    assert found.verdict.tone == "bad"
    assert "b breaks a guardrail" in found.verdict.headline


def test_a_guardrail_that_is_kept_stops_nothing() -> None:
    made = experiment(metrics=LATENCY)
    plenty(made, n_people=400, failing={"control": 0.05, "b": 0.05})
    count()
    made.refresh_from_db()
    assert made.state == "running"
    assert made.looked_at is not None


def test_a_look_that_fails_to_stop_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = experiment(metrics=LATENCY)
    plenty(made, n_people=400, failing={"control": 0.01, "b": 0.4})
    rows_count()

    def refuse(**_: Any) -> None:
        raise RuntimeError("no audit")

    monkeypatch.setattr(AuditEvent.objects, "create", refuse)
    with pytest.raises(RuntimeError):
        looks_take()
    made.refresh_from_db()
    assert (made.state, made.looked_at) == ("running", None)
    assert all_of(Look).count() == all_of(AuditEvent).count() == 0


def test_looks_are_taken_with_news_and_no_more_often_than_said() -> None:
    made = experiment()
    now = NOON + timedelta(hours=1)
    assert looks_take(now=now) == 1
    assert all_of(Look).count() == 0  # nobody has taken part
    asked(made, "ann")
    rows_count()
    assert looks_take(now=now + timedelta(seconds=29)) == 0
    assert looks_take(now=now + timedelta(seconds=30)) == 1
    assert looks_take(now=now + timedelta(seconds=60)) == 0
    assert all_of(Look).count() == 1
    (point,) = results_of(made).series
    assert sum(point.n_subjects.values()) == 1
    assert point.effects["latency/primary"]["b"].effect is None


def test_an_infinite_bound_is_kept_as_such() -> None:
    made = experiment(metrics=(("error_rate", "primary", "lower"),))
    plenty(made, n_people=300, failing={"b": 0.1})
    rows_count()
    looks_take()
    (point,) = results_of(made).series
    shown = point.effects["error_rate/primary"]["b"]
    assert (shown.effect, shown.high) == (inf, inf)
    assert results_of(made).primary.effects[0].effect == inf


def test_looks_are_thinned_evenly() -> None:
    made = experiment()
    looks = [
        Look(experiment=made, at=NOON + timedelta(seconds=30 * place), results={})
        for place in range(1, 1001)
    ]
    Look.objects.bulk_create(looks)
    looks_thin(made, now=looks[-1].at)
    left = list(Look.objects.filter(experiment=made).order_by("at").values_list("at", flat=True))
    assert 200 <= len(left) <= MOST_LOOKS + 1
    assert left[-1] == looks[-1].at
    gaps = {later - earlier for earlier, later in pairwise(left)}
    assert max(gaps) <= timedelta(seconds=120)


def test_a_mismatch_is_an_alarm_and_nothing_is_believed() -> None:
    made = experiment(metrics=LATENCY)
    control, b = variants(made)
    for place in range(400):
        arm = control if place % 4 else b
        asked(made, f"person-{place}", variant=arm)
    rows_count()
    found = results_of(made)
    assert found.mismatch.is_alarm
    assert found.mismatch.counts == {"control": 300, "b": 100}
    assert found.verdict.tone == "bad"
    assert not found.verdict.may_stop
    assert found.verdict.best is None
    assert found.verdict.headline.startswith(
        "These results are not to be believed. control has 300 where 200 are expected, b has 100"
    )


def test_after_new_weights_only_who_came_since_is_asked() -> None:
    made = experiment(("control", 50), ("b", 50), metrics=LATENCY)
    control, b = variants(made)
    for place in range(200):
        asked(made, f"old-{place}", variant=(control, b)[place % 2], after_s=10)
    for place in range(200):
        asked(made, f"new-{place}", variant=control if place % 5 else b, after_s=1000)
    rows_count()
    Experiment.objects.filter(pk=made.pk).update(weights_set_at=NOON + timedelta(seconds=500))
    all_of(type(control)).filter(pk=control.pk).update(weight=80)
    all_of(type(control)).filter(pk=b.pk).update(weight=20)
    found = results_of(made)
    assert found.mismatch.counts == {"control": 160, "b": 40}
    assert not found.mismatch.is_alarm


def test_results_take_a_bounded_number_of_queries() -> None:
    made = experiment(("control", 50), ("b", 30), ("c", 20))
    for place in range(60):
        row = asked(made, f"person-{place}", tenant_id=1 + place % 20)
        said(row, "feedback", 1.0)
    rows_count()
    looks_take()
    read = Experiment.objects.select_related("route").get(pk=made.pk)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        found = experiment_results(read)
    assert len(queries) <= 7
    assert len(found.segments) == 21
    assert found.segments[0].label == "Door rest"
    assert found.segments[1].label.startswith("Tenant ")


def test_a_draft_says_so() -> None:
    made = experiment(state="draft", started_at=None, weights_set_at=None)
    assert results_of(made).verdict.headline == "It has not started."


def test_beat_asks_for_it() -> None:
    entry = settings.CELERY_BEAT_SCHEDULE["experiments.count"]
    assert (entry["task"], entry["schedule"]) == (count.name, 10.0)

"""Counting: whatever comes when, totals are what adding up the ledger gives, the plain way."""

import random
from datetime import timedelta
from math import log
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.experiments.counting import rows_count
from apps.experiments.models import Assignment, Experiment
from apps.experiments.tallies import MAX_SEGMENTS
from apps.feedback.models import MetricEvent
from apps.metering.models import UsageRecord
from apps.metering.selectors import requests_before
from apps.metering.types import Whose
from tests.factories import MetricEventFactory, UsageRecordFactory
from tests.integration.experiments.made import (
    NOON,
    arm_of,
    asked,
    experiment,
    said,
    totals,
    variants,
)
from tests.integration.experiments.recount import recount
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def assignment(made: Experiment, person: str) -> Assignment:
    digest = arm_of(made, person).rpartition(".")[2]
    return all_of(Assignment).get(experiment=made, subject=digest)


def test_one_request_of_one_subject() -> None:
    made = experiment()
    control, _ = variants(made)
    asked(
        made, "ann", variant=control, ttft_ms=120.0, total_ms=900.0, n_completion_tokens=50,
        cost_micro=7,
    )  # fmt: skip
    assert rows_count() == 1
    found = totals(made)
    assert {key[2] for key in found} == {"", "tenant:1", "door:rest"}
    whole = {metric: sums[:3] for (_, metric, segment), sums in found.items() if segment == ""}
    assert whole == {
        "requests": [1, 1, 1],
        "error_rate": [1, 0, 1],
        "ttft": [1, round(1e6 * log(120_000)), 1],
        "itl": [1, round(1e6 * log(780_000 / 49)), 1],
        "latency": [1, round(1e6 * log(900_000)), 1],
        "completion_tokens": [1, 50, 1],
        "cost": [1, 7, 1],
        "empty_rate": [1, 0, 1],
        "sum:score": [1, 0, 1],
    }
    row = assignment(made, "ann")
    assert (row.n_requests, row.door, row.variant, row.is_crossed) == (1, "rest", control, False)
    assert row.first_seen_at == row.last_seen_at == NOON + timedelta(minutes=1)
    assert rows_count() == 0
    assert totals(made) == found


def test_what_grew_takes_the_place_of_what_was() -> None:
    made = experiment()
    asked(made, "ann", n_completion_tokens=10)
    rows_count()
    asked(made, "ann", n_completion_tokens=30)
    rows_count()
    (sums,) = [
        sums
        for (_, metric, segment), sums in totals(made).items()
        if (metric, segment) == ("completion_tokens", "")
    ]
    assert sums[:3] == [1, 40, 2]
    assert sums[5] == 1600  # of one subject with 40, not of one with 10 and one with 30


def test_an_aborted_request_is_a_request_and_nothing_else() -> None:
    made = experiment()
    asked(made, "ann", outcome="aborted", cost_micro=9)
    rows_count()
    assert {metric for _, metric, _ in totals(made)} == {"requests", "sum:score"}


def test_a_request_that_was_moved_is_one_request_whose_first_try_failed() -> None:
    made = experiment()
    first = asked(
        made, "ann", outcome="failed", ttft_ms=None, total_ms=50.0, n_completion_tokens=0,
        cost_micro=3,
    )  # fmt: skip
    asked(
        made, "ann", request_id=f"{first.request_id}-2", attempt=2, is_fallback=True, cost_micro=4,
        n_completion_tokens=20,
    )  # fmt: skip
    rows_count()
    found = {metric: sums[1:3] for (_, metric, seg), sums in totals(made).items() if not seg}
    assert found["requests"] == [1, 1]
    assert found["error_rate"] == [1, 1]
    assert found["cost"] == [7, 1]
    assert found["completion_tokens"] == [20, 1]
    assert assignment(made, "ann").n_requests == 1


def test_a_subject_seen_in_two_arms_is_in_none() -> None:
    made = experiment()
    control, b = variants(made)
    asked(made, "ann", variant=control)
    asked(made, "bob", variant=control)
    rows_count()
    asked(made, "ann", variant=b, after_s=90)
    rows_count()
    found = totals(made)
    assert found["control", "requests", ""][:2] == [1, 1]
    assert found["control", "crossed", ""][:2] == [1, 1]
    assert ("b", "requests", "") not in found
    row = assignment(made, "ann")
    assert (row.is_crossed, row.n_requests, row.variant) == (True, 2, control)


def test_feedback_that_changes_replaces_what_was_counted() -> None:
    made = experiment()
    row = asked(made, "ann")
    thumbs = said(row, "feedback", 1.0)
    said(row, "score", 2.5)
    said(row, "unknown", 1.0)
    rows_count()
    found = {metric: sums[1:3] for (_, metric, seg), sums in totals(made).items() if not seg}
    assert (found["thumbs_up_rate"], found["event:score"], found["sum:score"]) == (
        [1, 1], [2_500_000, 1], [2_500_000, 1],
    )  # fmt: skip
    all_of(MetricEvent).filter(pk=thumbs.pk).update(value=0.0, is_in_experiments=False)
    rows_count()
    found = {metric: sums[1:3] for (_, metric, seg), sums in totals(made).items() if not seg}
    assert found["thumbs_up_rate"] == [0, 1]


def test_an_event_of_a_person_counts_from_their_first_request_to_the_stop() -> None:
    made = experiment(state="stopped", stopped_at=NOON + timedelta(hours=1))
    asked(made, "ann", after_s=60)
    for person, after_s in (("ann", 30), ("ann", 90), ("bob", 90), ("ann", 3601)):
        MetricEventFactory(
            tenant_id=1, request_id="", end_user=person, name="score", value=4.0,
            created_at=NOON + timedelta(seconds=after_s),
        )  # fmt: skip
    MetricEventFactory(  # the same name in another tenant is somebody else
        tenant_id=2, request_id="", end_user="ann", name="score", value=8.0,
        created_at=NOON + timedelta(seconds=90),
    )  # fmt: skip
    assert rows_count() == 6
    found = {metric: sums[1:3] for (_, metric, seg), sums in totals(made).items() if not seg}
    assert found["event:score"] == [4_000_000, 1]
    assert all_of(Assignment).count() == 1


def test_what_is_gone_or_reads_badly_holds_nothing_up() -> None:
    made = experiment()
    row = asked(made, "ann")
    all_of(UsageRecord).filter(pk=row.pk).update(experiment_arm="nonsense,e1")
    asked(made, "bob")
    other = asked(made, "cleo")
    all_of(UsageRecord).filter(pk=other.pk).update(experiment_arm="e999999.v1.0123456789abcdef")
    assert rows_count() == 3
    assert all_of(Assignment).count() == 1


def test_a_request_in_two_experiments_counts_in_both() -> None:
    one, two = experiment(name="one"), experiment(name="two")
    row = asked(one, "ann")
    all_of(UsageRecord).filter(pk=row.pk).update(
        experiment_arm=f"{row.experiment_arm},{arm_of(two, 'ann')}"
    )
    rows_count()
    for made in (one, two):
        assert assignment(made, "ann").n_requests == 1
        assert (
            sum(sums[1] for (_, m, s), sums in totals(made).items() if (m, s) == ("requests", ""))
            == 1
        )


def test_tenants_beyond_the_bound_are_in_all_only() -> None:
    made = experiment()
    for tenant_id in range(1, MAX_SEGMENTS + 20):
        asked(made, "ann", tenant_id=tenant_id)
    rows_count()
    found = totals(made)
    segments = {segment for _, _, segment in found} - {""}
    assert len(segments) == MAX_SEGMENTS
    n_all = sum(s[1] for (_, m, seg), s in found.items() if (m, seg) == ("requests", ""))
    assert n_all == MAX_SEGMENTS + 19
    # They stay so when they come again, and what is there stays exact.
    for tenant_id in range(1, MAX_SEGMENTS + 20):
        asked(made, "ann", tenant_id=tenant_id)
    rows_count()
    assert {segment for _, _, segment in totals(made)} - {""} == segments
    assert {
        sums[1] for (_, m, seg), sums in totals(made).items() if m == "requests" and "tenant" in seg
    } == {2}


@pytest.mark.parametrize("rows_at_a_time", [7, 1000])
def test_any_order_gives_what_adding_up_the_ledger_gives(rows_at_a_time: int) -> None:
    made = experiment(("control", 50), ("b", 30), ("c", 20), pre_period_days=7)
    rng = random.Random(8)
    control, b, _ = variants(made)
    rows = before(made, rng)
    rows = [anything(made, rng) for _ in range(150)]
    rows.append(asked(made, "person-3", variant=control))
    rows.append(asked(made, "person-3", variant=b))
    for row in rng.sample(rows, 60):
        said(row, "score", rng.uniform(-1, 5))
    for row in rng.sample(rows, 60):
        said(row, "feedback", float(rng.random() < 0.6))
    ids = [row.pk for row in rows]
    rng.shuffle(ids)
    all_of(UsageRecord).filter(pk__in=ids).update(state="reserved", settled_at=None, outcome="")
    settled = {row.pk: (row.outcome, row.settled_at) for row in rows}
    while ids:  # as requests end: in any order, some at a time
        for pk in ids[:40]:
            outcome, at = settled[pk]
            all_of(UsageRecord).filter(pk=pk).update(
                state="settled", settled_at=at, outcome=outcome
            )
        del ids[:40]
        rows_count(rows_at_a_time=rows_at_a_time)
    expected = recount(made)
    assert totals(made) == expected
    assert len(expected) > 100
    assert any(sums[4] for sums in expected.values())  # a past is among it


def before(made: Experiment, rng: random.Random) -> list[UsageRecord]:
    """Requests of the days before, in the experiment's pre-period, outside it and elsewhere."""
    rows = []
    for _ in range(60):
        row = anything(made, rng)
        rows.append(row)
        days = rng.choice((0.5, 3.0, 6.9, 7.5))
        all_of(UsageRecord).filter(pk=row.pk).update(
            experiment_arm="",
            created_at=NOON - timedelta(days=days),
            route_name=rng.choice((made.route.name, made.route.name, "other")),
        )
    return rows


def anything(made: Experiment, rng: random.Random) -> Any:
    outcome = rng.choices(["completed", "failed", "aborted", "interrupted"], [80, 9, 8, 3])[0]
    is_answer = outcome == "completed"
    return asked(
        made,
        f"person-{rng.randrange(40)}",
        tenant_id=rng.choice((1, 1, 2, 3)),
        door=rng.choice(("rest", "rest", "websocket", "batch")),
        after_s=rng.uniform(0, 3000),
        outcome=outcome,
        finish_reason=rng.choice(("stop", "length", "content_filter")) if is_answer else "",
        n_completion_tokens=rng.choice((0, 1, 2, 17, 300)),
        ttft_ms=rng.choice((None, rng.lognormvariate(5, 1)))
        if not is_answer
        else rng.lognormvariate(5, 1),
        total_ms=rng.lognormvariate(7, 1),
        cost_micro=rng.randrange(5000),
    )


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite explains itself otherwise")
def test_what_people_did_before_is_found_by_their_index() -> None:
    """Though they are few among many, and the time alone would find all."""
    for person in range(600):
        asked_before(f"person-{person}")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE metering_usagerecord")
    whose = Whose(tenant_ids=frozenset([1]), end_users=frozenset(["person-3", "person-4"]))
    with CaptureQueriesContext(connection) as queries:
        found = requests_before(
            route_name="chat", since=NOON - timedelta(days=7), until=NOON, whose=whose, limit=100
        )
    assert {row.end_user for row in found} == {"person-3", "person-4"}
    (query,) = queries
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {query['sql']}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "usage_end_user_idx" in plan


def asked_before(person: str) -> None:
    UsageRecordFactory(end_user=person, route_name="chat", created_at=NOON - timedelta(days=1))

"""What is said of answers: kept once, changed as people do, and handed out to be counted once."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from apps.core.tenancy import every_tenant
from apps.feedback.exceptions import EventIdReused, RequestNotFound
from apps.feedback.models import MetricEvent
from apps.feedback.selectors import events_of_request, metric_event_newest, values_of_requests
from apps.feedback.services import events_take, feedback_give, metric_event_record
from apps.feedback.types import Event, ObservedEvent, Rating, Teller
from tests.factories import MetricEventFactory, TenantFactory, UsageRecordFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
TELLER = Teller(tenant_id=1, api_token_id=3)
ARMS = {"experiment_arm": "exp:b:5a", "rollout_arm": "7:0:candidate"}


def give(request_id: str, rating: str, **fields: Any) -> Event:
    return feedback_give(
        request_id=request_id, rating=Rating(rating), **{"teller": TELLER} | fields
    )


def record(**fields: Any) -> Event:
    return metric_event_record(**{"name": "clicks", "value": 2, "teller": TELLER} | fields)


def taken(comparison: Any = "experiment") -> list[tuple[str, float, float | None]]:
    """Who counts asks in a transaction of its own."""
    return [(each.name, each.value, each.previous) for each in events_take(comparison, limit=100)]


# -- feedback --------------------------------------------------------------------------------------


def test_feedback_has_what_its_request_had() -> None:
    UsageRecordFactory(request_id="r", end_user="ann", **ARMS)
    said = give("r", "down", comment="too long\0")
    row = all_of(MetricEvent).get()
    assert said == Event(
        id=row.pk,
        name="feedback",
        value=0.0,
        request_id="r",
        end_user="ann",
        comment="too long\ufffd",
        event_id="",
        created_at=row.created_at,
    )
    assert said.rating is Rating.DOWN
    assert (row.experiment_arm, row.rollout_arm) == tuple(ARMS.values())
    assert (row.tenant_id, row.api_token_id, row.user_id) == (1, 3, None)


def test_who_changes_their_mind_is_heard_and_counted_anew() -> None:
    UsageRecordFactory(request_id="r", **ARMS)
    give("r", "up", comment="nice")
    assert taken() == [("feedback", 1.0, None)]
    assert taken() == []
    assert give("r", "down").comment == ""  # replaced as a whole
    assert all_of(MetricEvent).count() == 1
    assert taken() == [("feedback", 0.0, 1.0)]
    assert taken("rollout") == [("feedback", 0.0, None)]  # it never saw the first
    assert taken() == taken("rollout") == []


def test_the_same_again_is_nothing_to_count() -> None:
    UsageRecordFactory(request_id="r", **ARMS)
    give("r", "up")
    taken()
    give("r", "up", comment="indeed")
    assert taken() == []
    assert all_of(MetricEvent).get().comment == "indeed"
    for rating in ("down", "up"):  # there and back before anybody looked
        give("r", rating)
    assert sum(value - (previous or 0.0) for _, value, previous in taken()) == 0.0


def test_a_request_that_was_moved_is_rated_by_any_of_its_ids() -> None:
    """Its client may know the first or the last; the last one's engine answered."""
    UsageRecordFactory(request_id="r", outcome="failed", rollout_arm="1:0:candidate")
    UsageRecordFactory(request_id="r-2", attempt=2, rollout_arm="1:0:baseline")
    assert give("r", "up").request_id == give("r-2", "down").request_id == "r-2"
    assert record(request_id="r").request_id == "r-2"
    row = all_of(MetricEvent).get(name="feedback")
    assert (row.value, row.rollout_arm) == (0.0, "1:0:baseline")


@pytest.mark.parametrize("request_id", ["theirs", "nobody's", "the\0irs", ""])
def test_a_request_of_another_tenant_is_not_there(request_id: str) -> None:
    UsageRecordFactory(request_id="theirs", tenant_id=2)
    with pytest.raises(RequestNotFound):
        give(request_id, "up")
    if request_id:
        with pytest.raises(RequestNotFound):
            record(request_id=request_id)
    assert not all_of(MetricEvent).exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 0.5},
        {"request_id": ""},
        {"name": "x", "value": 1.1e12},
        {"name": "x", "value": -1.1e12},
        {"name": "x", "value": float("inf")},
    ],
)
def test_the_database_refuses_what_makes_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        MetricEventFactory(**fields)


# -- events ----------------------------------------------------------------------------------------


def test_events_add_up_and_one_with_an_id_is_told_once() -> None:
    UsageRecordFactory(request_id="r", end_user="ann", **ARMS)
    for _ in range(2):
        record(request_id="r")
    first = record(request_id="r", event_id="e1", happened_at=NOON)
    assert record(request_id="r", event_id="e1") == first
    assert first.created_at == NOON
    for other in ({"value": 3}, {"name": "buys"}, {"request_id": "", "end_user": "ann"}):
        with pytest.raises(EventIdReused):
            record(**{"request_id": "r", "event_id": "e1"} | other)
    assert record(end_user="ann", event_id="e1", teller=Teller(tenant_id=2)).id != first.id
    assert all_of(MetricEvent).filter(tenant_id=1).count() == 3


def test_an_event_of_an_end_user_is_for_experiments_to_attribute() -> None:
    record(end_user="ann", value=4.5, happened_at=NOON)
    assert events_take("rollout", limit=100) == []
    assert events_take("experiment", limit=100) == [
        ObservedEvent(
            name="clicks",
            value=4.5,
            previous=None,
            arm="",
            tenant_id=1,
            request_id="",
            end_user="ann",
            created_at=NOON,
        )
    ]
    assert taken() == []


def test_what_is_in_no_comparison_is_not_handed_out() -> None:
    UsageRecordFactory(request_id="r")
    give("r", "up")
    assert taken() == taken("rollout") == []


def test_what_is_taken_goes_back_with_the_transaction() -> None:
    UsageRecordFactory(request_id="r", **ARMS)
    give("r", "up")
    with pytest.raises(RuntimeError), transaction.atomic():
        assert taken() == [("feedback", 1.0, None)]
        raise RuntimeError("before the sums were written")
    assert taken() == [("feedback", 1.0, None)]


def test_the_oldest_are_taken_first_and_no_more_than_asked_for() -> None:
    for index in range(5):
        MetricEventFactory(name=f"n{index}", experiment_arm="a")
    assert [each.name for each in events_take("experiment", limit=3)] == ["n0", "n1", "n2"]
    assert [name for name, _, _ in taken()] == ["n3", "n4"]


@pytest.mark.parametrize(
    ("comparison", "index"),
    [("experiment", "metric_event_experiment_idx"), ("rollout", "metric_event_rollout_idx")],
)
def test_those_who_count_read_what_waits_and_not_all(comparison: Any, index: str) -> None:
    MetricEventFactory.create_batch(300, is_in_experiments=True, is_in_rollout=True, **ARMS)
    asked: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        asked.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        assert events_take(comparison, limit=100) == []
    sql, params = next(each for each in asked if each[0].startswith("SELECT"))
    is_sqlite = connection.vendor == "sqlite"
    with connection.cursor() as cursor:
        if not is_sqlite:  # of so few rows, it would rather read all
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {'QUERY PLAN' if is_sqlite else ''} {sql}", params)
        plan = " ".join(str(column) for row in cursor.fetchall() for column in row)
    assert index in plan, plan


# -- at the same time ------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_many_minds_at_a_time_leave_one_and_the_sums_are_its() -> None:
    """Whoever gives and whoever counts meet in every order; what was counted in the end is what
    stands."""
    names = [f"r{index}" for index in range(4)]
    for name in names:
        UsageRecordFactory(request_id=name, **ARMS)
    jobs: list[tuple[str, str]] = [(name, each) for name in names for each in ("up", "down") * 4]
    jobs += [("", "")] * 12
    random.Random(5).shuffle(jobs)

    @every_tenant("a thread of a test")
    def run(job: tuple[str, str]) -> float:
        try:
            if job[0]:
                give(*job)
                return 0.0
            return sum(value - (before or 0.0) for _, value, before in taken())
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        total = sum(pool.map(run, jobs))
    total += sum(value - (previous or 0.0) for _, value, previous in taken())
    stands = all_of(MetricEvent).values_list("value", flat=True)
    assert len(stands) == len(names)
    assert total == sum(stands)


# -- reads -----------------------------------------------------------------------------------------


def test_what_was_said_of_requests() -> None:
    for name in ("r", "s"):
        UsageRecordFactory(request_id=name)
        record(request_id=name, value=3)
    record(request_id="r", value=1)
    give("r", "up")
    UsageRecordFactory(request_id="silent")
    said = events_of_request(tenant_id=1, row_ids=["r", "r-2"], limit=2)
    assert [(each.name, each.value) for each in said] == [("feedback", 1.0), ("clicks", 1.0)]
    assert events_of_request(tenant_id=2, row_ids=["r"], limit=9) == []
    found = values_of_requests("clicks", request_ids=["r", "s", "silent"])
    assert found == {"r": [3.0, 1.0], "s": [3.0]}


def test_where_the_lists_begin() -> None:
    assert metric_event_newest(None) == metric_event_newest({1}) == 0
    seen, other, silent = (TenantFactory().pk for _ in range(3))
    first = MetricEventFactory(tenant_id=seen).pk
    last = MetricEventFactory(tenant_id=other).pk
    assert metric_event_newest(None) == metric_event_newest({seen, other}) == last
    assert metric_event_newest({seen, silent}) == first
    assert metric_event_newest({silent}) == metric_event_newest(set()) == 0

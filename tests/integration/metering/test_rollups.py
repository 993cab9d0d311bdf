"""Roll-ups: whatever happens when, they are what adding up the ledger gives."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.db import OperationalError, connection
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.metering.histograms import bucket_of
from apps.metering.models import UsageRecord, UsageRollup
from apps.metering.rollups import SUMS, RollupKey, rebuild
from apps.metering.services import usage_roll_up
from apps.metering.tasks import roll_up
from tests.factories import UsageRecordFactory
from tests.rows import all_of

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
Sums = dict[tuple[Any, ...], dict[str, int]]


def plain_sums(rows: Any = None) -> Sums:
    """The ledger added up, the plain way, per hour and per day."""
    sums: dict[tuple[Any, ...], Counter[str]] = {}
    for row in all_of(UsageRecord).filter(state="settled") if rows is None else rows:
        for granularity in ("hour", "day"):
            start = row.created_at.replace(minute=0, second=0, microsecond=0)
            if granularity == "day":
                start = start.replace(hour=0)
            key = (
                granularity, start, row.tenant_id, row.api_token_id or 0, row.route_name,
                row.model_version_id,
            )  # fmt: skip
            found = sums.setdefault(key, Counter())
            found["n_requests"] += 1
            found["n_failed"] += row.outcome in ("failed", "interrupted")
            for name in ("n_prompt_tokens", "n_cached_tokens", "n_completion_tokens", "cost_micro"):
                found[name] += getattr(row, name)
            for name, time_ms in (("ttft", row.ttft_ms), ("total", row.total_ms)):
                if time_ms is not None:
                    found[f"{name}_us_sum"] += round(time_ms * 1000)
                    found[f"{name}_{bucket_of(time_ms)}"] += 1
    return {key: {name: n for name, n in found.items() if n} for key, found in sums.items()}


def rolled_up() -> Sums:
    sums: Sums = {}
    for row in all_of(UsageRollup).all():
        key = (
            row.granularity, row.period_start, row.tenant_id, row.api_token_id, row.route_name,
            row.model_version_id,
        )  # fmt: skip
        found = {name: getattr(row, name) for name in SUMS}
        for name in ("ttft", "total"):
            buckets = getattr(row, f"{name}_buckets")
            found |= {f"{name}_{index}": n for index, n in enumerate(buckets)}
        sums[key] = {name: n for name, n in found.items() if n}
    return sums


def settled(**fields: Any) -> UsageRecord:
    return UsageRecordFactory(created_at=NOON, **fields)


@pytest.mark.django_db
def test_an_hour_and_a_day_of_one_request() -> None:
    settled(tenant_id=7, api_token_id=3, cost_micro=11, ttft_ms=20.5, total_ms=900.0)
    assert usage_roll_up() == 1
    hour, day = all_of(UsageRollup).order_by("-period_start")
    assert (hour.granularity, hour.period_start) == ("hour", NOON)
    assert (day.granularity, day.period_start) == ("day", NOON.replace(hour=0))
    for row in (hour, day):
        assert (row.tenant_id, row.api_token_id, row.route_name) == (
            7,
            3,
            "smollm2-135m-instruct",
        )
        assert (row.n_requests, row.n_failed, row.cost_micro) == (1, 0, 11)
        assert (row.n_prompt_tokens, row.n_cached_tokens, row.n_completion_tokens) == (30, 16, 50)
        assert (row.ttft_us_sum, row.total_us_sum) == (20_500, 900_000)
        assert row.ttft_buckets[bucket_of(20.5)] == sum(row.ttft_buckets) == 1


@pytest.mark.django_db
def test_a_second_run_adds_nothing() -> None:
    settled()
    assert (usage_roll_up(), usage_roll_up()) == (1, 0)
    roll_up()
    assert rolled_up() == plain_sums()


@pytest.mark.django_db
def test_a_request_that_runs_is_not_in_them_and_counts_when_it_came() -> None:
    row = UsageRecordFactory(open=True, created_at=NOON)
    assert usage_roll_up() == 0
    assert not all_of(UsageRollup).exists()
    # Settled a day late, as the sweep does.
    all_of(UsageRecord).filter(pk=row.pk).update(
        state="settled", outcome="interrupted", settled_at=NOON + timedelta(days=1)
    )
    assert usage_roll_up() == 1
    assert {start for _, start, *_ in rolled_up()} == {NOON, NOON.replace(hour=0)}
    assert all_of(UsageRollup).get(granularity="day").n_failed == 1


@pytest.mark.django_db
def test_one_run_does_a_bounded_part() -> None:
    for _ in range(5):
        settled()
    assert usage_roll_up(rows_at_a_time=2, rows_at_most=3) == 3
    assert usage_roll_up(rows_at_a_time=2) == 2
    assert rolled_up() == plain_sums()


@pytest.mark.django_db(transaction=True)
def test_a_run_that_is_cut_off_leaves_nothing_or_all() -> None:
    settled()
    with (
        patch("django.db.models.query.QuerySet.update", side_effect=OperationalError),
        pytest.raises(OperationalError),
    ):
        usage_roll_up()
    assert not all_of(UsageRollup).exists()
    assert not all_of(UsageRecord).get().is_rolled_up
    usage_roll_up()
    assert rolled_up() == plain_sums()


ROWS = st.fixed_dictionaries(
    {
        "tenant_id": st.integers(1, 2),
        "api_token_id": st.sampled_from([None, 1, 2]),
        "route_name": st.sampled_from(["a", "b"]),
        "model_version_id": st.integers(1, 2),
        "created_at": st.integers(0, 30).map(lambda n: NOON + timedelta(minutes=50 * n)),
        "n_prompt_tokens": st.integers(0, 10**6),
        "n_cached_tokens": st.integers(0, 10**6),
        "n_completion_tokens": st.integers(0, 10**6),
        "cost_micro": st.integers(0, 10**15),
        "outcome": st.sampled_from(["completed", "aborted", "failed", "interrupted"]),
        "ttft_ms": st.none() | st.floats(0, 10**6),
        "total_ms": st.none() | st.floats(0, 10**6),
    }
)
# reserve: a row that is open; settle: the oldest that is open, or the newest; roll up: some rows.
STEPS = st.one_of(
    ROWS.map(lambda fields: ("reserve", fields)),
    st.booleans().map(lambda newest: ("settle", newest)),
    st.integers(1, 4).map(lambda n: ("roll_up", n)),
    st.just(("killed", 0)),
)


@pytest.mark.django_db
@given(steps=st.lists(STEPS, min_size=4, max_size=40))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_roll_ups_are_the_ledger_added_up(steps: list[tuple[str, Any]]) -> None:
    all_of(UsageRecord).all().delete()
    all_of(UsageRollup).all().delete()
    waiting: list[tuple[int, dict[str, Any]]] = []
    for kind, value in steps:
        if kind == "reserve":
            row = UsageRecordFactory(open=True, **_open(value))
            waiting.append((row.pk, value))
        elif kind == "settle" and waiting:
            pk, fields = waiting.pop(-1 if value else 0)
            all_of(UsageRecord).filter(pk=pk).update(
                state="settled", settled_at=timezone.now(), **fields
            )
        elif kind == "roll_up":
            usage_roll_up(rows_at_a_time=value, rows_at_most=2 * value)
        elif kind == "killed":
            _killed_run()
        assert rolled_up() == plain_sums(all_of(UsageRecord).filter(is_rolled_up=True))
    usage_roll_up()
    assert rolled_up() == plain_sums()
    assert not all_of(UsageRecord).filter(state="reserved", is_rolled_up=True).exists()


def _open(fields: dict[str, Any]) -> dict[str, Any]:
    ended = ("outcome", "ttft_ms", "total_ms", "n_completion_tokens", "n_cached_tokens")
    return {name: value for name, value in fields.items() if name not in (*ended, "cost_micro")}


def _killed_run() -> None:
    with patch("django.db.models.query.QuerySet.update", side_effect=OperationalError):
        try:
            usage_roll_up()
        except OperationalError:
            return
    assert not all_of(UsageRecord).filter(state="settled", is_rolled_up=False).exists()


@pytest.mark.django_db(transaction=True)
def test_runs_at_a_time_count_each_request_once() -> None:
    for index in range(60):
        UsageRecordFactory(open=index % 2 == 1, created_at=NOON, tenant_id=index % 3)
    pks = list(all_of(UsageRecord).filter(state="reserved").values_list("pk", flat=True))
    random.Random(7).shuffle(pks)

    def settle(pk: int) -> int:
        all_of(UsageRecord).filter(pk=pk).update(
            state="settled", outcome="completed", settled_at=NOON
        )
        return 0

    def run(job: int) -> int:
        try:
            return settle(pks[job]) if job < len(pks) else usage_roll_up(rows_at_a_time=7)
        finally:
            connection.close()

    jobs = [*range(len(pks)), *[len(pks)] * 12]
    random.Random(8).shuffle(jobs)
    with ThreadPoolExecutor(6) as pool:
        n_added = sum(pool.map(run, jobs))
    while n_more := usage_roll_up():
        n_added += n_more
    assert n_added == 60
    assert rolled_up() == plain_sums()


@pytest.mark.django_db
@pytest.mark.parametrize("damage", [{"n_requests": 9}, {"cost_micro": 1, "n_failed": 4}])
def test_a_wrong_roll_up_is_made_again(damage: dict[str, int]) -> None:
    settled()
    settled(outcome="failed", ttft_ms=None, cost_micro=3)
    usage_roll_up()
    all_of(UsageRollup).filter(granularity="hour").update(**damage)
    settled(n_prompt_tokens=5)  # waits to be rolled up: not this one's to count
    expected = plain_sums(all_of(UsageRecord).filter(is_rolled_up=True))
    rebuild(RollupKey.of(all_of(UsageRollup).get(granularity="hour")))
    assert rolled_up() == expected
    usage_roll_up()
    assert rolled_up() == plain_sums()


@pytest.mark.django_db
def test_a_roll_up_of_nothing_goes_and_a_missing_one_comes() -> None:
    settled()
    usage_roll_up()
    key = RollupKey.of(all_of(UsageRollup).get(granularity="hour"))
    all_of(UsageRollup).filter(granularity="hour").delete()
    rebuild(key)
    assert rolled_up() == plain_sums()
    all_of(UsageRecord).all().delete()
    rebuild(key)
    assert not all_of(UsageRollup).filter(granularity="hour").exists()

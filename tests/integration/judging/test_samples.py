"""Answers that wait for a judge: kept within its day, taken by one at a time, scored once."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.feedback.models import MetricEvent
from apps.judging.models import AnswerSample, Judge
from apps.judging.samples import (
    sample_give_up,
    sample_put_back,
    samples_erase,
    samples_keep,
    samples_take,
    score_record,
    withdrawn_samples_forget,
)
from apps.judging.services import judge_create, judge_delete
from apps.judging.types import MAX_ATTEMPTS, JudgedText, TakenSample, Turn
from apps.tenants.models import Tenant
from tests.factories import ApiTokenFactory, RouteFactory, TenantFactory, UsageRecordFactory
from tests.rows import all_of

pytestmark = pytest.mark.django_db(transaction=True)

TEXT = JudgedText(asked=(Turn("user", "Is it heliotrope?"),), answer="It is.")


@pytest.fixture
def tenant() -> Tenant:
    return TenantFactory(allows_judging=True)


@pytest.fixture
def judge() -> Judge:
    return made()


def made(name: str = "helpful", **fields: Any) -> Judge:
    return judge_create(
        actor=SYSTEM,
        name=name,
        rubric="1 or 5.",
        route=RouteFactory(name=f"route-{name}"),
        api_token=ApiTokenFactory(),
        **fields,
    )


def kept(*judges: Judge, tenant: Tenant, number: int = 1, **fields: Any) -> int:
    return samples_keep(
        **{
            "judge_ids": [judge.pk for judge in judges],
            "tenant_id": tenant.pk,
            "request_id": f"chatcmpl-{number}",
            "end_user": "joe",
            "text": TEXT,
            **fields,
        }
    )


def taken(limit: int = 10, hold_s: float = 60.0, **fields: Any) -> list[TakenSample]:
    return samples_take(limit=limit, hold_s=hold_s, **fields)


def due(**fields: Any) -> None:
    """Let the time pass that samples are held, or wait."""
    all_of(AnswerSample).update(due_at=timezone.now() - timedelta(seconds=1), **fields)


def counts(judge: Judge) -> tuple[int, int, int]:
    judge.refresh_from_db()
    return judge.n_taken, judge.n_scored, judge.n_failed


def at_once(n: int, work: Callable[[int], Any]) -> list[Any]:
    """Each in a thread and on a connection of its own, all begun together."""
    ready = threading.Barrier(n)

    def run(number: int) -> Any:
        try:
            ready.wait(10)
            return work(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


# -- keeping --------------------------------------------------------------------------------------


def test_kept_and_sealed(judge: Judge, tenant: Tenant) -> None:
    assert kept(judge, tenant=tenant, end_user="jo\0e") == 1
    (row,) = all_of(AnswerSample)
    assert (row.judge_id, row.tenant_id, row.request_id) == (judge.pk, tenant.pk, "chatcmpl-1")
    assert (row.end_user, row.attempt) == ("jo\ufffde", 0)
    assert "heliotrope" not in row.sealed
    with connection.cursor() as cursor:
        cursor.execute("SELECT sealed FROM judging_answersample")
        (sealed,) = cursor.fetchone()
    assert "heliotrope" not in sealed and "It is" not in sealed
    (sample,) = taken()
    assert sample.text == TEXT
    assert "heliotrope" not in repr(sample)


@pytest.mark.parametrize("fields", [{"allows_judging": False}, {"is_active": False}])
def test_of_a_tenant_that_does_not_allow_it_nothing(
    judge: Judge, tenant: Tenant, fields: dict[str, Any]
) -> None:
    Tenant.objects.filter(pk=tenant.pk).update(**fields)
    assert kept(judge, tenant=tenant) == 0
    assert all_of(AnswerSample).count() == 0
    assert counts(judge) == (0, 0, 0)


def test_for_a_judge_that_is_off_or_gone_nothing(tenant: Tenant) -> None:
    off, gone, on = made("off", is_on=False), made("gone"), made("on")
    judge_delete(judge=gone, seen=gone.version, actor=SYSTEM)
    gone.pk = 10**6
    assert kept(off, gone, on, tenant=tenant) == 1
    assert [row.judge_id for row in all_of(AnswerSample)] == [on.pk]
    assert counts(off) == (0, 0, 0)


def test_a_day_and_the_next(tenant: Tenant) -> None:
    judge = made(per_day=2)
    assert [kept(judge, tenant=tenant, number=number) for number in range(4)] == [1, 1, 0, 0]
    yesterday = timezone.now().date() - timedelta(days=1)
    Judge.objects.update(day=yesterday)
    assert [kept(judge, tenant=tenant, number=number) for number in range(4, 8)] == [1, 1, 0, 0]
    judge.refresh_from_db()
    assert (judge.n_taken, judge.n_taken_in_day) == (4, 2)
    assert judge.day == yesterday + timedelta(days=1)


@pytest.mark.parametrize("per_day", [3, 8])
def test_a_day_that_many_begin_at_once(tenant: Tenant, per_day: int) -> None:
    """Whoever finds that another has begun the day takes a place in it all the same."""
    judge = made(per_day=per_day)
    results = at_once(8, lambda number: kept(judge, tenant=tenant, number=number))
    assert sum(results) == per_day
    assert all_of(AnswerSample).count() == per_day
    judge.refresh_from_db()
    assert (judge.n_taken, judge.n_taken_in_day) == (per_day, per_day)


# -- taking ---------------------------------------------------------------------------------------


def test_the_oldest_first_and_nobody_elses(judge: Judge, tenant: Tenant) -> None:
    for number in range(5):
        kept(judge, tenant=tenant, number=number)
    first, second = taken(limit=2), taken(limit=10)
    assert [each.request_id for each in first] == ["chatcmpl-0", "chatcmpl-1"]
    assert [each.request_id for each in second] == [f"chatcmpl-{k}" for k in (2, 3, 4)]
    assert taken() == []
    due()
    assert {each.attempt for each in taken()} == {2}


def test_not_of_judges_that_are_off_or_left_alone(tenant: Tenant) -> None:
    off, alone, on = made("off"), made("alone"), made("on")
    kept(off, alone, on, tenant=tenant)
    Judge.objects.filter(pk=off.pk).update(is_on=False)
    (found,) = taken(but_judges=[alone.pk])
    assert found.judge_id == on.pk
    (found,) = taken()
    assert found.judge_id == alone.pk
    assert taken() == []


def test_never_by_two_at_once(judge: Judge, tenant: Tenant) -> None:
    for number in range(40):
        kept(judge, tenant=tenant, number=number)

    def all_that_can_be_had(_: int) -> list[str]:
        found: list[str] = []
        while part := taken(limit=3):
            found += [each.request_id for each in part]
        return found

    found = Counter(each for part in at_once(4, all_that_can_be_had) for each in part)
    # One that another had just locked was passed over, and is for whoever comes next.
    found.update(each.request_id for each in taken(limit=40))
    assert found == {f"chatcmpl-{number}": 1 for number in range(40)}


def test_what_was_taken_too_often_is_given_up(judge: Judge, tenant: Tenant) -> None:
    """Its workers were killed before they could say so."""
    kept(judge, tenant=tenant)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert [each.attempt for each in taken()] == [attempt]
        due()
    assert taken() == []
    assert all_of(AnswerSample).count() == 0
    assert counts(judge) == (1, 0, 1)
    assert judge.last_problem == "It was tried too often."


def test_what_cannot_be_opened_is_given_up_and_others_are_not(judge: Judge, tenant: Tenant) -> None:
    for number in range(3):
        kept(judge, tenant=tenant, number=number)
    all_of(AnswerSample).filter(request_id__in=["chatcmpl-0", "chatcmpl-1"]).update(
        sealed="nothing"
    )
    assert [each.request_id for each in taken(limit=1)] == ["chatcmpl-2"]
    assert counts(judge) == (3, 0, 2)
    assert "secret key" in judge.last_problem


def test_of_a_tenant_that_allows_it_no_longer(judge: Judge, tenant: Tenant) -> None:
    kept(judge, tenant=tenant)
    other = TenantFactory(allows_judging=True)
    kept(judge, tenant=other, number=2)
    Tenant.objects.filter(pk=tenant.pk).update(allows_judging=False)
    assert [each.tenant_id for each in taken()] == [other.pk]
    assert all_of(AnswerSample).count() == 1
    assert counts(judge) == (2, 0, 1)
    assert judge.last_problem == "The tenant does not allow it any more."


def test_also_what_is_not_due_or_whose_judge_is_off_is_forgotten(tenant: Tenant) -> None:
    on, off = made("on"), made("off")
    kept(on, off, tenant=tenant)
    (held, _) = taken()
    Judge.objects.filter(pk=off.pk).update(is_on=False)
    other = TenantFactory(allows_judging=True)
    kept(on, tenant=other, number=2)
    assert withdrawn_samples_forget() == 0
    Tenant.objects.filter(pk=tenant.pk).update(allows_judging=False)
    assert withdrawn_samples_forget() == 2
    assert [row.tenant_id for row in all_of(AnswerSample)] == [other.pk]
    assert (counts(on), counts(off)) == ((2, 0, 1), (1, 0, 1))
    assert score_record(sample=held, score=3, reason="") is False
    assert all_of(MetricEvent).count() == 0


# -- what comes of them ---------------------------------------------------------------------------


def one(judge: Judge, tenant: Tenant) -> TakenSample:
    UsageRecordFactory(
        tenant_id=tenant.pk, request_id="chatcmpl-1", end_user="joe", experiment_arm="e1.v1.abc"
    )
    kept(judge, tenant=tenant)
    (sample,) = taken()
    return sample


def test_a_score_is_an_event_of_the_request(judge: Judge, tenant: Tenant) -> None:
    sample = one(judge, tenant)
    assert score_record(sample=sample, score=4, reason="It is\0 so. " + "x" * 1000) is True
    (event,) = all_of(MetricEvent)
    assert (event.name, event.value, event.request_id) == ("judge:helpful", 4.0, "chatcmpl-1")
    assert (event.tenant_id, event.end_user) == (tenant.pk, "joe")
    assert (event.experiment_arm, event.is_in_experiments) == ("e1.v1.abc", False)
    assert event.comment.startswith("It is\ufffd so.") and len(event.comment) == 300
    assert event.api_token_id == judge.api_token_id
    assert all_of(AnswerSample).count() == 0
    assert counts(judge) == (1, 1, 0)
    assert score_record(sample=sample, score=4, reason="") is False
    assert all_of(MetricEvent).count() == 1
    assert counts(judge) == (1, 1, 0)


def test_a_worker_that_was_thought_dead_changes_nothing(judge: Judge, tenant: Tenant) -> None:
    late = one(judge, tenant)
    due()
    (present,) = taken()
    before = all_of(AnswerSample).values().get()
    assert score_record(sample=late, score=1, reason="") is False
    sample_put_back(sample=late, after_s=9000, is_tried=True, problem="late")
    sample_give_up(sample=late, problem="late")
    assert all_of(AnswerSample).values().get() == before
    assert all_of(MetricEvent).count() == 0
    assert counts(judge) == (1, 0, 0)
    assert judge.last_problem == ""
    assert score_record(sample=present, score=5, reason="") is True
    assert [event.value for event in all_of(MetricEvent)] == [5.0]


def test_scored_by_many_at_once_it_has_one_score(judge: Judge, tenant: Tenant) -> None:
    sample = one(judge, tenant)
    results = at_once(4, lambda n: score_record(sample=sample, score=n + 1, reason=""))
    assert sorted(results) == [False, False, False, True]
    assert all_of(MetricEvent).count() == 1
    assert counts(judge) == (1, 1, 0)


def test_of_a_request_that_the_ledger_has_no_more(judge: Judge, tenant: Tenant) -> None:
    kept(judge, tenant=tenant)
    (sample,) = taken()
    assert score_record(sample=sample, score=4, reason="") is False
    assert all_of(MetricEvent).count() == all_of(AnswerSample).count() == 0
    assert counts(judge) == (1, 0, 1)


def test_put_back_until_it_was_tried_often_enough(judge: Judge, tenant: Tenant) -> None:
    kept(judge, tenant=tenant)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        (sample,) = taken()
        assert sample.attempt == attempt
        sample_put_back(sample=sample, after_s=600, is_tried=False, problem="Busy.")
        assert taken() == []
        due()
        (sample,) = taken()
        assert sample.attempt == attempt  # that it was busy is no attempt
        sample_put_back(sample=sample, after_s=0, is_tried=True, problem=f"Wrong {attempt}.")
    assert all_of(AnswerSample).count() == 0
    assert counts(judge) == (1, 0, 1)
    assert judge.last_problem == f"Wrong {MAX_ATTEMPTS}."


def test_given_up(judge: Judge, tenant: Tenant) -> None:
    sample_give_up(sample=one(judge, tenant), problem="Too long.")
    assert all_of(AnswerSample).count() == all_of(MetricEvent).count() == 0
    assert counts(judge) == (1, 0, 1)
    assert judge.last_problem == "Too long."


def test_a_judge_is_deleted_while_its_answers_are_scored(tenant: Tenant) -> None:
    """Both lock the judge before its samples: neither waits for the other for ever."""
    judge = made()
    for number in range(12):
        UsageRecordFactory(tenant_id=tenant.pk, request_id=f"chatcmpl-{number}")
        kept(judge, tenant=tenant, number=number)
    held = taken(limit=12)

    def work(number: int) -> None:
        if number == 0:
            judge_delete(judge=judge, seen=judge.version, actor=SYSTEM)
            return
        for sample in held[number - 1 :: 3]:
            score_record(sample=sample, score=3, reason="")

    at_once(4, work)
    assert all_of(AnswerSample).count() == Judge.objects.count() == 0
    assert all_of(MetricEvent).count() <= 12


def test_a_judge_takes_its_samples_with_it_whosever_they_are(tenant: Tenant) -> None:
    judge, other = made(), made("other")
    for number, each in enumerate((tenant, TenantFactory(allows_judging=True))):
        kept(judge, other, tenant=each, number=number)
    judge_delete(judge=judge, seen=judge.version, actor=SYSTEM)
    assert [row.judge_id for row in all_of(AnswerSample)] == [other.pk] * 2


def test_erased_of_one_person(judge: Judge, tenant: Tenant) -> None:
    other = TenantFactory(allows_judging=True)
    kept(judge, tenant=tenant, number=1)
    kept(judge, tenant=tenant, number=2, end_user="jane")
    kept(judge, tenant=tenant, number=3, end_user="")
    kept(judge, tenant=other, number=4)
    assert samples_erase(tenant_id=tenant.pk, end_user="") == 0
    assert samples_erase(tenant_id=tenant.pk, end_user="joe") == 1
    left = all_of(AnswerSample).order_by("id").values_list("request_id", flat=True)
    assert list(left) == ["chatcmpl-2", "chatcmpl-3", "chatcmpl-4"]

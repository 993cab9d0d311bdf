"""A person who is forgotten is forgotten in what waits for a judge, too."""

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.feedback.models import MetricEvent
from apps.feedback.services import events_take
from apps.judging.models import AnswerSample
from apps.judging.services import samples_take, score_record
from tests.factories import (
    AnswerSampleFactory,
    JudgeFactory,
    MetricEventFactory,
    TenantFactory,
    UsageRecordFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def erase(*arguments: str) -> str:
    out = StringIO()
    call_command("erase_feedback", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def acme() -> int:
    return int(TenantFactory(slug="acme", allows_judging=True).pk)


def test_a_person_is_forgotten_and_their_numbers_stay(acme: int) -> None:
    other, judge = TenantFactory().pk, JudgeFactory()
    for tenant_id, end_user in ((acme, "ann"), (acme, "bob"), (other, "ann"), (acme, "")):
        AnswerSampleFactory(judge=judge, tenant_id=tenant_id, end_user=end_user)
        MetricEventFactory(
            tenant_id=tenant_id, end_user=end_user, comment="mine", experiment_arm="e1.v1.a"
        )
    AnswerSampleFactory(judge=JudgeFactory(), tenant_id=acme, end_user="ann")
    said = erase("--tenant=acme", "--person=ann")
    assert said == "Erased in 1 row, and 2 answers that waited for a judge.\n"
    left = all_of(AnswerSample).order_by("pk").values_list("tenant_id", "end_user")
    assert list(left) == [(acme, "bob"), (other, "ann"), (acme, "")]
    rows = all_of(MetricEvent).order_by("pk").values_list("end_user", "comment")
    assert list(rows) == [("", ""), ("bob", "mine"), ("ann", "mine"), ("", "mine")]
    event = all_of(AuditEvent).get()
    assert (event.action, event.tenant_id) == ("feedback.erased", acme)
    assert event.changes == {"n_events": 1, "n_samples": 2}  # and not whose
    assert erase("--tenant=acme", "--person=") == (
        "Erased in 0 rows, and 0 answers that waited for a judge.\n"
    )
    assert all_of(AnswerSample).count() == 3
    assert len(events_take("experiment", limit=9)) == 4  # they still count


def test_nobody_is_erased_of_a_tenant_that_is_not_there(acme: int) -> None:
    AnswerSampleFactory(tenant_id=acme, end_user="ann")
    with pytest.raises(CommandError, match="no tenant 'nobody'"):
        erase("--tenant=nobody", "--person=ann")
    assert all_of(AnswerSample).count() == 1
    assert not all_of(AuditEvent).exists()


def test_a_failure_before_the_event_leaves_everything(
    acme: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    MetricEventFactory(tenant_id=acme, end_user="ann", comment="mine")
    AnswerSampleFactory(tenant_id=acme, end_user="ann")

    def fail(**_: Any) -> None:
        raise RuntimeError("no audit")

    monkeypatch.setattr("apps.feedback.services.event_record", fail)
    with pytest.raises(RuntimeError):
        erase("--tenant=acme", "--person=ann")
    assert all_of(MetricEvent).get().comment == "mine"
    assert all_of(AnswerSample).count() == 1


def test_a_worker_that_reads_it_just_then_says_nothing_of_it(acme: int) -> None:
    row = UsageRecordFactory(tenant_id=acme, end_user="ann")
    AnswerSampleFactory(tenant_id=acme, end_user="ann", request_id=row.request_id)
    [taken] = samples_take(limit=9, hold_s=60)
    erase("--tenant=acme", "--person=ann")
    assert not score_record(sample=taken, score=5, reason="Ann asked for a poem.")
    assert not all_of(MetricEvent).exists()

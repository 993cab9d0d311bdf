"""Writes of judges, each with its audit event in one transaction; and of the answers that wait for
them. A worker's writes name the attempt that they are made under, so that one that was thought dead
and comes back changes nothing."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from apps.audit.services import event_record
from apps.core.sealing import SealBroken
from apps.core.services import change_stamp_bump, fields_set, plain, row_lock
from apps.core.tenancy import every_tenant
from apps.feedback.exceptions import RequestNotFound
from apps.feedback.services import metric_event_record
from apps.feedback.types import JUDGE_PREFIX, Teller
from apps.judging.exceptions import JudgeConflict
from apps.judging.models import AnswerSample, Judge
from apps.judging.sampling import text_sealed, text_unsealed
from apps.judging.types import (
    JUDGES_STAMP,
    MAX_ATTEMPTS,
    MAX_REASON_CHARS,
    JudgedText,
    JudgeFields,
    TakenSample,
)
from apps.routing.selectors import targets_of
from apps.tenants.selectors import tenants_allowing_judging

if TYPE_CHECKING:
    from apps.audit.types import Actor

# What scores are made by: it stays once an answer was taken.
_FIXED: Final = frozenset({"rubric", "lowest", "highest", "route", "name", "sample_percent"})


# -- judges ------------------------------------------------------------------------------------


@transaction.atomic
def judge_create(*, actor: Actor, **fields: Unpack[JudgeFields]) -> Judge:
    """Make a judge.

    Raises:
        ValidationError: names the field.
    """
    judge = Judge(**fields)
    _clean(judge)
    judge.save()
    facts = {name: plain(value) for name, value in fields.items()}
    event_record(action="judge.created", actor=actor, obj=judge, changes=facts)
    change_stamp_bump(JUDGES_STAMP)
    return judge


@transaction.atomic
def judge_update(*, judge: Judge, seen: int, actor: Actor, **fields: Unpack[JudgeFields]) -> Judge:
    """Set the given fields. Once an answer was taken for it, what its scores are made by stays.
    seen: the version that the caller saw.

    Raises:
        JudgeConflict: somebody has changed it meanwhile, or it has begun to score.
        ValidationError: names the field.
    """
    current = _locked(judge, seen)
    changes = fields_set(current, fields)
    if not changes:
        return current
    if current.n_taken and (fixed := sorted(changes.keys() & _FIXED)):
        raise JudgeConflict(
            f"{current} has begun to score; its {fixed[0]} stays. Make another judge for another "
            "rubric.",
            param=fixed[0],
        )
    _clean(current)
    current.version += 1
    current.save(update_fields=[*changes, "version", "updated_at"])
    event_record(action="judge.updated", actor=actor, obj=current, changes=changes)
    change_stamp_bump(JUDGES_STAMP)
    return current


@transaction.atomic
def judge_delete(*, judge: Judge, seen: int, actor: Actor) -> None:
    """Delete a judge and the answers that wait for it; scores stay.

    Raises:
        JudgeConflict: somebody has changed it meanwhile.
    """
    current = _locked(judge, seen)
    event_record(action="judge.deleted", actor=actor, obj=current)
    current.delete()
    change_stamp_bump(JUDGES_STAMP)


def _locked(judge: Judge, seen: int) -> Judge:
    try:
        current = row_lock(judge)
    except Judge.DoesNotExist:
        raise JudgeConflict(f"{judge} was deleted by someone else.") from None
    if current.version != seen:
        raise JudgeConflict(f"{current} was changed by someone else. Look again.")
    return current


def _clean(judge: Judge) -> None:
    if judge.lowest is not None and judge.highest is not None and judge.lowest >= judge.highest:
        raise ValidationError({"highest": "It must be above the lowest score."})
    if judge.route_id and any(
        each.deployment.task != "generate" for each in targets_of(judge.route)
    ):
        raise ValidationError({"route": f"{judge.route} generates no text."})
    judge.full_clean(validate_constraints=False)
    judge.validate_unique()


# -- answers that wait -------------------------------------------------------------------------


@every_tenant("the row names its tenant")
@transaction.atomic
def samples_keep(
    *,
    judge_ids: Collection[int],
    tenant_id: int,
    request_id: str,
    end_user: str,
    text: JudgedText,
) -> int:
    """Keep an answer for these judges, where each has room left in its day; return for how many.
    Whether the tenant allows it is the caller's to know."""
    now = timezone.now()
    sealed = text_sealed(text)
    n_kept = 0
    for judge_id in sorted(judge_ids):
        if not _counted(judge_id, now=now):
            continue
        AnswerSample.objects.create(
            judge_id=judge_id,
            tenant_id=tenant_id,
            request_id=request_id,
            end_user=end_user.replace("\0", "\ufffd")[:512],
            sealed=sealed,
            created_at=now,
            due_at=now,
        )
        n_kept += 1
    return n_kept


def _counted(judge_id: int, *, now: datetime) -> bool:
    """Take one of what the judge may have today; False where nothing is left, or it is off."""
    today = now.date()
    rows = Judge.objects.filter(pk=judge_id, is_on=True)
    one_more: Any = {"n_taken": F("n_taken") + 1}
    n_rows = rows.filter(day=today, n_taken_in_day__lt=F("per_day")).update(
        n_taken_in_day=F("n_taken_in_day") + 1, **one_more
    )
    return bool(n_rows or rows.exclude(day=today).update(day=today, n_taken_in_day=1, **one_more))


@every_tenant("judges read whosever answers were taken for them")
@transaction.atomic
def samples_take(*, limit: int, hold_s: float) -> list[TakenSample]:
    """Take the oldest answers that are due, of judges that are on, for ``hold_s`` seconds; then
    others may. What cannot be opened any more, was taken too often, or is of a tenant that allows
    it no longer, is given up."""
    now = timezone.now()
    due = AnswerSample.objects.filter(due_at__lte=now, judge__is_on=True).select_related(
        "judge__route"
    )
    rows = list(
        due.order_by("due_at", "id").select_for_update(of=("self",), skip_locked=True)[:limit]
    )
    allowing = tenants_allowing_judging({row.tenant_id for row in rows})
    taken = []
    for row in rows:
        if row.tenant_id not in allowing:
            _given_up(row.pk, row.judge_id, "The tenant does not allow it any more.")
            continue
        if row.attempt >= MAX_ATTEMPTS:
            _given_up(row.pk, row.judge_id, "It was tried too often.")
            continue
        try:
            text = text_unsealed(row.sealed)
        except SealBroken as error:
            _given_up(row.pk, row.judge_id, str(error))
            continue
        taken.append(_taken(row, text))
    AnswerSample.objects.filter(pk__in=[each.pk for each in taken]).update(
        attempt=F("attempt") + 1, due_at=now + timedelta(seconds=hold_s)
    )
    return taken


def _taken(row: AnswerSample, text: JudgedText) -> TakenSample:
    judge = row.judge
    return TakenSample(
        pk=row.pk,
        attempt=row.attempt + 1,
        judge_id=judge.pk,
        judge_name=judge.name,
        rubric=judge.rubric,
        lowest=judge.lowest,
        highest=judge.highest,
        route_name=judge.route.name,
        api_token_id=judge.api_token_id,
        tenant_id=row.tenant_id,
        request_id=row.request_id,
        text=text,
    )


@every_tenant("the sample names its tenant")
@transaction.atomic
def score_record(*, sample: TakenSample, score: int, reason: str) -> bool:
    """Make a score an event of the request's, and forget the answer, in one step; False where the
    sample is no longer this attempt's. It is counted as programs' events are."""
    if not _of(sample).delete()[0]:
        return False
    try:
        metric_event_record(
            name=f"{JUDGE_PREFIX}{sample.judge_name}",
            value=float(score),
            teller=Teller(tenant_id=sample.tenant_id, api_token_id=sample.api_token_id),
            request_id=sample.request_id,
            comment=reason[:MAX_REASON_CHARS],
        )
    except RequestNotFound:
        _failure_count(sample.judge_id, "The ledger has no such request any more.")
        return False
    Judge.objects.filter(pk=sample.judge_id).update(n_scored=F("n_scored") + 1, last_problem="")
    return True


@every_tenant("the sample names its tenant")
@transaction.atomic
def sample_put_back(*, sample: TakenSample, after_s: float, is_tried: bool, problem: str) -> None:
    """Leave a sample for later; the last of its attempts is its end. is_tried: the judge was asked,
    and the attempt counts."""
    Judge.objects.filter(pk=sample.judge_id).update(last_problem=problem[:300])
    if is_tried and sample.attempt >= MAX_ATTEMPTS:
        if _of(sample).delete()[0]:
            _failure_count(sample.judge_id, problem)
        return
    attempt = sample.attempt if is_tried else sample.attempt - 1
    _of(sample).update(due_at=timezone.now() + timedelta(seconds=after_s), attempt=attempt)


@every_tenant("whoever runs the platform names the tenant")
def samples_erase(*, tenant_id: int, end_user: str) -> int:
    """Forget the answers that wait of one whom a tenant serves; return how many."""
    rows = AnswerSample.objects.filter(tenant_id=tenant_id, end_user=end_user)
    return rows.exclude(end_user="").delete()[0]


def _of(sample: TakenSample) -> Any:
    return AnswerSample.objects.filter(pk=sample.pk, attempt=sample.attempt)


def _given_up(pk: int, judge_id: int, problem: str) -> None:
    AnswerSample.objects.filter(pk=pk).delete()
    _failure_count(judge_id, problem)


def _failure_count(judge_id: int, problem: str) -> None:
    Judge.objects.filter(pk=judge_id).update(n_failed=F("n_failed") + 1, last_problem=problem[:300])

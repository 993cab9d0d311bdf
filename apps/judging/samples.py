"""Answers that wait for a judge: kept, taken, scored or given up. A worker's writes name the
attempt that they are made under, so that one that was thought dead and comes back changes
nothing."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from apps.core.sealing import SealBroken
from apps.core.tenancy import every_tenant
from apps.feedback.exceptions import RequestNotFound
from apps.feedback.services import metric_event_record
from apps.feedback.types import JUDGE_PREFIX, Teller
from apps.judging.models import AnswerSample, Judge
from apps.judging.sampling import text_sealed, text_unsealed
from apps.judging.types import MAX_ATTEMPTS, MAX_REASON_CHARS, JudgedText, TakenSample
from apps.tenants.selectors import tenants_allowing_judging


@every_tenant("the row names its tenant")
def samples_keep(
    *,
    judge_ids: Collection[int],
    tenant_id: int,
    request_id: str,
    end_user: str,
    text: JudgedText,
) -> int:
    """Keep an answer for these judges, where each has room left in its day and the tenant allows
    it; return for how many. What is not kept costs no write: a busy route fills a day soon."""
    now = timezone.now()
    is_full = Q(day=now.date(), n_taken_in_day__gte=F("per_day"))
    open_ids = Judge.objects.filter(~is_full, pk__in=judge_ids, is_on=True).order_by("pk")
    wanted = list(open_ids.values_list("pk", flat=True))
    if not wanted or not tenants_allowing_judging({tenant_id}):
        return 0
    sample = AnswerSample(
        tenant_id=tenant_id,
        request_id=request_id,
        end_user=end_user.replace("\0", "\ufffd")[:512],
        sealed=text_sealed(text),
        created_at=now,
        due_at=now,
    )
    return sum(_kept(sample, judge_id=judge_id) for judge_id in wanted)


@transaction.atomic
def _kept(sample: AnswerSample, *, judge_id: int) -> bool:
    if not _counted(judge_id, now=sample.created_at):
        return False
    sample.pk, sample.judge_id = None, judge_id
    sample.save(force_insert=True)
    return True


def _counted(judge_id: int, *, now: datetime) -> bool:
    """Take one of what the judge may have today; False where nothing is left, or it is off."""
    today = now.date()
    rows = Judge.objects.filter(pk=judge_id, is_on=True)
    one_more: Any = {"n_taken": F("n_taken") + 1}

    def is_another() -> int:
        return rows.filter(day=today, n_taken_in_day__lt=F("per_day")).update(
            n_taken_in_day=F("n_taken_in_day") + 1, **one_more
        )

    def is_first() -> int:
        return rows.exclude(day=today).update(day=today, n_taken_in_day=1, **one_more)

    # Of two who begin a day at once one is first, and the other is another then.
    return bool(is_another() or is_first() or is_another())


@every_tenant("judges read whosever answers were taken for them")
def samples_take(
    *, limit: int, hold_s: float, but_judges: Collection[int] = ()
) -> list[TakenSample]:
    """Take the oldest answers that are due, of judges that are on and none of these, for ``hold_s``
    seconds; then others may. What cannot be opened any more, was taken too often, or is of a tenant
    that allows it no longer, is given up."""
    while True:
        taken, given_up = _taken_rows(limit=limit, hold_s=hold_s, but_judges=but_judges)
        # In a transaction each, so that a judge's row is always locked before its samples.
        for row, problem in given_up:
            _given_up(row, problem)
        if taken or not given_up:
            return taken


@transaction.atomic
def _taken_rows(
    *, limit: int, hold_s: float, but_judges: Collection[int]
) -> tuple[list[TakenSample], list[tuple[AnswerSample, str]]]:
    now = timezone.now()
    due = AnswerSample.objects.filter(due_at__lte=now, judge__is_on=True)
    if but_judges:
        due = due.exclude(judge_id__in=but_judges)
    rows = list(
        due.select_related("judge__route")
        .order_by("due_at", "id")
        .select_for_update(of=("self",), skip_locked=True)[:limit]
    )
    allowing = tenants_allowing_judging({row.tenant_id for row in rows})
    taken, given_up = [], []
    for row in rows:
        try:
            if problem := _problem_of(row, allowing=allowing):
                given_up.append((row, problem))
            else:
                taken.append(_taken(row, text_unsealed(row.sealed), now=now))
        except SealBroken as error:
            given_up.append((row, str(error)))
    AnswerSample.objects.filter(pk__in=[each.pk for each in taken]).update(
        attempt=F("attempt") + 1, due_at=now + timedelta(seconds=hold_s)
    )
    return taken, given_up


def _problem_of(row: AnswerSample, *, allowing: Collection[int]) -> str:
    if row.tenant_id not in allowing:
        return "The tenant does not allow it any more."
    return "It was tried too often." if row.attempt >= MAX_ATTEMPTS else ""


def _taken(row: AnswerSample, text: JudgedText, *, now: datetime) -> TakenSample:
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
        waited_s=(now - row.created_at).total_seconds(),
        text=text,
    )


@every_tenant("the sample names its tenant")
@transaction.atomic
def score_record(*, sample: TakenSample, score: int, reason: str) -> bool:
    """Make a score an event of the request's, and forget the answer, in one step; False where the
    sample is no longer this attempt's. It is counted as programs' events are."""
    _judge_lock(sample.judge_id)
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
def sample_put_back(
    *, sample: TakenSample, after_s: float, is_tried: bool, problem: str = ""
) -> None:
    """Leave a sample for later; the last of its attempts is its end. is_tried: the judge was asked,
    and the attempt counts."""
    _judge_lock(sample.judge_id)
    if is_tried and sample.attempt >= MAX_ATTEMPTS:
        if _of(sample).delete()[0]:
            _failure_count(sample.judge_id, problem)
        return
    attempt = sample.attempt if is_tried else sample.attempt - 1
    due_at = timezone.now() + timedelta(seconds=after_s)
    if _of(sample).update(due_at=due_at, attempt=attempt) and problem:
        Judge.objects.filter(pk=sample.judge_id).update(last_problem=problem[:300])


@every_tenant("the sample names its tenant")
@transaction.atomic
def sample_give_up(*, sample: TakenSample, problem: str) -> None:
    """Forget a sample that no attempt will give a score."""
    _judge_lock(sample.judge_id)
    if _of(sample).delete()[0]:
        _failure_count(sample.judge_id, problem)


@every_tenant("whosever they are, who allows it no longer is asked for")
def withdrawn_samples_forget() -> int:
    """Forget the answers that wait of tenants that allow it no longer, also where their judge is
    off or they are not due; return how many."""
    waiting = AnswerSample.objects.order_by().values_list("tenant_id", flat=True).distinct()
    tenant_ids = set(waiting)
    n_forgotten = 0
    for tenant_id in tenant_ids - tenants_allowing_judging(tenant_ids):
        rows = AnswerSample.objects.filter(tenant_id=tenant_id).order_by("judge_id", "id")
        for row in rows.only("pk", "judge_id", "attempt"):
            n_forgotten += _given_up(row, "The tenant does not allow it any more.")
    return n_forgotten


@every_tenant("whoever runs the platform names the tenant")
def samples_erase(*, tenant_id: int, end_user: str) -> int:
    """Forget the answers that wait of one whom a tenant serves; return how many."""
    rows = AnswerSample.objects.filter(tenant_id=tenant_id, end_user=end_user)
    return rows.exclude(end_user="").delete()[0]


def _of(sample: TakenSample) -> Any:
    return AnswerSample.objects.filter(pk=sample.pk, attempt=sample.attempt)


@transaction.atomic
def _given_up(row: AnswerSample, problem: str) -> bool:
    """Whoever took it meanwhile finds it gone."""
    _judge_lock(row.judge_id)
    if not AnswerSample.objects.filter(pk=row.pk).delete()[0]:
        return False
    _failure_count(row.judge_id, problem)
    return True


def _judge_lock(pk: int) -> None:
    """Before its samples, as whoever deletes a judge does: else each could wait for the other."""
    list(Judge.objects.select_for_update(no_key=True).filter(pk=pk).values_list("pk"))


def _failure_count(judge_id: int, problem: str) -> None:
    Judge.objects.filter(pk=judge_id).update(n_failed=F("n_failed") + 1, last_problem=problem[:300])

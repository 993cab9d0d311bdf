"""Writes of judges, each with its audit event in one transaction; and, from ``samples``, those of
the answers that wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction

from apps.audit.services import event_record
from apps.core.services import change_stamp_bump, fields_set, plain, row_lock
from apps.core.tenancy import every_tenant
from apps.judging.exceptions import JudgeConflict
from apps.judging.models import Judge
from apps.judging.samples import sample_give_up as sample_give_up
from apps.judging.samples import sample_put_back as sample_put_back
from apps.judging.samples import samples_erase as samples_erase
from apps.judging.samples import samples_keep as samples_keep
from apps.judging.samples import samples_take as samples_take
from apps.judging.samples import score_record as score_record
from apps.judging.samples import withdrawn_samples_forget as withdrawn_samples_forget
from apps.judging.types import JUDGES_STAMP, JudgeFields
from apps.routing.selectors import targets_of

if TYPE_CHECKING:
    from apps.audit.types import Actor

# What scores are made by: it stays once an answer was taken.
_FIXED: Final = frozenset({"rubric", "lowest", "highest", "route", "name", "sample_percent"})


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


@every_tenant("its samples go with it, whosever they are")
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

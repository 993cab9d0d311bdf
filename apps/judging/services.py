"""Writes of judges, each with its audit event in one transaction; and, from ``samples``, those of
the answers that wait for them."""

from __future__ import annotations

from collections.abc import Collection
from math import isfinite
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
from apps.judging.selectors import token_problem
from apps.judging.types import JUDGE_SCOPE, JUDGES_STAMP, MAX_RUBRIC_CHARS, JudgeFields
from apps.judging.uses import judge_uses
from apps.judging.uses import judge_uses_register as judge_uses_register
from apps.rbac.services import api_token_lend_check
from apps.routing.selectors import targets_of

if TYPE_CHECKING:
    from apps.audit.types import Actor
    from apps.rbac.models import ApiToken, User

# What scores are made by: it stays once an answer was taken.
FIXED: Final = frozenset({"rubric", "lowest", "highest", "route", "name", "sample_percent"})


@every_tenant("a judge is the platform's, and its token may be of a tenant that one does not see")
@transaction.atomic
def judge_create(*, actor: Actor, by: User | None = None, **fields: Unpack[JudgeFields]) -> Judge:
    """Make a judge. by: the person who asks; None where the platform does.

    Raises:
        PermissionDenied: ``by`` could not issue a token like the one that it shall ask with.
        ValidationError: names the field.
    """
    judge = Judge(**fields)
    _clean(judge)
    if judge.api_token is not None:
        _token_check(judge.api_token, by=by)
    judge.save()
    facts = {name: plain(value) for name, value in fields.items()}
    event_record(action="judge.created", actor=actor, obj=judge, changes=facts)
    change_stamp_bump(JUDGES_STAMP)
    return judge


@every_tenant("as judge_create")
@transaction.atomic
def judge_update(
    *,
    judge: Judge,
    seen: int,
    actor: Actor,
    by: User | None = None,
    **fields: Unpack[JudgeFields],
) -> Judge:
    """Set the given fields. Once an answer was taken for it, what its scores are made by stays.
    seen: the version that the caller saw. by: as for ``judge_create``, asked of another token.

    Raises:
        JudgeConflict: somebody has changed it meanwhile, it has begun to score, or something still
            speaks of it by its name.
        PermissionDenied: as ``judge_create``.
        ValidationError: names the field.
    """
    current = _locked(judge, seen)
    name_before = current.name
    changes = fields_set(current, fields)
    if not changes:
        return current
    if current.n_taken and (fixed := sorted(changes.keys() & FIXED)):
        raise JudgeConflict(
            f"{name_before} has begun to score; its {fixed[0]} stays. Make another judge for "
            "another rubric.",
            param=fixed[0],
        )
    if "name" in changes:
        _unused_check(name_before, param="name")
    _clean(current)
    if "api_token" in changes and current.api_token is not None:
        _token_check(current.api_token, by=by)
    current.version += 1
    current.save(update_fields=[*changes, "version", "updated_at"])
    event_record(action="judge.updated", actor=actor, obj=current, changes=changes)
    change_stamp_bump(JUDGES_STAMP)
    return current


@every_tenant("a judge goes with whosever answers wait for it")
@transaction.atomic
def judge_delete(*, judge: Judge, seen: int, actor: Actor) -> None:
    """Delete a judge and the answers that wait for it; scores stay.

    Raises:
        JudgeConflict: somebody has changed it meanwhile, or something still speaks of it.
    """
    current = _locked(judge, seen)
    _unused_check(current.name)
    event_record(action="judge.deleted", actor=actor, obj=current)
    current.delete()
    change_stamp_bump(JUDGES_STAMP)


def judges_hold(names: Collection[str]) -> None:
    """Let nobody change these judges until the caller's transaction ends."""
    list(Judge.objects.filter(name__in=names).order_by("pk").select_for_update(of=("self",)))


def _locked(judge: Judge, seen: int) -> Judge:
    try:
        current = row_lock(judge)
    except Judge.DoesNotExist:
        raise JudgeConflict(f"{judge} was deleted by someone else.") from None
    if current.version != seen:
        raise JudgeConflict(f"{current} was changed by someone else. Look again.")
    return current


def _unused_check(name: str, *, param: str | None = None) -> None:
    if uses := judge_uses(name):
        more = f" and {len(uses) - 3} more" if len(uses) > 3 else ""
        raise JudgeConflict(
            f"{name} is what {', '.join(uses[:3])}{more} counts; stop or change it first.",
            param=param,
        )


def _clean(judge: Judge) -> None:
    """Raises ValidationError for what no judge may be."""
    rubric = judge.rubric
    if "\0" in rubric or len(rubric) > MAX_RUBRIC_CHARS:
        said = f"{MAX_RUBRIC_CHARS:,} characters at most, and no NUL among them."
        raise ValidationError({"rubric": said})
    if judge.sample_percent is not None and not isfinite(judge.sample_percent):
        raise ValidationError({"sample_percent": "It must be a number."})
    if judge.lowest is not None and judge.highest is not None and judge.lowest >= judge.highest:
        raise ValidationError({"highest": "It must be above the lowest score."})
    if judge.route_id and any(
        each.deployment.task != "generate" for each in targets_of(judge.route)
    ):
        raise ValidationError({"route": f"{judge.route} generates no text."})
    judge.full_clean(validate_constraints=False)


def _token_check(token: ApiToken, *, by: User | None) -> None:
    """Whoever chooses a token has its tenant pay for what the judge asks."""
    if by is not None:
        api_token_lend_check(token=token, scopes=[JUDGE_SCOPE], by=by)
    if problem := token_problem(token.pk):
        raise ValidationError({"api_token": problem})

"""Writes of verifications: asked for, taken under a lease, ended. Each write of a worker names its
lease in its own condition, so that one that was thought dead and comes back changes nothing."""

from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final, cast

from django.db import models, transaction
from django.db.models import F
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.services import worker_wake
from apps.registry.exceptions import VerificationLost, VerificationRefused
from apps.registry.models import ModelVersion, VerificationRun
from apps.registry.selectors import verifications_claimable
from apps.registry.types import (
    VERIFY_WORK,
    Stage,
    VerificationClaim,
    VerificationOutcome,
    VerificationStatus,
    VerificationStep,
)
from apps.registry.versions import stage_set, version_lock

_WAKE_LIFE_S: Final = 60
_CANDIDATES: Final = 8


@transaction.atomic
def verification_ask(
    *, version: ModelVersion, actor: Actor, is_waking: bool = True
) -> VerificationRun:
    """Queue a verification of a version. is_waking: tell a worker at once.

    Raises:
        VerificationRefused: the version is retired, or is being verified already.
    """
    current = version_lock(version)
    if current.stage == Stage.RETIRED:
        raise VerificationRefused(
            f"{current} is retired; make it a draft before it is verified.", param="version"
        )
    if current.verifications.filter(status__in=VerificationRun.OPEN).exists():
        raise VerificationRefused(f"{current} is being verified already.", param="version")
    run = VerificationRun.objects.create(
        version=current,
        asked_by_kind=actor.kind,
        asked_by_id=actor.id,
        asked_by_label=actor.label[:200],
    )
    event_record(action="verification.asked", actor=actor, obj=run)
    if is_waking:
        transaction.on_commit(verifications_wake)
    return run


@transaction.atomic
def verification_cancel(*, run: VerificationRun, actor: Actor) -> VerificationRun:
    """End a verification that waits; ask the worker of one that runs to end it. Idempotent.

    Raises:
        VerificationRefused: it has ended.
    """
    row = VerificationRun.objects.select_for_update(of=("self",)).get(pk=run.pk)
    if not row.is_open:
        raise VerificationRefused(f"The verification has {row.status} already.", param="run")
    if row.is_cancel_asked:
        return row
    row.is_cancel_asked = True
    if row.status == VerificationStatus.QUEUED:
        row.status, row.ended_at = VerificationStatus.CANCELLED, timezone.now()
    row.save(update_fields=["is_cancel_asked", "status", "ended_at", "updated_at"])
    event_record(action="verification.cancelled", actor=actor, obj=row)
    return row


@transaction.atomic
def verification_claim(
    *, owner: str, lease_s: float, run_id: int | None = None
) -> VerificationClaim | None:
    """Take the verification that waited longest, or the one that is named, if it is free."""
    now = timezone.now()
    free = verifications_claimable(now)
    if run_id is not None:
        free = free.filter(pk=run_id)
    for pk in free.values_list("pk", flat=True)[:_CANDIDATES]:
        won = verifications_claimable(now).order_by().filter(pk=pk)
        until = now + timedelta(seconds=lease_s)
        if not won.update(
            status=VerificationStatus.RUNNING,
            lease_owner=owner,
            lease_until=until,
            attempt=F("attempt") + 1,
            step="",
            percent=0,
        ):
            continue
        VerificationRun.objects.filter(pk=pk, started_at=None).update(started_at=now)
        row = VerificationRun.objects.get(pk=pk)
        return VerificationClaim(pk=pk, version_id=row.version_id, owner=owner, attempt=row.attempt)
    return None


def verification_renew(
    *, claim: VerificationClaim, lease_s: float, step: VerificationStep | None, percent: int
) -> bool:
    """Hold on to it and say how far it is; return whether it shall be cancelled.

    Raises:
        VerificationLost: it is not ours any more.
    """
    until = timezone.now() + timedelta(seconds=lease_s)
    fields = {"lease_until": until, "step": step or "", "percent": percent}
    if not _held(claim).update(**fields):
        raise VerificationLost
    return bool(_held(claim).values_list("is_cancel_asked", flat=True).first())


def verification_release(*, claim: VerificationClaim) -> None:
    """Let another worker begin it anew; that this one was told to stop counts for no attempt."""
    _held(claim).update(
        status=VerificationStatus.QUEUED, lease_owner="", lease_until=None, attempt=F("attempt") - 1
    )


@transaction.atomic
def verification_end(*, claim: VerificationClaim, outcome: VerificationOutcome) -> None:
    """Write how it ended; a draft that passed becomes verified, in the same transaction.

    Raises:
        VerificationLost: it is not ours any more.
    """
    version = version_lock(ModelVersion(pk=claim.version_id))  # before its run: one order
    run = _held(claim).select_for_update(of=("self",)).first()
    if run is None:
        raise VerificationLost
    run.status = _status(outcome)
    run.checks = [asdict(check) for check in outcome.checks]
    run.figures = dict(outcome.figures)
    run.error, run.log = outcome.error, outcome.log
    run.ended_at = timezone.now()
    run.lease_owner, run.lease_until = "", None
    run.save()
    actor = _asked_by(run)
    if run.status != VerificationStatus.CANCELLED:  # whoever cancelled it is in the trail
        event_record(
            action=f"verification.{run.status}",
            actor=actor,
            obj=run,
            changes={"error": run.error[:500], "figures": run.figures},
        )
    if run.status == VerificationStatus.PASSED and version.stage == Stage.DRAFT:
        stage_set(version, stage=Stage.VERIFIED, actor=actor, reason=f"Verification #{run.pk}")


def verifications_wake() -> None:
    worker_wake(VERIFY_WORK, expires_s=_WAKE_LIFE_S)


def _status(outcome: VerificationOutcome) -> VerificationStatus:
    if outcome.is_cancelled:
        return VerificationStatus.CANCELLED
    is_good = not outcome.error and all(check.is_passed for check in outcome.checks)
    return VerificationStatus.PASSED if is_good else VerificationStatus.FAILED


def _asked_by(run: VerificationRun) -> Actor:
    kind = cast(Any, run.asked_by_kind)
    return Actor(kind=kind, id=run.asked_by_id, label=run.asked_by_label)


def _held(claim: VerificationClaim) -> "models.QuerySet[VerificationRun]":
    return VerificationRun.objects.filter(
        pk=claim.pk, lease_owner=claim.owner, status=VerificationStatus.RUNNING
    )

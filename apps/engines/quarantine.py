"""Requests that kill engines: who was there is noted, judged once it is known that the engine died
and what had ended before, and refused from then on. ADR 0021."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import SYSTEM, Actor
from apps.core.services import change_stamp_bump
from apps.core.tenancy import every_tenant
from apps.engines.guilt import guilty
from apps.engines.models import (
    EngineCrash,
    EngineJournal,
    JournalEntry,
    QuarantinedRequest,
    Suspicion,
)
from apps.engines.types import ENGINE_DIED, QUARANTINE_STAMP, CrashSeen, Suspect

logger = logging.getLogger(__name__)

MAX_SUSPICIONS: Final = 2_000  # of a tenant; the oldest go
MAX_QUARANTINED: Final = 200


@transaction.atomic
def crashes_record(crashes: Sequence[CrashSeen]) -> None:
    """Keep how engines ended; one that was told before changes nothing."""
    EngineCrash.objects.bulk_create(
        [
            EngineCrash(
                engine_name=seen.engine_name,
                epoch=seen.epoch,
                at=seen.at,
                reason=seen.reason,
                log_end=seen.log_end,
            )
            for seen in crashes
        ],
        ignore_conflicts=True,
    )


@every_tenant("an engine that dies takes the requests of several tenants with it")
@transaction.atomic
def suspicions_note(suspects: Sequence[Suspect]) -> None:
    """Keep who was in an engine that was lost, and judge what is known by now."""
    now = timezone.now()
    Suspicion.objects.bulk_create(
        [
            Suspicion(
                tenant_id=each.tenant_id,
                digest=each.digest,
                deployment_name=each.deployment_name,
                engine_name=each.engine_name,
                epoch=each.epoch,
                request_id=each.request_id,
                noted_at=now,
            )
            for each in suspects
        ]
    )
    for tenant_id in {each.tenant_id for each in suspects}:
        _oldest_delete(Suspicion.objects.filter(tenant_id=tenant_id), keep=MAX_SUSPICIONS)
    change_stamp_bump(QUARANTINE_STAMP)
    _judge(now)


@every_tenant("an engine that dies takes the requests of several tenants with it")
@transaction.atomic
def suspects_judge(now: datetime) -> None:
    """Quarantine who is guilty by what is known now. Done once more, it changes nothing."""
    if Suspicion.objects.exists():
        _judge(now)


@every_tenant("the digest says whose request it is")
@transaction.atomic
def suspects_clear(digests: Sequence[str]) -> None:
    """Forget what is held against requests that ended well since; someone else is then left."""
    n_rows, _ = Suspicion.objects.filter(digest__in=digests).delete()
    if n_rows:
        change_stamp_bump(QUARANTINE_STAMP)
        _judge(timezone.now())


@every_tenant("the row says whose it is, and its page who may do this")
@transaction.atomic
def quarantine_lift(*, quarantined: QuarantinedRequest, actor: Actor) -> None:
    """Let a request run again, with nothing held against it. Idempotent."""
    n_rows, _ = QuarantinedRequest.objects.filter(pk=quarantined.pk).delete()
    if not n_rows:
        return
    Suspicion.objects.filter(digest=quarantined.digest).delete()
    event_record(
        action="quarantine.lifted",
        actor=actor,
        obj=quarantined,
        tenant_id=quarantined.tenant_id,
        changes={"digest": quarantined.digest, "n_deaths": quarantined.n_deaths},
    )
    change_stamp_bump(QUARANTINE_STAMP)


def _judge(now: datetime) -> None:
    presence = _proven(now).values_list("digest", "engine_name", "epoch")
    found = guilty((digest, (name, epoch)) for digest, name, epoch in presence)
    known = QuarantinedRequest.objects.filter(digest__in=found, expires_at__gt=now)
    for digest in found.keys() - set(known.values_list("digest", flat=True)):
        _quarantine(digest, n_deaths=found[digest], now=now)


def _proven(now: datetime) -> "QuerySet[Suspicion]":
    """Return the suspicions about an engine that died, and whose journal, all of it read, does not
    say that the request had ended before."""
    same_start = {"engine_name": OuterRef("engine_name"), "epoch": OuterRef("epoch")}
    ended = JournalEntry.objects.filter(
        request_id=OuterRef("request_id"),
        journal__engine_name=OuterRef("engine_name"),
        journal__epoch=OuterRef("epoch"),
    ).exclude(error_code=ENGINE_DIED)
    return Suspicion.objects.filter(
        Exists(EngineCrash.objects.filter(**same_start)),
        Exists(EngineJournal.objects.filter(**same_start, closed_at__isnull=False)),
        ~Exists(ended),
        noted_at__gt=now - _life(),
    )


def _quarantine(digest: str, *, n_deaths: int, now: datetime) -> None:
    last = Suspicion.objects.filter(digest=digest).latest("id")
    row, _ = QuarantinedRequest.objects.update_or_create(
        digest=digest,
        defaults={
            "tenant_id": last.tenant_id,
            "deployment_name": last.deployment_name,
            "request_id": last.request_id,
            "n_deaths": n_deaths,
            "since": now,
            "expires_at": now + _life(),
        },
    )
    _oldest_delete(
        QuarantinedRequest.objects.filter(tenant_id=last.tenant_id), keep=MAX_QUARANTINED
    )
    logger.warning("Request %s is quarantined: %d engines died of it", row.request_id, n_deaths)
    event_record(
        action="quarantine.added",
        actor=SYSTEM,
        obj=row,
        tenant_id=row.tenant_id,
        changes={"digest": digest, "n_deaths": n_deaths, "deployment": row.deployment_name},
    )
    change_stamp_bump(QUARANTINE_STAMP)


def _oldest_delete(
    rows: "QuerySet[Suspicion] | QuerySet[QuarantinedRequest]", *, keep: int
) -> None:
    edge = rows.order_by("-id").values_list("pk", flat=True)[keep : keep + 1].first()
    if edge is not None:
        rows.filter(pk__lte=edge).delete()


def _life() -> timedelta:
    return timedelta(hours=settings.QUARANTINE_HOURS)

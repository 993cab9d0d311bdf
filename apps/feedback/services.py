"""Writes of what is said of answers: thumbs, which may change, and numbers, which are told once;
handing them out to be counted; and forgetting whose they are."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from apps.audit.services import event_record
from apps.audit.types import Actor
from apps.core.tenancy import every_tenant
from apps.feedback.exceptions import EventIdReused, RequestNotFound
from apps.feedback.models import MetricEvent
from apps.feedback.selectors import event_of
from apps.feedback.types import (
    FEEDBACK,
    MAX_COMMENT_CHARS,
    Comparison,
    Event,
    ObservedEvent,
    Rating,
    Teller,
)
from apps.metering.selectors import attempts_of, usage_record_get

if TYPE_CHECKING:
    from apps.metering.models import UsageRecord
    from apps.tenants.models import Tenant

_FLAGS: Final = {"experiment": "is_in_experiments", "rollout": "is_in_rollout"}
_COUNTED: Final = {"experiment": "value_in_experiments", "rollout": "value_in_rollout"}


@transaction.atomic
def feedback_give(*, request_id: str, rating: Rating, comment: str = "", teller: Teller) -> Event:
    """Say whether an answer was good. Said again, it takes the place of what was said before,
    comment included, also where that was counted: whoever counts replaces the old by the new.

    Raises:
        RequestNotFound: the ledger has no such request of the teller's tenant.
    """
    record = _record_of(request_id, tenant_id=teller.tenant_id)
    said = {
        "value": rating.value_counted,
        "comment": _storable(comment)[:MAX_COMMENT_CHARS],
        "api_token_id": teller.api_token_id,
        "user_id": teller.user_id,
    }
    row, is_new = MetricEvent.objects.select_for_update().get_or_create(
        tenant_id=teller.tenant_id,
        request_id=record.request_id,
        name=FEEDBACK,
        defaults={**said, **_copied(record), "created_at": timezone.now()},
    )
    if not is_new:
        is_changed = row.value != said["value"]
        for name, value in said.items():
            setattr(row, name, value)
        if is_changed:
            row.is_in_experiments = row.is_in_rollout = False
        row.save()
    return event_of(row)


@transaction.atomic
def metric_event_record(
    *,
    name: str,
    value: float,
    teller: Teller,
    request_id: str = "",
    end_user: str = "",
    event_id: str = "",
    comment: str = "",
    happened_at: datetime | None = None,
) -> Event:
    """Keep a number about a request or, where none is named, about an end user. event_id: told
    twice, it is one event.

    Raises:
        RequestNotFound: the ledger has no such request of the teller's tenant.
        EventIdReused: what was told under the id before is something else.
    """
    facts: dict[str, Any] = {"name": name, "value": value, "end_user": _storable(end_user)}
    if request_id:
        record = _record_of(request_id, tenant_id=teller.tenant_id)
        facts |= {"request_id": record.request_id, **_copied(record)}
    more = {
        "comment": _storable(comment)[:MAX_COMMENT_CHARS],
        "api_token_id": teller.api_token_id,
        "user_id": teller.user_id,
        "created_at": happened_at or timezone.now(),
    }
    if not event_id:
        row = MetricEvent.objects.create(tenant_id=teller.tenant_id, **facts, **more)
        return event_of(row)
    row, is_new = MetricEvent.objects.get_or_create(
        tenant_id=teller.tenant_id, event_id=event_id, defaults={**facts, **more}
    )
    same = ("name", "value", "end_user", "request_id")
    if not is_new and any(getattr(row, each) != facts.get(each, "") for each in same):
        raise EventIdReused
    return event_of(row)


@every_tenant("events of several tenants are compared")
@transaction.atomic
def events_take(comparison: Comparison, *, limit: int) -> list[ObservedEvent]:
    """Return the oldest events that were not counted as they stand, and mark them as counted:
    commits with whatever the caller makes of them, or not at all. For experiments also those of end
    users without a request, whose arm the caller knows or nobody.

    Rows are locked in the order of their ids: runs at a time wait for each other, and feedback that
    changes meanwhile is taken again.
    """
    counted, arm = _COUNTED[comparison], f"{comparison}_arm"
    rows = list(_waiting(comparison).order_by("id").select_for_update()[:limit])
    MetricEvent.objects.filter(pk__in=[row.pk for row in rows]).update(
        **{_FLAGS[comparison]: True, counted: F("value")}
    )
    return [
        ObservedEvent(
            name=row.name,
            value=row.value,
            previous=getattr(row, counted),
            arm=getattr(row, arm),
            tenant_id=row.tenant_id,
            request_id=row.request_id,
            end_user=row.end_user,
            created_at=row.created_at,
        )
        for row in rows
    ]


@every_tenant("whoever runs the platform names the tenant")
@transaction.atomic
def end_user_erase(
    *, tenant: "Tenant", end_user: str, actor: Actor, also: Mapping[str, int] | None = None
) -> int:
    """Forget what one whom a tenant serves wrote, and that it was them; the numbers stay. Return of
    how many events. The audit trail says that it was done, and not for whom. also: what was
    forgotten with it elsewhere in this transaction, for the event."""
    said = MetricEvent.objects.filter(tenant_id=tenant.pk, end_user=_storable(end_user))
    n_events = said.exclude(end_user="").update(end_user="", comment="")
    event_record(
        action="feedback.erased",
        actor=actor,
        obj=tenant,
        tenant_id=tenant.pk,
        changes={"n_events": n_events, **(also or {})},
    )
    return n_events


def _waiting(comparison: Comparison) -> "QuerySet[MetricEvent]":
    """As the partial indexes have it."""
    if comparison == "rollout":
        return MetricEvent.objects.filter(is_in_rollout=False, rollout_arm__gt="")
    in_sight = Q(experiment_arm__gt="") | Q(request_id="")
    return MetricEvent.objects.filter(in_sight, is_in_experiments=False)


def _record_of(request_id: str, *, tenant_id: int) -> "UsageRecord":
    """Return the row of the engine that answered, by any of the request's ids; raises
    RequestNotFound."""
    found = None
    if "\0" not in request_id:
        found = usage_record_get(request_id=request_id, within=(tenant_id,))
    if found is None:
        raise RequestNotFound
    return attempts_of(found)[-1]


def _copied(record: "UsageRecord") -> dict[str, str]:
    return {
        "end_user": record.end_user,
        "experiment_arm": record.experiment_arm,
        "rollout_arm": record.rollout_arm,
    }


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")  # PostgreSQL keeps no NUL; as the ledger has it

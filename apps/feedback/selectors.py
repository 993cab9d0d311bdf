"""Reads of what was said: of some requests, and where the lists begin."""

from collections.abc import Collection
from typing import Any

from django.apps import apps
from django.db.models import Max, OuterRef, Subquery

from apps.core.tenancy import every_tenant
from apps.feedback.models import MetricEvent
from apps.feedback.types import Event


def event_of(row: MetricEvent) -> Event:
    return Event(
        id=row.pk,
        name=row.name,
        value=row.value,
        request_id=row.request_id,
        end_user=row.end_user,
        comment=row.comment,
        event_id=row.event_id,
        created_at=row.created_at,
    )


def events_of_request(*, tenant_id: int, row_ids: Collection[str], limit: int) -> list[Event]:
    """Return what was said of a request, the newest first. row_ids: what its rows in the ledger are
    called."""
    rows = MetricEvent.objects.filter(tenant_id=tenant_id, request_id__in=row_ids)
    return [event_of(row) for row in rows.order_by("-id")[:limit]]


@every_tenant("requests of several tenants are compared")
def values_of_requests(name: str, *, request_ids: Collection[str]) -> dict[str, list[float]]:
    """Return the values that were told under a name, by the requests that they are of, in the order
    in which they came; a request of which nothing was told is left out."""
    rows = MetricEvent.objects.filter(request_id__in=request_ids, name=name).order_by("id")
    found: dict[str, list[float]] = {}
    for request_id, value in rows.values_list("request_id", "value"):
        found.setdefault(request_id, []).append(value)
    return found


def metric_event_newest(within: Collection[int] | None) -> int:
    """Return the id of the newest row of some tenants, None for all; 0 where there is none. Each
    tenant's is one look into the index, as ``metering.selectors.usage_record_newest`` explains."""
    rows = MetricEvent.objects.of_tenants(None)
    if within is None:
        return rows.order_by("-id").values_list("id", flat=True).first() or 0
    own = rows.filter(tenant_id__gte=OuterRef("pk"), tenant_id__lte=OuterRef("pk"))
    newest = Subquery(own.order_by("tenant_id", "-id").values("id")[:1])
    tenants: Any = apps.get_model("tenants", "Tenant")
    found = tenants.objects.filter(pk__in=within).annotate(newest=newest).aggregate(Max("newest"))
    return int(found["newest__max"] or 0)

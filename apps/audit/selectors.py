"""Reads of the audit room, and who acts in a request."""

from collections.abc import Collection
from datetime import datetime

from django.db.models import Q
from django.http import HttpRequest

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.addresses import client_address
from apps.core.tenancy import every_tenant


def actor_of(request: HttpRequest) -> Actor:
    """Return the signed-in user of a request to the admin as an actor.

    The address is what the doors and the sign-in see: a header is believed from known proxies.
    """
    meta = request.META
    address = client_address(meta.get("REMOTE_ADDR"), meta.get("HTTP_X_FORWARDED_FOR"))
    return Actor(
        kind="user",
        id=request.user.pk,
        label=request.user.get_username(),
        ip_address=None if address is None else str(address),
    )


@every_tenant("the overview of the platform")
def events_recent(*, limit: int) -> list[AuditEvent]:
    """Return the newest events, newest first."""
    return list(AuditEvent.objects.order_by("-id")[:limit])


def events_before(
    moment: datetime,
    *,
    objects: Collection[tuple[str, str]],
    within: Collection[int] | None,
    limit: int,
) -> list[AuditEvent]:
    """Return the last events of some objects before a moment, newest first. objects: their type
    and id, as events name them. within: ids of tenants that may be seen; None is all."""
    any_of = Q(pk__in=())
    for object_type, object_id in objects:
        any_of |= Q(object_type=object_type, object_id=object_id)
    rows = AuditEvent.objects.of_tenants(within).filter(any_of, at__lte=moment)
    return list(rows.order_by("-id")[:limit])

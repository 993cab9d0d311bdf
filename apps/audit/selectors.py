"""Reads of the audit room, and who acts in a request."""

from django.http import HttpRequest

from apps.audit.models import AuditEvent
from apps.audit.types import Actor


def actor_of(request: HttpRequest) -> Actor:
    """Return the signed-in user of a request to the admin as an actor.

    The address is the connection's: a header could be forged by any client.
    """
    return Actor(
        kind="user",
        id=request.user.pk,
        label=request.user.get_username(),
        ip_address=request.META.get("REMOTE_ADDR") or None,
    )


def events_recent(*, limit: int) -> list[AuditEvent]:
    """Return the newest events, newest first."""
    return list(AuditEvent.objects.order_by("-id")[:limit])

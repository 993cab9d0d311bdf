"""The only way to write an audit event."""

from collections.abc import Mapping
from typing import Any

from django.db import models

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.tenancy import every_tenant


@every_tenant("an event may be the platform's")
def event_record(
    *,
    action: str,
    actor: Actor,
    obj: models.Model | None = None,
    tenant_id: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> AuditEvent:
    """Write an event in the caller's transaction, so that it commits with the change or not at all.

    action: ``noun.verb_in_past``, such as ``api_token.revoked``. changes: field → [before, after],
    or facts of the action; JSON values only, never a secret.
    """
    return AuditEvent.objects.create(
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_label=actor.label[:200],
        ip_address=actor.ip_address,
        tenant_id=tenant_id,
        action=action,
        object_type=obj._meta.label if obj is not None else "",
        object_id=str(obj.pk) if obj is not None else "",
        object_label=str(obj)[:200] if obj is not None else "",
        changes=dict(changes or {}),
    )

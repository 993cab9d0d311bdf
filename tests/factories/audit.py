"""Audit events."""

import factory
from factory.django import DjangoModelFactory

from apps.audit.models import AuditEvent


class AuditEventFactory(DjangoModelFactory[AuditEvent]):
    class Meta:
        model = AuditEvent

    actor_kind = "user"
    actor_id = 1
    actor_label = "admin"
    action = "tenant.updated"
    object_type = "tenants.Tenant"
    object_id = factory.Sequence(str)
    object_label = factory.Sequence(lambda n: f"Tenant {n}")

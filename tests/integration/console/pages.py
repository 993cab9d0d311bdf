"""What tests of the admin's pages share."""

from django.contrib.auth.models import Permission
from django.test import Client

from apps.audit.models import AuditEvent
from tests.factories import UserFactory


def actions() -> list[str]:
    return list(AuditEvent.objects.order_by("id").values_list("action", flat=True))


def messages(client: Client, url: str) -> list[str]:
    return [str(message) for message in client.get(url).context["messages"]]


def staff(*codenames: str) -> Client:
    user = UserFactory(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client

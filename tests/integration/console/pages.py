"""What tests of the admin's pages share."""

from django.contrib.auth.models import Permission
from django.test import Client

from apps.audit.models import AuditEvent
from tests.factories import UserFactory
from tests.rows import all_of


def actions() -> list[str]:
    return list(all_of(AuditEvent).order_by("id").values_list("action", flat=True))


def messages(client: Client, url: str) -> list[str]:
    return [str(message) for message in client.get(url).context["messages"]]


def inline(name: str) -> dict[str, str]:
    """What a page posts for an inline in which nothing is changed."""
    return {f"{name}-TOTAL_FORMS": "0", f"{name}-INITIAL_FORMS": "0"}


def staff(*codenames: str) -> Client:
    user = UserFactory(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client

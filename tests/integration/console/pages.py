"""What tests of the admin's pages share."""

from typing import Any

from django.contrib.auth.models import Permission
from django.test import Client

from apps.audit.models import AuditEvent
from apps.rbac.models import User
from apps.routing.models import Route
from tests.factories import UserFactory
from tests.rows import all_of


def actions() -> list[str]:
    return list(all_of(AuditEvent).order_by("id").values_list("action", flat=True))


def messages(client: Client, url: str) -> list[str]:
    return [str(message) for message in client.get(url).context["messages"]]


def inline(name: str) -> dict[str, str]:
    """What a page posts for an inline in which nothing is changed."""
    return {f"{name}-TOTAL_FORMS": "0", f"{name}-INITIAL_FORMS": "0"}


def targets_form(*rows: "Route | dict[str, Any]") -> dict[str, Any]:
    """What the page of a route posts for where it leads: rows anew, or those of a route as they
    are."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, Route):
            for target in row.targets.all():
                found.append(
                    {
                        "id": target.pk,
                        "route": row.pk,
                        "deployment": target.deployment_id,
                        "weight": target.weight,
                        "fallback_order": target.fallback_order or "",
                    }
                )
        else:
            found.append({"weight": 0, "fallback_order": "", **row})
    n_kept = sum(bool(row.get("id")) for row in found)
    form: dict[str, Any] = {"targets-TOTAL_FORMS": len(found), "targets-INITIAL_FORMS": n_kept}
    for number, row in enumerate(found):
        form |= {f"targets-{number}-{name}": value for name, value in row.items()}
    return form


def staff(*codenames: str) -> Client:
    user = UserFactory(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


def person(*codenames: str, name: str = "") -> tuple[User, Client]:
    user = UserFactory(is_staff=True, **({"username": name} if name else {}))
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return user, client

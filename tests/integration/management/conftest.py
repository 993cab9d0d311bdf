"""The management API in this process, asked with the token of somebody who may do some of it. No
engine runs: what is told is in the rows, and an agent's to do."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import Permission

from apps.audit.models import AuditEvent
from apps.gateway.runtime import GatewayRuntime, gateway_runtime
from apps.rbac.models import ApiToken, Role, RoleGrant, User
from config.asgi import application
from tests.factories import ApiTokenFactory, MembershipFactory
from tests.rows import all_of

Headers = dict[str, str]
SCOPE = ["manage"]


def manager(*permissions: str, role: str | None = None, **fields: Any) -> ApiToken:
    """A token of somebody with a role everywhere, or with single permissions."""
    member = MembershipFactory(role=None)
    user: User = member.user
    if role is not None:
        RoleGrant.objects.create(role=Role.objects.get(slug=role), user=user)
    for name in permissions:
        app, _, codename = name.partition(".")
        user.user_permissions.add(
            Permission.objects.get(content_type__app_label=app, codename=codename)
        )
    token: ApiToken = ApiTokenFactory(
        tenant=member.tenant,
        owner=user,
        created_by=user,
        name="ci",
        **{"scopes": SCOPE, **fields},
    )
    return token


def headers_of(token: Any) -> Headers:
    return {"Authorization": f"Bearer {token.secret}"}


def events() -> list[tuple[str, str]]:
    return list(all_of(AuditEvent).order_by("pk").values_list("action", "actor_kind"))


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.fixture
def owner(transactional_db: None) -> ApiToken:
    """Of somebody who may do everything that there is to do."""
    return manager(role="owner")


@pytest.fixture
async def runtime(transactional_db: None) -> AsyncIterator[GatewayRuntime]:
    runtime = gateway_runtime()
    yield runtime
    await runtime.aclose()


@pytest.fixture
async def anybody(runtime: GatewayRuntime) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application),
        base_url="http://testserver/v1/manage",
        timeout=60,
    ) as client:
        yield client


@pytest.fixture
async def api(anybody: httpx.AsyncClient, owner: ApiToken) -> httpx.AsyncClient:
    anybody.headers.update(headers_of(owner))
    return anybody

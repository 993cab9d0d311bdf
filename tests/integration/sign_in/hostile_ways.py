"""What tests of a hostile provider share: nobody got in, and nothing was written."""

import base64
import hashlib
import hmac
import json
from typing import Any

from django.test import Client

from apps.audit.models import AuditEvent
from apps.rbac.models import RoleGrant, User
from apps.sign_in.models import ProviderIdentity
from tests.integration.sign_in.hostile_provider import HostileProvider, public_pem
from tests.integration.sign_in.people import INDEX, said
from tests.rows import all_of

LOGOUT = "/admin/login/sso/logout/"
EVENT = "http://schemas.openid.net/event/backchannel-logout"
NOT_HELD = "What the provider says of you does not hold."


def is_in(client: Client) -> bool:
    return bool(client.get(INDEX).status_code == 200)


def assert_refused(client: Client, answer: Any, text: str, *, status: int = 403) -> None:
    assert answer.status_code == status
    assert text in said(answer)
    assert not is_in(client)
    for model in (User, ProviderIdentity, RoleGrant, AuditEvent):
        assert all_of(model).count() == 0


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(claims: dict[str, Any], alg: str = "none") -> str:
    head = b64(json.dumps({"alg": alg, "typ": "JWT"}).encode())
    return f"{head}.{b64(json.dumps(claims).encode())}."


def by_public_key(provider: HostileProvider) -> str:
    """HS256 with what everybody can read as the secret."""
    head = b64(json.dumps({"alg": "HS256", "kid": provider.kid}).encode())
    text = f"{head}.{b64(json.dumps(provider.honest()).encode())}"
    digest = hmac.new(public_pem(provider.key), text.encode(), hashlib.sha256).digest()
    return f"{text}.{b64(digest)}"

"""What tests of JWTs have in common."""

import base64
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from apps.audit.models import AuditEvent
from apps.core.exceptions import AuthenticationFailed
from apps.core.models import ChangeStamp
from apps.rbac.models import ApiToken, JwtKey, TokenFamily
from apps.rbac.selectors import principal_of_secret
from apps.rbac.services import token_pair_issue
from apps.rbac.signing import private_key
from apps.rbac.types import TokenPair
from tests.factories import ApiTokenFactory
from tests.rows import all_of


def issue(token: ApiToken, **fields: Any) -> TokenPair:
    return token_pair_issue(principal=principal_of_secret(token.secret), **fields)  # type: ignore[attr-defined]


@pytest.fixture
def token() -> ApiToken:
    return ApiTokenFactory()


def said(text: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(text, options={"verify_signature": False})
    return found


def signer() -> tuple[str, Ed25519PrivateKey]:
    key = JwtKey.objects.get(verifies_until=None)
    return key.kid, private_key(key.private_sealed)


def state() -> list[Any]:
    models: list[Any] = [TokenFamily, JwtKey, AuditEvent, ChangeStamp]
    return [list(all_of(model).order_by("pk").values()) for model in models]


def refused(code: str, act: Callable[[], object]) -> None:
    """It is a 401 of the one form, and nothing has changed."""
    before = state()
    with pytest.raises(AuthenticationFailed) as error:
        act()
    assert (error.value.status, error.value.code) == (401, code)
    assert state() == before


def b64(data: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

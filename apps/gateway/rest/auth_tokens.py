"""JWTs for programs: an API token is exchanged for them; they are refreshed and revoked."""

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, ParamSpec, TypeVar

import msgspec
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.utils import timezone
from msgspec import Meta
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.addresses import counted_as
from apps.core.exceptions import Unavailable
from apps.core.hop import database_hop
from apps.core.limits import Limits
from apps.gateway.rest.base import InferenceView, address_of, body_of
from apps.gateway.rest.operations import Operation
from apps.gateway.runtime import gateway_runtime
from apps.metering.types import Scope
from apps.rbac.services import token_family_revoke, token_pair_issue, token_pair_refresh
from apps.rbac.types import TokenPair

P = ParamSpec("P")
R = TypeVar("R")

Jwt = Annotated[str, Meta(min_length=1, max_length=2048)]


class TokenBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``scopes``: a part of the API token's; all of them where it is left out."""

    scopes: Annotated[list[str], Meta(min_length=1, max_length=16)] | None = None


class RefreshBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    refresh_token: Jwt


class RevokeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``token``: an access or a refresh token; both end the whole family."""

    token: Jwt


class TokenAnswer(msgspec.Struct, kw_only=True):
    """``expires_in`` and ``refresh_expires_in`` are seconds."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - the name of a scheme
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    scopes: tuple[str, ...]


class Revoked(msgspec.Struct, kw_only=True):
    revoked: bool = True


class PublicKey(msgspec.Struct, kw_only=True):
    """A JSON Web Key of Ed25519 (RFC 8037)."""

    kty: str
    crv: str
    use: str
    alg: str
    kid: str
    x: str


class KeySet(msgspec.Struct, kw_only=True):
    keys: tuple[PublicKey, ...]


class _TokenView(InferenceView):
    """What is answered here is kept nowhere: not for an Idempotency-Key, and in no cache."""

    takes_idempotency_key = False

    @property
    def default_response_headers(self) -> dict[str, str]:
        return {"Cache-Control": "no-store"}


class TokenView(_TokenView):
    scope = None
    decoder: ClassVar = msgspec.json.Decoder(TokenBody)
    operations: ClassVar = {
        "post": Operation(
            id="createToken",
            summary="Exchange an API token for a short-lived access token",
            description=(
                "The access token is sent as `Authorization: Bearer …` wherever an API token is. "
                "It is good for 15 minutes; the refresh token gets a new pair, until 24 hours "
                "after this exchange, or until the API token expires."
            ),
            tag="Access tokens",
            answer=TokenAnswer,
        ),
    }

    async def post(self, request: Request) -> Response:
        body = body_of(request, TokenBody)
        await _count(f"exchange:{self.principal.api_token_id}", said="This API key")
        pair = await _written(
            token_pair_issue,
            principal=self.principal,
            scopes=body.scopes,
            address=address_of(request),
        )
        return Response(_answer(pair))


class RefreshView(_TokenView):
    """Whoever has a refresh token may use it: there is no other credential."""

    authentication_classes = []
    permission_classes = []
    decoder: ClassVar = msgspec.json.Decoder(RefreshBody)
    operations: ClassVar = {
        "post": Operation(
            id="refreshToken",
            summary="Exchange a refresh token for a new pair",
            description=(
                "Each refresh token is good once. One that is sent again revokes every token of "
                "its family, because somebody must have a copy."
            ),
            tag="Access tokens",
            answer=TokenAnswer,
        ),
    }

    async def post(self, request: Request) -> Response:
        body = body_of(request, RefreshBody)
        await _count(f"refresh:{_whence(request)}", said="This address")
        pair = await _written(
            token_pair_refresh, refresh_token=body.refresh_token, address=address_of(request)
        )
        return Response(_answer(pair))


class RevokeView(_TokenView):
    """It only takes away: so it asks for no more than a token, from anywhere."""

    authentication_classes = []
    permission_classes = []
    decoder: ClassVar = msgspec.json.Decoder(RevokeBody)
    operations: ClassVar = {
        "post": Operation(
            id="revokeToken",
            summary="Revoke a token and every other of its family",
            description="What runs for them ends within a second. The API token stays as it is.",
            tag="Access tokens",
            answer=Revoked,
        ),
    }

    async def post(self, request: Request) -> Response:
        body = body_of(request, RevokeBody)
        await _count(f"revoke:{_whence(request)}", said="This address")
        await _written(token_family_revoke, token=body.token, address=address_of(request))
        return Response(Revoked())


class KeySetView(InferenceView):
    """Public, for services that check the tokens themselves."""

    authentication_classes = []
    permission_classes = []
    operations: ClassVar = {
        "get": Operation(
            id="listTokenKeys",
            summary="List the public keys that access tokens are signed with",
            tag="Access tokens",
            answer=KeySet,
        ),
    }

    async def get(self, request: Request) -> Response:
        runtime = gateway_runtime()
        runtime.watch()
        found = await runtime.tokens.public_keys()
        return Response(KeySet(keys=tuple(PublicKey(**each) for each in found)))


def _answer(pair: TokenPair) -> TokenAnswer:
    now = timezone.now()
    return TokenAnswer(
        access_token=pair.access_token,
        expires_in=math.ceil((pair.access_expires_at - now).total_seconds()),
        refresh_token=pair.refresh_token,
        refresh_expires_in=math.ceil((pair.refresh_expires_at - now).total_seconds()),
        scopes=pair.scopes,
    )


async def _count(key: str, *, said: str) -> None:
    """Bound what one may write here, in the database and the audit trail; raises RateLimited. Each
    thing that is done is counted by itself: nobody uses up another's revocations by refreshing."""
    limits = Limits(requests_per_minute=settings.AUTH_REQUESTS_PER_MINUTE)
    await gateway_runtime().limits.count((Scope(key=f"auth:{key}", said=said, limits=limits),))


def _whence(request: Request) -> str:
    address = address_of(request)
    return "" if address is None else counted_as(address)


async def _written(service: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Any:
    try:
        return await database_hop(service, *args, **kwargs)
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The tokens cannot be written at the moment.") from error

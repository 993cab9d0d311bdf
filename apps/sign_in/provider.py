"""Speaks to the single sign-on provider: where somebody is sent, and what is said of them when they
come back. It decides nothing about people here, and writes nothing but the state of a flow into the
session.

The protocol is Authlib's. What it leaves to its user is done here: the issuer of the discovery
document and the audience of tokens are compared, only asymmetric signatures count, nothing is
fetched over plain HTTP (a provider on this very machine excepted) or by way of a redirect, and of
the discovery document only what is named here is read: the rest would become settings of the
client, ``verify`` among them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.django_client import DjangoIntegration, DjangoOAuth2App
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.claims import JWTClaims
from django.conf import settings
from django.http import HttpRequest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from requests import RequestException

from apps.sign_in.exceptions import ProviderUnavailable, SignInRefused
from apps.sign_in.provider_claims import claims_wanted, person_of
from apps.sign_in.types import ProviderFlow, ProviderPerson

FLOW_S: Final = 600  # from the button to the way back
_DISCOVERED_FOR_S: Final = 3600  # after it what the provider withdrew, a key for one, is forgotten
_LEEWAY_S: Final = 60
_ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_NEEDED: Final = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
_POST: Final = "client_secret_post"
_LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
# Libraries meet hostile JSON with whatever its shape makes them trip over.
_NONSENSE: Final = (
    JoseError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError,
)  # fmt: skip


def is_secure(url: str) -> bool:
    """Whether an address of the provider is HTTPS, or of this very machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    return parts.scheme == "http" and _is_this_machine(host)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class _Session(OAuth2Session):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_redirects = 0


class _States(DjangoIntegration):  # type: ignore[misc]
    """Keeps the flows of a session in it; those past their time are over."""

    expires_in = FLOW_S

    def get_state_data(self, session: Any, state: str | None) -> Any:
        self._clear_session_state(session)
        return super().get_state_data(session, state)


class _Client(DjangoOAuth2App):  # type: ignore[misc]
    client_cls = _Session


@dataclass(frozen=True, slots=True)
class _Discovered:
    key: tuple[Any, ...]
    until: float
    client: Any


_discovered: _Discovered | None = None


def authorization_url(request: HttpRequest, *, redirect_uri: str, flow: ProviderFlow) -> str:
    """Begin a flow: return where the browser is to go, and keep state, nonce and PKCE's secret in
    the session. Raises ProviderUnavailable."""
    client = _client()
    begun = client.create_authorization_url(redirect_uri)
    client.save_authorize_data(
        request, redirect_uri=redirect_uri, next=flow.next, linking=flow.linking, **begun
    )
    return str(begun["url"])


def flow_finish(request: HttpRequest) -> tuple[ProviderFlow, ProviderPerson]:
    """Return which flow the browser comes back from, and who they are. A flow ends with this,
    whatever comes of it.

    Raises:
        SignInRefused: the provider said no, nothing of the kind was begun in this session, or what
            it says does not hold.
        ProviderUnavailable: it cannot be asked.
    """
    client, answer = _client(), request.GET
    begun = client.framework.get_state_data(request.session, answer.get("state"))
    if begun is None:
        raise SignInRefused(
            "Signing in was not begun in this browser, or too long ago.", code="state_unknown"
        )
    flow = ProviderFlow(next=begun["next"], linking=begun["linking"])
    if answer.get("iss", settings.OIDC_ISSUER) != settings.OIDC_ISSUER or "code" not in answer:
        client.framework.clear_state_data(request.session, answer["state"])
        raise SignInRefused("The provider did not let you in.", code="provider_refused")
    try:
        token = client.authorize_access_token(request, claims_options=_expected(), leeway=_LEEWAY_S)
        return flow, person_of(_claims(client, token), id_token=token["id_token"])
    except RequestException as error:
        raise ProviderUnavailable from error
    except AuthlibBaseError as error:
        raise SignInRefused("The provider did not let you in.", code="provider_refused") from error
    except _NONSENSE as error:
        raise SignInRefused(
            "What the provider says of you does not hold.", code="token_refused"
        ) from error


def logout_url(*, id_token: str, back_to: str) -> str | None:
    """Return where a browser signs out at the provider too; None where it has no such page, or
    cannot be asked."""
    try:
        client = _client()
    except ProviderUnavailable:
        return None
    if "end_session_endpoint" not in client.server_metadata:
        return None
    return str(
        client.create_logout_url(
            post_logout_redirect_uri=back_to,
            id_token_hint=id_token,
            client_id=settings.OIDC_CLIENT_ID,
        )["url"]
    )


def logout_subject(logout_token: str) -> str:
    """Return whom the provider signed out, as it tells behind the browser's back.

    Raises:
        SignInRefused: it is no such token of the provider's for us.
        ProviderUnavailable: its keys cannot be asked for.
    """
    client = _client()
    registry = JWSRegistry(
        algorithms=client.server_metadata["id_token_signing_alg_values_supported"],
        strict_check_header=False,
    )
    try:
        # Anybody may send one: with a key that is not known nothing is asked for anew.
        keys = KeySet.import_key_set(client.fetch_jwk_set())
        token = jwt.decode(logout_token, key=keys, registry=registry)
        needed = {name: {"essential": True} for name in ("iat", "exp", "jti", "sub", "events")}
        claims = JWTClaims(token.claims, token.header, {**needed, **_expected()})
        claims.validate(leeway=_LEEWAY_S)
        # Without the nonce that ID tokens have: else one of those would do.
        if "nonce" in claims or _LOGOUT_EVENT not in dict(claims["events"]):
            raise ValueError("not a logout token")
        return str(claims["sub"])
    except RequestException as error:
        raise ProviderUnavailable from error
    except _NONSENSE as error:
        raise SignInRefused("This is no logout token for us.", code="token_refused") from error


def _claims(client: Any, token: Any) -> dict[str, Any]:
    """Return the claims of the ID token, and what it lacks of those of the userinfo endpoint."""
    claims = dict(token["userinfo"])
    lacking = claims_wanted() - claims.keys()
    if not lacking or "userinfo_endpoint" not in client.server_metadata:
        return claims
    more = dict(client.userinfo(token=token))
    if more.get("sub") != claims["sub"]:
        raise ValueError("userinfo is of another subject")
    for name in lacking & more.keys():
        claims[name] = more[name]
        if name == "email":  # whether it is verified is said beside it, and of it alone
            claims["email_verified"] = more.get("email_verified")
    return claims


def _expected() -> dict[str, dict[str, Any]]:
    return {
        "iss": {"essential": True, "value": settings.OIDC_ISSUER},
        "aud": {"essential": True, "value": settings.OIDC_CLIENT_ID},
    }


def _client() -> Any:
    """Return Authlib's client, which knows what was discovered of the provider within the hour.

    Raises:
        ProviderUnavailable: it cannot be asked, or says what we do not accept.
    """
    global _discovered
    key = (settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID, settings.OIDC_CLIENT_SECRET)
    found = _discovered
    if found is None or found.key != key or time.monotonic() > found.until:
        client = _discover()
        found = _Discovered(key, time.monotonic() + _DISCOVERED_FOR_S, client)
        _discovered = found
    return found.client


def _discover() -> Any:
    client = _Client(
        _States("single_sign_on"),
        "single_sign_on",
        client_id=settings.OIDC_CLIENT_ID,
        client_secret=settings.OIDC_CLIENT_SECRET,
        client_kwargs={
            "scope": " ".join(("openid", *settings.OIDC_SCOPES)),
            "code_challenge_method": "S256",
            "default_timeout": settings.OIDC_TIMEOUT_S,
        },
        server_metadata_url=(
            settings.OIDC_ISSUER.rstrip("/") + "/.well-known/openid-configuration"
        ),
    )
    try:
        said = client.load_server_metadata()
        client.server_metadata = _metadata(said)
        methods = said.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if "client_secret_basic" not in methods and _POST in methods:
            client.client_kwargs["token_endpoint_auth_method"] = _POST
    except (RequestException, AuthlibBaseError, *_NONSENSE) as error:
        raise ProviderUnavailable from error
    return client


def _metadata(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what we take from a discovery document; raises ValueError and KeyError."""
    kept: dict[str, Any] = {name: said[name] for name in _NEEDED}
    for name in ("userinfo_endpoint", "end_session_endpoint"):
        if said.get(name) is not None:
            kept[name] = said[name]
    if kept["issuer"] != settings.OIDC_ISSUER:
        raise ValueError("the discovery document is of another issuer")
    for name, url in kept.items():
        if not isinstance(url, str) or not is_secure(url):
            raise ValueError(f"{name} is not secure")
        if not url.startswith("https:") and settings.OIDC_ISSUER.startswith("https:"):
            raise ValueError(f"{name} is less secure than the issuer")
    algorithms = _ALGORITHMS.intersection(
        said.get("id_token_signing_alg_values_supported") or ["RS256"]
    )
    if not algorithms:
        raise ValueError("no signature of the provider's is accepted")
    kept["id_token_signing_alg_values_supported"] = sorted(algorithms)
    kept["_loaded_at"] = time.time()  # by which the library knows that there is nothing to load
    return kept

"""A provider of our own that says what a test wants: over HTTP as a real one, and as wrongly as no
real one would."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.test import Client
from jwt.algorithms import RSAAlgorithm

from tests.identity_provider.process import CLIENT_ID

Document = dict[str, Any]


def key_pair() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def jwk(key: rsa.RSAPrivateKey, kid: str) -> Document:
    public: Document = json.loads(RSAAlgorithm.to_jwk(key.public_key()))
    return {**public, "kid": kid, "use": "sig", "alg": "RS256"}


@dataclass(slots=True)
class HostileProvider:
    """answer: what the token endpoint says, as (status, document), of the claims of an honest ID
    token; userinfo: what that endpoint says, None for not having one. asked: the paths and forms
    that came. is_over: set when the test is, for answers that wait."""

    issuer: str
    key: rsa.RSAPrivateKey = field(default_factory=cache(key_pair))
    kid: str = "one"
    keys: list[Document] = field(default_factory=list)
    answer: Callable[[Document], tuple[int, Any]] | None = None
    discovery: Document = field(default_factory=dict)
    userinfo: Any = None
    redirect: dict[str, str] = field(default_factory=dict)
    nonce: str = ""
    is_over: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = [jwk(self.key, self.kid)]

    def honest(self, **changes: Any) -> Document:
        """Claims that would be believed; a claim that is None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer, "sub": "subject-1", "aud": CLIENT_ID, "exp": now + 300, "iat": now,
            "nonce": self.nonce, "preferred_username": "ann", "email": "ann@example.com",
            "email_verified": True, "groups": ["engineers"], **changes,
        }  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def signed(self, claims: Document, **header: Any) -> str:
        body = json.dumps(claims).encode()  # whatever they are: PyJWT would look at some
        return jwt.api_jws.encode(body, self.key, "RS256", headers={"kid": self.kid, **header})

    def says(self, **changes: Any) -> None:
        """Sign what is honest but for some claims."""
        self.answers(lambda: self.signed(self.honest(**changes)))

    def answers(self, id_token: Callable[[], Any]) -> None:
        self.answer = lambda _: (200, {**TOKENS, "id_token": id_token()})

    def document(self, path: str) -> tuple[int, Any]:
        match path:
            case "/.well-known/openid-configuration":
                return 200, {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                    "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
                    **({"userinfo_endpoint": f"{self.issuer}/userinfo"} if self.userinfo else {}),
                    **self.discovery,
                }
            case "/keys":
                return 200, {"keys": self.keys}
            case "/userinfo":
                return 200, self.userinfo
            case "/token":
                assert self.answer is not None
                return self.answer(self.honest())
        return 404, {}

    def begin(self, client: Client, query: str = "") -> dict[str, str]:
        """Press the button; return what our page sends the browser there with."""
        answer = client.get(f"/admin/login/sso/{query}")
        assert answer.status_code == 302, answer.content
        sent = {
            name: value for name, (value,) in parse_qs(urlsplit(answer["Location"]).query).items()
        }
        self.nonce = sent["nonce"]
        return sent

    def come_back(self, client: Client, **query: str) -> Any:
        return client.get("/admin/login/sso/callback/", {"code": "code-1", **query})

    def sign_in(self, client: Client) -> Any:
        return self.come_back(client, state=self.begin(client)["state"])


TOKENS: Document = {"access_token": "access-1", "token_type": "Bearer", "expires_in": 300}


def _handler(provider: HostileProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            size = int(self.headers.get("Content-Length", 0))
            provider.asked.append((path, parse_qs(self.rfile.read(size).decode())))
            if path in provider.redirect:
                self.send_response(302)
                self.send_header("Location", provider.redirect[path])
                self.end_headers()
                return
            status, document = provider.document(path)
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def hostile_provider() -> Iterator[HostileProvider]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    provider = HostileProvider(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = _handler(provider)  # type: ignore[assignment]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield provider
    finally:
        provider.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""A server that speaks OpenAI's API as a test tells it to, well or badly: a real one, on a port."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from apps.core.sealing import seal
from apps.engines.types import REMOTE_KEY_PURPOSE, RemoteTarget

KEY = "sk-of-the-remote-server"
MODEL = "their-model"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """answer: what it does next. asked: what came, bodies and headers. n_left: requests whose
    client went away before their answer was whole."""

    port: int = 0
    answer: Answer | None = None
    models: tuple[str, ...] = (MODEL,)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    n_left: int = 0
    scheme: str = "http"

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        if request.method == "GET":
            return web.json_response({"data": [{"id": name} for name in self.models]})
        self.asked.append(json.loads(await request.read()))
        assert self.answer is not None
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.n_left += 1
            raise


@asynccontextmanager
async def upstream(tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """Run one until the block ends."""
    run = Upstream(scheme="https" if tls else "http")
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", run.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    run.port = runner.addresses[0][1]
    try:
        yield run
    finally:
        await runner.cleanup()


def target(base_url: str, **changed: Any) -> RemoteTarget:
    fields: dict[str, Any] = {
        "base_url": base_url,
        "model": MODEL,
        "task": "generate",
        "context_length": 4096,
        "key_sealed": seal(KEY.encode(), purpose=REMOTE_KEY_PURPOSE),
        "ca_file": "",
        "max_concurrency": 8,
        "connect_timeout_s": 2.0,
        "first_byte_timeout_s": 0.5,
        "idle_timeout_s": 0.5,
        "revision": 1,
    }
    return RemoteTarget(**fields | changed)


def certificates(directory: Path, *, address: str) -> tuple[ssl.SSLContext, Path]:
    """Return what a server at an address shows, and the file of the authority that vouches."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), False)
        .sign(key, SHA256())
    )
    shown, secret = directory / "certificate.pem", directory / "key.pem"
    shown.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(shown, secret)
    return context, shown


def whole(text: str = "Hello", **usage: int) -> Answer:
    """An answer in one body; without usage where none is given."""
    body: dict[str, Any] = {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ]
    }
    return of_body(json.dumps(body | ({"usage": usage} if usage else {})).encode())


def of_body(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=body,
            status=status,
            headers={"Content-Type": "application/json", **(headers or {})},
        )

    return answer


def piece(text: str = "", *, finish_reason: str | None = None, **delta: Any) -> bytes:
    return event(
        {
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": text, **delta},
                    "finish_reason": finish_reason,
                }
            ]
        }
    )


def usage(prompt: int, completion: int, **more: Any) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, **more}
    return event({"choices": [], "usage": counts})


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def streamed(*parts: bytes | float, cuts: bool = False) -> Answer:
    """Events one after another; a number waits so many seconds. cuts: the connection breaks off."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for part in parts:
            if isinstance(part, bytes):
                await response.write(part)
            else:
                await asyncio.sleep(part)
        if cuts:
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write_eof()
        return response

    return answer


async def silent(request: web.Request) -> web.StreamResponse:
    """Answer nothing."""
    await asyncio.sleep(60)
    return web.Response()

"""``Idempotency-Key``: of the requests that are one, one runs, and the others get its answer. What
a request does, and how it is worded, stays with its view."""

import asyncio
import hashlib
import re
from collections.abc import Callable
from typing import IO, Any, Final, Protocol, TypeVar, cast

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from rest_framework.request import Request

from apps.core.exceptions import InvalidRequest
from apps.gateway.exceptions import IDEMPOTENCY_KEY
from apps.gateway.idempotency import KeptAnswer, NamedRequest
from apps.gateway.rest.idempotent_runs import Claiming
from apps.gateway.runtime import gateway_runtime
from apps.rbac.types import Principal

META_NAME: Final = "HTTP_IDEMPOTENCY_KEY"
REPLAYED: Final = "Idempotency-Replayed"
MAX_KEY_CHARS: Final = 255
_KEY: Final = re.compile(rf"[!-~]{{1,{MAX_KEY_CHARS}}}")
_HASHED_AT_ONCE_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024

H = TypeVar("H", bound=Callable[..., Any])


class View(Protocol):
    """ends_with_client: whoever leaves ends the request, which then came to nothing."""

    @property
    def ends_with_client(self) -> bool: ...

    @property
    def principal(self) -> Principal: ...

    def finalize_response(self, request: Request, response: Any) -> Any: ...


def once(view: View, handler: H) -> H:
    """Return a handler that runs ``handler``, or answers as it did under the same key."""

    async def answer(request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        key = request.META[META_NAME]
        if not _KEY.fullmatch(key):
            raise InvalidRequest(
                f"'{IDEMPOTENCY_KEY}' must be 1 to {MAX_KEY_CHARS} visible ASCII characters.",
                code="invalid_idempotency_key",
                param=IDEMPOTENCY_KEY,
            )
        runtime, who = gateway_runtime(), view.principal
        runtime.watch()
        access_generation = runtime.access.generation
        named = NamedRequest(
            tenant_id=who.tenant_id,
            api_token_id=who.api_token_id or 0,
            user_id=who.user_id or 0,
            key=key,
            fingerprint=await _fingerprint(request),
        )
        found = await Claiming(runtime, named).claim_or_answer()
        if isinstance(found, KeptAnswer):
            await runtime.access.confirm(who, since=access_generation)
            return HttpResponse(
                found.body, status=found.status, headers={**found.headers, REPLAYED: "true"}
            )

        async def run() -> HttpResponseBase:
            try:
                # It may have waited long since it was admitted.
                await runtime.access.confirm(who, since=access_generation)
                response = await handler(request, *args, **kwargs)
                return await found.keep(view.finalize_response(request, response))
            except BaseException:
                await found.aclose()
                raise

        if view.ends_with_client:
            return await run()
        # What is begun is done, whoever leaves: else the next one would do it once more.
        return await asyncio.shield(runtime.spawn(run()))

    # A view that answers no POST refuses it, whatever its key.
    return cast(H, answer) if hasattr(view, "post") else handler


async def _fingerprint(request: Request) -> str:
    """Return the SHA-256 of method, path and body. The body stays to be read."""
    whole = request._request
    content_length = int(whole.META["CONTENT_LENGTH"])
    # Django reads a body once and into memory; the handler's file can be read again from its start.
    body = cast(IO[bytes], whole._stream)
    boundary = (whole.content_params or {}).get("boundary")
    digest = hashlib.sha256(f"{whole.method} {whole.path}\n".encode(errors="surrogatepass"))

    def read() -> str:
        if boundary is None:
            while part := body.read(_READ_BYTES):
                digest.update(part)
        else:
            _read_form(body, digest, boundary=b"--" + boundary.encode())
        body.seek(0)
        return digest.hexdigest()

    return read() if content_length <= _HASHED_AT_ONCE_BYTES else await asyncio.to_thread(read)


def _read_form(body: IO[bytes], digest: Any, *, boundary: bytes) -> None:
    """Leave the boundary out: clients draw a new one each time that they send the same form."""
    while line := body.readline(_READ_BYTES):
        digest.update(line.removeprefix(boundary))

"""Middleware of the pages' stack. Inference never passes through it."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

# Nothing from other hosts and no inline script. The theme's Alpine evaluates the expressions in
# its attributes, and its htmx writes a style element: hence the two exceptions.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


@sync_and_async_middleware
def content_security_policy(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """Put the policy on every page that sets none of its own."""

    def with_policy(response: HttpResponseBase) -> HttpResponseBase:
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        return response

    if iscoroutinefunction(get_response):
        respond = cast(Callable[[HttpRequest], Awaitable[HttpResponseBase]], get_response)

        async def async_middleware(request: HttpRequest) -> HttpResponseBase:
            return with_policy(await respond(request))

        return async_middleware

    def middleware(request: HttpRequest) -> HttpResponseBase:
        return with_policy(get_response(request))

    return middleware

"""Middleware of the pages' stack. Inference never passes through it."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponseBadRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin

from apps.core.tenancy import nobody_yet

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


class QueriesWithoutNul(MiddlewareMixin):
    """No page asks for a NUL, PostgreSQL takes it in no text, and Django's lists and forms ask the
    database with whatever stands in the address."""

    def process_request(self, request: HttpRequest) -> HttpResponseBadRequest | None:
        if "%00" not in request.META.get("QUERY_STRING", ""):
            return None
        return HttpResponseBadRequest("The address has a NUL in it.", content_type="text/plain")


@sync_and_async_middleware
def begin_without_tenants(get_response: Callable[[HttpRequest], Any]) -> Callable[..., Any]:
    """A request begins with nobody's rows, and leaves nobody's behind."""
    if iscoroutinefunction(get_response):
        respond = cast(Callable[[HttpRequest], Awaitable[HttpResponseBase]], get_response)

        async def async_middleware(request: HttpRequest) -> HttpResponseBase:
            with nobody_yet():
                return await respond(request)

        return async_middleware

    def middleware(request: HttpRequest) -> HttpResponseBase:
        with nobody_yet():
            return cast(HttpResponseBase, get_response(request))

    return middleware

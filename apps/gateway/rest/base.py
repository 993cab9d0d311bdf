"""DRF's view with an asynchronous dispatch. DRF's classes do authentication, permission, parsing,
rendering and error handling; none of them touches the database on the event loop."""

import logging
from collections.abc import Iterable
from typing import IO, Any, ClassVar

import msgspec
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework import exceptions as drf
from rest_framework.authentication import BaseAuthentication
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.core.exceptions import AppError, AuthenticationFailed, PermissionDenied
from apps.gateway.authentication import principal_of_header
from apps.gateway.decoding import decode
from apps.gateway.exceptions import MethodNotAllowed, UnsupportedMediaType
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)


class BearerAuthentication(BaseAuthentication):
    """An API token in the ``Authorization`` header."""

    async def principal(self, request: Request) -> Principal:
        return await principal_of_header(request.META.get("HTTP_AUTHORIZATION"))


class HasPrincipal(BasePermission):
    """Whoever has a live token may use the doors."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        return isinstance(request.auth, Principal)


class StructParser(BaseParser):
    """Decodes a body once, into the struct that the view's ``decoder`` names."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Any = None
    ) -> Any:
        return decode(parser_context["view"].decoder, stream.read())


class StructRenderer(BaseRenderer):
    """Encodes structs and plain values."""

    media_type = "application/json"
    format = "json"
    charset = None
    render_style = "binary"

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None
    ) -> bytes:
        return msgspec.json.encode(data)


class OneFormat(BaseContentNegotiation):
    """There is one way to answer; what a client says it accepts does not change it."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        content_type = request.content_type.partition(";")[0].strip().lower()
        return next((each for each in parsers if each.media_type == content_type), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, str(renderer.media_type)


class InferenceView(APIView):
    """Base of the views under /v1/: asynchronous handlers, one error body."""

    authentication_classes = [BearerAuthentication]
    permission_classes = [HasPrincipal]
    parser_classes = [StructParser]
    renderer_classes = [StructRenderer]
    content_negotiation_class = OneFormat
    http_method_names = ["get", "post"]
    format_kwarg = None  # no path here ends in a format

    decoder: ClassVar["msgspec.json.Decoder[Any]"]

    @property
    def default_response_headers(self) -> dict[str, str]:
        return {}

    async def dispatch(  # type: ignore[override]
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        self.args, self.kwargs = args, kwargs
        self.headers = self.default_response_headers
        self.request = wrapped = self.initialize_request(request, *args, **kwargs)
        response: HttpResponseBase
        try:
            await self.admit(wrapped)
            method = (wrapped.method or "").lower()
            handler = self.http_method_not_allowed
            if method in self.http_method_names:
                handler = getattr(self, method, handler)
            found = handler(wrapped, *args, **kwargs)
            response = found if isinstance(found, HttpResponseBase) else await found
        except Exception as error:  # noqa: BLE001 - every failure leaves in the one error body
            response = self.handle_exception(error)
        self.response = self.finalize_response(wrapped, response, *args, **kwargs)
        return self.response

    async def admit(self, request: Request) -> None:
        """Authenticate and check permissions, as DRF's ``initial`` does."""
        request.accepted_renderer, request.accepted_media_type = self.perform_content_negotiation(
            request
        )
        principal = None
        for authenticator in self.get_authenticators():
            if isinstance(authenticator, BearerAuthentication):
                principal = await authenticator.principal(request)
        # DRF would call the authenticators, synchronously, on the first look at either.
        request.user, request.auth = AnonymousUser(), principal
        self.check_permissions(request)

    def handle_exception(self, exc: Exception) -> Response:
        response = error_response(exc)
        if isinstance(exc, drf.MethodNotAllowed):
            response["Allow"] = ", ".join(self.allowed_methods)
        return response

    @property
    def principal(self) -> Principal:
        principal: Any = self.request.auth
        assert isinstance(principal, Principal)
        return principal


def error_response(error: Exception) -> Response:
    """Return the one error body, with the status and headers that belong to it."""
    known = _app_error(error)
    response = Response(known.body(), status=known.status)
    if known.retry_after_s is not None:
        response["Retry-After"] = str(max(1, round(known.retry_after_s)))
    if isinstance(known, AuthenticationFailed):
        response["WWW-Authenticate"] = "Bearer"
    return response


def _app_error(error: Exception) -> AppError:
    match error:
        case AppError():
            return error
        case drf.MethodNotAllowed():
            return MethodNotAllowed()
        case drf.UnsupportedMediaType():
            return UnsupportedMediaType()
        case drf.NotAuthenticated() | drf.AuthenticationFailed():
            return AuthenticationFailed()
        case drf.PermissionDenied():
            return PermissionDenied()
        case _:
            logger.error("A request failed", exc_info=error)
            return AppError()

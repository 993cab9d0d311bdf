"""DRF's view with an asynchronous dispatch. DRF's classes do authentication, permission, parsing,
rendering and error handling; none of them touches the database on the event loop."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, ClassVar, Self, TypeVar

import msgspec
from django.contrib.auth.models import AnonymousUser
from django.db import InterfaceError, OperationalError
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

from apps.core.addresses import Address, client_address
from apps.core.exceptions import (
    AppError,
    AuthenticationFailed,
    InvalidRequest,
    PermissionDenied,
)
from apps.core.hop import DatabaseAway
from apps.core.tenancy import tenants_only
from apps.gateway.authentication import (
    check_scope,
    principal_of_header,
    principal_of_secret,
)
from apps.gateway.decoding import decode, decode_query
from apps.gateway.exceptions import MethodNotAllowed, UnsupportedMediaType
from apps.gateway.limits import error_headers
from apps.gateway.rest.idempotent import META_NAME, once
from apps.gateway.rest.operations import Operation
from apps.gateway.runtime import gateway_runtime
from apps.metering.exceptions import LimitExceeded
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BearerAuthentication(BaseAuthentication):
    """An API token in the ``Authorization`` header, or in ``x-api-key`` where the view takes it."""

    async def principal(self, request: Request, *, takes_key: bool) -> Principal:
        meta, address = request.META, address_of(request)
        key = meta.get("HTTP_X_API_KEY")
        if takes_key and key:
            return await principal_of_secret(key.strip(), address=address)
        return await principal_of_header(meta.get("HTTP_AUTHORIZATION"), address=address)


def address_of(request: Request) -> Address | None:
    """Return where a request comes from; None where it cannot be known."""
    meta = request.META
    return client_address(meta.get("REMOTE_ADDR"), meta.get("HTTP_X_FORWARDED_FOR"))


class HasPrincipal(BasePermission):
    """Whoever has a live token with the view's scope."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not isinstance(request.auth, Principal):
            return False
        if isinstance(view, InferenceView) and view.scope is not None:
            check_scope(request.auth, view.scope)
        return True


class StructParser(BaseParser):
    """Decodes a body once, by the view's ``body_decoder``."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Any = None
    ) -> Any:
        encoding = parser_context["request"].META.get("HTTP_CONTENT_ENCODING", "").strip().lower()
        if encoding not in ("", "identity"):
            raise UnsupportedMediaType(
                f"The body must come as it is: 'Content-Encoding: {encoding[:40]}' is not taken."
            )
        return decode(parser_context["view"].body_decoder(), stream.read())


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
    """Base of the views under /v1/: asynchronous handlers, one error body.

    ``operations`` describes each handler for the OpenAPI document. ``scope`` is what a token must
    be for; None is any. takes_idempotency_key: of two POSTs with one key, one runs.
    ends_with_client: a client that leaves ends its request. reuses_answers: of what is asked for
    again, a kept answer may do. request_id: of what an engine was asked to do, once it was.
    """

    scope: ClassVar[str | None] = "inference"

    authentication_classes = [BearerAuthentication]
    permission_classes = [HasPrincipal]
    parser_classes = [StructParser]
    renderer_classes = [StructRenderer]
    content_negotiation_class = OneFormat
    http_method_names = ["get", "post"]
    format_kwarg = None  # no path here ends in a format

    decoder: ClassVar["msgspec.json.Decoder[Any]"]
    operations: ClassVar[Mapping[str, Operation]] = {}
    takes_key: ClassVar[bool] = False
    takes_idempotency_key: ClassVar[bool] = True
    ends_with_client: ClassVar[bool] = False
    reuses_answers: ClassVar[bool] = False
    request_id: str | None = None
    _principal: Principal | None = None

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
            if method == "post" and META_NAME in request.META and self.takes_idempotency_key:
                handler = once(self, handler)
            found = handler(wrapped, *args, **kwargs)
            response = found if isinstance(found, HttpResponseBase) else await found
        except Exception as error:  # noqa: BLE001 - every failure leaves in the one error body
            response = self.handle_exception(error)
        self.response = self.finalize_response(wrapped, response, *args, **kwargs)
        return self.response

    def body_decoder(self) -> "msgspec.json.Decoder[Any]":
        """Return what decodes the body of the request at hand."""
        return self.decoder

    async def admit(self, request: Request) -> None:
        """Authenticate and check permissions, as DRF's ``initial`` does."""
        request.accepted_renderer, request.accepted_media_type = self.perform_content_negotiation(
            request
        )
        principal = None
        for authenticator in self.get_authenticators():
            if isinstance(authenticator, BearerAuthentication):
                principal = await authenticator.principal(request, takes_key=self.takes_key)
        if principal is not None:
            tenants_only((principal.tenant_id,))
        # DRF would call the authenticators, synchronously, on the first look at either.
        request.user, request.auth = AnonymousUser(), principal
        self._principal = principal
        self.check_permissions(request)

    def handle_exception(self, exc: Exception) -> Response:
        known = _app_error(exc)
        if self._principal is not None and self.request_id is None:
            gateway_runtime().refusals.note(self._principal, known)
        response = error_response(known, body_of_error=self.error_body)
        if isinstance(exc, drf.MethodNotAllowed):
            response["Allow"] = ", ".join(self.allowed_methods)
        return response

    def error_body(self, error: AppError) -> Any:
        return error.body()

    @property
    def principal(self) -> Principal:
        assert self._principal is not None
        return self._principal


class AnsweringView(InferenceView):
    """A subclass answers a decoded body the same way whoever asks: a client or a job."""

    ends_with_client = True
    door = "rest"
    priority = 0

    @classmethod
    def for_job(cls, *, principal: Principal, door: str, priority: int) -> Self:
        """Return a view whose ``answer`` may be called without a connection."""
        view = cls()
        view._principal, view.door, view.priority = principal, door, priority
        return view

    async def post(self, request: Request) -> HttpResponseBase:
        return await self.answer(body_of(request, self.decoder.type))

    async def answer(self, body: Any) -> HttpResponseBase:
        raise NotImplementedError


def body_of(request: Request, kind: type[T]) -> T:
    """Return the decoded body; raises InvalidRequest where there is none."""
    data = request.data
    if not isinstance(data, kind):  # DRF hands an empty body on without asking the parser
        raise InvalidRequest("The body is empty; it must be a JSON object.", code="invalid_json")
    return data


def query_of(request: Request, kind: type[T]) -> T:
    """Return the query as a struct whose fields it may name; raises InvalidRequest."""
    return decode_query(kind, dict(request.query_params.items()))


def error_response(
    error: Exception, *, body_of_error: Callable[[AppError], Any] = AppError.body
) -> Response:
    """Return the one error body, with the status and headers that belong to it.

    body_of_error: words it where an endpoint has a form of its own.
    """
    known = _app_error(error)
    response = Response(body_of_error(known), status=known.status)
    if known.retry_after_s is not None:
        response["Retry-After"] = str(max(1, math.ceil(known.retry_after_s)))
    should_retry = known.should_retry
    if should_retry is None:
        should_retry = known.retry_after_s is not None
    # The official clients retry by this, over their own rules about the status.
    response["X-Should-Retry"] = "true" if should_retry else "false"
    if isinstance(known, LimitExceeded):
        for name, value in error_headers(known).items():
            response[name] = value
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
        case OperationalError() | InterfaceError():
            logger.warning("A request failed for want of the database: %s", error)
            return DatabaseAway()
        case _:
            logger.error("A request failed", exc_info=error)
            return AppError()

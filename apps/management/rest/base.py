"""What the views of the management API share: who asks, what is asked, and how it is answered. The
work of each is one synchronous function that is called on a database thread."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import msgspec
from django.db.models import Model, QuerySet
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import Conflict, InvalidRequest, NotFound
from apps.core.hop import database_hop
from apps.gateway.exceptions import PreconditionFailed
from apps.gateway.rest.base import InferenceView, address_of, body_of, query_of
from apps.gateway.rest.operations import Operation
from apps.management.caller import Caller, caller_of
from apps.management.refusals import refusal_of
from apps.management.tags import tag_of, tags_read
from apps.management.wire.common import ManagedPage, PageQuery, page

M = TypeVar("M", bound=Model)
P = TypeVar("P", bound=ManagedPage)
# Of every operation that changes something that is there.
MAY_CONFLICT = (Conflict,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, decoded. body and query: the structs that its operation names, or None; of one
    that takes bytes, those. tags: of ``If-Match``; None where it did not come. is_for_new: with
    ``If-None-Match: *``."""

    caller: Caller
    body: Any
    query: Any
    tags: frozenset[str] | None
    is_for_new: bool

    def match(self, tag: str | None) -> None:
        """Raise PreconditionFailed where the request is for something else than what has this tag;
        None: there is nothing. Ask it while the row is held."""
        if self.tags is None:
            return
        if tag is None or not self.tags & {"*", tag}:
            raise PreconditionFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An answer. tag: its ETag."""

    data: Any
    tag: str | None = None


Work = Callable[..., Shown]


class ManagementView(InferenceView):
    """``names``: column → field of the body, where the two differ."""

    scope = "manage"
    names: ClassVar[Mapping[str, str]] = {}

    def body_decoder(self) -> "msgspec.json.Decoder[Any]":
        return _decoder(self._operation.body)

    async def done(self, request: Request, work: Work, **named: str) -> Response:
        """Answer with what ``work(ask, **named)`` makes of the request. named: from the path."""
        operation = self._operation
        if any("\0" in each for each in named.values()):
            raise NotFound
        body = self._body(request, operation)
        query = None if operation.query is None else query_of(request, operation.query)
        for each in (body, query):
            if isinstance(each, msgspec.Struct):
                _nul_refuse(each)
        meta, principal = request.META, self.principal
        tags = tags_read(meta.get("HTTP_IF_MATCH"), name="If-Match") if operation.if_match else None
        new = meta.get("HTTP_IF_NONE_MATCH") if operation.if_none_match else None
        if new not in (None, "*"):
            raise InvalidRequest(
                "'If-None-Match' takes * only.", code="invalid_value", param="If-None-Match"
            )
        address = address_of(request)

        def whole() -> Shown:
            caller = caller_of(principal, address=address)
            return work(
                Ask(caller=caller, body=body, query=query, tags=tags, is_for_new=new is not None),
                **named,
            )

        shown = await database_hop(whole)
        response = Response(shown.data, status=operation.status)
        if shown.tag is not None:
            response["ETag"] = shown.tag
        return response

    def handle_exception(self, exc: Exception) -> Response:
        return super().handle_exception(refusal_of(exc, names=self.names))

    def _body(self, request: Request, operation: Operation) -> Any:
        if operation.takes_bytes:
            return request.data or b""  # DRF hands an empty body on without asking the parser
        return None if operation.body is None else body_of(request, operation.body)

    @property
    def _operation(self) -> Operation:
        return self.operations[(self.request.method or "").lower()]


def shown_with_tag(data: Any) -> Shown:
    """An answer of which everything is what somebody may set."""
    return Shown(data=data, tag=tag_of(data))


def page_of(
    kind: type[P],
    rows: "QuerySet[M]",
    query: PageQuery,
    *,
    key: str,
    past: Any,
    show: Callable[[Any], Any],
) -> Shown:
    """Answer with a page of rows in the order of ``key``, which no two share. past: where the page
    before ended; None for the first."""
    if past is not None:
        lookup = f"{key[1:]}__lt" if key.startswith("-") else f"{key}__gt"
        rows = rows.filter(**{lookup: past})
    found = list(rows.order_by(key)[: query.limit + 1])
    return Shown(data=page(kind, found, limit=query.limit, show=show))


@functools.cache
def _decoder(kind: type[msgspec.Struct]) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind)


def _nul_refuse(struct: msgspec.Struct) -> None:
    """Raise InvalidRequest where a text holds a NUL, which PostgreSQL keeps in none."""
    for path, text in _texts(msgspec.to_builtins(struct), ""):
        if "\0" in text:
            raise InvalidRequest(f"'{path}' holds a NUL.", code="invalid_value", param=path)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield path, value
        case dict():
            for key, each in value.items():
                yield from _texts(str(key), path)
                yield from _texts(each, f"{path}.{key}" if path else str(key))
        case list() | tuple():
            for index, each in enumerate(value):
                yield from _texts(each, f"{path}[{index}]")

"""Imports: begun, their file sent in pieces, watched, cancelled. The rest is a worker's to do."""

from typing import IO, TYPE_CHECKING, Any, ClassVar, Final

from django.db import transaction
from msgspec import UNSET
from rest_framework import exceptions as drf
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import Conflict, InvalidRequest, NotFound, PermissionDenied
from apps.gateway.exceptions import UnsupportedMediaType
from apps.gateway.rest.operations import BYTES, Operation
from apps.management.caller import Caller
from apps.management.rest.base import Ask, ManagementView, Shown, page_of
from apps.management.wire import registry as wire
from apps.registry.selectors import import_jobs
from apps.registry.services import (
    import_job_cancel,
    import_job_create,
    import_upload_append,
    import_upload_begin,
)

if TYPE_CHECKING:
    from apps.registry.models import ImportJob

ADD: Final = "registry.add_importjob"
CHANGE: Final = "registry.change_importjob"
_TAG: Final = "Imports"
# Kinds of sources, as rows have them.
_ROOT: Final = "root"
_UPLOAD: Final = "upload"
_MOST_DIGITS: Final = 16
OFFSET_META: Final = "HTTP_UPLOAD_OFFSET"
OFFSET: Final = {
    "name": "Upload-Offset",
    "required": True,
    "description": "How many bytes were sent before: `n_received_bytes`.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 2**53},
}


class ImportListView(ManagementView):
    http_method_names = ["get", "post"]
    names: ClassVar = {"model_name": "model", "expected_sha256": "sha256"}
    operations: ClassVar = {
        "get": Operation(
            id="listImports",
            summary="List the imports, the newest first",
            tag=_TAG,
            answer=wire.ImportPage,
            query=wire.ImportQuery,
            errors=(NotFound,),
        ),
        "post": Operation(
            id="createImport",
            summary="Import a model from the server's disk, or begin to upload one",
            tag=_TAG,
            answer=wire.ImportObject,
            body=wire.ImportBody,
            status=201,
        ),
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)

    async def post(self, request: Request) -> Response:
        return await self.done(request, _create)


class ImportView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getImport",
            summary="Look how far an import is",
            tag=_TAG,
            answer=wire.ImportObject,
        )
    }

    async def get(self, request: Request, import_id: str) -> Response:
        return await self.done(request, _get, import_id=import_id)


class BytesParser(BaseParser):
    """Takes a body as it is."""

    media_type = BYTES

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Any = None
    ) -> Any:
        return stream.read()


class ImportFileView(ManagementView):
    http_method_names = ["patch"]
    parser_classes = [BytesParser]
    operations: ClassVar = {
        "patch": Operation(
            id="uploadImport",
            summary="Send the next piece of an import's file",
            tag=_TAG,
            answer=wire.ImportObject,
            takes_bytes=True,
            headers=(OFFSET,),
            errors=(Conflict,),
        )
    }

    async def patch(self, request: Request, import_id: str) -> Response:
        text = request.META.get(OFFSET_META, "")

        def append(ask: Ask, *, import_id: str) -> Shown:
            ask.caller.require(ADD)
            row, offset = _of_token(ask.caller, import_id), _offset(text)
            job = import_upload_append(job=row, offset=offset, data=ask.body)
            return Shown(data=wire.import_object(job))

        return await self.done(request, append, import_id=import_id)

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, drf.UnsupportedMediaType):
            exc = UnsupportedMediaType(f"A piece of a file is sent as it is: '{BYTES}'.")
        return super().handle_exception(exc)


class ImportCancelView(ManagementView):
    http_method_names = ["post"]
    operations: ClassVar = {
        "post": Operation(
            id="cancelImport", summary="Cancel an import", tag=_TAG, answer=wire.ImportObject
        )
    }

    async def post(self, request: Request, import_id: str) -> Response:
        return await self.done(request, _cancel, import_id=import_id)


def _found(caller: Caller, import_id: str, *, param: str | None = None) -> "ImportJob":
    caller.require("registry.view_importjob", CHANGE)
    row = import_jobs().filter(job_id=import_id).first()
    if row is None:
        raise NotFound(f"There is no import {import_id[:120]!r}.", param=param)
    return row


def _list(ask: Ask) -> Shown:
    ask.caller.require("registry.view_importjob", CHANGE)
    rows, query = import_jobs(), ask.query
    if query.status is not None:
        rows = rows.filter(status=query.status)
    past = query.after and _found(ask.caller, query.after, param="after").pk
    return page_of(wire.ImportPage, rows, query, key="-pk", past=past, show=wire.import_object)


@transaction.atomic
def _create(ask: Ask) -> Shown:
    ask.caller.require(ADD)
    body = ask.body
    if (body.source is UNSET) == (body.upload is UNSET):
        raise InvalidRequest(
            "Give either 'source' or 'upload'.", code="invalid_value", param="source"
        )
    row = import_job_create(
        model_name=body.model,
        kind=_UPLOAD if body.source is UNSET else _ROOT,
        source="" if body.source is UNSET else body.source,
        expected_sha256=body.sha256,
        actor=ask.caller.actor,
    )
    if body.upload is not UNSET:
        upload = body.upload
        row = import_upload_begin(job=row, filename=upload.filename, size_bytes=upload.size_bytes)
    return Shown(data=wire.import_object(row))


def _of_token(caller: Caller, import_id: str) -> "ImportJob":
    """Return an import that this token began: nobody else brings its file."""
    row = import_jobs().filter(job_id=import_id).first()
    if row is None:
        raise NotFound(f"There is no import {import_id[:120]!r}.")
    if (row.actor_kind, row.actor_id) != (caller.actor.kind, caller.actor.id):
        raise PermissionDenied("Only the token that began an import uploads its file.")
    return row


def _offset(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise InvalidRequest(
            "'Upload-Offset' must be a number of bytes.",
            code="invalid_value",
            param="Upload-Offset",
        )
    return int(text)


def _get(ask: Ask, *, import_id: str) -> Shown:
    return Shown(data=wire.import_object(_found(ask.caller, import_id)))


def _cancel(ask: Ask, *, import_id: str) -> Shown:
    row = _found(ask.caller, import_id)
    ask.caller.require(CHANGE)
    cancelled = import_job_cancel(job=row, actor=ask.caller.actor)
    return Shown(data=wire.import_object(cancelled))

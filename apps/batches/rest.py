"""Files and batches over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework import exceptions as drf
from rest_framework.request import Request
from rest_framework.response import Response

from apps.batches import selectors, services, storage, wire
from apps.batches.exceptions import FileNotFound
from apps.batches.models import Batch, UploadedFile
from apps.batches.types import Upload
from apps.batches.uploads import UploadParser
from apps.core.exceptions import InvalidRequest, NotFound
from apps.core.hop import database_hop
from apps.gateway.exceptions import UnsupportedMediaType
from apps.gateway.rest.base import InferenceView
from apps.gateway.rest.operations import Operation

_PART_BYTES: Final = 256 * 1024
_FILES_AT_MOST: Final = 10_000
_BATCHES_AT_MOST: Final = 100


class FileListView(InferenceView):
    scope = "batches"
    parser_classes = [UploadParser]
    operations: ClassVar = {
        "get": Operation(
            id="listFiles",
            summary="List the files",
            tag="Files",
            answer=wire.FilePage,
            query=wire.FileQuery,
            errors=(NotFound,),
        ),
        "post": Operation(
            id="uploadFile",
            summary="Upload a file",
            tag="Files",
            answer=wire.FileObject,
            form=wire.FileForm,
        ),
    }

    async def get(self, request: Request) -> Response:
        asked = _query(request, "limit", "after", "purpose", "order")
        limit = _limit(asked, default=_FILES_AT_MOST, most=_FILES_AT_MOST)
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise _wrong("order", "must be 'asc' or 'desc'")
        purpose = asked.get("purpose")
        if purpose is not None and purpose not in UploadedFile.Purpose.values:
            raise _wrong("purpose", f"must be one of {', '.join(UploadedFile.Purpose.values)}")
        rows = await database_hop(
            selectors.files_page,
            tenant_id=self.principal.tenant_id,
            limit=limit + 1,
            after=asked.get("after"),
            purpose=purpose,
            is_ascending=order == "asc",
        )
        return Response(
            wire.page(wire.FilePage, [wire.file_object(row) for row in rows], limit=limit)
        )

    async def post(self, request: Request) -> Response:
        upload = await asyncio.to_thread(lambda: request.data)
        if not isinstance(upload, Upload):  # DRF hands an empty body on without the parser
            raise InvalidRequest("The form is empty.", code="invalid_form")
        try:
            row = await database_hop(services.file_create, principal=self.principal, upload=upload)
        finally:
            upload.draft.unlink(missing_ok=True)
        return Response(wire.file_object(row))

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, drf.UnsupportedMediaType):
            exc = UnsupportedMediaType("A file is uploaded as a form: 'multipart/form-data'.")
        return super().handle_exception(exc)


class FileView(InferenceView):
    scope = "batches"
    http_method_names = ["get", "delete"]
    operations: ClassVar = {
        "get": Operation(
            id="getFile", summary="Look up a file", tag="Files", answer=wire.FileObject
        ),
        "delete": Operation(
            id="deleteFile", summary="Delete a file", tag="Files", answer=wire.DeletedFile
        ),
    }

    async def get(self, request: Request, file_id: str) -> Response:
        row = await database_hop(
            selectors.file_get, tenant_id=self.principal.tenant_id, file_id=file_id
        )
        return Response(wire.file_object(row))

    async def delete(self, request: Request, file_id: str) -> Response:
        await database_hop(services.file_delete, principal=self.principal, file_id=file_id)
        return Response(wire.DeletedFile(id=file_id))


class FileContentView(InferenceView):
    scope = "batches"
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="downloadFile",
            summary="Download a file",
            tag="Files",
            answer=None,
            answer_type="application/octet-stream",
        ),
    }

    async def get(self, request: Request, file_id: str) -> HttpResponseBase:
        row = await database_hop(
            selectors.file_get, tenant_id=self.principal.tenant_id, file_id=file_id
        )
        path = storage.file_path(row.file_id)
        if not path.is_file():
            raise FileNotFound(file_id)
        return StreamingHttpResponse(
            _parts(path),
            content_type="application/octet-stream",
            headers={
                "X-Content-Type-Options": "nosniff",
                "Content-Length": str(row.size_bytes),
            },
        )


class BatchListView(InferenceView):
    scope = "batches"
    decoder: ClassVar = msgspec.json.Decoder(wire.BatchBody)
    operations: ClassVar = {
        "get": Operation(
            id="listBatches",
            summary="List the batches",
            tag="Batches",
            answer=wire.BatchPage,
            query=wire.BatchQuery,
            errors=(NotFound,),
        ),
        "post": Operation(
            id="createBatch",
            summary="Have the requests of a file answered",
            tag="Batches",
            answer=wire.BatchObject,
        ),
    }

    async def get(self, request: Request) -> Response:
        asked = _query(request, "limit", "after")
        limit = _limit(asked, default=20, most=_BATCHES_AT_MOST)
        rows = await database_hop(
            selectors.batches_page,
            tenant_id=self.principal.tenant_id,
            limit=limit + 1,
            after=asked.get("after"),
        )
        return Response(
            wire.page(wire.BatchPage, [wire.batch_object(row) for row in rows], limit=limit)
        )

    async def post(self, request: Request) -> Response:
        body = request.data
        if not isinstance(body, wire.BatchBody):
            raise InvalidRequest("The body is empty; it must be an object.", code="invalid_json")
        body.check()
        row = await database_hop(
            services.batch_create,
            principal=self.principal,
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            metadata=body.metadata,
        )
        return Response(wire.batch_object(row))


class BatchView(InferenceView):
    scope = "batches"
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getBatch", summary="Look up a batch", tag="Batches", answer=wire.BatchObject
        ),
    }

    async def get(self, request: Request, batch_id: str) -> Response:
        row = await database_hop(
            selectors.batch_get, tenant_id=self.principal.tenant_id, batch_id=batch_id
        )
        return Response(wire.batch_object(row))


class BatchCancelView(InferenceView):
    scope = "batches"
    http_method_names = ["post"]
    operations: ClassVar = {
        "post": Operation(
            id="cancelBatch", summary="Cancel a batch", tag="Batches", answer=wire.BatchObject
        ),
    }

    async def post(self, request: Request, batch_id: str) -> Response:
        principal = self.principal

        def cancel() -> Batch:
            batch = selectors.batch_get(tenant_id=principal.tenant_id, batch_id=batch_id)
            return services.batch_cancel(batch=batch, actor=services.actor_of_principal(principal))

        return Response(wire.batch_object(await database_hop(cancel)))


async def _parts(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while part := await asyncio.to_thread(file.read, _PART_BYTES):
            yield part


def _query(request: Request, *known: str) -> dict[str, Any]:
    """Return the query's values; raises InvalidRequest for a name that is not known."""
    values = dict(request.query_params.items())
    for name in values:
        if name not in known:
            raise InvalidRequest(
                f"Unknown parameter: '{name[:80]}'.", code="unknown_parameter", param=name[:80]
            )
    return values


def _limit(values: dict[str, Any], *, default: int, most: int) -> int:
    text = values.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= most):
        raise _wrong("limit", f"must be a whole number from 1 to {most}")
    return int(text)


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' {what}.", code="invalid_value", param=name)

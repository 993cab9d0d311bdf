"""Files and batches in the API's wire format. Field names and order are those that clients know."""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from apps.batches.models import Batch, UploadedFile
from apps.core.exceptions import InvalidRequest

_Key = Annotated[str, Meta(max_length=64)]
_Value = Annotated[str, Meta(max_length=512)]


class BatchBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/batches``."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Key, _Value], Meta(max_length=16)] | None = None
    output_expires_after: Any = None

    def check(self) -> None:
        """Raise InvalidRequest for what types cannot say."""
        if self.output_expires_after is not None:
            raise InvalidRequest(
                "Unsupported parameter: 'output_expires_after'.",
                code="unsupported_parameter",
                param="output_expires_after",
            )
        if any("\x00" in text for pair in (self.metadata or {}).items() for text in pair):
            raise InvalidRequest("'metadata' holds a NUL.", code="invalid_value", param="metadata")


class FileObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: None = None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: None = None


class DeletedFile(msgspec.Struct, kw_only=True):
    id: str
    object: str = "file"
    deleted: bool = True


class BatchErrors(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: list[Any]


class RequestCounts(msgspec.Struct, kw_only=True):
    total: int
    completed: int
    failed: int


class BatchObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str = "24h"
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class Page(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: tuple[Any, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FilePage(Page, kw_only=True):
    data: tuple[FileObject, ...]


class BatchPage(Page, kw_only=True):
    data: tuple[BatchObject, ...]


class FileForm(msgspec.Struct, kw_only=True):
    """For the OpenAPI document: the parts of an upload."""

    file: bytes
    purpose: Literal["batch"]


class BatchQuery(msgspec.Struct, kw_only=True):
    """For the OpenAPI document: ``after`` is the last id of the page before."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    after: str | None = None


class FileQuery(msgspec.Struct, kw_only=True):
    """For the OpenAPI document: ``after`` is the last id of the page before."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    after: str | None = None
    purpose: Literal["batch", "batch_output"] | None = None
    order: Literal["asc", "desc"] = "desc"


def file_object(row: UploadedFile) -> FileObject:
    return FileObject(
        id=row.file_id,
        bytes=row.size_bytes,
        created_at=int(row.created_at.timestamp()),
        filename=row.filename,
        purpose=row.purpose,
    )


def batch_object(row: Batch) -> BatchObject:
    """The files' ids are told once the files are there."""

    def ended(status: str) -> int | None:
        return _seconds(row.ended_at) if row.status == status else None

    return BatchObject(
        id=row.batch_id,
        endpoint=row.endpoint,
        errors=BatchErrors(data=row.errors) if row.errors else None,
        input_file_id=row.input_file_id,
        status=row.status,
        output_file_id=(not row.is_open and row.output_file_id) or None,
        error_file_id=(not row.is_open and row.error_file_id) or None,
        created_at=int(row.created_at.timestamp()),
        in_progress_at=_seconds(row.in_progress_at),
        expires_at=int(row.expires_at.timestamp()),
        finalizing_at=_seconds(row.finalizing_at),
        completed_at=ended(Batch.Status.COMPLETED),
        failed_at=ended(Batch.Status.FAILED),
        expired_at=ended(Batch.Status.EXPIRED),
        cancelling_at=_seconds(row.cancelling_at),
        cancelled_at=ended(Batch.Status.CANCELLED),
        request_counts=RequestCounts(
            total=row.n_total, completed=row.n_completed, failed=row.n_failed
        ),
        metadata=row.metadata,
    )


P = TypeVar("P", bound=Page)


def page(kind: type[P], found: list[Any], *, limit: int) -> P:
    """One page of objects of which there may be one more than ``limit``."""
    data = tuple(found[:limit])
    return kind(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())

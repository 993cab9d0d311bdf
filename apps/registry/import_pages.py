"""The page of an import: the part that renews itself, and the door for the pieces of an upload."""

from typing import TYPE_CHECKING, Any, Final

import msgspec
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST, require_safe

from apps.core.access import access_in
from apps.core.exceptions import AppError, InvalidRequest
from apps.registry.import_jobs import import_upload_append, import_upload_begin
from apps.registry.models import ImportJob

if TYPE_CHECKING:
    from apps.core.admin import BaseAdmin

MAX_PIECE_BYTES: Final = 4 << 20


def import_urls(page: "BaseAdmin") -> list[URLPattern]:
    """Return the addresses, to stand before the list's own."""
    view = page.admin_site.admin_view
    kwargs = {"page": page}
    return [
        path("<path:object_id>/live/", view(live), kwargs, name="registry_importjob_live"),
        path("<path:object_id>/upload/", view(upload), kwargs, name="registry_importjob_upload"),
    ]


@require_safe
def live(request: HttpRequest, *, object_id: str, page: "BaseAdmin") -> HttpResponse:
    """The part of the page that it renews by itself."""
    if not page.has_view_permission(request):
        raise PermissionDenied
    job = _job(request, object_id, page=page)
    response = TemplateResponse(request, "registry/import_job_live.html", {"job": job})
    response["Cache-Control"] = "no-store"
    return response


class _Begin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size_bytes: int


@require_POST
def upload(request: HttpRequest, *, object_id: str, page: "BaseAdmin") -> HttpResponse:
    """Say which file comes (JSON), then bring it: pieces, each at the offset of its header."""
    if not access_in(request).may("registry.add_importjob"):
        raise PermissionDenied
    job = _job(request, object_id, page=page)
    if (job.actor_kind, job.actor_id) != ("user", request.user.pk):
        raise PermissionDenied("Only who began an import uploads its file.")
    try:
        if request.content_type == "application/json":
            begin = _decoded(request.read(1 << 16))
            job = import_upload_begin(job=job, filename=begin.name, size_bytes=begin.size_bytes)
        else:
            job = import_upload_append(
                job=job, offset=_offset(request), data=request.read(piece_bytes() + 1)
            )
    except AppError as error:
        return JsonResponse(error.body(), status=error.status)
    return JsonResponse(
        {
            "status": job.status,
            "n_received_bytes": job.n_received_bytes,
            "piece_bytes": piece_bytes(),
        }
    )


def piece_bytes() -> int:
    """How much one request may bring: no more than any body here."""
    return min(MAX_PIECE_BYTES, int(settings.GATEWAY_MAX_BODY_BYTES))


def _decoded(body: bytes) -> _Begin:
    try:
        return msgspec.json.decode(body, type=_Begin)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"The body is not valid: {error}", param="file") from error


def _offset(request: HttpRequest) -> int:
    text = request.headers.get("Upload-Offset", "")
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidRequest("Upload-Offset must be a number of bytes.", param="Upload-Offset")
    return int(text)


def _job(request: HttpRequest, object_id: str, *, page: "BaseAdmin") -> ImportJob:
    found: Any = page.get_object(request, object_id)  # None of what is no key
    job: ImportJob = get_object_or_404(ImportJob, pk=found.pk if found else None)
    return job

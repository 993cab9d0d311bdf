"""Reads the form of an upload: the file goes to a draft on the disk, part by part. Synchronous: run
it on a thread."""

import contextlib
from pathlib import Path
from typing import IO, Any, Final

from django.core.exceptions import SuspiciousOperation
from django.core.files.uploadhandler import FileUploadHandler
from django.http.multipartparser import MultiPartParser, MultiPartParserError
from rest_framework.parsers import BaseParser

from apps.batches import storage
from apps.batches.types import Upload
from apps.core.exceptions import InvalidRequest

_FIELDS: Final = ("file", "purpose")


class UploadParser(BaseParser):
    """Multipart forms with one file."""

    media_type = "multipart/form-data"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """Return what was uploaded, an Upload; its draft is the caller's. Raises
        InvalidRequest."""
        handler = _DraftHandler()
        meta = parser_context["request"].META
        try:
            fields, files = MultiPartParser(meta, stream, [handler], "utf-8").parse()
            return _upload(handler, fields=fields, files=files)
        except (MultiPartParserError, SuspiciousOperation) as error:
            handler.discard()
            raise InvalidRequest(
                f"The form cannot be read: {error}", code="invalid_form"
            ) from error
        except BaseException:
            handler.discard()
            raise


class _DraftHandler(FileUploadHandler):
    """Writes the one file of a form to a draft."""

    def __init__(self) -> None:
        super().__init__()
        self.draft: Path | None = None
        self.filename = ""
        self.size_bytes = 0
        self._handle: IO[bytes] | None = None

    def new_file(self, field_name: str, file_name: str, *args: Any, **kwargs: Any) -> None:
        if field_name not in _FIELDS:
            raise _unknown(field_name)
        if self.draft is not None:
            raise InvalidRequest("The form has more than one file.", param="file")
        self.filename = file_name
        self.draft = storage.draft_path()
        self._handle = self.draft.open("xb")

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        assert self._handle is not None
        self._handle.write(raw_data)

    def file_complete(self, file_size: int) -> Any:
        assert self._handle is not None
        self._handle.close()
        self.size_bytes = file_size
        return self._handle  # what the parser closes when the form turns out to be wrong

    def discard(self) -> None:
        if self._handle is not None:
            self._handle.close()
        if self.draft is not None:
            with contextlib.suppress(FileNotFoundError):
                self.draft.unlink()


def _upload(handler: _DraftHandler, *, fields: Any, files: Any) -> Upload:
    for name in fields:
        if name not in _FIELDS:
            raise _unknown(name)
    if "file" not in files or handler.draft is None:
        raise _missing("file")
    if "purpose" not in fields:
        raise _missing("purpose")
    purpose = fields["purpose"]
    if purpose != "batch":
        raise InvalidRequest(
            "'purpose' must be 'batch'.", code="unsupported_value", param="purpose"
        )
    return Upload(
        filename=handler.filename,
        purpose=purpose,
        draft=handler.draft,
        size_bytes=handler.size_bytes,
    )


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name
    )


def _unknown(name: str) -> InvalidRequest:
    """``expires_after`` is known and not built; what else there may be is not known either."""
    name = name[:80]
    known = name.startswith("expires_after")
    return InvalidRequest(
        f"{'Unsupported' if known else 'Unknown'} parameter: '{name}'.",
        code="unsupported_parameter" if known else "unknown_parameter",
        param=name,
    )

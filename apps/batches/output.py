"""Writes the files of results from a batch's rows: one of answers, one of errors, in the order of
the input's lines."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec

from apps.batches import storage
from apps.batches.models import BatchItem
from apps.batches.types import Ending, StoredOutput
from apps.core.json_lines import one_line


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    custom_id: str
    response: msgspec.Raw | None
    error: _Error | None


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    status_code: int
    request_id: str = ""
    body: msgspec.Raw


class _Draft:
    """One file on its way."""

    def __init__(self, handle: IO[bytes], path: Path) -> None:
        self._handle = handle
        self._path = path
        self._n_lines = 0

    def add(self, line: bytes) -> None:
        self._handle.write(one_line(line) + b"\n")
        self._n_lines += 1

    def keep(self, file_id: str) -> StoredOutput:
        """Put it in its place; a file without lines is none."""
        self._handle.flush()
        size_bytes = self._handle.tell()
        if not self._n_lines:
            self._path.unlink()
            return StoredOutput(file_id="")
        storage.draft_keep(self._path, file_id=file_id)
        return StoredOutput(file_id=file_id, size_bytes=size_bytes, n_lines=self._n_lines)


def results_write(
    *,
    batch_id: str,
    items: Iterable[BatchItem],
    ending: Ending,
    output_file_id: str,
    error_file_id: str,
) -> tuple[StoredOutput, StoredOutput]:
    """Write both files; return what became of them."""
    with ExitStack() as stack:
        output, errors = (_draft(stack) for _ in range(2))
        for item in items:
            target = output if item.state == BatchItem.State.DONE else errors
            target.add(_line(item, batch_id=batch_id, ending=ending))
        return output.keep(output_file_id), errors.keep(error_file_id)


def _draft(stack: ExitStack) -> _Draft:
    path = storage.draft_path()
    handle = stack.enter_context(path.open("xb"))
    stack.callback(path.unlink, missing_ok=True)
    return _Draft(handle, path)


def _line(item: BatchItem, *, batch_id: str, ending: Ending) -> bytes:
    response: msgspec.Raw | None = None
    error = None
    if item.response:
        response = msgspec.Raw(item.response.encode())
    elif ending.status is not None:
        refusal = _Refusal(status_code=ending.status, body=msgspec.Raw(ending.body))
        response = msgspec.Raw(msgspec.json.encode(refusal))
    else:
        error = _Error(code=ending.code, message=ending.message)
    return msgspec.json.encode(
        _Result(
            id=f"{batch_id}-{item.line_no}",
            custom_id=item.custom_id,
            response=response,
            error=error,
        )
    )

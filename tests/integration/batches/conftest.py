"""Files and batches of one tenant, in a directory of the test's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.batches import storage
from apps.batches.models import Batch, BatchItem, UploadedFile
from apps.batches.services import batch_create, file_create
from apps.batches.types import Upload
from apps.rbac.models import ApiToken
from apps.rbac.selectors import principal_of_token
from apps.rbac.types import Principal
from tests.factories import ApiTokenFactory
from tests.integration.gateway.conftest import (
    chat,
    client,
    engine_process,
    http,
    route,
    runtime,
    token,
)
from tests.rows import all_of

__all__ = ["client", "engine_process", "http", "route", "runtime", "token"]

ENDPOINT = "/v1/chat/completions"

Submit = Callable[..., Batch]


@pytest.fixture(autouse=True)
def files_dir(tmp_path: Path, settings: Any) -> Path:
    settings.FILES_DIR = tmp_path / "files"
    return tmp_path / "files"


@pytest.fixture
def principal(token: ApiToken) -> Principal:
    return principal_of_token(token.pk)


@pytest.fixture
def stranger(token: ApiToken) -> Principal:
    """A token of another tenant's."""
    return principal_of_token(ApiTokenFactory().pk)


@pytest.fixture
def submit(principal: Principal) -> Submit:
    """Store lines and make a batch of them, as a client's two requests do."""

    def submit(*lines: Any, endpoint: str = ENDPOINT) -> Batch:
        file = store(principal, *lines)
        return batch_create(
            principal=principal, input_file_id=file.file_id, endpoint=endpoint, metadata=None
        )

    return submit


def store(principal: Principal, *lines: Any) -> UploadedFile:
    data = b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    )
    return file_create(principal=principal, upload=upload(data))


def upload(data: bytes, *, filename: str = "requests.jsonl") -> Upload:
    draft = storage.draft_path()
    draft.write_bytes(data)
    return Upload(filename=filename, purpose="batch", draft=draft, size_bytes=len(data))


def request_line(custom_id: str, **fields: Any) -> dict[str, Any]:
    body = chat(f"Hello {custom_id}", max_tokens=4) | fields
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def results(file_id: str) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    return [json.loads(line) for line in storage.file_path(file_id).read_text().splitlines()]


def states(batch: Batch) -> list[str]:
    rows = all_of(BatchItem).filter(batch=batch).order_by("line_no")
    return list(rows.values_list("state", flat=True))

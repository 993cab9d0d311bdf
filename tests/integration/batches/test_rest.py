"""Files and batches through the doors, by the official client and by hand."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from apps.batches import worker
from apps.batches.models import Batch, UploadedFile
from apps.core.hop import database_hop
from tests.factories import ApiTokenFactory
from tests.integration.batches.conftest import ENDPOINT, request_line
from tests.integration.gateway.conftest import server, shared_server
from tests.processes import ServerRun
from tests.rows import all_of

__all__ = ["server", "shared_server"]


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in lines)


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def make_batch(client: openai.AsyncOpenAI, *lines: dict[str, Any], **fields: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **fields
    )


async def test_files_as_the_client_knows_them(client: openai.AsyncOpenAI) -> None:
    data = jsonl(request_line("a"))
    made = await client.files.create(file=("requests.jsonl", data), purpose="batch")
    assert (made.object, made.filename, made.purpose) == ("file", "requests.jsonl", "batch")
    assert (made.bytes, made.status) == (len(data), "processed")
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).content == data
    others = [await client.files.create(file=(f"{n}", b"x"), purpose="batch") for n in range(3)]
    found = [file.id async for file in client.files.list(limit=2)]
    assert found == [file.id for file in (*reversed(others), made)]
    oldest = await client.files.list(order="asc", limit=1)
    assert [file.id for file in oldest.data] == [made.id]
    assert oldest.has_more
    assert (await client.files.list(purpose="batch_output")).data == []
    gone = await client.files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.content(made.id)


async def test_a_batch_as_the_client_knows_it(client: openai.AsyncOpenAI) -> None:
    lines = [request_line(f"r{n}") for n in range(3)]
    made = await make_batch(client, *lines, metadata={"job": "nightly"})
    assert (made.object, made.status, made.endpoint) == ("batch", "validating", ENDPOINT)
    assert made.metadata == {"job": "nightly"}
    # Taken one after the other, and told in whole seconds.
    assert made.expires_at - made.created_at - 24 * 3600 in (-1, 0)
    assert (made.errors, made.output_file_id, made.completed_at) == (None, None, None)
    await worker.work(is_stopping=lambda: False)
    done = await client.batches.retrieve(made.id)
    assert done.status == "completed"
    assert done.request_counts is not None
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 3, 0)
    assert done.completed_at is not None and done.in_progress_at is not None
    assert done.created_at <= done.in_progress_at <= done.completed_at
    assert (done.failed_at, done.cancelled_at, done.error_file_id) == (None, None, None)
    assert done.output_file_id is not None
    output = await client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{made.id}_output.jsonl")
    text = (await client.files.content(output.id)).text
    assert [json.loads(line)["custom_id"] for line in text.splitlines()] == ["r0", "r1", "r2"]
    listed = await client.batches.list()
    assert listed.data == [done]
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(made.id)


async def test_errors_of_the_input_are_told(client: openai.AsyncOpenAI) -> None:
    made = await make_batch(client, request_line("a"), request_line("a"))
    await worker.work(is_stopping=lambda: False)
    failed = await client.batches.retrieve(made.id)
    assert failed.status == "failed"
    assert failed.failed_at is not None
    assert failed.errors is not None and failed.errors.data is not None
    [error] = failed.errors.data
    assert (error.code, error.line, error.param) == ("duplicate_custom_id", 2, "custom_id")


async def test_cancelling_and_pages(client: openai.AsyncOpenAI) -> None:
    made = [await make_batch(client, request_line("a")) for _ in range(3)]
    cancelled = await client.batches.cancel(made[1].id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    found = [batch.id async for batch in client.batches.list(limit=1)]
    assert found == [batch.id for batch in reversed(made)]


async def test_another_tenant_sees_nothing(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    made = await make_batch(client, request_line("a"))
    stranger = await database_hop(ApiTokenFactory)
    http.headers["Authorization"] = f"Bearer {stranger.secret}"
    for method, path in (
        ("GET", f"files/{made.input_file_id}"),
        ("GET", f"files/{made.input_file_id}/content"),
        ("DELETE", f"files/{made.input_file_id}"),
        ("GET", f"batches/{made.id}"),
        ("POST", f"batches/{made.id}/cancel"),
        ("GET", f"files?after={made.input_file_id}"),
        ("GET", f"batches?after={made.id}"),
    ):
        response = await http.request(method, f"/v1/{path}")
        assert response.status_code == 404, path
    body = {"input_file_id": made.input_file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    response = await http.post("/v1/batches", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (404, "input_file_id")
    assert (await http.get("/v1/files")).json()["data"] == []
    assert (await http.get("/v1/batches")).json()["data"] == []
    batch = await database_hop(all_of(Batch).get)
    assert batch.status == "validating"


async def test_nobody_comes_in_without_a_token(http: httpx.AsyncClient) -> None:
    http.headers.pop("Authorization")
    form = {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch"}}
    assert (await http.post("/v1/files", **form)).status_code == 401
    for path in ("files", "files/file-1", "files/file-1/content", "batches", "batches/batch-1"):
        assert (await http.get(f"/v1/{path}")).status_code == 401
    assert not await database_hop(all_of(UploadedFile).exists)


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        (
            {"data": {"purpose": "batch"}, "files": {"other": ("a", b"x")}},
            "unknown_parameter",
            "other",
        ),
        ({"files": {"file": ("a", b"x")}}, "missing_required_parameter", "purpose"),
        (
            {"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"x")}},
            "unsupported_value",
            "purpose",
        ),
        (
            {
                "data": {"purpose": "batch", "expires_after[anchor]": "created_at"},
                "files": {"file": ("a", b"x")},
            },
            "unsupported_parameter",
            "expires_after[anchor]",
        ),
        (
            {
                "data": {"purpose": "batch"},
                "files": [("file", ("a", b"x")), ("file", ("b", b"x"))],
            },
            "invalid_request",
            "file",
        ),
        (
            {"files": [("purpose", (None, b"batch")), ("file", (None, b"x"))]},
            "missing_required_parameter",
            "file",
        ),
    ],
)
async def test_a_wrong_form_is_refused_by_its_field(
    http: httpx.AsyncClient, files_dir: Path, form: dict[str, Any], code: str, param: str
) -> None:
    response = await http.post("/v1/files", **form)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert not await database_hop(all_of(UploadedFile).exists)
    assert files_below(files_dir) == []


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "multipart/form-data"}, b"x", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\nnothing", 400),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 3_000_000,
            400,
        ),
    ],
)
async def test_what_is_no_form_is_refused(
    http: httpx.AsyncClient, headers: dict[str, str], body: bytes, status: int
) -> None:
    response = await http.post("/v1/files", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


async def test_a_file_is_named_without_its_directory(client: openai.AsyncOpenAI) -> None:
    made = await client.files.create(file=("../../etc/passwd", b"x"), purpose="batch")
    assert made.filename == "passwd"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"endpoint": "/v1/images"}, "invalid_value", "endpoint"),
        ({"completion_window": "1h"}, "invalid_value", "completion_window"),
        ({"input_file_id": 7}, "invalid_type", "input_file_id"),
        ({"metadata": {"k": 7}}, "invalid_type", "metadata[...]"),
        ({"metadata": {"k": "x" * 513}}, "invalid_value", "metadata[...]"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value", "metadata"),
        ({"metadata": {"k": "\x00"}}, "invalid_value", "metadata"),
        ({"output_expires_after": {}}, "unsupported_parameter", "output_expires_after"),
        ({"priority": 1}, "unknown_parameter", "priority"),
    ],
)
async def test_a_wrong_batch_is_refused_by_its_field(
    http: httpx.AsyncClient, change: dict[str, Any], code: str, param: str
) -> None:
    body = {"input_file_id": "file-1", "endpoint": ENDPOINT, "completion_window": "24h"}
    response = await http.post("/v1/batches", json=body | change)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert not await database_hop(all_of(Batch).exists)


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("files?limit=0", "limit"),
        ("files?limit=x", "limit"),
        ("files?limit=10001", "limit"),
        ("files?order=up", "order"),
        ("files?purpose=fun", "purpose"),
        ("files?before=x", "before"),
        ("batches?limit=101", "limit"),
        ("batches?limit=%D9%A1", "limit"),
        ("batches?order=asc", "order"),
    ],
)
async def test_a_wrong_query_is_refused_by_its_field(
    http: httpx.AsyncClient, path: str, param: str
) -> None:
    response = await http.get(f"/v1/{path}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("file_id", ["file-1", "%00", "a" * 2000, "%F0%9F%98%80"])
async def test_what_is_no_id_is_404(http: httpx.AsyncClient, file_id: str) -> None:
    for path in (f"files/{file_id}", f"files/{file_id}/content", f"batches/{file_id}"):
        assert (await http.get(f"/v1/{path}")).status_code == 404
    assert (await http.delete(f"/v1/files/{file_id}")).status_code == 404
    assert (await http.put(f"/v1/files/{file_id}")).status_code == 405


@pytest.mark.server_env(GATEWAY_MAX_FILE_BYTES="20000000")
async def test_a_large_file_passes_the_server_without_filling_its_memory(
    server: ServerRun, token: Any, tmp_path: Path
) -> None:
    headers = {"Authorization": f"Bearer {token.secret}"}
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=60) as http:
        before = server.rss_bytes()
        data = bytes(range(256)) * 78_000  # 19,968,000 bytes
        for _ in range(3):
            made = await http.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": ("large", data)}
            )
            assert made.status_code == 200, made.text
        assert server.rss_bytes() - before < 15_000_000
        content = await http.get(f"/v1/files/{made.json()['id']}/content")
        assert content.content == data
        larger = await http.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": ("larger", data + b"x" * 200_000)},
        )
        assert (larger.status_code, larger.json()["error"]["code"]) == (413, "payload_too_large")
        elsewhere = await http.post("/v1/batches", content=b" " * 5_000_000)
        assert elsewhere.status_code == 413
    assert await database_hop(all_of(UploadedFile).count) == 3

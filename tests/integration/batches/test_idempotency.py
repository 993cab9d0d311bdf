"""Files and batches that are asked for twice under one ``Idempotency-Key`` are made once."""

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest

from apps.batches import services
from apps.batches.models import Batch, UploadedFile
from apps.core.hop import database_hop
from apps.rbac.models import ApiToken
from tests.integration.batches.conftest import ENDPOINT, request_line
from tests.integration.gateway.named import Leaver, as_sent_again, is_replayed, refused
from tests.rows import all_of
from tests.waiting import wait_until_async


async def uploaded(http: httpx.AsyncClient, data: bytes, *, key: str = "file") -> httpx.Response:
    """A form with a boundary of its own."""
    files = {"file": ("requests.jsonl", data)}
    headers = {"Idempotency-Key": key}
    return await http.post("/v1/files", data={"purpose": "batch"}, files=files, headers=headers)


async def test_a_file_is_uploaded_once(http: httpx.AsyncClient, settings: Any) -> None:
    settings.GATEWAY_MAX_BODY_BYTES = 100_000  # what is larger goes to the disk on its way
    for n_lines in (1, 3_000):
        data = b"\n".join(json.dumps(request_line(f"{n}")).encode() for n in range(n_lines))
        key = f"file-{n_lines}"
        first, again = [await uploaded(http, data, key=key) for _ in range(2)]
        as_sent_again(first, again)
        file_id = first.json()["id"]
        assert (await http.get(f"/v1/files/{file_id}/content")).content == data
        other = await uploaded(http, data + b"\n", key=key)
        assert refused(other) == (422, "idempotency_key_reused", "Idempotency-Key")
        assert await database_hop(all_of(UploadedFile).count) == 1
        await http.delete(f"/v1/files/{file_id}")


async def test_a_batch_is_made_once_and_cancelled_once(http: httpx.AsyncClient) -> None:
    file = (await uploaded(http, json.dumps(request_line("a")).encode())).json()
    body = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    headers = {"Idempotency-Key": "another"}
    answers = await asyncio.gather(
        *(http.post("/v1/batches", json=body, headers=headers) for _ in range(5))
    )
    (first,) = (each for each in answers if not is_replayed(each))
    for each in answers:
        if each is not first:
            as_sent_again(first, each)
    batch = await database_hop(all_of(Batch).get)
    assert first.json()["id"] == batch.batch_id
    cancel = f"/v1/batches/{batch.batch_id}/cancel"
    headers = {"Idempotency-Key": "third"}
    as_sent_again(
        await http.post(cancel, headers=headers), await http.post(cancel, headers=headers)
    )


async def test_a_batch_that_is_begun_is_made_though_its_client_leaves(
    http: httpx.AsyncClient, token: ApiToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = (await uploaded(http, json.dumps(request_line("a")).encode())).json()
    body = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    begun, go_on = threading.Event(), threading.Event()
    create = services.batch_create

    def slowly(**values: Any) -> Batch:
        begun.set()
        assert go_on.wait(10)
        return create(**values)

    monkeypatch.setattr(services, "batch_create", slowly)
    leaver = Leaver(body, token, path="/v1/batches", key="left")
    asking = asyncio.create_task(leaver.ask())
    await wait_until_async("the batch to be begun", begun.is_set)
    leaver.leave()
    await asyncio.wait_for(asking, 5)
    go_on.set()
    headers = {"Idempotency-Key": "left", "Content-Type": "application/json"}
    again = await http.post("/v1/batches", content=json.dumps(body), headers=headers)
    batch = await database_hop(all_of(Batch).get)
    assert (again.status_code, is_replayed(again)) == (200, True)
    assert again.json()["id"] == batch.batch_id

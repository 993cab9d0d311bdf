"""A batch through the whole product: the official client, the server, the worker, the engine."""

import time

import pytest

from tests.batches import BatchClient
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

N = 20


@pytest.fixture
def batches(product: RunningProduct) -> BatchClient:
    return BatchClient(product)


def test_a_file_of_requests_is_answered_in_order(
    batches: BatchClient, product: RunningProduct
) -> None:
    started = time.monotonic()
    batch = batches.wait(batches.submit(N), timeout_s=120)
    print(f"{N} requests were answered in {time.monotonic() - started:.1f} s")
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (N, N, 0)
    assert batch.error_file_id is None
    results = batches.results(batch.output_file_id)
    assert [result["custom_id"] for result in results] == [f"request-{n}" for n in range(N)]
    for result in results:
        assert result["response"]["status_code"] == 200
        body = result["response"]["body"]
        assert body["model"] == product.model
        assert body["choices"][0]["message"]["content"].strip()
        assert 1 <= body["usage"]["completion_tokens"] <= 4
    ids = {result["response"]["request_id"] for result in results}
    query = "SELECT request_id FROM metering_usagerecord WHERE door = 'batch' AND request_id IN "
    settled = product.rows(query + str(tuple(ids)) + " AND outcome = 'completed'")
    assert len(ids) == len(settled) == N


def test_the_answer_is_that_of_the_door(batches: BatchClient) -> None:
    batch = batches.wait(batches.submit(1, max_tokens=12), timeout_s=60)
    [result] = batches.results(batch.output_file_id)
    body = batches._line(0, max_tokens=12)["body"]
    direct = batches.client.chat.completions.create(**body)
    said = result["response"]["body"]["choices"][0]["message"]["content"]
    assert said == direct.choices[0].message.content


def test_a_batch_is_cancelled(batches: BatchClient) -> None:
    batch_id = batches.submit(200, max_tokens=64)
    batches.client.batches.cancel(batch_id)
    batch = batches.wait(batch_id, timeout_s=60)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed < 200

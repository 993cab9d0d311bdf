"""``Idempotency-Key`` through the official client: what it asks for twice is made once."""

from typing import Any

import httpx
import openai
import pytest

from apps.core.ids import new_id
from tests.e2e.clients.asking import fields
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

ASK = "What is the capital of France?"


def n_charged(product: RunningProduct) -> int:
    return int(product.rows("SELECT count(*) FROM metering_usagerecord")[0][0])


def test_what_is_asked_twice_is_made_once(
    client: openai.OpenAI, product: RunningProduct, model: str
) -> None:
    asked: dict[str, Any] = fields(model, ASK, temperature=1)
    headers = {"Idempotency-Key": new_id("test")}
    n_before = n_charged(product)
    create = client.chat.completions.with_raw_response.create
    first = create(**asked, extra_headers=headers)
    again = create(**asked, extra_headers=headers)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.parse() == first.parse()
    assert again.headers["x-request-id"] == first.headers["x-request-id"] == first.parse().id
    assert n_charged(product) == n_before + 1
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        create(**fields(model, "Another question"), extra_headers=headers)
    assert refused.value.code == "idempotency_key_reused"
    assert refused.value.param == "Idempotency-Key"
    assert n_charged(product) == n_before + 1


def test_a_stream_comes_again_as_it_was(
    client: openai.OpenAI, product: RunningProduct, model: str
) -> None:
    asked: dict[str, Any] = fields(model, ASK, temperature=1, stream=True)
    headers = {"Idempotency-Key": new_id("test")}
    n_before = n_charged(product)
    first = list(client.chat.completions.create(**asked, extra_headers=headers))
    again = list(client.chat.completions.create(**asked, extra_headers=headers))
    assert len(first) > 3
    assert again == first
    assert n_charged(product) == n_before + 1


class LosesOne(httpx.HTTPTransport):
    """The first answer is made, read and lost."""

    n_sent = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.n_sent += 1
        response = super().handle_request(request)
        if self.n_sent > 1:
            return response
        response.read()
        raise httpx.ReadError("The connection was lost.")


def test_the_clients_own_second_try_gets_the_answer_that_was_lost(
    client: openai.OpenAI, product: RunningProduct, model: str
) -> None:
    transport = LosesOne()
    n_before = n_charged(product)
    with httpx.Client(transport=transport, timeout=60) as http:
        trying = client.with_options(max_retries=1, http_client=http)
        raw = trying.chat.completions.with_raw_response.create(
            **fields(model, ASK), extra_headers={"Idempotency-Key": new_id("test")}
        )
    assert raw.headers["idempotency-replayed"] == "true"
    assert transport.n_sent == 2
    assert n_charged(product) == n_before + 1
    assert "Paris" in (raw.parse().choices[0].message.content or "")

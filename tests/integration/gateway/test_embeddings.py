"""``/v1/embeddings`` in this process and over the real server, against a real embedding engine."""

import base64
from functools import cache
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest

from apps.core.hop import database_hop
from apps.rbac.models import ApiToken
from tests.integration.gateway.conftest import MODEL as CHAT_MODEL
from tests.integration.gateway.conftest import chat
from tests.integration.gateway.embedding import MODEL, only_row, rows
from tests.models import minilm_dir
from tests.processes import EngineRun
from tests.waiting import wait_until_async

TEXTS = ["A man is eating food.", "Ein Mann isst.", "Straße 👍", "a", "word " * 200]

Vectors = npt.NDArray[np.float32]


@cache
def reference() -> tuple[Any, Any]:
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    return tokenizer, BertModel.from_pretrained(minilm_dir(), add_pooling_layer=False)


def expected(text: str) -> tuple[Vectors, list[int]]:
    """The vector and the token ids of a text, as ``transformers`` has them."""
    tokenizer, model = reference()
    tokens = tokenizer(text, padding=False, truncation=False, return_tensors="pt")
    mean = model(**tokens).last_hidden_state[0].mean(dim=0)
    return (mean / mean.norm()).detach().numpy(), tokens["input_ids"][0].tolist()


def vectors_of(answer: Any) -> Vectors:
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data], dtype=np.float32)


async def test_every_form_gives_the_vectors_of_transformers(
    embeddings: openai.AsyncOpenAI,
) -> None:
    found = [expected(text) for text in TEXTS]
    n_tokens = sum(len(ids) for _, ids in found)
    wanted = np.stack([vector for vector, _ in found])
    ids = [ids for _, ids in found]
    answers = []
    for sent in (TEXTS, ids):
        for encoding in ("float", "base64"):
            raw = await embeddings.embeddings.with_raw_response.create(
                model=MODEL, input=sent, encoding_format=encoding
            )
            answer = raw.parse()
            assert (answer.object, answer.model) == ("list", MODEL)
            assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (n_tokens, n_tokens)
            if encoding == "base64":  # asked for by name, it is left as it came
                for each in answer.data:
                    packed = base64.b64decode(each.embedding)  # type: ignore[arg-type]
                    each.embedding = np.frombuffer(packed, "<f4").tolist()
            answers.append(vectors_of(answer))
    by_default = await embeddings.embeddings.create(model=MODEL, input=TEXTS, dimensions=384)
    answers.append(vectors_of(by_default))
    for vectors in answers:
        assert abs(vectors - wanted).max() < 1e-5
        assert abs(vectors - answers[0]).max() < 1e-5
    for sent in (TEXTS[0], ids[0]):
        one = await embeddings.embeddings.create(model=MODEL, input=sent)
        assert abs(vectors_of(one) - wanted[:1]).max() < 1e-5
        assert one.usage.prompt_tokens == len(ids[0])


async def test_the_row_is_settled_with_what_was_reserved(
    embeddings: openai.AsyncOpenAI, token: ApiToken
) -> None:
    raw = await embeddings.embeddings.with_raw_response.create(model=MODEL, input=TEXTS, user="u")
    n_tokens = sum(len(expected(text)[1]) for text in TEXTS)
    row = await only_row()
    assert row.request_id == raw.headers["x-request-id"]
    assert row.request_id.startswith("embd-")
    assert (row.state, row.outcome, row.error_code) == ("settled", "completed", "")
    assert (row.n_prompt_tokens, row.n_reserved_tokens) == (n_tokens, n_tokens)
    assert (row.n_completion_tokens, row.n_cached_tokens) == (0, 0)
    assert (row.door, row.endpoint, row.route_name) == ("rest", "embeddings", MODEL)
    assert (row.engine_name, row.engine_epoch) == ("minilm-0", 1)
    assert (row.tenant_id, row.api_token_id) == (token.tenant_id, token.pk)
    assert (row.end_user, row.attempt) == ("u", 1)
    assert row.total_ms is not None and row.total_ms > 0


async def test_as_many_inputs_as_are_allowed_keep_their_order(
    embeddings: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    numbers = [f"{number}" for number in range(2048)]
    answer = await embeddings.embeddings.create(model=MODEL, input=numbers)
    vectors = vectors_of(answer)
    for index in (0, 1, 511, 512, 513, 1024, 2047):
        assert abs(vectors[index] - expected(numbers[index])[0]).max() < 1e-5
    tokenizer, _ = reference()
    assert answer.usage.total_tokens == sum(map(len, tokenizer(numbers)["input_ids"]))
    body = {"model": MODEL, "input": numbers}
    text = await http.post("/v1/embeddings", json=body)
    assert text.headers["content-type"] == "application/json"
    assert abs(np.array([e["embedding"] for e in text.json()["data"]]) - vectors).max() < 1e-5
    assert [row.outcome for row in await rows()] == ["completed", "completed"]


async def test_an_answer_sent_in_parts_comes_again_or_was_too_large_to_keep(
    embeddings: openai.AsyncOpenAI, http: httpx.AsyncClient, settings: Any
) -> None:
    body = {"model": MODEL, "input": [f"{number}" for number in range(80)]}
    first = await http.post("/v1/embeddings", json=body, headers={"Idempotency-Key": "a"})
    again = await http.post("/v1/embeddings", json=body, headers={"Idempotency-Key": "a"})
    assert (first.status_code, "content-length" in first.headers) == (200, False)
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    settings.GATEWAY_IDEMPOTENCY_MAX_BYTES = len(first.content) - 1
    other = await http.post("/v1/embeddings", json=body, headers={"Idempotency-Key": "b"})
    assert [each["embedding"] for each in other.json()["data"]] == [
        each["embedding"] for each in first.json()["data"]
    ]
    again = await http.post("/v1/embeddings", json=body, headers={"Idempotency-Key": "b"})
    assert again.status_code == 409
    assert again.json()["error"]["code"] == "idempotent_answer_not_kept"
    assert len(await rows()) == 2


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": []}, "empty_array", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"input": ["a", "b", "c", "word " * 300]}, "context_length_exceeded", "input[3]"),
        ({"input": "word " * 300}, "context_length_exceeded", "input"),
        ({"input": "x" * 100_000}, "context_length_exceeded", "input"),
        ({"input": [[1], [1] * 257]}, "context_length_exceeded", "input[1]"),
        ({"input": [30_522]}, "invalid_value", "input"),
        ({"input": [[7], [1, 30_522]]}, "invalid_value", "input[1]"),
        ({"input": "a", "dimensions": 256}, "unsupported_value", "dimensions"),
        ({"input": "a", "model": CHAT_MODEL}, "unsupported_task", "model"),
    ],
)
async def test_refusals_name_their_field_and_write_no_row(
    embedding_route: str,
    http: httpx.AsyncClient,
    embedding_engine: EngineRun,
    fields: dict[str, Any],
    code: str,
    param: str,
) -> None:
    before = embedding_engine.stats()
    response = await http.post("/v1/embeddings", json={"model": MODEL, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    if param == "input":
        assert "input[0]" not in error["message"]
    assert await rows() == []
    assert embedding_engine.stats().n_prompt_tokens == before.n_prompt_tokens


async def test_unknown_model_and_chats_with_a_model_that_embeds(
    embeddings: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await embeddings.embeddings.create(model="no/such", input="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    for path, body in (
        ("/v1/chat/completions", chat(model=MODEL)),
        ("/v1/chat/completions", chat(model=MODEL, stream=True)),
        ("/v1/completions", {"model": MODEL, "prompt": "a"}),
    ):
        response = await http.post(path, json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_task", "model")
        assert "makes embeddings" in error["message"]
    assert await rows() == []


async def test_without_a_live_token_nothing_happens(
    embedding_route: str, http: httpx.AsyncClient, token: ApiToken, embedding_engine: EngineRun
) -> None:
    from apps.audit.types import SYSTEM
    from apps.rbac.services import api_token_revoke

    before = embedding_engine.stats()
    body = {"model": MODEL, "input": "a"}
    for header in ("", "Bearer sk-nano-wrong"):
        response = await http.post("/v1/embeddings", json=body, headers={"Authorization": header})
        assert response.status_code == 401
    await database_hop(api_token_revoke, token=token, actor=SYSTEM)

    async def is_refused() -> bool:
        return (await http.get("/v1/models")).status_code == 401

    await wait_until_async("the revocation to be noticed", is_refused, timeout_s=3)
    response = await http.post("/v1/embeddings", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert await rows() == []
    assert embedding_engine.stats().n_finished == before.n_finished

"""The second model that ``make serve`` brings: vectors, token ids and text, as a client of the
whole product gets them."""

import asyncio
import base64
from functools import cache
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest

from tests.models import minilm_dir
from tests.serve import EMBEDDING_ENGINE, RunningProduct, in_django
from tests.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.e2e

TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Straße, 你好, 👍🏽",
    "a",
    "The sea was calm and the boat went on and on. " * 15,
]

Vectors = npt.NDArray[np.float32]


@pytest.fixture
def client(product: RunningProduct) -> openai.OpenAI:
    return openai.OpenAI(base_url=product.base_url, api_key=product.api_token, max_retries=0)


@pytest.fixture
def raw(product: RunningProduct) -> httpx.Client:
    headers = {"Authorization": f"Bearer {product.api_token}"}
    return httpx.Client(base_url=product.origin, headers=headers, timeout=60)


@cache
def reference(text: str) -> tuple[Vectors, tuple[int, ...]]:
    """Vector and token ids as ``transformers`` has them: the mean of all tokens, to length 1."""
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    model = BertModel.from_pretrained(minilm_dir(), add_pooling_layer=False)
    tokens = tokenizer(text, padding=False, truncation=False, return_tensors="pt")
    mean = model(**tokens).last_hidden_state[0].mean(dim=0)
    return (mean / mean.norm()).detach().numpy(), tuple(tokens["input_ids"][0].tolist())


def vectors_of(answer: Any) -> Vectors:
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data], dtype=np.float32)


def ledger(product: RunningProduct) -> list[tuple[Any, ...]]:
    return product.rows(
        "SELECT request_id, state, outcome, n_prompt_tokens, n_reserved_tokens, "
        "n_completion_tokens, engine_name FROM metering_usagerecord "
        "WHERE endpoint = 'embeddings' ORDER BY id"
    )


def test_both_models_are_listed(product: RunningProduct, client: openai.OpenAI) -> None:
    listed = [(card.id, card.owned_by) for card in client.models.list()]
    assert listed == [(product.embedding_model, "minilm"), (product.model, "smollm2")]


def test_vectors_are_those_of_transformers_in_every_form(
    product: RunningProduct, client: openai.OpenAI
) -> None:
    wanted = np.stack([reference(text)[0] for text in TEXTS])
    ids = [list(reference(text)[1]) for text in TEXTS]
    n_tokens = sum(map(len, ids))
    found = []
    for sent in (TEXTS, ids):
        floats = client.embeddings.create(
            model=product.embedding_model, input=sent, encoding_format="float"
        )
        packed = client.embeddings.create(
            model=product.embedding_model, input=sent, encoding_format="base64"
        )
        for each in packed.data:
            each.embedding = np.frombuffer(base64.b64decode(str(each.embedding)), "<f4").tolist()
        for answer in (floats, packed):
            assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (n_tokens, n_tokens)
            found.append(vectors_of(answer))
    found.append(vectors_of(client.embeddings.create(model=product.embedding_model, input=TEXTS)))
    print("largest difference:", max(abs(vectors - wanted).max() for vectors in found))
    for vectors in found:
        assert vectors.shape == (len(TEXTS), 384)
        assert abs(vectors - wanted).max() < 1e-5
        assert abs(vectors - found[0]).max() < 1e-5
    turned = client.embeddings.create(model=product.embedding_model, input=TEXTS[::-1])
    assert abs(vectors_of(turned)[::-1] - wanted).max() < 1e-5
    # What embeddings are for: the two that mean nearly the same are nearest.
    near = wanted @ wanted[0]
    assert np.argsort(-near)[1] == 1


def test_each_request_has_a_row_with_its_count(
    product: RunningProduct, client: openai.OpenAI
) -> None:
    before = len(ledger(product))
    answer = client.embeddings.with_raw_response.create(
        model=product.embedding_model, input=TEXTS[0]
    )
    n_tokens = len(reference(TEXTS[0])[1])
    (row,) = ledger(product)[before:]
    assert row == (
        answer.headers["x-request-id"],
        "settled",
        "completed",
        n_tokens,
        n_tokens,
        0,
        EMBEDDING_ENGINE,
    )


def test_what_is_refused_changes_nothing(product: RunningProduct, client: openai.OpenAI) -> None:
    before, stats = ledger(product), asyncio.run(product.engine_stats(EMBEDDING_ENGINE))
    model = product.embedding_model
    refused: list[tuple[dict[str, Any], str]] = [
        ({"input": ["a"] * 2049}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", "b", "c", "word " * 300]}, "input[3]"),
        ({"input": [[1], [2], [3], [30_522]]}, "input[3]"),
        ({"input": "a", "dimensions": 128}, "dimensions"),
        ({"input": "a", "model": product.model}, "model"),
    ]
    for fields, param in refused:
        with pytest.raises(openai.BadRequestError) as bad:
            client.embeddings.create(**{"model": model, **fields})
        assert bad.value.param == param
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
    assert (bad.value.param, bad.value.code) == ("model", "unsupported_task")
    for key in ("sk-nano-wrong", revoked_token(product)):
        stranger = openai.OpenAI(base_url=product.base_url, api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            stranger.embeddings.create(model=model, input="a")
    for path in ("/v1/embeddings", "/tokenize", "/detokenize"):
        assert httpx.post(f"{product.origin}{path}", json={"model": model}).status_code == 401
    assert ledger(product) == before
    after = asyncio.run(product.engine_stats(EMBEDDING_ENGINE))
    assert (after.n_prompt_tokens, after.n_finished) == (stats.n_prompt_tokens, stats.n_finished)


def revoked_token(product: RunningProduct) -> str:
    """Issue a token, use it, revoke it, and wait until the server knows."""
    code = """
import sys
from apps.audit.types import SYSTEM
from apps.rbac.services import api_token_issue, api_token_revoke
from apps.rbac.models import ApiToken
from apps.tenants.selectors import tenant_by_slug
if len(sys.argv) == 1:
    issued = api_token_issue(tenant=tenant_by_slug("default"), name="short", actor=SYSTEM)
    print(issued.secret)
else:
    api_token_revoke(token=ApiToken._base_manager.get(name="short", revoked_at=None), actor=SYSTEM)
"""
    secret = in_django(product, code)
    headers = {"Authorization": f"Bearer {secret}"}

    def status() -> int:
        return httpx.get(f"{product.base_url}/models", headers=headers).status_code

    wait_until("the token to be good", lambda: status() == 200)
    in_django(product, code, "revoke")
    wait_until("the token to be refused", lambda: status() == 401)
    return secret


async def test_a_client_that_leaves_frees_the_engine_at_once(product: RunningProduct) -> None:
    before = await product.engine_stats(EMBEDDING_ENGINE)
    n_rows = len(ledger(product))
    client = openai.AsyncOpenAI(base_url=product.base_url, api_key=product.api_token, max_retries=0)
    long = ["word " * 250] * 1000
    asking = asyncio.create_task(
        client.embeddings.create(model=product.embedding_model, input=long)
    )

    async def is_running(n_requests: int) -> bool:
        return (await product.engine_stats(EMBEDDING_ENGINE)).n_waiting == n_requests

    await wait_until_async("the request to run", lambda: is_running(1), timeout_s=30)
    asking.cancel()
    await wait_until_async("the engine to drop it", lambda: is_running(0), timeout_s=5)
    after = await product.engine_stats(EMBEDDING_ENGINE)
    assert (after.n_aborted, after.n_finished) == (before.n_aborted + 1, before.n_finished)
    await wait_until_async("the row to be settled", lambda: product.n_open_usage_rows() == 0)
    (row,) = ledger(product)[n_rows:]
    assert row[1:4] == ("settled", "aborted", 1000 * 252)
    await client.close()


def test_text_to_ids_and_back(product: RunningProduct, raw: httpx.Client) -> None:
    n_rows = len(product.rows("SELECT id FROM metering_usagerecord"))
    for model, length in ((product.model, 8192), (product.embedding_model, 256)):
        for text in ("The capital of France is 1234567.", "Straße 你好 👍🏽"):
            body = {"model": model, "prompt": text, "return_token_strs": True}
            found = raw.post("/tokenize", json=body).json()
            assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
            assert found["max_model_len"] == length
            back = raw.post("/detokenize", json={"model": model, "tokens": found["tokens"]}).json()
            if model == product.model:
                assert back == {"prompt": text}
            else:
                assert found["tokens"] == list(reference(text)[1])
                assert back["prompt"].startswith("[CLS]")
            bare = raw.post("/tokenize", json={**body, "add_special_tokens": False}).json()
            n_special = 0 if model == product.model else 2
            assert found["count"] - bare["count"] == n_special
    assert len(product.rows("SELECT id FROM metering_usagerecord")) == n_rows


def test_a_chat_has_as_many_tokens_as_were_said(
    product: RunningProduct, raw: httpx.Client, client: openai.OpenAI
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    found = raw.post("/tokenize", json={"model": product.model, "messages": messages}).json()
    answer = client.chat.completions.create(
        model=product.model,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=1,
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == found["count"]
    refused = raw.post("/tokenize", json={"model": product.embedding_model, "messages": messages})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")

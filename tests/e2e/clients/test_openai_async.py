"""The official client's asynchronous half: many at once, streams, leaving."""

import asyncio
from typing import Any

import openai
import pytest

from tests.e2e.clients.asking import ends_of, fields, texts_of
from tests.serve import RunningProduct
from tests.waiting import wait_until_async

pytestmark = pytest.mark.e2e

ASKS = [f"Tell me about the number {n}." for n in range(8)]


async def text(client: openai.AsyncOpenAI, model: str, ask: str, **more: Any) -> str:
    answer = await client.chat.completions.create(**fields(model, ask, **more))
    content: str = answer.choices[0].message.content
    return content


async def test_models(async_client: openai.AsyncOpenAI, model: str) -> None:
    assert model in [card.id async for card in async_client.models.list()]


async def test_many_at_once_are_not_mixed_up(async_client: openai.AsyncOpenAI, model: str) -> None:
    """What each is asked to begin with is forced by its own bias: it shows whose answer it is."""
    words = [" red", " blue", " green", " black", " white", " brown", " pink", " gray"]
    ids = [await _token_id(async_client, model, word) for word in words]
    answers = await asyncio.gather(
        *(
            text(async_client, model, ask, max_tokens=1, logit_bias={str(token_id): 100})
            for ask, token_id in zip(ASKS, ids, strict=True)
        )
    )
    assert answers == words


async def _token_id(client: openai.AsyncOpenAI, model: str, word: str) -> int:
    answer = await client.completions.create(
        model=model, prompt=word, max_tokens=1, temperature=0, extra_body={"echo": True}
    )
    assert answer.usage is not None and answer.usage.prompt_tokens == 1, f"{word} is not one token"
    found: Any = await client.post(
        str(client.base_url.copy_with(path="/tokenize")),
        body={"model": model, "prompt": word},
        cast_to=object,
    )
    return int(found["tokens"][0])


async def test_a_seed_holds_among_others(async_client: openai.AsyncOpenAI, model: str) -> None:
    how = {"temperature": 1.2, "seed": 42, "max_tokens": 12}
    alone = await text(async_client, model, ASKS[0], **how)
    others = [text(async_client, model, ask, temperature=1, max_tokens=12) for ask in ASKS[1:5]]
    mixed, *_ = await asyncio.gather(text(async_client, model, ASKS[0], **how), *others)
    assert mixed == alone


async def test_a_stream(async_client: openai.AsyncOpenAI, model: str) -> None:
    stream = await async_client.chat.completions.create(
        **fields(model, ASKS[0]), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert texts_of(chunks) == {0: await text(async_client, model, ASKS[0])}
    assert ends_of(chunks) == {0: "length"}
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 8


async def test_completions(async_client: openai.AsyncOpenAI, model: str) -> None:
    answer = await async_client.completions.create(
        model=model, prompt=["One, two,", "Red, green,"], max_tokens=3, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    stream = await async_client.completions.create(
        model=model, prompt="One, two,", max_tokens=3, temperature=0, stream=True
    )
    pieces = [choice.text async for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == answer.choices[0].text


async def test_a_stream_that_is_closed_ends_its_request(
    async_client: openai.AsyncOpenAI, model: str, product: RunningProduct
) -> None:
    n_aborted = product.usage_outcomes()["aborted"]
    async with await async_client.chat.completions.create(
        **fields(model, "Tell me a long story.", max_tokens=2000, ignore_eos=True), stream=True
    ) as stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
    await wait_until_async("the row to be settled", lambda: product.n_open_usage_rows() == 0)
    assert product.usage_outcomes()["aborted"] == n_aborted + 1


async def test_a_request_that_is_cancelled_ends(
    async_client: openai.AsyncOpenAI, model: str, product: RunningProduct
) -> None:
    n_aborted = product.usage_outcomes()["aborted"]
    asking = asyncio.create_task(
        text(async_client, model, "Tell me a long story.", max_tokens=2000, ignore_eos=True)
    )

    async def is_running() -> bool:
        return (await product.engine_stats()).n_running > 0

    await wait_until_async("the request to run", is_running)
    asking.cancel()
    await wait_until_async("the row to be settled", lambda: product.n_open_usage_rows() == 0)
    assert product.usage_outcomes()["aborted"] == n_aborted + 1

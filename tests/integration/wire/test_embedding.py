"""Embeddings over the socket: the process with the real model, and what each engine refuses."""

import asyncio
import math
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertModel

from apps.engines.client import EngineClient, SamplingParams, TextPrompt, TokenPrompt
from apps.engines.exceptions import EngineDead, EngineOverloaded, EngineRequestError
from engine_service.protocol import Abort, Embed, Embedded, Failed
from tests.integration.wire.harness import RawPeer, running
from tests.integration.wire.test_process import connected, engine_process
from tests.models import minilm_dir
from tests.waiting import wait_until_async

TEXTS = (
    "A man is eating food.",
    "Ein Mann isst.",
    "",
    "The girl is carrying a baby while a very long sentence goes on and on. " * 6,
)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[EngineClient]:
    socket = tmp_path / "run" / "e.sock"
    socket.parent.mkdir(mode=0o700)
    with engine_process(minilm_dir(), socket) as process:
        client = await connected(socket, process)
        yield client
        await client.close()


async def test_the_process_embeds_texts_as_transformers_does(client: EngineClient) -> None:
    info = client.info
    assert (info.task, info.embedding_size, info.max_model_len) == ("embed", 384, 256)
    inputs = [TextPrompt(text=text) for text in TEXTS]
    result = await client.embed(request_id="a", inputs=inputs, timeout_s=30.0)
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir())
    model = BertModel.from_pretrained(minilm_dir(), add_pooling_layer=False)
    n_tokens = 0
    for text, packed in zip(TEXTS, result.vectors, strict=True):
        tokens = tokenizer(text, padding=False, truncation=False, return_tensors="pt")
        n_tokens += tokens["input_ids"].shape[1]
        mean = model(**tokens).last_hidden_state[0].mean(dim=0)
        expected = (mean / mean.norm()).detach().numpy()
        assert abs(np.frombuffer(packed, dtype="<f4") - expected).max() < 1e-5
    assert result.n_prompt_tokens == n_tokens
    many = [client.embed(request_id=f"r{i}", inputs=inputs, timeout_s=60.0) for i in range(8)]
    for other in await asyncio.gather(*many):
        for one, two in zip(result.vectors, other.vectors, strict=True):
            assert abs(np.frombuffer(one, "<f4") - np.frombuffer(two, "<f4")).max() < 1e-5
    health = await client.ping(10.0)
    assert (health.n_finished, health.n_prompt_tokens) == (9, 9 * n_tokens)


async def test_what_cannot_be_embedded_is_refused_by_name(client: EngineClient) -> None:
    good, long = TextPrompt(text="good"), TextPrompt(text="word " * 255)
    refusals = {
        "input[1]": (
            [good, long],
            "context_length_exceeded",
            "has 257 tokens; this model takes 256",
        ),
        "input[0]": ([TextPrompt(text="x" * 100_000)], "context_length_exceeded", "100000 char"),
        "input[2]": ([good, good, TokenPrompt(token_ids=())], "invalid_value", "is empty"),
        "input": ([], "invalid_value", "1 to 512 texts, not 0"),
    }
    for param, (inputs, code, message) in refusals.items():
        with pytest.raises(EngineRequestError, match=message) as caught:
            await client.embed(request_id="a", inputs=inputs, timeout_s=10.0)
        assert (caught.value.param, caught.value.code) == (param, code)
    for token_id in (-1, 30522):
        with pytest.raises(EngineRequestError, match=f"token id {token_id}"):
            await client.embed(
                request_id="a", inputs=[TokenPrompt(token_ids=(1, token_id))], timeout_s=10.0
            )
    with pytest.raises(EngineRequestError, match="not 513"):
        await client.embed(request_id="a", inputs=[good] * 513, timeout_s=10.0)
    with pytest.raises(EngineRequestError, match="makes embeddings") as caught:
        await client.prepare(
            request_id="a",
            prompt=good,
            sampling=SamplingParams(),
            max_tokens=None,
            cache_salt="",
            timeout_s=10.0,
        )
    assert (caught.value.param, caught.value.code) == ("prompt", "unsupported_task")
    most = await client.embed(request_id="a", inputs=[good] * 512, timeout_s=60.0)
    assert len(most.vectors) == 512
    assert math.isclose(np.linalg.norm(np.frombuffer(most.vectors[0], "<f4")), 1.0, rel_tol=1e-5)


async def test_an_engine_that_generates_refuses_and_a_draining_one_too(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        client = await harness.client()
        assert (client.info.task, client.info.embedding_size) == ("generate", None)
        with pytest.raises(EngineRequestError, match="generates text") as caught:
            await client.embed(request_id="a", inputs=[TextPrompt(text="x")], timeout_s=5.0)
        assert (caught.value.param, caught.value.code) == ("input", "unsupported_task")
        await harness.service.drain(0.1)
        with pytest.raises(EngineOverloaded, match="stopping"):
            await client.embed(request_id="a", inputs=[TextPrompt(text="x")], timeout_s=5.0)
        await client.close()
        with pytest.raises(EngineDead):
            await client.embed(request_id="a", inputs=[TextPrompt(text="x")], timeout_s=5.0)


async def test_an_abort_ends_it_once_and_a_lost_client_ends_all(
    client: EngineClient, tmp_path: Path
) -> None:
    async def is_running(n_requests: int) -> bool:
        return (await client.ping(10.0)).n_waiting == n_requests

    peer = await RawPeer.connect(tmp_path / "run" / "e.sock")
    await peer.hello()
    many = (TextPrompt(text="word " * 200),) * 512
    for is_aborted in (True, False):
        await peer.send(Embed(request_id="a", inputs=many))
        await wait_until_async("the long request to run", partial(is_running, 1))
        await peer.send(Embed(request_id="b", inputs=many[:1]))
        answer = await peer.read()
        assert isinstance(answer, Embedded)
        assert answer.request_id == "b"
        if is_aborted:
            await peer.send(Abort(request_id="a"))
            answer = await peer.read()
            assert isinstance(answer, Failed)
            assert (answer.request_id, answer.error.message) == ("a", "the request was aborted")
    peer.writer.close()
    await wait_until_async("nothing to run", partial(is_running, 0))
    health = await client.ping(10.0)
    assert (health.n_aborted, health.n_finished, health.n_failed) == (2, 2, 0)

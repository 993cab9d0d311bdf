"""Hostile requests to a real engine: each gets a typed error, nobody else is disturbed."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from apps.engines.client import EngineClient, SamplingParams, TextPrompt
from apps.engines.exceptions import EngineRequestError
from apps.engines.types import GenerationResult
from engine_service.protocol import PROTOCOL_VERSION, Failed, Hello, Welcome
from tests.faults.hostile import CONTEXT, Hostile, corpus, malformed_frames, random_requests
from tests.integration.wire.harness import RawPeer
from tests.models import random_llama_dir
from tests.processes import CONTEXT_LENGTH, EngineRun, running_engine
from tests.waiting import wait_until

N_AT_ONCE = 12
N_TOKENS = 80
COMPANIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.3, "seed": 1},
    {"temperature": 0.8, "seed": 2, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.0, "seed": -3, "top_k": 40, "frequency_penalty": 0.4, "min_p": 0.01},
)

_ids = itertools.count()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRun]:
    directory = tmp_path_factory.mktemp("hostile")
    model_dir = random_llama_dir(directory, max_position_embeddings=CONTEXT_LENGTH)
    options = ("--dtype", "float32", "--kv-cache-tokens", str(CONTEXT))
    with running_engine(model_dir, directory, *options) as run:
        yield run


async def connect(engine: EngineRun) -> EngineClient:
    client = EngineClient(str(engine.socket_path), name="test", expected_epoch=engine.epoch)
    assert (await client.connect()).max_model_len == CONTEXT
    return client


async def ask(client: EngineClient, request: Hostile) -> tuple[str, GenerationResult]:
    """Run a request to its end. Raises what the engine says is wrong with it."""
    request_id = f"r{next(_ids)}"
    prepared = await client.prepare(
        request_id=request_id,
        prompt=request.prompt,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        cache_salt="",
        standing=request.standing,
        timeout_s=30.0,
    )
    n_tokens = prepared.max_new_tokens if request.n_start is None else request.n_start
    stream = await client.start(request_id, n_tokens)
    text = "".join([delta.text async for delta in stream])
    assert stream.result is not None
    return text, stream.result


async def refusal(client: EngineClient, request: Hostile) -> EngineRequestError | None:
    try:
        await ask(client, request)
    except EngineRequestError as error:
        return error
    return None


def companion(index: int) -> Hostile:
    return Hostile(
        name=f"companion {index}",
        param="",
        prompt=TextPrompt(text=f"{index}: tell me about the sea"),
        sampling=SamplingParams(ignore_eos=True, **COMPANIONS[index]),
        max_tokens=N_TOKENS,
    )


async def answer(client: EngineClient, index: int) -> tuple[str, int]:
    text, result = await ask(client, companion(index))
    return text, result.n_completion_tokens


@pytest.fixture(scope="module")
def solo(engine: EngineRun) -> list[tuple[str, int]]:
    """What the company says when each of it is alone."""

    async def each() -> list[tuple[str, int]]:
        client = await connect(engine)
        answers = [await answer(client, index) for index in range(len(COMPANIONS))]
        await client.close()
        return answers

    return asyncio.run(each())


@dataclass(frozen=True, slots=True)
class Company:
    """Harmless requests that run beside others and must not notice them."""

    client: EngineClient
    solo: list[tuple[str, int]]

    async def refusals(
        self, client: EngineClient, requests: Sequence[Hostile]
    ) -> list[EngineRequestError | None]:
        """Send all ``requests`` at once, each to its end, while the company runs."""
        answers = asyncio.gather(*(answer(self.client, i) for i in range(len(COMPANIONS))))
        found = await asyncio.gather(*(refusal(client, request) for request in requests))
        assert await answers == self.solo
        return found


async def check_unharmed(engine: EngineRun, pid: int) -> None:
    client = await connect(engine)
    assert client.info.pid == pid == engine.process.pid
    await client.close()
    wait_until("the engine to be idle", engine.is_idle)
    assert "Traceback" not in engine.log.read_text()


async def test_each_hostile_request_fails_alone_and_says_why(
    engine: EngineRun, solo: list[tuple[str, int]]
) -> None:
    friend, foe = await connect(engine), await connect(engine)
    company = Company(friend, solo)
    requests = corpus()
    wrong = []
    for start in range(0, len(requests), N_AT_ONCE):
        part = requests[start : start + N_AT_ONCE]
        for request, error in zip(part, await company.refusals(foe, part), strict=True):
            if error is None or error.param != request.param or not error.code:
                wrong.append(f"{request.name}: {error!r} of {error and error.param}")
    print(f"{len(requests)} hostile requests, {len(wrong)} not refused as they should be")
    assert wrong == []
    assert len(requests) > 100
    await check_unharmed(engine, friend.info.pid)
    await friend.close()
    await foe.close()


async def test_what_is_no_message_ends_its_own_connection(
    engine: EngineRun, solo: list[tuple[str, int]]
) -> None:
    friend = await connect(engine)
    company = Company(friend, solo)
    peers = []
    for data in malformed_frames().values():
        peers.append(peer := await RawPeer.connect(engine.socket_path))
        await peer.send(Hello(protocol_version=PROTOCOL_VERSION, client="foe"))
        assert isinstance(await peer.read(), Welcome)
        peer.writer.write(data)
    await company.refusals(friend, ())
    for name, peer in zip(malformed_frames(), peers, strict=True):
        answer = await peer.read()
        assert isinstance(answer, Failed), name
        assert (answer.request_id, answer.error.code) == (None, "protocol_error"), name
        assert await peer.is_closed(), name
    await check_unharmed(engine, friend.info.pid)
    await friend.close()


async def test_answers_that_outgrow_the_pool_together_all_end_as_alone(
    engine: EngineRun, solo: list[tuple[str, int]]
) -> None:
    client = await connect(engine)
    company = Company(client, solo)
    grown = [
        Hostile(
            name=f"grows {i}",
            param="",
            prompt=TextPrompt(text=f"{i} " * 20),
            sampling=SamplingParams(temperature=1.0, seed=i, ignore_eos=True),
            max_tokens=None,
        )
        for i in range(2)
    ]
    alone = [await ask(client, request) for request in grown]
    before = (await client.ping(5.0)).n_preemptions
    together = asyncio.gather(*(ask(client, request) for request in grown))
    await company.refusals(client, ())
    for (text, result), (wanted, solo) in zip(await together, alone, strict=True):
        assert (text, result.n_completion_tokens) == (wanted, solo.n_completion_tokens)
        assert result.n_prompt_tokens + result.n_completion_tokens == CONTEXT
    assert (await client.ping(5.0)).n_preemptions > before
    await check_unharmed(engine, client.info.pid)
    await client.close()


async def at_the_edges(
    engine: EngineRun, solo: list[tuple[str, int]], *, n: int, seed: int
) -> Counter[str]:
    """Run random requests beside the company; return how often which field was refused."""
    friend, foe = await connect(engine), await connect(engine)
    company = Company(friend, solo)
    refused: Counter[str] = Counter()
    requests = list(random_requests(n=n, seed=seed))
    for start in range(0, n, N_AT_ONCE):
        for error in await company.refusals(foe, requests[start : start + N_AT_ONCE]):
            refused[str(error.param) if error else "none"] += 1
    await check_unharmed(engine, friend.info.pid)
    await friend.close()
    await foe.close()
    return refused


async def test_every_field_at_an_edge_at_once(
    engine: EngineRun, solo: list[tuple[str, int]]
) -> None:
    refused = await at_the_edges(engine, solo, n=48, seed=1)
    print("random requests, by the field refused:", dict(refused))
    assert refused["none"] > 5


@pytest.mark.prove
@pytest.mark.timeout(1800)
async def test_every_field_at_an_edge_at_once_two_thousand_times(
    engine: EngineRun, solo: list[tuple[str, int]]
) -> None:
    refused = await at_the_edges(engine, solo, n=2000, seed=2)
    print("2,000 random requests, by the field refused:", dict(refused))
    assert refused["none"] > 200
    assert len(refused) > 8

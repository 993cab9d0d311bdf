"""A real engine after many aborts and many requests: every block is back, memory stays level."""

import asyncio
import itertools
import random
import statistics
from collections.abc import Awaitable, Callable, Iterator

import pytest

from apps.engines.client import EngineClient, EngineStream, SamplingParams, Standing, TokenPrompt
from apps.engines.exceptions import EngineClientError
from tests.models import random_llama_dir
from tests.processes import EngineRun, running_engine
from tests.waiting import wait_until

VOCAB = 320
PART = 100
N_AT_ONCE = 25
# Most sequences wait for a place, and those that run outgrow the pool together.
OPTIONS = ("--dtype", "float32", "--max-sequences", "12", "--kv-cache-tokens", "1024")

_ids = itertools.count()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRun]:
    directory = tmp_path_factory.mktemp("memory")
    with running_engine(random_llama_dir(directory), directory, *OPTIONS) as run:
        yield run


async def begin(client: EngineClient, rng: random.Random, *, n_tokens: int) -> EngineStream:
    """Start a request of a tenant of its own, sampled in one of several ways."""
    request_id = f"r{next(_ids)}"
    await client.prepare(
        request_id=request_id,
        prompt=TokenPrompt(token_ids=tuple(rng.choices(range(VOCAB), k=rng.randint(1, 200)))),
        sampling=SamplingParams(
            temperature=rng.choice((0.0, 1.0)),
            top_p=rng.choice((0.9, 1.0)),
            repetition_penalty=rng.choice((1.0, 1.1)),
            logprobs=rng.choice((None, 3)),
            stop=rng.choice(((), ("never",))),
            ignore_eos=True,
        ),
        max_tokens=n_tokens,
        cache_salt=request_id,
        standing=Standing(tenant=request_id),
        timeout_s=60.0,
    )
    return await client.start(request_id, n_tokens)


async def give_up(client: EngineClient, rng: random.Random) -> None:
    """Leave a request at a random point: in preparation, in the queue, in prefill, in decoding."""
    starting = asyncio.create_task(begin(client, rng, n_tokens=rng.randint(1, 200)))
    if rng.random() < 0.2:
        await asyncio.wait({starting}, timeout=rng.uniform(0.0, 0.01))
        if starting.cancel():
            await asyncio.wait({starting})
            return
    stream = await starting
    for _ in range(rng.choice((0, 0, 1, 2, 5, 20, 80))):
        if await anext(stream, None) is None:
            break
    await stream.abort(timeout_s=60.0)
    assert not isinstance(stream.error, EngineClientError)


async def complete(client: EngineClient, rng: random.Random) -> None:
    n_tokens = rng.randint(1, 8)
    stream = await begin(client, rng, n_tokens=n_tokens)
    async for _ in stream:
        pass
    assert stream.n_completion_tokens == n_tokens


async def slope_of_memory(
    engine: EngineRun,
    act: Callable[[EngineClient, random.Random], Awaitable[None]],
    *,
    n: int,
    n_warm_up: int,
) -> float:
    """Return the bytes that one ``act`` leaves: resident memory fitted over parts of 100."""
    rng = random.Random(n)
    client = EngineClient(str(engine.socket_path), name="test")
    await client.connect()
    sizes = []
    for done in range(0, n_warm_up + n, PART):
        for _ in range(0, PART, N_AT_ONCE):
            await asyncio.gather(*(act(client, rng) for _ in range(N_AT_ONCE)))
        wait_until("every block to be free", engine.is_idle)
        if done >= n_warm_up:
            sizes.append(engine.stats().rss_bytes)
    assert client.info.pid == engine.process.pid
    await client.close()
    slope = statistics.linear_regression(range(0, n, PART), sizes).slope
    print(
        f"{n} x {act.__name__}: {slope:.0f} bytes each, resident {sizes[0] / 2**20:.1f} to "
        f"{sizes[-1] / 2**20:.1f} MiB; {engine.stats()}"
    )
    return slope


async def test_aborts_at_random_points_give_every_block_back(engine: EngineRun) -> None:
    await slope_of_memory(engine, give_up, n=200, n_warm_up=0)
    stats = engine.stats()
    assert stats.n_aborted > 80
    assert stats.n_preemptions > 0
    assert stats.n_failed == 0


@pytest.mark.prove
@pytest.mark.timeout(1200)
async def test_a_thousand_aborts_leave_no_memory_behind(engine: EngineRun) -> None:
    assert await slope_of_memory(engine, give_up, n=1000, n_warm_up=1000) < 1024


@pytest.mark.prove
@pytest.mark.timeout(1800)
async def test_memory_is_flat_over_ten_thousand_requests(engine: EngineRun) -> None:
    assert await slope_of_memory(engine, complete, n=10_000, n_warm_up=1000) < 100

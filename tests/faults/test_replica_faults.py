"""One of two replicas is killed, frozen or slowed down under 32 streams: what was under way there
ends in-band, the other replica's streams go on, and the load is even again afterwards."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.faults.streaming import Transcript, connection, long_answer, read_stream
from tests.furnished import furnished_var
from tests.serve import CHAT_ENGINE, EngineRow, RunningProduct, in_django, running_product
from tests.waiting import wait_until, wait_until_async

pytestmark = [pytest.mark.e2e, pytest.mark.prove, pytest.mark.timeout(1200)]

SECOND_ENGINE = CHAT_ENGINE.removesuffix("0") + "1"
N_STREAMS = 32
BACK_S = 180.0
# Far longer than a busy machine takes over a step of an engine that gets a third of its time: else
# the agent would end what is only slow, and the test would tell of that.
PING_DEADLINE_S = 30
STOPPED_S, RUNNING_S = 0.2, 0.1  # of a replica that is slowed down, by turns
SCALE = """
import sys
from apps.audit.types import SYSTEM
from apps.deployments.models import Deployment
from apps.deployments.services import deployment_update
deployment_update(
    deployment=Deployment.objects.get(name=sys.argv[1]),
    actor=SYSTEM,
    min_replicas=int(sys.argv[2]),
    max_replicas=int(sys.argv[2]),
)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """A product of its own, with two replicas to chat with."""
    env = {"ENGINE_PING_DEADLINE_S": str(PING_DEADLINE_S)}
    with running_product(furnished_var(tmp_path_factory, "two"), env=env) as product:
        in_django(product, SCALE, CHAT_ENGINE.removesuffix("-0"), "2")
        wait_until("both replicas", lambda: are_ready(product), timeout_s=BACK_S)
        yield product


def states(product: RunningProduct) -> dict[str, str]:
    prefix = CHAT_ENGINE.removesuffix("0")
    return dict(
        product.rows(f"SELECT name, state FROM engines_engineprocess WHERE name LIKE '{prefix}%'")
    )


def are_ready(product: RunningProduct) -> bool:
    return states(product) == {CHAT_ENGINE: "ready", SECOND_ENGINE: "ready"}


async def one_stream(
    product: RunningProduct, *, tag: str, n_tokens: int, started: asyncio.Event | None = None
) -> Transcript:
    body = long_answer(product, n_tokens=n_tokens) | {"user": tag}
    async with connection(product, body) as reader:
        return await read_stream(reader, started)


async def many_streams(
    product: RunningProduct, *, tag: str, n: int, n_tokens: int
) -> list[Transcript]:
    streams = (one_stream(product, tag=tag, n_tokens=n_tokens) for _ in range(n))
    return await asyncio.gather(*streams)


def requests_of(product: RunningProduct, tag: str) -> Counter[str]:
    query = f"SELECT engine_name FROM metering_usagerecord WHERE end_user = '{tag}'"
    return Counter(name for (name,) in product.rows(query))


def is_whole(transcript: Transcript) -> bool:
    return (transcript.errors, transcript.finish_reasons) == ([], ["length"])


def has_text(transcript: Transcript) -> bool:
    return any(
        choice["delta"].get("content")
        for event in transcript.events
        for choice in event.get("choices", ())
    )


def check_end(transcript: Transcript) -> None:
    """However it ended, its client was told: by an answer, an error event, or a status."""
    if transcript.status == 503:
        assert transcript.events == []
        return
    assert transcript.status == 200
    assert transcript.is_done
    if not is_whole(transcript):
        assert [error["code"] for error in transcript.errors] == ["engine_unavailable"]
        assert "error" in transcript.events[-1]
        assert transcript.finish_reasons == []


async def both_take_requests(product: RunningProduct, tag: str) -> None:
    """The server hears of a replica a moment after the agent has recorded it."""

    async def do() -> bool:
        await many_streams(product, tag=tag, n=N_STREAMS // 4, n_tokens=4)
        return len(requests_of(product, tag)) == 2

    await wait_until_async("both to take requests", do, timeout_s=60)


async def check_balance(product: RunningProduct, tag: str) -> None:
    await both_take_requests(product, f"found-{tag}")
    transcripts = await many_streams(product, tag=tag, n=N_STREAMS // 2, n_tokens=16)
    assert [is_whole(each) for each in transcripts] == [True] * (N_STREAMS // 2)
    found = requests_of(product, tag)
    print(f"{tag}: {dict(found)}")
    assert min(found[CHAT_ENGINE], found[SECOND_ENGINE]) >= N_STREAMS // 8


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_replica_that_is_lost_takes_only_its_own_with_it(
    two: RunningProduct, fault: signal.Signals
) -> None:
    """Half of the streams have sent text by then; the others have just been taken on."""
    tag, lost = f"lost-{fault.name}", two.engine(SECOND_ENGINE)
    await both_take_requests(two, f"before-{tag}")
    started = [asyncio.Event() for _ in range(N_STREAMS // 2)]
    early = [
        asyncio.create_task(one_stream(two, tag=tag, n_tokens=150, started=event))
        for event in started
    ]
    async with asyncio.timeout(120):
        await asyncio.gather(*(event.wait() for event in started))
    late = [
        asyncio.create_task(one_stream(two, tag=tag, n_tokens=24)) for _ in range(N_STREAMS // 2)
    ]
    await wait_until_async("all to be taken on", lambda: requests_of(two, tag).total() == N_STREAMS)
    os.kill(lost.pid, fault)
    lost_at = time.monotonic()
    async with asyncio.timeout(180):
        transcripts = await asyncio.gather(*early, *late)

    for transcript in transcripts:
        check_end(transcript)
    whole = [each for each in transcripts if is_whole(each)]
    cut = [each for each in transcripts if has_text(each) and not is_whole(each)]
    refused = [each for each in transcripts if not has_text(each) and not is_whole(each)]
    print(f"{tag}: {len(whole)} whole, {len(cut)} cut off, {len(refused)} failed unsent")
    assert len(whole) >= N_STREAMS // 4
    assert len(cut) >= 1
    assert refused == []  # what had sent nothing went to the other replica
    await wait_until_async("the replica to be back", lambda: is_back(two, lost), timeout_s=BACK_S)
    print(f"{tag}: back {time.monotonic() - lost_at:.0f} s after")
    assert two.n_open_usage_rows() == 0
    await check_balance(two, f"after-{tag}")


def is_back(product: RunningProduct, before: EngineRow) -> bool:
    return are_ready(product) and product.engine(before.name).epoch > before.epoch


@asynccontextmanager
async def slowed_down(pid: int) -> AsyncIterator[None]:
    async def pulse() -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)  # how slow it is
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(RUNNING_S)

    pulses = asyncio.create_task(pulse())
    try:
        yield
    finally:
        pulses.cancel()
        with suppress(asyncio.CancelledError):
            await pulses
        os.kill(pid, signal.SIGCONT)


async def test_a_replica_that_is_slow_gets_less(two: RunningProduct) -> None:
    tag, slow = "slowed", two.engine(SECOND_ENGINE)
    await both_take_requests(two, f"before-{tag}")
    transcripts: list[Transcript] = []
    waiting = iter(range(3 * N_STREAMS))

    async def client() -> None:
        for _ in waiting:
            transcripts.append(await one_stream(two, tag=tag, n_tokens=16))

    async with asyncio.timeout(480), slowed_down(slow.pid):
        await asyncio.gather(*(client() for _ in range(N_STREAMS)))
    assert [is_whole(each) for each in transcripts] == [True] * (3 * N_STREAMS)
    found = requests_of(two, tag)
    print(f"{tag}: {dict(found)}")
    assert found[SECOND_ENGINE] <= 0.8 * found[CHAT_ENGINE]
    assert two.engine(SECOND_ENGINE).epoch == slow.epoch
    await check_balance(two, f"after-{tag}")

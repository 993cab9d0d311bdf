import asyncio

import pytest

from apps.engines.exceptions import EngineFault, EngineUnresponsive
from apps.engines.stream import EngineStream
from apps.engines.types import GenerationResult, TextDelta
from tests.waiting import wait_until_async

RESULT = GenerationResult(
    finish_reason="stop", n_prompt_tokens=1, n_cached_tokens=0, n_completion_tokens=5
)


class Peer:
    """Records what the stream asks of its client."""

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.forgotten: list[str] = []

    def stream(self) -> EngineStream:
        return EngineStream("r", send_abort=self.aborted.append, forget=self.forgotten.append)


async def test_text_not_taken_yet_is_joined() -> None:
    stream = Peer().stream()
    stream.push("a", n_tokens=1)
    stream.push("", n_tokens=1)
    stream.push("b", n_tokens=1)
    assert await anext(stream) == TextDelta(text="ab", n_tokens=3)
    stream.push("c", n_tokens=1)
    stream.finish(RESULT, text="d")
    assert [delta async for delta in stream] == [TextDelta(text="cd", n_tokens=2)]
    assert (stream.result, stream.n_completion_tokens) == (RESULT, 5)


async def test_text_before_an_error_is_given_first() -> None:
    stream = Peer().stream()
    stream.push("a", n_tokens=1)
    stream.fail(EngineFault("broken"))
    assert (await anext(stream)).text == "a"
    for _ in range(2):
        with pytest.raises(EngineFault) as caught:
            await anext(stream)
        assert caught.value.n_completion_tokens == 1


async def test_the_first_end_counts() -> None:
    stream = Peer().stream()
    stream.finish(RESULT, text="")
    stream.fail(EngineFault("late"))
    assert (stream.result, stream.error) == (RESULT, None)
    assert [delta async for delta in stream] == []


async def test_an_abort_waits_for_the_count_and_is_sent_once() -> None:
    peer = Peer()
    stream = peer.stream()
    aborts = [asyncio.create_task(stream.abort()) for _ in range(2)]
    await wait_until_async("the abort to be sent", lambda: peer.aborted)
    assert not any(abort.done() for abort in aborts)
    stream.finish(RESULT, text="")
    await asyncio.gather(*aborts)
    await stream.abort()
    assert peer.aborted == ["r"]
    assert stream.n_completion_tokens == 5


async def test_an_abort_that_nobody_confirms_ends_the_stream() -> None:
    peer = Peer()
    stream = peer.stream()
    stream.push("a", n_tokens=1)
    await stream.abort(timeout_s=0.01)
    assert isinstance(stream.error, EngineUnresponsive)
    assert stream.error.n_completion_tokens == 1
    assert peer.forgotten == ["r"]


async def test_a_cancelled_consumer_has_told_the_engine() -> None:
    peer = Peer()
    stream = peer.stream()

    async def consume() -> None:
        try:
            async for _ in stream:
                pass
        finally:
            await stream.abort()

    consumer = asyncio.create_task(consume())
    await asyncio.sleep(0)
    consumer.cancel()
    await wait_until_async("the abort to be sent", lambda: peer.aborted)
    stream.finish(RESULT, text="")
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert stream.result == RESULT

import asyncio

import pytest

from apps.engines.exceptions import EngineFault, EngineUnresponsive
from apps.engines.stream import EngineStream
from apps.engines.types import AnswerDelta, GenerationResult, ToolCallDelta
from tests.waiting import wait_until_async

RESULT = GenerationResult(
    finish_reason="stop", n_prompt_tokens=1, n_cached_tokens=0, n_completion_tokens=5
)
LAST = AnswerDelta(finish_reason="stop")


class Peer:
    """Records what the stream asks of its client."""

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.forgotten: list[str] = []

    def stream(self) -> EngineStream:
        return EngineStream("r", send_abort=self.aborted.append, forget=self.forgotten.append)


async def test_text_not_taken_yet_is_joined() -> None:
    stream = Peer().stream()
    stream.push(AnswerDelta(text="a", n_tokens=1))
    stream.push(AnswerDelta(text="", n_tokens=1))
    stream.push(AnswerDelta(text="b", n_tokens=1))
    assert await anext(stream) == AnswerDelta(text="ab", n_tokens=3)
    stream.push(AnswerDelta(text="c", n_tokens=1))
    stream.finish(RESULT, last=AnswerDelta(text="d", finish_reason="stop"))
    assert [delta async for delta in stream] == [
        AnswerDelta(text="cd", n_tokens=1, finish_reason="stop")
    ]
    assert (stream.result, stream.n_completion_tokens) == (RESULT, 5)


async def test_answers_are_joined_each_for_itself() -> None:
    stream = Peer().stream()
    stream.push(AnswerDelta(index=1, text="x", n_tokens=1))
    stream.push(AnswerDelta(index=0, text="a", n_tokens=1))
    stream.push(AnswerDelta(index=1, text="y", n_tokens=1, reasoning="r"))
    call = ToolCallDelta(index=0, name="f")
    stream.push(AnswerDelta(index=0, n_tokens=1, tool_calls=(call,), finish_reason="length"))
    assert await anext(stream) == AnswerDelta(index=1, text="xy", n_tokens=2, reasoning="r")
    assert await anext(stream) == AnswerDelta(
        index=0, text="a", n_tokens=2, tool_calls=(call,), finish_reason="length"
    )


async def test_text_before_an_error_is_given_first() -> None:
    stream = Peer().stream()
    stream.push(AnswerDelta(text="a", n_tokens=1))
    stream.fail(EngineFault("broken"))
    assert (await anext(stream)).text == "a"
    for _ in range(2):
        with pytest.raises(EngineFault) as caught:
            await anext(stream)
        assert caught.value.n_completion_tokens == 1


async def test_the_first_end_counts() -> None:
    stream = Peer().stream()
    stream.finish(RESULT, last=LAST)
    stream.fail(EngineFault("late"))
    assert (stream.result, stream.error) == (RESULT, None)
    assert [delta async for delta in stream] == [LAST]


async def test_an_abort_waits_for_the_count_and_is_sent_once() -> None:
    peer = Peer()
    stream = peer.stream()
    aborts = [asyncio.create_task(stream.abort()) for _ in range(2)]
    await wait_until_async("the abort to be sent", lambda: peer.aborted)
    assert not any(abort.done() for abort in aborts)
    stream.finish(RESULT, last=LAST)
    await asyncio.gather(*aborts)
    await stream.abort()
    assert peer.aborted == ["r"]
    assert stream.n_completion_tokens == 5


async def test_an_abort_that_nobody_confirms_ends_the_stream() -> None:
    peer = Peer()
    stream = peer.stream()
    stream.push(AnswerDelta(text="a", n_tokens=1))
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
    stream.finish(RESULT, last=LAST)
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert stream.result == RESULT

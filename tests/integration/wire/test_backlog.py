"""A reader that is behind gets what piled up as one piece of each answer; one that keeps up gets
each step's."""

from pathlib import Path

import pytest

from engine_service.protocol import (
    Delta,
    FailedRequest,
    Finished,
    Start,
    StepOutputs,
    TokenLogprob,
    ToolCallDelta,
    WireError,
)
from engine_service.server.backlog import Backlog
from engine_service.server.generation import Outbox
from engine_service.server.limits import Limits
from tests.integration.wire.harness import RawPeer, running
from tests.integration.wire.test_connection import prepare, prepared
from tests.waiting import wait_until_async

N_NEW = 1500
N_STREAMS = 20


async def read_all(peer: RawPeer, n: int) -> tuple[dict[str, str], dict[str, int], list[Delta]]:
    """Read until ``n`` requests have ended: their texts, their final counts, and what came."""
    texts: dict[str, str] = {}
    counts: dict[str, int] = {}
    deltas: list[Delta] = []
    while len(counts) < n:
        frame = await peer.read()
        assert isinstance(frame, StepOutputs)
        assert not frame.failed
        deltas += frame.deltas
        for delta in frame.deltas:
            assert delta.request_id not in counts, "something came after the end"
            texts[delta.request_id] = texts.get(delta.request_id, "") + delta.text
        for last in frame.finished:
            counts[last.request_id] = last.n_completion_tokens
            texts[last.request_id] = texts.get(last.request_id, "") + last.text
    return texts, counts, deltas


async def test_what_piled_up_comes_as_one_piece_and_nothing_is_lost(tmp_path: Path) -> None:
    """Far more frames are made than may lie unread, and the reader is not cut off over them."""
    limits = Limits(max_send_bytes=600_000)
    async with running(tmp_path / "run", limits=limits) as harness:
        peer = await harness.peer()
        names = [f"r{i}" for i in range(N_STREAMS)]
        await prepared(peer, *(prepare(name) for name in names))
        harness.backend.steps.clear()
        await peer.send(*(Start(request_id=name, max_new_tokens=N_NEW) for name in names))
        await wait_until_async("all to be started", lambda: len(harness.service._live) == N_STREAMS)
        harness.backend.steps.set()
        await wait_until_async("all to end", lambda: not harness.service._live, timeout_s=60)
        texts, counts, deltas = await read_all(peer, N_STREAMS)
        assert set(counts.values()) == {N_NEW}
        assert set(texts.values()) == {("abc" * N_NEW)[:N_NEW]}
        assert len(deltas) < N_STREAMS * N_NEW / 2
        assert sum(delta.n_tokens for delta in deltas) == N_STREAMS * (N_NEW - 1)


async def test_a_reader_that_keeps_up_gets_a_piece_for_each_token(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await harness.peer()
        await prepared(peer, prepare("r"))
        await peer.send(Start(request_id="r", max_new_tokens=50))
        texts, _, deltas = await read_all(peer, 1)
        assert [delta.n_tokens for delta in deltas] == [1] * 49
        assert texts["r"] == ("abc" * 50)[:50]


# -- the joining alone -----------------------------------------------------------------------------


def logprob(token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id=token_id, logprob=-1.0, token=b"x")


def test_every_field_of_the_pieces_is_kept() -> None:
    call = ToolCallDelta(index=0, name="look")
    arguments = ToolCallDelta(index=0, arguments="{}")
    backlog = Backlog()
    first = Delta(
        request_id="a", text="x", n_tokens=1, reasoning="r", tool_calls=(call,),
        logprobs=(logprob(1),), prompt_logprobs=(logprob(7),),
    )  # fmt: skip
    later = Delta(
        request_id="a", text="y", n_tokens=2, reasoning="s", tool_calls=(arguments,),
        logprobs=(logprob(2), logprob(3)), prompt_logprobs=(logprob(8),),
        finish_reason="stop", stop="END",
    )  # fmt: skip
    other = Delta(request_id="a", index=1, text="z", n_tokens=1)
    for delta in (first, other, later):
        backlog.add(Outbox(deltas=[delta]))
    joined, alone = backlog.take().deltas
    assert alone == other
    assert joined == Delta(
        request_id="a", text="xy", n_tokens=3, reasoning="rs", tool_calls=(call, arguments),
        logprobs=(logprob(1), logprob(2), logprob(3)), prompt_logprobs=(logprob(7), logprob(8)),
        finish_reason="stop", stop="END",
    )  # fmt: skip


def test_ends_are_kept_and_taken_once() -> None:
    finished = Finished(
        request_id="a", finish_reason="stop", n_prompt_tokens=1, n_cached_tokens=0,
        n_completion_tokens=2,
    )  # fmt: skip
    error = WireError(kind="engine", code="engine_error", message="no")
    failed = FailedRequest(request_id="b", error=error, n_completion_tokens=1)
    backlog = Backlog()
    backlog.add(Outbox(deltas=[Delta(request_id="a", text="x", n_tokens=1)]))
    backlog.add(Outbox(finished=[finished], failed=[failed]))
    outbox = backlog.take()
    assert (len(outbox.deltas), outbox.finished, outbox.failed) == (1, [finished], [failed])
    assert backlog.n_bytes == 0
    assert not backlog.take().has_generations


@pytest.mark.parametrize("text", ["x" * 50, "你" * 50])
def test_its_size_is_never_less_than_the_text(text: str) -> None:
    backlog = Backlog()
    for _ in range(10):
        backlog.add(Outbox(deltas=[Delta(request_id="a", text=text, n_tokens=1)]))
    assert backlog.n_bytes >= len(text.encode()) * 10

"""The service against a peer that speaks frames by hand, well and badly."""

import asyncio
import os
from pathlib import Path

import pytest

from engine_service.protocol import (
    PROTOCOL_VERSION,
    Abort,
    EngineStats,
    Failed,
    Finished,
    FinishReason,
    Hello,
    Message,
    Ping,
    Pong,
    Prepare,
    Prepared,
    SamplingParams,
    Start,
    StepOutputs,
    TextPrompt,
    encode_frame,
)
from engine_service.server import connection
from engine_service.server.limits import Limits
from tests.integration.wire.harness import EPOCH, Harness, RawPeer, running, start, text_of
from tests.waiting import wait_until_async

HELLO = Hello(protocol_version=PROTOCOL_VERSION, client="raw")


def prepare(request_id: str, *, max_tokens: int | None = None, text: str = "abc") -> Prepare:
    return Prepare(
        request_id=request_id,
        prompt=TextPrompt(text=text),
        sampling=SamplingParams(),
        max_tokens=max_tokens,
    )


async def prepared(peer: RawPeer, *requests: Prepare) -> None:
    await peer.send(*requests)
    answers = [await peer.read() for _ in requests]
    assert {answer.request_id for answer in answers if isinstance(answer, Prepared)} == {
        request.request_id for request in requests
    }


async def still_serves(harness: Harness) -> bool:
    client = await harness.client()
    text = await text_of(await start(client, "check", max_tokens=3))
    await client.close()
    return text == "abc"


async def test_another_version_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await RawPeer.connect(harness.path)
        await peer.send(Hello(protocol_version=PROTOCOL_VERSION + 1, client="new"))
        answer = await peer.read()
        assert isinstance(answer, Failed)
        assert (answer.request_id, answer.error.code) == (None, "protocol_error")
        assert await peer.is_closed()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x05hello",
        b"GET / HTTP/1.1\r\n\r\n",
        encode_frame(HELLO),  # a second one
        encode_frame(Start(request_id="r", max_new_tokens=1))[:4] + b"\xc1" * 100,
        encode_frame(prepare("")),
        encode_frame(prepare("x" * 129)),
        encode_frame(prepare("same")) + encode_frame(prepare("same")),
        encode_frame(prepare("early")) + encode_frame(Start(request_id="early", max_new_tokens=1)),
        encode_frame(Pong(nonce=1, epoch=EPOCH, stats=EngineStats())),
    ],
)
async def test_a_malformed_frame_closes_that_connection_only(tmp_path: Path, data: bytes) -> None:
    async with running(tmp_path / "run") as harness:
        client = await harness.client()
        other = await start(client, "other", max_tokens=5000)
        peer = await harness.peer()
        await peer.send_bytes(data)
        answer = await peer.read()
        assert isinstance(answer, Failed)
        assert (answer.request_id, answer.error.code) == (None, "protocol_error")
        assert await peer.is_closed()
        assert len(await text_of(other)) == 5000
        await client.close()


async def test_nothing_comes_before_hello(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await RawPeer.connect(harness.path)
        await peer.send(Ping(nonce=1), HELLO)
        assert isinstance(await peer.read(), Failed)
        assert await peer.is_closed()


async def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path / "run", limits=Limits(hello_timeout_s=0.05)) as harness:
        peer = await RawPeer.connect(harness.path)
        assert await peer.is_closed()
        assert await still_serves(harness)


async def test_a_peer_of_another_user_is_closed_unheard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "run") as harness:
        monkeypatch.setattr(connection, "peer_uid", lambda _: os.geteuid() + 1)
        peer = await RawPeer.connect(harness.path)
        assert await peer.is_closed()
        monkeypatch.undo()
        assert await still_serves(harness)


async def test_one_frame_per_step_carries_all_deltas(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer, other = await harness.peer(), await harness.peer()
        harness.backend.steps.clear()
        await prepared(peer, *(prepare(f"r{i}", max_tokens=4) for i in range(8)))
        await prepared(other, prepare("alone", max_tokens=4))
        await other.send(Start(request_id="alone", max_new_tokens=4))
        await wait_until_async("the step to hold", lambda: len(harness.backend.running) == 1)
        await peer.send(*(Start(request_id=f"r{i}", max_new_tokens=4) for i in range(8)))
        await wait_until_async("all to be started", lambda: len(harness.service._live) == 9)
        harness.backend.steps.set()
        frames = [await peer.read() for _ in range(4)]
        for frame in frames[:3]:
            assert isinstance(frame, StepOutputs)
            assert frame.epoch == EPOCH
            assert {delta.request_id for delta in frame.deltas} == {f"r{i}" for i in range(8)}
            assert not frame.finished
        assert isinstance(frames[3], StepOutputs)
        assert len(frames[3].finished) == 8
        assert not frames[3].deltas
        alone = [await other.read() for _ in range(4)]
        assert all(isinstance(frame, StepOutputs) for frame in alone)


async def test_every_started_request_has_one_terminal(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await harness.peer()
        await prepared(peer, *(prepare(f"r{i}", max_tokens=50) for i in range(20)))
        for i in range(20):
            await peer.send(Start(request_id=f"r{i}", max_new_tokens=50))
        for i in range(0, 20, 3):
            await peer.send(Abort(request_id=f"r{i}"), Abort(request_id=f"r{i}"))
        await peer.send(Abort(request_id="never heard of"), Start(request_id="x", max_new_tokens=1))
        terminals: list[str] = []
        while len(terminals) < 21:
            frame = await peer.read()
            assert isinstance(frame, StepOutputs)
            assert not {delta.request_id for delta in frame.deltas} & set(terminals)
            terminals += [f.request_id for f in (*frame.finished, *frame.failed)]
        assert sorted(terminals) == sorted([*(f"r{i}" for i in range(20)), "x"])
        await peer.send(Ping(nonce=9))
        assert isinstance(await peer.read(), Pong)  # and nothing else came before it


async def test_a_stop_string_ends_its_answer_and_the_others_go_on(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await harness.peer()
        # The three answers are abca, bcab and cabc.
        sampling = SamplingParams(n=3, stop=("cab",))
        await prepared(
            peer, Prepare(request_id="r", prompt=TextPrompt(text="abc"), sampling=sampling)
        )
        await peer.send(Start(request_id="r", max_new_tokens=4))
        texts = ["", "", ""]
        reasons: list[FinishReason | None] = [None, None, None]
        finished: list[Finished] = []
        while not finished:
            frame = await peer.read()
            assert isinstance(frame, StepOutputs)
            finished += frame.finished
            for part in (*frame.deltas, *frame.finished):
                texts[part.index] += part.text
                reasons[part.index] = part.finish_reason
        assert texts == ["abca", "b", ""]
        assert reasons == ["length", "stop", "stop"]
        assert finished[0].n_completion_tokens == 4 + 4 + 3
        await wait_until_async("the answers to leave", lambda: not harness.backend.running)


async def test_aborting_before_the_start_drops_it_silently(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await harness.peer()
        await prepared(peer, prepare("r"))
        await peer.send(Abort(request_id="r"), Start(request_id="r", max_new_tokens=1))
        answer = await peer.read()
        assert isinstance(answer, StepOutputs)
        assert [failed.error.kind for failed in answer.failed] == ["overloaded"]


async def test_a_prepared_request_expires(tmp_path: Path) -> None:
    async with running(tmp_path / "run", limits=Limits(prepared_ttl_s=0.02)) as harness:
        peer = await harness.peer()
        await prepared(peer, prepare("r"))
        (served,) = harness.service._connections
        await wait_until_async("it to expire", lambda: not served._requests)
        await peer.send(Start(request_id="r", max_new_tokens=1))
        answer = await peer.read()
        assert isinstance(answer, StepOutputs)
        assert "expired" in answer.failed[0].error.message


async def test_prepared_and_started_requests_are_bounded(tmp_path: Path) -> None:
    limits = Limits(max_prepared=2, max_started=1)
    async with running(tmp_path / "run", limits=limits) as harness:
        peer = await harness.peer()
        harness.backend.steps.clear()
        await prepared(peer, prepare("a"), prepare("b"))
        await peer.send(prepare("c"))
        refused = await peer.read()
        assert isinstance(refused, Failed)
        assert (refused.request_id, refused.error.kind) == ("c", "overloaded")
        assert refused.error.retry_after_s == 1.0
        await peer.send(Start(request_id="a", max_new_tokens=1), prepare("c"))
        refused = await peer.read()
        assert isinstance(refused, Failed)
        assert "too many requests run" in refused.error.message


async def test_a_peer_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    limits = Limits(max_send_bytes=64 * 1024)
    async with running(tmp_path / "run", limits=limits) as harness:
        client = await harness.client()
        peer = await harness.peer()
        await prepared(peer, *(prepare(f"r{i}") for i in range(20)))
        harness.backend.steps.clear()
        await peer.send(*(Start(request_id=f"r{i}", max_new_tokens=99_000) for i in range(20)))
        await wait_until_async("all to be started", lambda: len(harness.service._live) == 20)
        harness.backend.steps.set()
        await wait_until_async("all to be aborted", lambda: harness.backend.n_aborted == 20)
        assert (await client.ping(5.0)).n_running == 0
        assert len(harness.service._connections) == 1
        await client.close()


async def test_a_peer_that_goes_away_is_aborted(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await harness.peer()
        await prepared(peer, prepare("r"), prepare("waits"))
        await peer.send(Start(request_id="r", max_new_tokens=99_000))
        assert isinstance(await peer.read(), StepOutputs)
        peer.writer.transport.abort()
        await wait_until_async("it to be aborted", lambda: harness.backend.n_aborted == 1)
        assert not harness.backend.running
        assert not harness.service._live


async def test_pings_that_are_not_answered_do_not_pile_up(tmp_path: Path) -> None:
    async with running(tmp_path / "run", limits=Limits(max_pings=2)) as harness:
        peer = await harness.peer()
        await prepared(peer, prepare("r", max_tokens=1))
        harness.backend.steps.clear()
        await peer.send(Start(request_id="r", max_new_tokens=1))
        await wait_until_async("the step to hold", lambda: harness.backend.running)
        messages: list[Message] = [Ping(nonce=i) for i in range(5)]
        await peer.send(*messages)
        (served,) = harness.service._connections
        await wait_until_async("pings to arrive", lambda: served._n_pings == 2)
        harness.backend.steps.set()
        answers = [await peer.read() for _ in range(3)]
        assert [a.nonce for a in answers if isinstance(a, Pong)] == [0, 1]
        await peer.send(Ping(nonce=9))
        answer = await peer.read()
        assert isinstance(answer, Pong)
        assert answer.nonce == 9


async def test_frames_in_small_pieces_are_understood(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as harness:
        peer = await RawPeer.connect(harness.path)
        for byte in encode_frame(HELLO) + encode_frame(Ping(nonce=3)):
            await peer.send_bytes(bytes([byte]))
            await asyncio.sleep(0)
        await peer.read()
        answer = await peer.read()
        assert isinstance(answer, Pong)
        assert answer.nonce == 3

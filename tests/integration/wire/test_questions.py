"""Questions about text over the socket: answered whatever runs, bounded, no harm to the rest."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from apps.engines.client import ChatMessage, ChatPrompt, TextPrompt
from apps.engines.exceptions import EngineDead, EngineOverloaded, EngineRequestError
from engine_service.protocol import (
    Abort,
    Detokenize,
    Detokenized,
    Failed,
    Ping,
    Pong,
    Tokenize,
    Tokenized,
)
from engine_service.server.limits import Limits
from tests.integration.wire.harness import running, start, text_of
from tests.unit.frontend.tokenizers import END, byte_level
from tests.waiting import wait_until_async

LONG = "the lazy dog " * 2000


async def test_text_goes_to_ids_and_back_while_an_answer_streams(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        client = await harness.client()
        stream = await start(client, "a", text="abc", max_tokens=300)
        for add, text in ((None, LONG), (False, "Straße 👍🏽"), (True, "")):
            found = await client.tokenize(
                request_id="b",
                prompt=TextPrompt(text=text),
                add_special_tokens=add,
                with_strings=add is False,
                timeout_s=10.0,
            )
            encoding = byte_level().encode(text)
            assert found.token_ids == tuple(encoding.ids)
            assert found.strings == (tuple(encoding.tokens) if add is False else ())
            back = await client.detokenize(
                request_id="b", token_ids=found.token_ids, timeout_s=10.0
            )
            assert back == text
        chat = await client.tokenize(
            request_id="c",
            prompt=ChatPrompt(messages=(ChatMessage(role="user", content="hi"),)),
            add_special_tokens=None,
            with_strings=False,
            timeout_s=10.0,
        )
        assert chat.token_ids == tuple(byte_level().encode(f"[user] hi{END}[assistant]").ids)
        assert await text_of(stream) == "abc" * 100
        await client.close()
        with pytest.raises(EngineDead):
            await client.detokenize(request_id="d", token_ids=(1,), timeout_s=5.0)


async def test_what_cannot_be_answered_is_refused_by_name(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        client = await harness.client()
        with pytest.raises(EngineRequestError) as refused:
            await client.detokenize(request_id="a", token_ids=(-1,), timeout_s=5.0)
        assert (refused.value.param, refused.value.code) == ("tokens", "invalid_value")
        with pytest.raises(EngineRequestError, match="generates text") as refused:
            await client.measure_inputs(
                request_id="a", inputs=[TextPrompt(text="x")], timeout_s=5.0
            )
        assert (refused.value.param, refused.value.code) == ("input", "unsupported_task")
        with pytest.raises(EngineRequestError) as refused:
            await client.detokenize(request_id="a", token_ids=(2**80,), timeout_s=5.0)
        assert refused.value.code == "invalid_value"
        await harness.service.drain(0.1)
        with pytest.raises(EngineOverloaded, match="stopping"):
            await client.detokenize(request_id="a", token_ids=(1,), timeout_s=5.0)
        await client.close()


async def test_an_answer_that_is_too_large_is_refused_and_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(max_answer_bytes=20_000)) as harness:
        client = await harness.client()
        stream = await start(client, "a", text="abc", max_tokens=300)
        ids = tuple(byte_level().encode(LONG).ids)
        with pytest.raises(EngineRequestError, match="larger than 20000 bytes") as refused:
            await client.detokenize(request_id="b", token_ids=ids, timeout_s=5.0)
        assert refused.value.param == "tokens"
        for with_strings, text in ((True, LONG), (False, LONG * 10)):
            with pytest.raises(EngineRequestError) as refused:
                await client.tokenize(
                    request_id="b",
                    prompt=TextPrompt(text=text),
                    add_special_tokens=None,
                    with_strings=with_strings,
                    timeout_s=5.0,
                )
            assert refused.value.param == "prompt"
        assert await text_of(stream) == "abc" * 100
        await client.close()


async def test_many_large_answers_at_once_are_not_too_much(tmp_path: Path) -> None:
    """All of them together are more than a connection may leave unread, and none is."""
    limits = Limits(max_send_bytes=300_000)
    async with running(tmp_path, limits=limits) as harness:
        client = await harness.client()
        ids = tuple(byte_level().encode(LONG * 4).ids)
        texts = await asyncio.gather(
            *(
                client.detokenize(request_id=f"r{number}", token_ids=ids, timeout_s=30.0)
                for number in range(40)
            )
        )
        assert set(texts) == {LONG * 4}
        assert sum(map(len, texts)) > 10 * limits.max_send_bytes
        await client.close()


async def test_a_peer_that_reads_late_gets_every_answer_and_the_rest_between(
    tmp_path: Path,
) -> None:
    limits = Limits(max_send_bytes=300_000)
    async with running(tmp_path, limits=limits) as harness:
        peer = await harness.peer()
        ids = tuple(byte_level().encode(LONG * 4).ids)
        asked = [Detokenize(request_id=f"r{number}", token_ids=ids) for number in range(30)]
        await peer.send(*asked, Ping(nonce=7))
        pongs, answers = 0, set()
        for _ in range(31):
            match await peer.read(timeout_s=20.0):
                case Pong():
                    pongs += 1
                case Detokenized(request_id=request_id, text=text):
                    assert text == LONG * 4
                    answers.add(request_id)
        assert (pongs, answers) == (1, {question.request_id for question in asked})
        peer.writer.close()


async def test_one_that_never_reads_is_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(max_send_bytes=300_000, max_unsent_answers_bytes=1_000_000)
    async with running(tmp_path, limits=limits) as harness:
        peer = await harness.peer()
        ids = tuple(byte_level().encode(LONG * 4).ids)
        with contextlib.suppress(ConnectionError):  # cut off before the last question is away
            for number in range(30):
                await peer.send(Detokenize(request_id=f"r{number}", token_ids=ids))
        client = await harness.client()
        found = await client.detokenize(request_id="a", token_ids=ids, timeout_s=20.0)
        assert found == LONG * 4
        # Not before: the answers come from a pool, and a peer that reads meanwhile is no such one.
        await wait_until_async(
            "the peer to be cut off", lambda: "client raw does not read" in caplog.text
        )
        n_answers = 0
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while True:
                await peer.read(timeout_s=20.0)
                n_answers += 1
        assert n_answers < 30
        await client.close()


async def test_an_abort_leaves_no_answer_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as harness:
        peer = await harness.peer()
        long = Tokenize(request_id="a", prompt=TextPrompt(text=LONG * 20))
        await peer.send(long, Abort(request_id="a"), Tokenize(request_id="b", prompt=long.prompt))
        answer = await peer.read(timeout_s=20.0)
        assert isinstance(answer, Tokenized)
        assert answer.request_id == "b"
        await peer.send(Detokenize(request_id="a", token_ids=(-1,)))
        answer = await peer.read()
        assert isinstance(answer, Failed)
        assert answer.error.param == "tokens"
        peer.writer.close()

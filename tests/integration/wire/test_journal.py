"""The journal of an engine that serves: what a client was told is in it, before it was told."""

import errno
import os
from pathlib import Path

import pytest

from apps.engines.client import EngineClient
from apps.engines.exceptions import EngineDead, EngineFault, EngineOverloaded, EngineRequestError
from apps.engines.stream import EngineStream
from engine_service.journal import Journal
from engine_service.protocol.journal import (
    CONNECTION_LOST,
    JournalRecord,
    live_path,
    log_path,
    read_live,
    read_log,
)
from tests.integration.wire.echo import REFUSED_SALT
from tests.integration.wire.harness import EPOCH, running, start, text_of
from tests.integration.wire.test_process import engine_process, exit_code
from tests.models import random_llama_dir
from tests.waiting import wait_until_async

NAME = "e1"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(directory: Path) -> Journal:
    return Journal(directory, NAME, epoch=EPOCH, capacity=16)


def records(directory: Path) -> list[JournalRecord]:
    return list(read_log(log_path(directory, NAME, number=1)).records)


def live(directory: Path) -> dict[str, int]:
    found = read_live(live_path(directory, NAME), epoch=EPOCH)
    return {record.request_id: record.n_completion_tokens for record in found}


def ends(directory: Path) -> list[tuple[str, int, str, str]]:
    return [
        (each.request_id, each.n_completion_tokens, each.finish_reason, each.error_code)
        for each in records(directory)
    ]


async def test_who_saw_the_end_finds_it(tmp_path: Path, directory: Path, journal: Journal) -> None:
    async with running(tmp_path / "run", journal=journal) as harness:
        client = await harness.client()
        for number in range(20):
            stream = await start(client, f"r{number}", text="abc", max_tokens=1 + number)
            await text_of(stream)
            record = records(directory)[-1]  # at once: nothing is waited for
            assert (record.request_id, record.epoch) == (f"r{number}", EPOCH)
            assert stream.result is not None
            assert (record.n_prompt_tokens, record.n_completion_tokens) == (
                stream.result.n_prompt_tokens, stream.result.n_completion_tokens,
            )  # fmt: skip
            assert record.first_token_at is not None
            assert record.started_at <= record.first_token_at <= record.ended_at
        assert live(directory) == {}
        await client.close()


async def test_every_way_to_end(tmp_path: Path, directory: Path, journal: Journal) -> None:
    async with running(tmp_path / "run", journal=journal) as harness:
        client = await harness.client()
        await text_of(await start(client, "stopped", text="abc", max_tokens=9, stop=("c",)))
        await text_of(await start(client, "several", text="abc", max_tokens=4, n=3))
        with pytest.raises(EngineRequestError, match="refused"):
            await text_of(await start(client, "refused", cache_salt=REFUSED_SALT))
        harness.backend.failures.append(RuntimeError("fault"))
        with pytest.raises(EngineFault, match="fault"):
            await text_of(await start(client, "failed"))
        left = await start(client, "left", max_tokens=None)
        await anext(left)
        await left.abort()
        assert left.result is not None
        assert ends(directory) == [
            ("stopped", 3, "stop", ""),
            ("several", 12, "length", ""),
            ("refused", 0, "", "refused"),
            ("failed", 0, "", "engine_error"),
            ("left", left.result.n_completion_tokens, "abort", ""),
        ]
        assert live(directory) == {}
        await client.close()


async def test_what_was_shown_is_in_the_table(
    tmp_path: Path, directory: Path, journal: Journal
) -> None:
    async with running(tmp_path / "run", journal=journal) as harness:
        client = await harness.client()
        streams = [await start(client, f"r{number}", max_tokens=None) for number in range(4)]
        seen: dict[str, int] = {}
        for _ in range(50):
            for stream in streams:
                seen[stream.request_id] = seen.get(stream.request_id, 0) + await tokens_of(stream)
            noted = live(directory)
            assert seen.keys() == noted.keys()
            assert all(noted[name] >= n for name, n in seen.items())
        await client.close()


async def tokens_of(stream: EngineStream) -> int:
    return (await anext(stream)).n_tokens


async def test_a_lost_client_is_told_from_one_that_asked(
    tmp_path: Path, directory: Path, journal: Journal
) -> None:
    async with running(tmp_path / "run", journal=journal) as harness:
        client = await harness.client()
        stream = await start(client, "r", max_tokens=None)
        n_seen = (await anext(stream)).n_tokens
        await client.close()
        (end,) = await wait_until_async("its record", lambda: ends(directory))
        assert (end[0], end[2:]) == ("r", ("abort", CONNECTION_LOST))
        assert end[1] >= n_seen > 0
        assert live(directory) == {}


async def test_on_a_full_disk_nothing_new_begins_and_nothing_is_lost(
    tmp_path: Path, directory: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with running(tmp_path / "run", journal=journal) as harness:
        client = await harness.client()
        harness.backend.steps.clear()
        runs = await start(client, "runs", max_tokens=5)
        ends_first = await start(client, "ends first", max_tokens=2)
        await wait_until_async("both to have begun", lambda: len(live(directory)) == 2)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            harness.backend.steps.set()
            await text_of(ends_first)
            with pytest.raises(EngineOverloaded, match=r"journal cannot be written.*No space"):
                await text_of(await start(client, "refused", max_tokens=3))
            await text_of(runs)
            assert records(directory) == []
            assert live(directory) == {"runs": 5, "ends first": 2}
        await text_of(await start(client, "later", max_tokens=3))
        assert ends(directory) == [
            ("ends first", 2, "length", ""), ("runs", 5, "length", ""), ("later", 3, "length", ""),
        ]  # fmt: skip
        assert live(directory) == {}
        await client.close()


async def test_an_engine_that_cannot_make_its_journal_does_not_start(tmp_path: Path) -> None:
    model_dir = random_llama_dir(tmp_path)
    directory = tmp_path / "open to all"
    directory.mkdir(mode=0o755)
    socket = tmp_path / "e.sock"
    with engine_process(model_dir, socket, "--journal", str(directory)) as process:
        assert await exit_code(process, timeout_s=60) == 70
    last_line = socket.with_suffix(".log").read_text().splitlines()[-1]
    assert "cannot start: cannot write the journal in" in last_line
    assert list(directory.iterdir()) == []
    with pytest.raises(EngineDead):
        await EngineClient(str(socket), name="test").connect()

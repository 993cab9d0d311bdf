"""A step loop that gives up ends the process with its own exit code."""

import asyncio
from pathlib import Path

import pytest

from apps.engines.client import EngineClient
from apps.engines.exceptions import EngineDead, EngineFault
from engine_service.__main__ import EXIT_FATAL, Options, serve
from engine_service.config import EngineConfig
from engine_service.errors import EngineLost
from engine_service.frontend import Frontend
from engine_service.journal import Journal
from engine_service.protocol.journal import is_writer_alive, log_path, read_live, read_log
from tests.integration.wire.echo import EchoBackend
from tests.integration.wire.harness import start, text_of
from tests.unit.frontend.tokenizers import chat_tokenizer, model_info
from tests.waiting import wait_until_async


def options_of(directory: Path) -> Options:
    return Options(
        engine=EngineConfig(model_dir=directory),
        socket=directory / "e.sock",
        epoch=1,
        drain_s=1.0,
        exit_with_parent=False,
    )


async def test_a_backend_lost_in_a_step_that_hangs_ends_the_process(tmp_path: Path) -> None:
    info = model_info()
    backend = EchoBackend(info)
    options = options_of(tmp_path)
    frontend = Frontend(chat_tokenizer(), info)
    served = asyncio.create_task(serve(options, backend=backend, frontend=frontend))
    await wait_until_async("the socket", options.socket.exists)
    client = EngineClient(str(options.socket), name="test")
    await client.connect()
    backend.steps.clear()
    stream = await start(client, "hangs")
    await wait_until_async("the step", backend.has_work)
    try:
        backend.lose(EngineLost("a process is gone"))
        with pytest.raises(EngineFault, match="is being restarted"):
            await text_of(stream)
        # Not after the time that a step thread gets to end in.
        assert await asyncio.wait_for(served, 2.0) == EXIT_FATAL
    finally:
        backend.steps.set()


async def test_a_step_loop_that_keeps_failing_ends_the_process(tmp_path: Path) -> None:
    info = model_info()
    backend = EchoBackend(info)
    backend.failures += [RuntimeError(f"fault {i}") for i in range(5)]
    options = options_of(tmp_path)
    path = options.socket
    directory = tmp_path / "journal"
    journal = Journal(directory, "e", epoch=1, capacity=8)
    frontend = Frontend(chat_tokenizer(), info)
    served = asyncio.create_task(
        serve(options, backend=backend, frontend=frontend, journal=journal)
    )
    await wait_until_async("the socket", path.exists)
    client = EngineClient(str(path), name="test")
    await client.connect()
    for i in range(4):
        with pytest.raises(EngineFault, match=f"fault {i}"):
            await text_of(await start(client, f"r{i}"))
    with pytest.raises(EngineFault, match="is being restarted"):
        await text_of(await start(client, "last"))
    assert await asyncio.wait_for(served, 10.0) == EXIT_FATAL == 70
    assert not path.exists()
    left = read_log(log_path(directory, "e", number=1)).records
    assert [(record.request_id, record.error_code) for record in left] == [
        (name, "engine_error") for name in ("r0", "r1", "r2", "r3", "last")
    ]
    assert read_live(directory / "e.live", epoch=1) == ()
    assert not is_writer_alive(directory, "e")
    with pytest.raises(EngineDead):
        await client.ping(1.0)

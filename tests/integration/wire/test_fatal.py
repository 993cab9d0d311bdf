"""A step loop that gives up ends the process with its own exit code."""

import asyncio
from pathlib import Path

import pytest

from apps.engines.client import EngineClient
from apps.engines.exceptions import EngineDead, EngineFault
from engine_service.__main__ import EXIT_FATAL, Options, serve
from engine_service.config import EngineConfig
from engine_service.frontend import Frontend
from engine_service.journal import Journal
from engine_service.protocol.journal import is_writer_alive, log_path, read_live, read_log
from tests.integration.wire.echo import EchoBackend
from tests.integration.wire.harness import start, text_of
from tests.unit.frontend.tokenizers import chat_tokenizer, model_info
from tests.waiting import wait_until_async


async def test_a_step_loop_that_keeps_failing_ends_the_process(tmp_path: Path) -> None:
    info = model_info()
    backend = EchoBackend(info)
    backend.failures += [RuntimeError(f"fault {i}") for i in range(5)]
    path = tmp_path / "e.sock"
    options = Options(
        engine=EngineConfig(model_dir=tmp_path),
        socket=path,
        epoch=1,
        drain_s=1.0,
        exit_with_parent=False,
    )
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

"""Purging over the socket: through the process and back, with bounds on what is asked."""

from pathlib import Path

import pytest

from apps.engines.client import EngineClient, SamplingParams, TokenPrompt
from apps.engines.exceptions import EngineDead, EngineRequestError
from tests.integration.wire.harness import running, text_of
from tests.integration.wire.test_process import connected, engine_process
from tests.models import random_llama_dir


async def generate(client: EngineClient, request_id: str, *tags: str) -> int:
    """Return how many tokens of the same prompt came from the cache."""
    prepared = await client.prepare(
        request_id=request_id,
        prompt=TokenPrompt(token_ids=tuple(range(40))),
        sampling=SamplingParams(),
        max_tokens=1,
        cache_salt="salt",
        cache_tags=tags,
        timeout_s=10.0,
    )
    stream = await client.start(request_id, prepared.max_new_tokens)
    await text_of(stream)
    assert stream.result is not None
    return stream.result.n_cached_tokens


async def test_the_process_forgets_what_a_person_left(tmp_path: Path) -> None:
    socket = tmp_path / "run" / "e.sock"
    socket.parent.mkdir(mode=0o700)
    with engine_process(random_llama_dir(tmp_path), socket) as process:
        client = await connected(socket, process)
        assert await generate(client, "a", "tenant:1", "person:2") == 0
        assert await generate(client, "b", "tenant:1", "person:3") == 32
        assert await client.purge("person:4", timeout_s=10.0) == 0
        assert await client.purge("person:2", timeout_s=10.0) == 2
        assert await generate(client, "c", "tenant:1", "person:3") == 0
        assert (await client.ping(10.0)).n_blocks_cached == 2
        await client.close()
        with pytest.raises(EngineDead):
            await client.purge("person:3", timeout_s=1.0)


@pytest.mark.parametrize("tags", [("a", "b", "c", "d", "e"), ("",), ("x" * 257,)])
async def test_tags_beyond_the_bounds_are_refused(tmp_path: Path, tags: tuple[str, ...]) -> None:
    async with running(tmp_path) as harness:
        client = await harness.client()
        with pytest.raises(EngineRequestError) as caught:
            await generate(client, "a", *tags)
        assert (caught.value.param, caught.value.code) == ("cache_tags", "invalid_value")
        assert await client.purge("ann", timeout_s=5.0) == 3
        await client.close()

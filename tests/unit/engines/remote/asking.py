"""How tests ask a client of a remote replica."""

import asyncio
from typing import Any

from apps.engines.client import (
    ChatMessage,
    ChatPrompt,
    OutputFormat,
    SamplingParams,
    Standing,
)
from apps.engines.remote.client import RemoteClient
from apps.engines.stream import EngineStream
from apps.engines.types import AnswerDelta

HELLO = ChatPrompt(messages=(ChatMessage(role="user", content="Hello"),))


async def ask(
    client: RemoteClient,
    *,
    prompt: Any = HELLO,
    sampling: SamplingParams | None = None,
    max_tokens: int | None = 100,
    granted: int | None = None,
    is_streamed: bool = True,
    output_format: OutputFormat | None = None,
) -> EngineStream:
    prepared = await client.prepare(
        request_id="r",
        prompt=prompt,
        sampling=sampling or SamplingParams(),
        max_tokens=max_tokens,
        cache_salt="",
        timeout_s=1,
        standing=Standing(deadline_s=2.0),
        output_format=output_format,
        is_streamed=is_streamed,
    )
    return await client.start("r", granted or prepared.max_new_tokens)


async def all_of(stream: EngineStream) -> list[AnswerDelta]:
    async with asyncio.timeout(10):
        return [delta async for delta in stream]


def text_of(deltas: list[AnswerDelta]) -> str:
    return "".join(delta.text for delta in deltas)

"""Several generations as one: a request with several prompts."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from msgspec.structs import replace

from apps.core.exceptions import AppError
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway.generation import NOTHING
from apps.gateway.reuse import SingleStream
from apps.gateway.types import Reuse
from apps.metering.types import Budget


class Stream(Protocol):
    """What doors need of a generation, or of several."""

    request_id: str
    model: str
    created: int
    system_fingerprint: str
    n_answers: int
    requests: Budget | None
    tokens: Budget | None
    result: GenerationResult | None
    reuse: Reuse | None
    fallback: str | None

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def take(self, *, wait_s: float | None = None) -> AnswerDelta | None: ...

    async def aclose(self) -> None: ...


class MergedStream:
    """The answers to the first prompt come first in number, then those to the second and so on.

    What ends one of its generations badly ends all of them.
    """

    def __init__(self, streams: Sequence[SingleStream]) -> None:
        first = streams[0]
        self.request_id = first.request_id
        self.model = first.model
        self.created = first.created
        self.system_fingerprint = first.system_fingerprint
        # The last one was admitted after the others.
        self.requests, self.tokens = streams[-1].requests, streams[-1].tokens
        kinds = {stream.reuse for stream in streams}
        self.reuse: Reuse | None = first.reuse if len(kinds) == 1 else "miss"
        self.fallback = _fallback(streams)
        self.n_answers = sum(stream.n_answers for stream in streams)
        self.result: GenerationResult | None = None
        self._streams = streams
        self._news: asyncio.Queue[AnswerDelta | AppError | None] = asyncio.Queue(len(streams))
        self._tasks: list[asyncio.Task[None]] = []
        self._n_running = len(streams)

    async def __aenter__(self) -> Self:
        offset = 0
        for stream in self._streams:
            self._tasks.append(asyncio.create_task(self._pump(stream, offset=offset)))
            offset += stream.n_answers
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def take(self, *, wait_s: float | None = None) -> AnswerDelta | None:
        """Return what is new, as a ``GenerationStream`` does."""
        while self._n_running:
            try:
                async with asyncio.timeout(wait_s):
                    news = await self._news.get()
            except TimeoutError:
                return NOTHING
            if isinstance(news, AppError):
                raise news
            if news is not None:
                return news
            self._n_running -= 1
        self.request_id, self.fallback = self._streams[0].request_id, _fallback(self._streams)
        self.result = _total([stream.result for stream in self._streams])
        return None

    async def aclose(self) -> None:
        """End all that still run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(stream.aclose() for stream in self._streams))

    async def _pump(self, stream: SingleStream, *, offset: int) -> None:
        try:
            async with stream:
                async for delta in stream:
                    await self._news.put(replace(delta, index=offset + delta.index))
        except AppError as error:
            await self._news.put(error)
        else:
            await self._news.put(None)


def _fallback(streams: Sequence[SingleStream]) -> str | None:
    return next((stream.fallback for stream in streams if stream.fallback is not None), None)


def _total(results: Sequence[GenerationResult | None]) -> GenerationResult:
    done = [result for result in results if result is not None]
    return GenerationResult(
        finish_reason=done[-1].finish_reason,
        n_prompt_tokens=sum(result.n_prompt_tokens for result in done),
        n_cached_tokens=sum(result.n_cached_tokens for result in done),
        n_completion_tokens=sum(result.n_completion_tokens for result in done),
    )

"""The consumer's end of one generation: its answers as they come, then how it ended.

Fed by the client's reader task; knows nothing of the wire.
"""

import asyncio
from collections.abc import Callable
from typing import Self

from apps.engines.exceptions import EngineClientError, EngineUnresponsive
from apps.engines.types import AnswerDelta, GenerationResult


class EngineStream:
    """Iterate over it once, by one task; what was not taken yet of an answer is joined into one
    delta.

    result: set by the one good end. error: set by the one bad end, which iterating raises.
    n_completion_tokens: known so far, final once either is set.
    """

    def __init__(
        self, request_id: str, *, send_abort: Callable[[str], None], forget: Callable[[str], object]
    ) -> None:
        self.request_id = request_id
        self.result: GenerationResult | None = None
        self.error: EngineClientError | None = None
        self.n_completion_tokens = 0
        self._send_abort = send_abort
        self._forget = forget
        self._waiting: dict[int, AnswerDelta] = {}
        self._abort_sent = False
        self._changed = asyncio.Event()
        self._begun = asyncio.Event()
        self._is_taken_on = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- for the consumer --------------------------------------------------------------------

    @property
    def is_ended(self) -> bool:
        return self._ended.done()

    async def begun(self) -> None:
        """Return once it was taken on, or has ended; raises what ended it badly before that."""
        await self._begun.wait()
        if self.error is not None and not self._is_taken_on:
            raise self.error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnswerDelta:
        while not self._has_news:
            if self.error is not None:
                raise self.error
            if self.is_ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        index = next(index for index, delta in self._waiting.items() if not delta.is_empty)
        return self._waiting.pop(index)

    @property
    def _has_news(self) -> bool:
        return any(not delta.is_empty for delta in self._waiting.values())

    async def abort(self, *, timeout_s: float = 2.0) -> None:
        """Stop the generation if it still runs, and wait for its final count.

        Idempotent. The engine is told before the first wait, so a cancellation here loses only
        the count. An engine that does not confirm in time leaves an EngineUnresponsive as error.
        """
        if self.is_ended:
            return
        if not self._abort_sent:
            self._abort_sent = True
            self._send_abort(self.request_id)
        await asyncio.wait({self._ended}, timeout=timeout_s)
        if not self.is_ended:
            self._forget(self.request_id)
            self.fail(
                EngineUnresponsive(
                    "the engine did not confirm an abort in time",
                    n_completion_tokens=self.n_completion_tokens,
                )
            )

    # -- for the client ----------------------------------------------------------------------

    def begin(self) -> None:
        """Say that it was taken on: an error from now on comes where answers come."""
        self._is_taken_on = True
        self._begun.set()

    def push(self, delta: AnswerDelta) -> None:
        """Add what one step made of an answer."""
        self.n_completion_tokens += delta.n_tokens
        waiting = self._waiting.get(delta.index)
        if waiting is not None:
            delta = waiting.joined(delta)
        self._waiting[delta.index] = delta
        if not delta.is_empty:
            self._changed.set()

    def finish(self, result: GenerationResult, *, last: AnswerDelta) -> None:
        """End well, with what was held back of the last answer."""
        if self.is_ended:
            return
        self.result = result
        self.push(last)
        self.n_completion_tokens = result.n_completion_tokens
        self._end()

    def fail(self, error: EngineClientError) -> None:
        """End badly."""
        if self.is_ended:
            return
        self.n_completion_tokens = max(self.n_completion_tokens, error.n_completion_tokens)
        error.n_completion_tokens = self.n_completion_tokens
        self.error = error
        self._end()

    def _end(self) -> None:
        self._ended.set_result(None)
        self._begun.set()
        self._changed.set()

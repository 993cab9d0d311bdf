"""A generation that several equal requests get the answer of. A task of its own takes it from the
engine, so that none of them holds up another, and none that leaves ends it for the others."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec

from apps.core.exceptions import AppError
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway.generation import GenerationStream

logger = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class KeptAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What an engine made of a request, in the pieces that it came in."""

    deltas: tuple[AnswerDelta, ...]
    result: GenerationResult
    n_prompt_tokens: int
    system_fingerprint: str

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)


_decoder: Final = msgspec.msgpack.Decoder(KeptAnswer)


def decoded(data: bytes) -> KeptAnswer | None:
    """Return a kept answer; None where another release wrote it in another form."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


class Run:
    """Begins with ``begin``, and ends once: well with an answer, or without one.

    One reader follows it with ``news``; any number of others ``wait`` for the whole answer. place:
    where they expect it to be made; an answer from elsewhere is its reader's alone.
    """

    def __init__(self, *, keep: Callable[[KeptAnswer], Awaitable[None]], place: str) -> None:
        self.deltas: list[AnswerDelta] = []
        self.result: GenerationResult | None = None
        self.ended: asyncio.Future[KeptAnswer | None] = asyncio.get_running_loop().create_future()
        self._keep = keep
        self._place = place
        self._error: AppError | None = None
        self._n_interested = 0
        self._stream: GenerationStream | None = None
        self._pump: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def begin(self, stream: GenerationStream, *, spawn: Spawn) -> None:
        """Take it from the engine, for its reader and whoever else waits by now."""
        self._n_interested += 1
        self._stream = stream
        self._pump = spawn(self._take_all(stream))

    def end(self, kept: KeptAnswer | None) -> None:
        """Tell whoever waits what came of it; None has them run by themselves. Idempotent."""
        if not self.ended.done():
            self.ended.set_result(kept)
            self._changed.set()

    async def wait(self) -> KeptAnswer | None:
        """Return the whole answer; None where there is none to share."""
        self._n_interested += 1
        try:
            return await asyncio.shield(self.ended)
        finally:
            await self.leave()

    async def news(self, n_seen: int) -> AnswerDelta | None:
        """Return the piece after those, once there is one; None at the good end.

        Raises:
            AppError: it ended badly.
        """
        while len(self.deltas) <= n_seen:
            if self._error is not None:
                raise self._error
            if self.ended.done():
                return None
            self._changed.clear()
            await self._changed.wait()
        return self.deltas[n_seen]

    async def leave(self) -> None:
        """Want it no more. The last one to leave ends it, and sees it settled."""
        self._n_interested -= 1
        if self._n_interested or self._pump is None or self._stream is None:
            return
        if not self.ended.done():
            self._pump.cancel()
        await asyncio.wait({self._pump})
        if not self.ended.done():  # cancelled before its first step
            self.end(None)
            await self._stream.aclose()

    async def _take_all(self, stream: GenerationStream) -> None:
        try:
            async with stream:
                while (delta := await stream.take()) is not None:
                    self.deltas.append(delta)
                    self._changed.set()
            self.result = stream.result
            kept = self._kept(stream)
            self.end(kept)
            if kept is not None:
                await self._keep(kept)
        except AppError as error:
            self._error = error
        except Exception:
            logger.exception("A shared run failed")
            self._error = AppError()
        finally:
            self.end(None)

    def _kept(self, stream: GenerationStream) -> KeptAnswer | None:
        """Return what may be told again: not what its client or its budget has cut, and not what
        was made by another model version after an engine had failed, or of another prompt after an
        experiment could not have its way."""
        if self.result is None or self.result.finish_reason == "abort" or stream.is_cut_by_budget:
            return None
        if stream.origin != self._place or not stream.is_as_asked:
            return None
        return KeptAnswer(
            deltas=tuple(self.deltas),
            result=self.result,
            n_prompt_tokens=stream.n_prompt_tokens,
            system_fingerprint=stream.system_fingerprint,
        )

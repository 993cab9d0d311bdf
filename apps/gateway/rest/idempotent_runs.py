"""Of requests with one ``Idempotency-Key``, the one that runs: how it comes to that, how the others
wait for it, and how what it answers is recorded while it is sent."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar, cast

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework.response import Response

from apps.core.exceptions import Unavailable
from apps.core.hop import database_hop
from apps.core.ids import new_id
from apps.gateway.exceptions import IdempotencyKeyInUse
from apps.gateway.idempotency import (
    LEASE_GRACE_S,
    Claim,
    KeptAnswer,
    NamedRequest,
    Running,
    answer_keep,
    answer_look,
    request_claim,
    request_release,
)
from apps.gateway.rest.streaming import EventStreamResponse
from apps.gateway.runtime import GatewayRuntime

logger = logging.getLogger(__name__)

# What of an answer's headers is true of it later as well; what the limits leave is not.
KEPT_HEADERS: Final = ("Content-Type", "X-Request-Id", "Cache-Control", "X-Accel-Buffering")
POLL_S: Final = 0.25
WRITE_AGAIN_S: Final = 1.0

R = TypeVar("R")


class Claiming:
    """The way to a run or to an answer. In one process one asks the database, for all who wait."""

    def __init__(self, runtime: GatewayRuntime, named: NamedRequest) -> None:
        self._runtime = runtime
        self._named = named
        self._until_s = time.monotonic() + settings.GATEWAY_IDEMPOTENCY_WAIT_S

    async def claim_or_answer(self) -> "Run | KeptAnswer":
        """Return the right to run the request, or its answer.

        Raises:
            IdempotencyKeyReused, AnswerNotKept: as ``request_claim`` does.
            IdempotencyKeyInUse: it still runs, past the time that one waits.
            Unavailable: the database cannot say, or this process is stopping.
        """
        while (asked := self._runtime.named.get(self._named)) is not None:
            if (answer := await self._heard(asked)) is not None:
                return answer
        asked = self._runtime.named[self._named] = asyncio.get_running_loop().create_future()
        try:
            found = await self._asked()
        except BaseException:
            self._land(asked, None)
            raise
        if isinstance(found, Claim):
            return Run(self._runtime, claim=found, land=lambda answer: self._land(asked, answer))
        self._land(asked, found)
        return found

    async def _heard(self, asked: "asyncio.Future[KeptAnswer | None]") -> KeptAnswer | None:
        self._runtime.check_admitting()
        done, _ = await asyncio.wait({asked}, timeout=max(0.0, self._until_s - time.monotonic()))
        if not done:
            raise IdempotencyKeyInUse
        return asked.result()

    def _land(self, asked: "asyncio.Future[KeptAnswer | None]", answer: KeptAnswer | None) -> None:
        if self._runtime.named.get(self._named) is asked:
            del self._runtime.named[self._named]
        if not asked.done():
            asked.set_result(answer)

    async def _asked(self) -> Claim | KeptAnswer:
        self._runtime.check_admitting()
        found = await self._claim()
        while isinstance(found, Running):
            if time.monotonic() + POLL_S > self._until_s:
                raise IdempotencyKeyInUse
            await asyncio.sleep(POLL_S)
            self._runtime.check_admitting()
            found = await _told(database_hop(answer_look, self._named)) or await self._claim()
        return found

    async def _claim(self) -> Claim | KeptAnswer | Running:
        """Claim, to its end even when the caller is cancelled meanwhile; then for nothing."""
        claiming = self._runtime.spawn(_told(database_hop(request_claim, self._named)))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await asyncio.shield(self._runtime.spawn(self._give_back(claiming)))
            raise

    async def _give_back(self, claiming: "asyncio.Task[Claim | KeptAnswer | Running]") -> None:
        await asyncio.wait({claiming})
        if claiming.exception() is None and isinstance(claim := claiming.result(), Claim):
            await Run(self._runtime, claim=claim, land=lambda _: None).aclose()


class Run:
    """One run of a request. It ends once: its answer is kept, or the key is free again."""

    def __init__(
        self,
        runtime: GatewayRuntime,
        *,
        claim: Claim,
        land: Callable[[KeptAnswer | None], None],
    ) -> None:
        self._runtime = runtime
        self._claim = claim
        self._land = land
        self._ending: asyncio.Task[None] | None = None
        self._status = 200
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._n_bytes = 0

    async def keep(self, response: HttpResponseBase) -> HttpResponseBase:
        """Return the response once its answer is kept; one that is yet to be made records it."""
        if not 200 <= response.status_code < 300:
            await self.aclose()
            return response
        if isinstance(response, Response):
            response.render()
        if not response.has_header("X-Request-Id"):
            response["X-Request-Id"] = new_id("req")
        self._status = response.status_code
        self._headers = {name: response[name] for name in KEPT_HEADERS if name in response.headers}
        if isinstance(response, EventStreamResponse):
            response.record(self)
        elif isinstance(response, StreamingHttpResponse):
            await self._keep_made(response)
        else:
            await self.end(cast(HttpResponse, response).content)
        return response

    async def recorded(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in parts:
            self._add(part)
            yield part

    async def end(self, last: bytes) -> None:
        """Keep the answer, which ``last`` ends."""
        if self._ending is None:
            self._add(last)
            body = b"".join(self._parts) if self._is_small else None
            answer = KeptAnswer(status=self._status, headers=self._headers, body=body)
            self._ending = self._runtime.spawn(self._kept(answer))
        await asyncio.shield(self._ending)

    async def aclose(self) -> None:
        """Give the key back if nothing was kept under it."""
        if self._ending is None:
            self._ending = self._runtime.spawn(self._released())
        await asyncio.shield(self._ending)

    @property
    def _is_small(self) -> bool:
        return self._n_bytes <= settings.GATEWAY_IDEMPOTENCY_MAX_BYTES

    def _add(self, part: bytes) -> None:
        self._n_bytes += len(part)
        if self._is_small:
            self._parts.append(part)
        else:
            self._parts.clear()

    async def _keep_made(self, response: StreamingHttpResponse) -> None:
        """Keep what is made already and sent in parts, for which nobody has to wait."""
        parts = aiter(response)
        begun: list[bytes] = []
        is_whole = False
        while self._is_small and not is_whole:
            try:
                begun.append(await anext(parts))
                self._add(begun[-1])
            except StopAsyncIteration:
                is_whole = True
        await self.end(b"")
        response.streaming_content = _chained(begun, parts)

    async def _kept(self, answer: KeptAnswer) -> None:
        try:
            await self._written(lambda: answer_keep(self._claim, answer))
        finally:
            # Of those who wait here, each learns from the row that the answer was not kept.
            self._land(answer if answer.body is not None else None)

    async def _released(self) -> None:
        try:
            await self._written(lambda: request_release(self._claim))
        finally:
            self._land(None)

    async def _written(self, write: Callable[[], bool]) -> None:
        """While the database is away, go on trying without the client."""
        try:
            await database_hop(write)
        except (DatabaseError, InterfaceError) as error:
            logger.error("What became of run %s is not written yet: %s", self._claim.owner, error)
            self._runtime.spawn(self._written_later(write))

    async def _written_later(self, write: Callable[[], bool]) -> None:
        until_s = time.monotonic() + settings.GATEWAY_REQUEST_TIMEOUT_S + LEASE_GRACE_S
        while time.monotonic() < until_s:
            await asyncio.sleep(WRITE_AGAIN_S)
            try:
                await database_hop(write)
            except (DatabaseError, InterfaceError):
                continue
            logger.info("What became of run %s is written now", self._claim.owner)
            return


async def _told(asking: Awaitable[R]) -> R:
    try:
        return await asking
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The key cannot be looked up at the moment.") from error


async def _chained(begun: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for part in begun:
        yield part
    async for part in rest:
        yield part

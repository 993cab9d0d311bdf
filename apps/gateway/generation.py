"""One generation as every door sees it: deltas of its answers, then a result or an error, and a
ledger row that is settled exactly once whatever happens to the client, the engine or the task."""

import asyncio
import time
from types import TracebackType
from typing import Self

from apps.core.exceptions import AppError
from apps.engines.client import EngineStream
from apps.engines.exceptions import EngineClientError
from apps.engines.interface import ReplicaClient
from apps.engines.types import AnswerDelta, EngineInfo, GenerationResult
from apps.gateway.exceptions import RequestTimedOut, app_error_of
from apps.gateway.ledger import LedgerEntry
from apps.gateway.quarantine import Attempt
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.types import Reuse
from apps.metering.types import Budget, Ending, Outcome, Reservation
from apps.routing.selectors import Lease

NOTHING = AnswerDelta()


class GenerationStream:
    """Made by admission only. Iterate over it in one task, inside ``async with``.

    requests, tokens: what its limits leave, in the minute and of the tightest budget; None where
    none limits it. reuse: None where nothing is kept for its like. is_cut_by_budget: its answers
    may end earlier than was asked for. result: set before iteration ends well, once the ledger row
    is settled; a ``finish_reason`` of ``abort`` means that ``cancel`` was called. An error is
    raised by iterating, settled as well.
    """

    def __init__(
        self,
        *,
        runtime: GatewayRuntime,
        lease: Lease,
        client: ReplicaClient,
        attempt: Attempt,
        reservation: Reservation,
        requests: Budget | None,
        n_answers: int,
        max_new_tokens: int,
        access_generation: int,
        started_s: float,
        timeout_s: float,
    ) -> None:
        info = client.info
        self.principal = reservation.principal
        self.request_id = reservation.request_id
        self.model = lease.target.name
        self.created = int(time.time())
        self.n_prompt_tokens = reservation.n_prompt_tokens
        self.n_answers = n_answers
        self.system_fingerprint = fingerprint(reservation.model_version_id, info)
        self.result: GenerationResult | None = None
        self.requests = requests
        self.tokens: Budget | None = None
        self.reuse: Reuse | None = None
        self.is_cut_by_budget = False
        self._runtime = runtime
        self._lease = lease
        self._client = client
        self._attempt = attempt
        self._entry = LedgerEntry(runtime=runtime, reservation=reservation)
        self._max_new_tokens = max_new_tokens
        self._access_generation = access_generation
        self._started_s = started_s
        self._deadline_s = asyncio.get_running_loop().time() + timeout_s
        self._first_token_s: float | None = None
        self._engine: EngineStream | None = None
        self._interrupted: AppError | None = None
        self._closing: asyncio.Task[None] | None = None

    # -- for admission -----------------------------------------------------------------------

    async def open(self) -> None:
        """Reserve, then dispatch; on any failure nothing is left behind, here or in the engine."""
        self._runtime.live.add(self)
        try:
            grant = await self._entry.reserve()
            await self._runtime.access.confirm(self.principal, since=self._access_generation)
            self._raise_interruption()
            self.tokens = grant.budget
            # A budget may leave less than was asked for: the answers end at what it pays.
            n_paid = (grant.n_tokens - self.n_prompt_tokens) // self.n_answers
            self.is_cut_by_budget = n_paid < self._max_new_tokens
            self._engine = await self._client.start(
                self.request_id, min(self._max_new_tokens, n_paid)
            )
            async with asyncio.timeout_at(self._deadline_s):
                await self._engine.begun()
            self._raise_interruption()
        except TimeoutError:
            await self._end(RequestTimedOut())
            raise RequestTimedOut from None
        except BaseException as error:
            await self._end(error)
            raise

    # -- for doors ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnswerDelta:
        delta = await self.take()
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def take(self, *, wait_s: float | None = None) -> AnswerDelta | None:
        """Return what is new; an empty delta when ``wait_s`` passed without; None at the end."""
        assert self._engine is not None
        until_s = self._deadline_s
        if wait_s is not None:
            until_s = min(until_s, asyncio.get_running_loop().time() + wait_s)
        try:
            async with asyncio.timeout_at(until_s):
                delta = await anext(self._engine)
        except StopAsyncIteration:
            self._raise_interruption()
            await self._end(None)
            self.result = self._engine.result
            if self.result is not None:
                self.n_prompt_tokens = self.result.n_prompt_tokens
            return None
        except TimeoutError:
            if until_s < self._deadline_s:
                return NOTHING
            raise RequestTimedOut from None
        except EngineClientError as error:
            self._raise_interruption()
            raise app_error_of(error) from error
        self._raise_interruption()
        if self._first_token_s is None:
            self._first_token_s = time.monotonic()
        return delta

    async def aclose(self) -> None:
        """End it if nobody did: its client is gone before it was, or while it was, sent."""
        await self._end(asyncio.CancelledError())

    async def cancel(self) -> None:
        """Stop it for the client; iterating then ends with what there is. Idempotent."""
        if self._engine is not None:
            await self._engine.abort()

    def interrupt(self, error: AppError) -> None:
        """End it for a reason of ours: iterating raises ``error``. Idempotent."""
        if self._interrupted is None:
            self._interrupted = error
            if self._engine is not None and not self._engine.is_ended:
                self._runtime.spawn(self._engine.abort())

    # -- the one end -------------------------------------------------------------------------

    async def _end(self, error: BaseException | None) -> None:
        """Abort what still runs, settle, give the place back: once, and to its end even when the
        caller is cancelled meanwhile."""
        if self._closing is None:
            self._closing = self._runtime.spawn(self._close(error))
        await asyncio.shield(self._closing)

    async def _close(self, error: BaseException | None) -> None:
        try:
            if self._engine is not None:
                await self._engine.abort()
            else:
                self._client.discard(self.request_id)
            ending = self._ending(error)
            self._runtime.quarantine.over(
                self._attempt,
                error,
                self._engine.error if self._engine is not None else None,
                is_completed=ending.outcome is Outcome.COMPLETED,
            )
            await self._entry.settle(ending)
        finally:
            self._lease.release()
            self._runtime.live.discard(self)

    def _ending(self, error: BaseException | None) -> Ending:
        result = self._engine.result if self._engine is not None else None
        engine_error = self._engine.error if self._engine is not None else None
        fault = self._interrupted or error or engine_error
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            outcome, code = Outcome.ABORTED, "client_disconnected"
        elif isinstance(fault, Exception):
            outcome, code = Outcome.FAILED, app_error_of(fault).code
        elif result is None or result.finish_reason == "abort":
            outcome, code = Outcome.ABORTED, ""
        else:
            outcome, code = Outcome.COMPLETED, ""
        ttft_s = None if self._first_token_s is None else self._first_token_s - self._started_s
        return Ending(
            outcome=outcome,
            n_prompt_tokens=result.n_prompt_tokens if result else None,
            n_completion_tokens=self._engine.n_completion_tokens if self._engine else 0,
            n_cached_tokens=result.n_cached_tokens if result else 0,
            finish_reason=result.finish_reason if result else "",
            error_code=code,
            ttft_ms=None if ttft_s is None else ttft_s * 1000,
            total_ms=(time.monotonic() - self._started_s) * 1000,
        )

    def _raise_interruption(self) -> None:
        if self._interrupted is not None:
            raise self._interrupted


def fingerprint(model_version_id: int, info: EngineInfo) -> str:
    """Name all that decides which tokens a seed gives: the model, and what computes it."""
    parts = [info.backend, info.dtype, info.quantization, info.kernels.replace(" ", "-").lower()]
    return "_".join(["fp", str(model_version_id), *parts])

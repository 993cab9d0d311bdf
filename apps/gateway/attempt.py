"""One engine's go at a generation: its place, its row of the ledger, what it makes. Opened once and
ended once, whatever happens to the client, the engine or the task."""

import asyncio
import time
from collections.abc import Callable

from apps.core.exceptions import AppError
from apps.engines.client import EngineStream
from apps.engines.interface import ReplicaClient
from apps.engines.types import EngineInfo
from apps.gateway.demand import outcome_note
from apps.gateway.exceptions import app_error_of
from apps.gateway.ledger import LedgerEntry
from apps.gateway.quarantine import Dispatched
from apps.gateway.runtime import GatewayRuntime
from apps.metering.types import Budget, Ending, Outcome, Reservation
from apps.routing.selectors import Lease


class Attempt:
    """Made by admission, for a prompt that the engine has prepared. tokens: what the tightest
    budget leaves. is_cut_by_budget: answers may end earlier than was asked for."""

    def __init__(
        self,
        *,
        runtime: GatewayRuntime,
        lease: Lease,
        client: ReplicaClient,
        dispatched: Dispatched,
        reservation: Reservation,
        n_answers: int,
        max_new_tokens: int,
        access_generation: int,
        started_s: float,
    ) -> None:
        self.lease = lease
        self.reservation = reservation
        self.tokens: Budget | None = None
        self.is_cut_by_budget = False
        self.is_begun = False
        self.first_token_s: float | None = None
        self._runtime = runtime
        self._client = client
        self._dispatched = dispatched
        self._entry = LedgerEntry(runtime=runtime, reservation=reservation)
        self._n_answers = n_answers
        self._max_new_tokens = max_new_tokens
        self._access_generation = access_generation
        self._started_s = started_s
        self._engine: EngineStream | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.reservation.model_version_id, self._client.info)

    @property
    def engine(self) -> EngineStream:
        assert self._engine is not None
        return self._engine

    async def open(self, *, until_s: float, check: Callable[[], None]) -> None:
        """Reserve, then dispatch. Whoever calls it ends it, also where it raises.

        check: raises where the request is to go no further.

        Raises:
            AppError, EngineClientError, TimeoutError
        """
        grant = await self._entry.reserve()
        await self._runtime.access.confirm(
            self.reservation.principal, since=self._access_generation
        )
        check()
        self.tokens = grant.budget
        # A budget may leave less than was asked for: the answers end at what it pays.
        n_paid = (grant.n_tokens - self.reservation.n_prompt_tokens) // self._n_answers
        self.is_cut_by_budget = n_paid < self._max_new_tokens
        self._engine = await self._client.start(
            self.reservation.request_id, min(self._max_new_tokens, n_paid)
        )
        self.is_begun = True
        async with asyncio.timeout_at(until_s):
            await self._engine.begun()
        check()

    async def abort(self) -> None:
        """Stop what runs, and wait for its count."""
        if self._engine is not None:
            await self._engine.abort()

    @property
    def is_running(self) -> bool:
        return self._engine is not None and not self._engine.is_ended

    async def end(self, fault: BaseException | None, *, is_moved: bool = False) -> None:
        """Abort what still runs, settle, give the place back: once, and to its end even when the
        caller is cancelled meanwhile.

        is_moved: the request goes on elsewhere, and what was made here is charged to nobody.
        """
        if self._closing is None:
            self._closing = self._runtime.spawn(self._close(fault, is_moved=is_moved))
        await asyncio.shield(self._closing)

    async def _close(self, fault: BaseException | None, *, is_moved: bool) -> None:
        try:
            if self._engine is not None:
                await self._engine.abort()
            else:
                self._client.discard(self.reservation.request_id)
            outcome_note(self.lease.place, self._engine.error if self._engine else fault)
            ending = self._ending(fault, is_moved=is_moved)
            self._runtime.quarantine.over(
                self._dispatched,
                fault,
                self._engine.error if self._engine is not None else None,
                is_completed=ending.outcome is Outcome.COMPLETED,
            )
            await self._entry.settle(ending)
        finally:
            self.lease.release()

    def _ending(self, fault: BaseException | None, *, is_moved: bool) -> Ending:
        engine = self._engine
        result = engine.result if engine is not None else None
        if fault is None and engine is not None:
            fault = engine.error
        if isinstance(fault, asyncio.CancelledError | GeneratorExit):
            outcome, code = Outcome.ABORTED, "client_disconnected"
        elif isinstance(fault, Exception):
            outcome, code = Outcome.FAILED, app_error_of(fault).code
        elif result is None or result.finish_reason == "abort":
            outcome, code = Outcome.ABORTED, ""
        else:
            outcome, code = Outcome.COMPLETED, ""
        is_counted = engine is not None and not is_moved
        ttft_s = None if self.first_token_s is None else self.first_token_s - self._started_s
        return Ending(
            outcome=outcome,
            n_prompt_tokens=result.n_prompt_tokens if result else None,
            n_completion_tokens=engine.n_completion_tokens if engine and is_counted else 0,
            n_cached_tokens=result.n_cached_tokens if result else 0,
            finish_reason=result.finish_reason if result else "",
            error_code=code,
            ttft_ms=None if ttft_s is None or is_moved else ttft_s * 1000,
            total_ms=(time.monotonic() - self._started_s) * 1000,
        )


def interrupted(fault: BaseException | None, interruption: AppError | None) -> BaseException | None:
    """Return what a row says ended it: a client that left, else a reason of ours, else a fault."""
    if isinstance(fault, asyncio.CancelledError | GeneratorExit):
        return fault
    return interruption or fault


def fingerprint(model_version_id: int, info: EngineInfo) -> str:
    """Name all that decides which tokens a seed gives: the model, and what computes it."""
    parts = [info.backend, info.dtype, info.quantization, info.kernels.replace(" ", "-").lower()]
    if info.kv_cache_dtype != "auto":
        parts.append(f"kv-{info.kv_cache_dtype}")
    return "_".join(["fp", str(model_version_id), *parts])

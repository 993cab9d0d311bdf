"""Answers told again: of equal requests of one tenant one runs, and the others get its answer. Only
on routes that say so, and only where the same request has the same answer, or its client says that
any earlier one will do."""

import asyncio
import hashlib
import time
from types import TracebackType
from typing import Final, Self

import msgspec
from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import Unavailable
from apps.core.hop import database_hop
from apps.core.ids import new_id
from apps.engines.exceptions import EngineClientError
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway import admission
from apps.gateway.admission import Arrival
from apps.gateway.attempt import fingerprint
from apps.gateway.exceptions import app_error_of
from apps.gateway.generation import NOTHING, GenerationStream, origin
from apps.gateway.runs import KeptAnswer, Run, decoded
from apps.gateway.runtime import GatewayRuntime, gateway_runtime
from apps.gateway.shaping import shaping
from apps.gateway.types import GenerationRequest, Reuse, ReuseWish
from apps.metering.services import reused_record
from apps.metering.types import Budget, Ending, Outcome
from apps.rbac.types import Principal
from apps.routing.selectors import Generation

_FORM: Final = 3  # of what is kept; raised with it


class ToldStream:
    """An answer that is read from a run, or from what was kept of one."""

    def __init__(
        self, *, arrival: Arrival, request_id: str, kept: KeptAnswer, reuse: Reuse
    ) -> None:
        self.request_id = request_id
        self.model = arrival.lease.model.name
        self.created = int(time.time())
        self.n_prompt_tokens = kept.n_prompt_tokens
        self.n_answers = arrival.request.sampling.n
        self.system_fingerprint = kept.system_fingerprint
        self.requests = arrival.admitted.requests
        self.tokens: Budget | None = None
        self.result: GenerationResult | None = None
        self.reuse: Reuse | None = reuse
        self.fallback: str | None = None
        self._kept = kept
        self._n_seen = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnswerDelta:
        delta = await self.take()
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def take(self, *, wait_s: float | None = None) -> AnswerDelta | None:
        """Return the next piece, as a ``GenerationStream`` does."""
        if self._n_seen < len(self._kept.deltas):
            self._n_seen += 1
            return self._kept.deltas[self._n_seen - 1]
        self.result = self._kept.result
        return None

    async def aclose(self) -> None:
        """Nothing is held."""


class LeadingStream(ToldStream):
    """The reader of a run that others may wait for."""

    def __init__(self, *, arrival: Arrival, stream: GenerationStream, run: Run) -> None:
        unknown = KeptAnswer((), _NO_RESULT, stream.n_prompt_tokens, stream.system_fingerprint)
        super().__init__(arrival=arrival, request_id=stream.request_id, kept=unknown, reuse="miss")
        self.created, self.tokens = stream.created, stream.tokens
        self.fallback = stream.fallback
        self._stream = stream
        self._run = run
        self._is_left = False

    async def take(self, *, wait_s: float | None = None) -> AnswerDelta | None:
        try:
            async with asyncio.timeout(wait_s):
                delta = await self._run.news(self._n_seen)
        except TimeoutError:
            return NOTHING
        self.request_id, self.fallback = self._stream.request_id, self._stream.fallback
        self.system_fingerprint = self._stream.system_fingerprint
        if delta is None:
            self.result = self._run.result
        self._n_seen += 1
        return delta

    async def aclose(self) -> None:
        if not self._is_left:
            self._is_left = True
            await self._run.leave()


SingleStream = GenerationStream | ToldStream
_NO_RESULT: Final = GenerationResult(
    finish_reason="abort", n_prompt_tokens=0, n_cached_tokens=0, n_completion_tokens=0
)


async def start(
    *,
    principal: Principal,
    request: GenerationRequest,
    door: str,
    priority: int,
    wish: ReuseWish | None,
) -> SingleStream:
    """Return the stream of a request that an engine runs, or of an answer that is told again.

    Raises:
        AppError: as ``admission.start``. Access and limits hold for a kept answer as well, but for
            budgets: it costs nothing.
    """
    arrival = await admission.arrive(
        principal=principal, request=request, door=door, priority=priority
    )
    if not arrival.lease.model.caches_responses or not is_reusable(arrival.request, wish):
        return await admission.dispatch(arrival)
    runtime = gateway_runtime()
    try:
        found = await _kept_or_run(runtime, arrival)
        if isinstance(found, tuple):
            stream = await _told_again(runtime, arrival, *found)
            arrival.movable.release()
            return stream
    except BaseException:
        arrival.movable.release()
        raise
    return await _led(runtime, arrival, found)


def is_reusable(request: GenerationRequest, wish: ReuseWish | None) -> bool:
    """Return whether an earlier answer is as good: the most likely tokens are always the same, and
    drawn ones if the client says so. A seed alone is no reason: what it gives may be unlike on
    another batch."""
    return wish != "no-store" and (wish == "use" or request.sampling.temperature == 0)


def response_key(
    request: GenerationRequest,
    *,
    principal: Principal,
    origin: str,
    max_context_tokens: int | None,
    generation: Generation,
) -> str:
    """Return the SHA-256 of all that shapes an answer. origin: the deployment and what computes
    there. max_context_tokens: a limit that cuts answers."""
    whole = (
        _FORM, principal.tenant_id, principal.cache_salt, origin, generation.shared,
        max_context_tokens, request.endpoint, shaping(request),
    )  # fmt: skip
    return hashlib.sha256(msgspec.msgpack.encode(whole)).hexdigest()


async def _kept_or_run(
    runtime: GatewayRuntime, arrival: Arrival
) -> tuple[KeptAnswer, Reuse] | Run | None:
    """Return what there is of an equal request; else a run that this one is to begin, or None where
    it runs for itself: what it waited for came to nothing."""
    try:
        client = await arrival.movable.client(runtime.engines)
    except EngineClientError as error:
        raise app_error_of(error) from error
    destination, principal = arrival.lease.destination, arrival.principal
    place = origin(
        destination.deployment_id, fingerprint(destination.model_version_id, client.info)
    )
    try:
        stamps = await runtime.stamps()
        generation = Generation.of(
            stamps,
            tenant_id=principal.tenant_id,
            model_version_id=destination.model_version_id,
            person=arrival.person,
        )
    except (DatabaseError, InterfaceError):
        return None  # what was purged is not known
    key = response_key(
        arrival.request,
        principal=principal,
        origin=place,
        max_context_tokens=arrival.admitted.max_context_tokens,
        generation=generation,
    )
    if (data := runtime.responses.look(key)) is not None and (kept := decoded(data)):
        return kept, "hit"
    running = runtime.runs.get(key)
    if running is not None and not running.ended.done():
        kept = await running.wait()
        runtime.check_admitting()
        return None if kept is None else (kept, "coalesced")
    run = _run_registered(runtime, key, generation, place=place)
    try:
        data = await runtime.responses.fetch(key, generation=generation, stamps=stamps)
    except BaseException:
        run.end(None)
        raise
    if data is not None and (kept := decoded(data)):
        run.end(kept)
        return kept, "hit"
    return run


def _run_registered(
    runtime: GatewayRuntime, key: str, generation: Generation, *, place: str
) -> Run:
    """Have equal requests find a run from now on, until it has ended. place: where its answer is
    made, as its key says."""

    async def keep(kept: KeptAnswer) -> None:
        # What was purged meanwhile would only take room: its key leads nowhere.
        if generation.is_current(await runtime.stamps()):
            await runtime.responses.keep(key, kept.encoded(), generation=generation)

    def forget(_: object) -> None:
        if runtime.runs.get(key) is run:
            del runtime.runs[key]

    run = Run(keep=keep, place=place)
    run.ended.add_done_callback(forget)
    runtime.runs[key] = run
    return run


async def _led(runtime: GatewayRuntime, arrival: Arrival, run: Run | None) -> SingleStream:
    try:
        stream = await admission.dispatch(arrival)
    except BaseException:
        if run is not None:
            run.end(None)
        raise
    if run is None:
        stream.reuse = "miss"
        return stream
    run.begin(stream, spawn=runtime.spawn)
    return LeadingStream(arrival=arrival, stream=stream, run=run)


async def _told_again(
    runtime: GatewayRuntime, arrival: Arrival, kept: KeptAnswer, reuse: Reuse
) -> ToldStream:
    """Write the row of the ledger, then tell; access may have been lost while waiting."""
    await runtime.access.confirm(arrival.principal, since=arrival.access_generation)
    request_id = new_id(arrival.request.id_prefix)
    passed_ms = (time.monotonic() - arrival.started_s) * 1000
    reservation = arrival.reservation(
        request_id=request_id, n_prompt_tokens=kept.n_prompt_tokens, max_new_tokens=0
    )
    ending = Ending(
        outcome=Outcome.COMPLETED,
        n_completion_tokens=0,
        n_cached_tokens=kept.n_prompt_tokens,
        finish_reason=kept.result.finish_reason,
        ttft_ms=passed_ms,
        total_ms=passed_ms,
    )
    try:
        await database_hop(reused_record, reservation, ending)
    except (DatabaseError, InterfaceError) as error:
        raise Unavailable("The request cannot be recorded at the moment.") from error
    return ToldStream(arrival=arrival, request_id=request_id, kept=kept, reuse=reuse)

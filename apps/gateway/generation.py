"""One generation as every door sees it: deltas of its answers, then a result or an error. Behind it
is one engine after another, until one gives what the client is told, each with a ledger row that is
settled exactly once."""

import asyncio
import time
from collections import deque
from types import TracebackType
from typing import Protocol, Self

from apps.core.exceptions import AppError
from apps.engines.exceptions import EngineClientError
from apps.engines.types import AnswerDelta, GenerationResult
from apps.gateway.attempt import Attempt, interrupted
from apps.gateway.demand import outcome_note
from apps.gateway.exceptions import RequestTimedOut, app_error_of
from apps.gateway.moving import MovableLease
from apps.gateway.runtime import GatewayRuntime
from apps.gateway.types import GenerationRequest, Reuse
from apps.judging.types import Sampling
from apps.metering.exceptions import LimitExceeded
from apps.metering.types import Budget
from apps.rbac.types import Principal

NOTHING = AnswerDelta()


class Attempts(Protocol):
    """Where a request is tried, one place after another; see ``admission.Arrival``."""

    @property
    def principal(self) -> Principal: ...

    @property
    def movable(self) -> MovableLease: ...

    @property
    def is_own(self) -> bool:
        """Experiments had a say in it, and have no more."""

    @property
    def as_sent(self) -> GenerationRequest:
        """The request, with its prompt as the client sent it."""

    @property
    def judges(self) -> tuple[Sampling, ...]:
        """Who may take its answer to score it."""

    async def prepared(self) -> Attempt:
        """Have the engine where it is prepare its prompt; its place is given back where that
        raises."""

    def make_own(self) -> bool:
        """Go on as if no experiment had a say; False where none has."""


class GenerationStream:
    """Made by admission only. Iterate over it in one task, inside ``async with``.

    requests, tokens: what its limits leave, in the minute and of the tightest budget; None where
    none limits it. reuse: None where nothing is kept for its like. fallback: the deployment that
    answers, where it is one for overload and failure. is_cut_by_budget: its answers
    may end earlier than was asked for. result: set before iteration ends well, once the ledger row
    is settled; a ``finish_reason`` of ``abort`` means that ``cancel`` was called. An error is
    raised by iterating, settled as well.

    is_whole: the client is told nothing before the end, so that all of it may be made elsewhere
    when an engine fails. Else that ends with the first piece that was taken.
    """

    def __init__(
        self,
        *,
        runtime: GatewayRuntime,
        attempts: Attempts,
        model: str,
        requests: Budget | None,
        n_answers: int,
        deadline_s: float,
        is_whole: bool,
        max_tokens_param: str,
    ) -> None:
        self.principal = attempts.principal
        self.request_id = ""
        self.model = model
        self.created = int(time.time())
        self.n_prompt_tokens = 0
        self.n_answers = n_answers
        self.result: GenerationResult | None = None
        self.system_fingerprint = ""
        self.fallback: str | None = None
        self.requests = requests
        self.tokens: Budget | None = None
        self.reuse: Reuse | None = None
        self.is_cut_by_budget = False
        self._runtime = runtime
        self._attempts = attempts
        self._attempt: Attempt | None = None
        self._deadline_s = deadline_s
        self._is_whole = is_whole
        self._is_told = False
        self._held: deque[AnswerDelta] = deque()  # of a whole answer
        self._max_tokens_param = max_tokens_param
        self._is_cancelled = False
        self._interrupted: AppError | None = None

    @property
    def attempt(self) -> Attempt:
        """The one that runs, or that ran last."""
        assert self._attempt is not None
        return self._attempt

    @property
    def is_as_asked(self) -> bool:
        """What runs is what admission made of the request first."""
        return not self._attempts.is_own

    @property
    def origin(self) -> str:
        """The deployment that answers, and what computes there."""
        return origin(self.attempt.reservation.deployment_id, self.system_fingerprint)

    # -- for admission -----------------------------------------------------------------------

    async def open(self) -> None:
        """Have the first engine begin that can; on failure nothing is left behind, here or in an
        engine.

        Raises:
            AppError: none can, or the request is wrong, or over its limits.
        """
        self._runtime.live.add(self)
        try:
            await self._begin()
        except TimeoutError:
            await self._end(RequestTimedOut())
            raise RequestTimedOut from None
        except EngineClientError as error:
            await self._end(error)
            raise app_error_of(error, max_tokens_param=self._max_tokens_param) from error
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
        """Return what is new; an empty delta when ``wait_s`` passed without, but for an answer that
        is taken whole; None at the end."""
        if not self._is_whole:
            delta = await self._taken(wait_s)
            self._is_told = self._is_told or delta is not NOTHING
            return delta
        while not self._is_told:
            delta = await self._taken(None)
            if delta is not None:
                self._held.append(delta)
            self._is_told = delta is None
        return self._held.popleft() if self._held else None

    async def aclose(self) -> None:
        """End it if nobody did: its client is gone before it was, or while it was, sent."""
        await self._end(asyncio.CancelledError())

    async def cancel(self) -> None:
        """Stop it for the client; iterating then ends with what there is. Idempotent."""
        self._is_cancelled = True
        if self._attempt is not None:
            await self._attempt.abort()

    def interrupt(self, error: AppError) -> None:
        """End it for a reason of ours: iterating raises ``error``. Idempotent."""
        if self._interrupted is None:
            self._interrupted = error
            if self._attempt is not None and self._attempt.is_running:
                self._runtime.spawn(self._attempt.abort())

    # -- one engine after another ------------------------------------------------------------

    async def _begin(self) -> None:
        """Prepare and dispatch, at one place after another; raises what the last one did. What was
        prepared there is for ``_end``."""
        while True:
            attempt = None
            try:
                self._attempt = attempt = await self._attempts.prepared()
                self._raise_interruption()
                await attempt.open(until_s=self._deadline_s, check=self._raise_interruption)
            except EngineClientError as error:
                if not await self._move(attempt, error):
                    raise
            except LimitExceeded as error:
                # What an experiment adds to a prompt may be what a budget has no room for.
                if attempt is None or not self._attempts.make_own():
                    raise
                await attempt.end(error)
            else:
                break
        self._note(attempt)
        if self._is_cancelled:
            await attempt.abort()

    def _note(self, attempt: Attempt) -> None:
        """Take over what the client is told; the id only while none was."""
        lease = attempt.lease
        self.fallback = lease.destination.deployment_name if lease.is_fallback else None
        self.system_fingerprint = attempt.fingerprint
        self.tokens, self.is_cut_by_budget = attempt.tokens, attempt.is_cut_by_budget
        if self._is_whole or not self.request_id:
            self.request_id = attempt.reservation.request_id
            self.n_prompt_tokens = attempt.reservation.n_prompt_tokens

    async def _move(self, attempt: Attempt | None, error: EngineClientError) -> bool:
        """End a failed attempt and go elsewhere; False, with nothing ended, where that is not to
        be."""
        is_begun = attempt is not None and attempt.is_begun
        self._raise_interruption()
        if self._is_cancelled or not self._attempts.movable.move(error, is_begun=is_begun):
            return False
        if attempt is not None:
            try:
                await attempt.end(error, is_moved=True)
            except BaseException:
                self._attempts.movable.release()
                raise
        return True

    async def _taken(self, wait_s: float | None) -> AnswerDelta | None:
        until_s = self._deadline_s
        if wait_s is not None:
            until_s = min(until_s, asyncio.get_running_loop().time() + wait_s)
        while True:
            try:
                async with asyncio.timeout_at(until_s):
                    delta = await anext(self.attempt.engine)
            except StopAsyncIteration:
                await self._finish()
                return None
            except TimeoutError:
                if until_s < self._deadline_s:
                    return NOTHING
                raise RequestTimedOut from None
            except EngineClientError as error:
                if self._is_told or not await self._move(self.attempt, error):
                    self._raise_interruption()
                    raise app_error_of(error) from error
                self._held.clear()
                await self._begin_again()
                continue
            self._raise_interruption()
            if self.attempt.first_token_s is None:
                self.attempt.first_token_s = time.monotonic()
                outcome_note(self.attempt.lease.place, None)
            return delta

    async def _begin_again(self) -> None:
        try:
            await self._begin()
        except TimeoutError:
            raise RequestTimedOut from None
        except EngineClientError as error:
            raise app_error_of(error) from error

    async def _finish(self) -> None:
        self._raise_interruption()
        await self._end(None)
        self.result = self.attempt.engine.result
        if self.result is not None:
            self.n_prompt_tokens = self.result.n_prompt_tokens

    async def _end(self, error: BaseException | None) -> None:
        """End the attempt that there is, if nobody did; its row then says so."""
        try:
            if self._attempt is not None:
                await self._attempt.end(interrupted(error, self._interrupted))
        finally:
            self._runtime.live.discard(self)

    def _raise_interruption(self) -> None:
        if self._interrupted is not None:
            raise self._interrupted


def origin(deployment_id: int, system_fingerprint: str) -> str:
    """Name where an answer was made: answers of one origin may stand for each other."""
    return f"{deployment_id}/{system_fingerprint}"

"""Has judges score the answers that wait for them, as any other request is answered: their tokens'
limits hold, and their tenants pay. It runs in one event loop of a worker process; everything that
must survive that process is in the rows."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import AppError, AuthenticationFailed
from apps.core.hop import database_hop
from apps.core.tenancy import every_tenant
from apps.gateway.authentication import check_scope
from apps.gateway.judge_prompt import NoVerdict, Verdict, judge_body, verdict_of
from apps.gateway.services import aclose, answer
from apps.gateway.types import JUDGE, Answer
from apps.judging.selectors import text_shortened
from apps.judging.services import (
    sample_give_up,
    sample_put_back,
    samples_take,
    score_record,
    withdrawn_samples_forget,
)
from apps.judging.types import JudgedText, TakenSample
from apps.rbac.selectors import principal_of_token
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)

IsStopping = Callable[[], bool]

# So long one run takes new answers; the worker of the embedded default has more to do.
SLICE_S: Final = 5.0
CONCURRENCY: Final = 4
# So long one answer may take, waiting for its turn included, and then others may have the sample.
ANSWER_S: Final = 60.0
HOLD_S: Final = 300.0
_LOOK_S: Final = 0.5
_CLOSE_S: Final = 10.0
_PRIORITY: Final = -1  # whoever waits for an answer goes first
_ENDPOINT: Final = "/v1/chat/completions"
# What a judge is shown of a conversation that is too long for it, if need be.
_SHARES: Final = (0.4, 0.1)
_TOO_LONG: Final = "context_length_exceeded"
_BUSY: Final = frozenset({429, 503})
_MISCONFIGURED: Final = frozenset({401, 403, 404})
MISCONFIGURED_PAUSE_S: Final = 300.0
TRIED_PAUSES_S: Final = (20.0, 120.0, 600.0)
# The shortest, and the longest that it grows to; what a budget says may be longer.
_BUSY_PAUSES_S: Final = (10.0, 600.0)
_LONGEST_PAUSE_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """Why a sample has no score yet. is_tried: the attempt counts. is_judges: others of the same
    judge would fare no better now. is_final: nor will this one ever."""

    problem: str
    after_s: float = 0.0
    is_tried: bool = True
    is_judges: bool = False
    is_final: bool = False


async def judge(*, is_stopping: IsStopping, slice_s: float = SLICE_S) -> None:
    """Take answers that wait for about ``slice_s``, or until none is left, and have them scored."""
    await database_hop(withdrawn_samples_forget)
    run = JudgeRun(is_stopping=is_stopping, slice_s=slice_s)
    try:
        await run.work()
    finally:
        if run.has_asked:
            await _gateway_close()


async def _gateway_close() -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await aclose()
    except TimeoutError:
        logger.warning("Some requests were not settled in time; their rows will expire")


class JudgeRun:
    """One slice of a worker's time."""

    def __init__(self, *, is_stopping: IsStopping, slice_s: float) -> None:
        self.has_asked = False
        self._is_stopping = is_stopping
        self._until_s = time.monotonic() + slice_s
        self._left_alone: set[int] = set()  # judges that cannot score now

    async def work(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                for sample in await self._taken(room=CONCURRENCY - len(tasks)):
                    tasks.add(asyncio.create_task(self._work_on(sample)))
                if not tasks:
                    return
                done, tasks = await asyncio.wait(
                    tasks, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
                if self._is_stopping():
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _taken(self, *, room: int) -> list[TakenSample]:
        if not room or self._is_stopping() or time.monotonic() > self._until_s:
            return []
        return await database_hop(
            samples_take, limit=room, hold_s=HOLD_S, but_judges=tuple(self._left_alone)
        )

    async def _work_on(self, sample: TakenSample) -> None:
        """Have a sample scored, or leave it for later; where neither can be written, whoever finds
        it when its time is up goes on."""
        try:
            found = await self._found(sample)
            if isinstance(found, Setback):
                await self._set_back(sample, found)
            else:
                await database_hop(
                    score_record, sample=sample, score=found.score, reason=found.reason
                )
        except asyncio.CancelledError:
            await database_hop(sample_put_back, sample=sample, after_s=0.0, is_tried=False)
            raise
        except (DatabaseError, InterfaceError) as error:
            logger.warning("The score of %s is not written: %s", sample.request_id, error)

    async def _set_back(self, sample: TakenSample, setback: Setback) -> None:
        if setback.is_judges:
            self._left_alone.add(sample.judge_id)
        problem = setback.problem
        if setback.is_final:
            await database_hop(sample_give_up, sample=sample, problem=problem)
        else:
            await database_hop(
                sample_put_back,
                sample=sample,
                after_s=setback.after_s,
                is_tried=setback.is_tried,
                problem=problem,
            )

    async def _found(self, sample: TakenSample) -> Verdict | Setback:
        self.has_asked = True
        try:
            principal = await database_hop(_principal, sample.api_token_id)
            async with asyncio.timeout(ANSWER_S):
                found = await _answered(sample, principal=principal)
        except (DatabaseError, InterfaceError):
            raise
        except AppError as error:
            return _misconfigured(f"Its API token is not good: {error.message}")
        except TimeoutError:
            return _tried(sample, f"The judge did not answer within {ANSWER_S:.0f} seconds.")
        except Exception:  # one sample's fault must not end the others
            logger.exception("Scoring %s failed", sample.request_id)
            return _tried(sample, AppError.default_message)
        if found.status != 200:
            return _setback(sample, found)
        try:
            return verdict_of(found.body, sample)
        except NoVerdict as error:
            return _tried(sample, str(error))


@every_tenant("whose token a judge has, is what its row says")
def _principal(api_token_id: int | None) -> Principal:
    """Raises AuthenticationFailed, PermissionDenied."""
    if api_token_id is None:
        raise AuthenticationFailed("The judge has none.")
    principal = principal_of_token(api_token_id)
    check_scope(principal, "inference")
    return principal


async def _answered(sample: TakenSample, *, principal: Principal) -> Answer:
    """Return what the judge's route says, to a shortened text where the whole one is too long."""
    found = await _asked(sample, sample.text, principal=principal)
    for share in _SHARES:
        if found.status != 400 or _error_of(found).code != _TOO_LONG:
            break
        found = await _asked(sample, text_shortened(sample.text, share=share), principal=principal)
    return found


async def _asked(sample: TakenSample, text: JudgedText, *, principal: Principal) -> Answer:
    return await answer(
        principal=principal,
        endpoint=_ENDPOINT,
        body=judge_body(sample, text, mark=secrets.token_hex(8)),
        door=JUDGE,
        priority=_PRIORITY,
        wish="no-store",  # it is another tenant's text
    )


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Body(msgspec.Struct):
    error: _Error


_error_decoder: Final = msgspec.json.Decoder(_Body)


def _error_of(found: Answer) -> _Error:
    return _error_decoder.decode(found.body).error


def _setback(sample: TakenSample, found: Answer) -> Setback:
    """Return what an error means for a sample: whether it is the sample's, or its judge's."""
    error = _error_of(found)
    was_dispatched = not found.request_id.startswith("req-")
    if found.status in _BUSY and not was_dispatched:
        return _busy(sample, error.message, retry_after_s=found.retry_after_s)
    if found.status in _MISCONFIGURED:
        return _misconfigured(error.message)
    if error.code == _TOO_LONG:
        return Setback(problem=error.message, is_final=True)
    return _tried(sample, error.message)


def _busy(sample: TakenSample, problem: str, *, retry_after_s: float | None) -> Setback:
    """As long again as it has waited: so the pause grows, and nothing more is to be kept. A budget
    of a month may be raised at any time, and is asked for again within the hour."""
    shortest, longest = _BUSY_PAUSES_S
    after_s = min(max(sample.waited_s, shortest), longest)
    asked_for_s = min(retry_after_s or 0.0, _LONGEST_PAUSE_S)
    return Setback(
        problem=problem, after_s=max(after_s, asked_for_s), is_tried=False, is_judges=True
    )


def _misconfigured(problem: str) -> Setback:
    return Setback(problem=problem, after_s=MISCONFIGURED_PAUSE_S, is_tried=False, is_judges=True)


def _tried(sample: TakenSample, problem: str) -> Setback:
    pause_s = TRIED_PAUSES_S[min(sample.attempt, len(TRIED_PAUSES_S)) - 1]
    return Setback(problem=problem, after_s=pause_s)

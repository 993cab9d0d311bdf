"""Works on batches: claims one, answers its lines some at a time, writes its files. It runs in one
event loop of a worker process; everything that must survive that process is in the rows."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import IO, Final

import msgspec
from django.conf import settings
from django.utils import timezone

from apps.batches import running, storage
from apps.batches.exceptions import LeaseLost
from apps.batches.lease import HeldLease
from apps.batches.lines import ParsedFile, body_of, parse_file
from apps.batches.models import Batch
from apps.batches.output import results_write
from apps.batches.selectors import items_in_order
from apps.batches.types import DOOR, PRIORITY, Claim, Ending, LineError, Outcome, TakenItem
from apps.core.exceptions import AppError, AuthenticationFailed, PermissionDenied
from apps.core.hop import database_hop
from apps.core.ids import new_id
from apps.gateway.services import aclose, answer
from apps.gateway.types import Answer
from apps.rbac.types import Principal

logger = logging.getLogger(__name__)

# So long one worker stays with a batch while others may wait.
SLICE_S: Final = 60.0
_LOOK_S: Final = 0.5
_CLOSE_S: Final = 10.0
_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_TRY_AGAIN: Final = frozenset({429, 503})
# A line whose engine died while answering it, this often: it may be the line.
_MAX_ATTEMPTS: Final = 5

IsStopping = Callable[[], bool]


async def work(*, is_stopping: IsStopping, slice_s: float = SLICE_S) -> None:
    """Advance open batches for about ``slice_s``, or until none is left to take."""
    until_s = time.monotonic() + slice_s
    owner = new_id(f"{socket.gethostname()[:60]}:{os.getpid()}")
    try:
        while not is_stopping() and (left_s := until_s - time.monotonic()) > 0:
            claim = await database_hop(
                running.batch_claim_next, owner=owner, lease_s=settings.BATCH_LEASE_S
            )
            if claim is None:
                return
            run = BatchRun(claim, is_stopping=is_stopping, slice_s=left_s)
            try:
                await run.advance()
            except LeaseLost:
                logger.info("Batch %s is in other hands, or has ended", claim.batch_id)
    finally:
        await _gateway_close()


async def _gateway_close() -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await aclose()
    except TimeoutError:
        logger.warning("Some requests were not settled in time; their rows will expire")


class BatchRun:
    """One claim's work."""

    def __init__(self, claim: Claim, *, is_stopping: IsStopping, slice_s: float) -> None:
        self._claim = claim
        self._lease = HeldLease(claim, lease_s=settings.BATCH_LEASE_S)
        self._is_stopping = is_stopping
        self._until_s = time.monotonic() + slice_s
        self._drop_at_s: float | None = None
        self._leave = asyncio.Event()

    async def advance(self) -> None:
        """Bring the batch on, to its end if there is time. Raises LeaseLost."""
        async with self._lease.kept():
            ending = await self._ending()
            if ending is not None:
                await self._end(ending)

    async def _ending(self) -> Ending | None:
        """Do what is left to do; return how the batch ends, None when it does not yet."""
        if self._lease.status == Batch.Status.VALIDATING and not self._is_overdue:
            parsed = await asyncio.to_thread(self._parsed)
            if parsed.errors:
                await database_hop(running.batch_refuse, claim=self._claim, errors=parsed.errors)
                return None
            await database_hop(running.lines_store, claim=self._claim, lines=parsed.lines)
            self._lease.status = Batch.Status.IN_PROGRESS
        if self._lease.status == Batch.Status.FINALIZING:
            return Ending(outcome=Outcome.COMPLETED)
        is_whole = False
        if self._lease.status == Batch.Status.IN_PROGRESS and not self._is_overdue:
            try:
                is_whole = await self._answer_lines()
            except (AuthenticationFailed, PermissionDenied) as error:
                return _refused(error)
        if self._lease.is_lost:
            raise LeaseLost
        if is_whole:
            return Ending(outcome=Outcome.COMPLETED)
        if self._lease.status == Batch.Status.CANCELLING:
            return _CANCELLED
        return _EXPIRED if self._is_overdue else None

    # -- validating --------------------------------------------------------------------------

    def _input(self) -> IO[bytes]:
        return storage.file_path(self._claim.input_file_id).open("rb")

    def _parsed(self) -> ParsedFile:
        try:
            with self._input() as file:
                return parse_file(
                    file,
                    endpoint=self._claim.endpoint,
                    max_lines=settings.BATCH_MAX_REQUESTS,
                    max_line_bytes=settings.GATEWAY_MAX_BODY_BYTES,
                )
        except FileNotFoundError:
            gone = LineError(code="file_not_found", message="The input file is gone.")
            return ParsedFile(lines=(), errors=(gone,))

    # -- answering ---------------------------------------------------------------------------

    async def _answer_lines(self) -> bool:
        """Answer lines until none is left (True) or there is a reason to leave (False)."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            with self._input() as file:
                while True:
                    items = await self._taken(room=settings.BATCH_CONCURRENCY - len(tasks))
                    tasks |= {asyncio.create_task(self._answer_line(i, file)) for i in items}
                    if not tasks:
                        return not self._leave.is_set()
                    done, tasks = await asyncio.wait(
                        tasks, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        if not task.cancelled():
                            task.result()
                    self._look(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _taken(self, *, room: int) -> tuple[TakenItem, ...]:
        if not room or self._leave.is_set():
            return ()
        try:
            return await database_hop(running.items_take, claim=self._claim, limit=room)
        except LeaseLost:
            await self._lease.renew()  # raises again unless it is being cancelled
            self._leave.set()
            return ()

    def _look(self, tasks: "set[asyncio.Task[None]]") -> None:
        """See whether to go on. Who leaves for another batch lets running lines end, who is to
        stop gives them a moment; for all other reasons they end now."""
        now_s = time.monotonic()
        if self._drop_at_s is None and self._is_stopping():
            self._drop_at_s = now_s + settings.GATEWAY_DRAIN_S
        must_drop = self._must_drop or (self._drop_at_s is not None and now_s > self._drop_at_s)
        if must_drop or self._drop_at_s is not None or now_s > self._until_s:
            self._leave.set()
        if must_drop:
            for task in tasks:
                task.cancel()

    @property
    def _must_drop(self) -> bool:
        is_cancelled = self._lease.status == Batch.Status.CANCELLING
        return self._lease.is_lost or is_cancelled or self._is_overdue

    @property
    def _is_overdue(self) -> bool:
        return timezone.now() >= self._claim.expires_at

    async def _answer_line(self, item: TakenItem, file: IO[bytes]) -> None:
        raw = os.pread(file.fileno(), item.line.n_bytes, item.line.offset)
        found = await self._answered(body_of(raw), item=item)
        if found is None:
            await database_hop(running.item_put_back, item=item)
        else:
            await database_hop(running.item_finish, claim=self._claim, item=item, answer=found)

    async def _answered(self, body: bytes, *, item: TakenItem) -> Answer | None:
        """Return the answer; None when the line is better tried later."""
        n_tries = 0
        while True:
            found = await _answer(self._claim.endpoint, body=body, principal=item.principal)
            if found.status not in _TRY_AGAIN:
                return found
            was_dispatched = not found.request_id.startswith("req-")
            if was_dispatched and item.attempt >= _MAX_ATTEMPTS:
                return found
            pause_s = _PAUSES_S[min(n_tries, len(_PAUSES_S) - 1)]
            n_tries += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leave.wait(), timeout=pause_s)
            if was_dispatched or self._leave.is_set():
                return None

    # -- the end -----------------------------------------------------------------------------

    async def _end(self, ending: Ending) -> None:
        claim = self._claim
        try:
            output_id, error_id = await database_hop(
                running.closing_begin, claim=claim, outcome=ending.outcome
            )
        except LeaseLost:
            if await self._lease.renew() != Batch.Status.CANCELLING:
                raise
            ending = _CANCELLED
            output_id, error_id = await database_hop(
                running.closing_begin, claim=claim, outcome=ending.outcome
            )
        output, errors = await database_hop(
            lambda: results_write(
                batch_id=claim.batch_id,
                items=items_in_order(claim.pk),
                ending=ending,
                output_file_id=output_id,
                error_file_id=error_id,
            )
        )
        await database_hop(
            running.batch_end, claim=claim, ending=ending, output=output, errors=errors
        )
        logger.info(
            "Batch %s is %s: %d answers, %d errors",
            claim.batch_id,
            ending.outcome,
            output.n_lines,
            errors.n_lines,
        )


async def _answer(endpoint: str, *, body: bytes, principal: Principal) -> Answer:
    try:
        return await answer(
            principal=principal, endpoint=endpoint, body=body, door=DOOR, priority=PRIORITY
        )
    except Exception as error:  # one line's fault must not end the others
        logger.exception("A line of a batch failed")
        known = error if isinstance(error, AppError) else AppError()
        return Answer(status=known.status, body=_encoded(known), request_id=new_id("req"))


def _encoded(error: AppError) -> bytes:
    return msgspec.json.encode(error.body())


def _refused(error: AppError) -> Ending:
    return Ending(
        outcome=Outcome.FAILED,
        code=error.code,
        message=error.message,
        status=error.status,
        body=_encoded(error),
    )


_CANCELLED: Final = Ending(
    outcome=Outcome.CANCELLED,
    code="batch_cancelled",
    message="This request was not answered before the batch was cancelled.",
)
_EXPIRED: Final = Ending(
    outcome=Outcome.EXPIRED,
    code="batch_expired",
    message="This request could not be answered before the completion window expired.",
)

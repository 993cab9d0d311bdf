"""Works on verifications: claims one, keeps its lease, runs it, writes how it ended. All that must
survive this process is in the rows; nothing of it outlives the process."""

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from apps.core.exceptions import AppError
from apps.core.hop import database_hop
from apps.core.ids import new_id
from apps.core.services import WORKER, heartbeat_note
from apps.engines.exceptions import FilesError
from apps.engines.services import files_held, node_cache
from apps.registry.exceptions import VerificationLost
from apps.registry.selectors import (
    artifact_of,
    chat_template_in,
    model_version_get,
    version_dir,
)
from apps.registry.services import (
    verification_claim,
    verification_end,
    verification_release,
    verification_renew,
)
from apps.registry.types import (
    MOST_ATTEMPTS,
    VerificationCheck,
    VerificationClaim,
    VerificationOutcome,
    VerificationStep,
)
from apps.verification import probes
from apps.verification.exceptions import ReadingStopped, VerificationFailed
from apps.verification.files import files_check
from apps.verification.scratch import ScratchEngine, scratch_engine, scratch_sweep

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion

logger = logging.getLogger(__name__)

_RENEW_MOST_S: Final = 1.0
# Small: the engines that serve keep their memory.
_ENGINE: Final = ("--kv-cache-tokens", "4096", "--max-sequences", "16")

IsStopping = Callable[[], bool]
OnProgress = Callable[[VerificationStep, int], None]


def _never() -> bool:
    return False


def _silent(step: VerificationStep, percent: int) -> None:
    return None


async def work(*, is_stopping: IsStopping = _never) -> None:
    """Run verifications until none waits."""
    while not is_stopping() and await run_next(is_stopping=is_stopping):
        pass


async def run_next(
    *,
    run_id: int | None = None,
    is_stopping: IsStopping = _never,
    on_progress: OnProgress = _silent,
) -> bool:
    """Run the one that waited longest, or the one that is named; False where none is free."""
    await asyncio.to_thread(scratch_sweep, settings.VAR_DIR)
    claim = await database_hop(
        verification_claim,
        owner=new_id(f"{socket.gethostname()[:60]}:{os.getpid()}"),
        lease_s=settings.VERIFY_LEASE_S,
        run_id=run_id,
    )
    if claim is None:
        return False
    try:
        await ClaimedRun(claim, is_stopping=is_stopping, on_progress=on_progress).advance()
    except VerificationLost:
        logger.info("Verification %d is in other hands, or has ended", claim.pk)
    return True


class ClaimedRun:
    """One claim's work."""

    def __init__(
        self, claim: VerificationClaim, *, is_stopping: IsStopping, on_progress: OnProgress
    ) -> None:
        self._claim = claim
        self._is_stopping = is_stopping
        self._on_progress = on_progress
        self._step: VerificationStep | None = None
        self._percent = 0
        self._is_cancelled = False
        self._is_over = False  # read by the thread that reads files
        self._checks: list[VerificationCheck] = []
        self._figures: dict[str, float] = {}

    async def advance(self) -> None:
        """Verify, under the lease. Raises VerificationLost."""
        job = asyncio.create_task(self._outcome())
        try:
            is_left = await self._keep(job)
        except asyncio.CancelledError:  # whoever runs this by hand has had enough
            await self._stop(job)
            await database_hop(verification_release, claim=self._claim)
            raise
        finally:
            await self._stop(job)
        if is_left and job.cancelled():
            await database_hop(verification_release, claim=self._claim)
            return
        if self._is_cancelled and job.cancelled():
            outcome = VerificationOutcome(is_cancelled=True)
        else:
            outcome = job.result()
        await database_hop(verification_end, claim=self._claim, outcome=outcome)
        logger.info("Verification %d ended: %s", self._claim.pk, outcome.error or "it is written")

    async def _stop(self, job: "asyncio.Task[VerificationOutcome]") -> None:
        self._is_over = True
        job.cancel()
        await asyncio.wait({job})

    async def _keep(self, job: "asyncio.Task[VerificationOutcome]") -> bool:
        """Renew the lease until the job is done or there is a reason to end it; return whether
        the reason is that this worker shall stop. Raises VerificationLost."""
        lease_s = settings.VERIFY_LEASE_S
        good_until_s = time.monotonic() + lease_s
        while not job.done():
            await asyncio.wait({job}, timeout=min(lease_s / 4, _RENEW_MOST_S))
            asked_s = time.monotonic()
            try:
                self._is_cancelled = await database_hop(
                    verification_renew,
                    claim=self._claim,
                    lease_s=lease_s,
                    step=self._step,
                    percent=self._percent,
                )
                await database_hop(heartbeat_note, WORKER)
                good_until_s = asked_s + lease_s
            except (DatabaseError, InterfaceError) as error:
                logger.warning("Verification %d is hard to hold: %r", self._claim.pk, error)
                if time.monotonic() > good_until_s:
                    raise VerificationLost from error
            if self._is_cancelled or self._is_stopping():
                return not self._is_cancelled
        return False

    async def _outcome(self) -> VerificationOutcome:
        error, log = "", ""
        try:
            async with asyncio.timeout(settings.VERIFY_TIMEOUT_S):
                await self._verify()
        except VerificationFailed as failed:
            error, log = str(failed), failed.log
        except TimeoutError:
            error = f"It took longer than {settings.VERIFY_TIMEOUT_S} s and was ended."
        except OSError as failed:
            error = f"The system said no: {failed}"
        bad = [check for check in self._checks if not check.is_passed]
        if not error and bad:
            error = f"{bad[0].name}: no; {bad[0].said}"
        return VerificationOutcome(
            error=error, checks=tuple(self._checks), figures=self._figures, log=log
        )

    async def _verify(self) -> None:
        """Raises VerificationFailed; what was seen until then is kept."""
        if self._claim.attempt > MOST_ATTEMPTS:
            raise VerificationFailed(
                f"Its worker was lost {MOST_ATTEMPTS} times; it is not tried again."
            )
        version = await database_hop(model_version_get, self._claim.version_id)
        if version is None:
            raise VerificationFailed("The version is gone.")
        self._at(VerificationStep.FILES)
        async with self._files(version) as directory:
            await self._examine(version, directory)

    @asynccontextmanager
    async def _files(self, version: "ModelVersion") -> AsyncIterator[Path]:
        """Where they are, or where they were fetched to. Raises VerificationFailed."""
        directory = version_dir(version)
        if directory is not None:
            yield directory
            return
        async with AsyncExitStack() as stack:
            try:
                held = files_held(node_cache(), artifact_of(version), on_bytes=self._fetched)
                directory = await stack.enter_async_context(held)
            except (FilesError, AppError) as error:
                raise VerificationFailed(str(error)) from error
            yield directory

    def _fetched(self, done: int, total: int) -> None:
        self._at(VerificationStep.FILES, 100 * done // max(1, total))

    async def _examine(self, version: "ModelVersion", directory: Path) -> None:
        n_bytes = await asyncio.to_thread(self._files_read, directory, version)
        self._passed("Files are as imported", f"{n_bytes:,} bytes")
        self._at(VerificationStep.LOADING)
        name = f"{self._claim.pk}-{self._claim.attempt}"
        engine = scratch_engine(directory, var_dir=settings.VAR_DIR, name=name, arguments=_ENGINE)
        async with engine as scratch:
            self._figures["load_s"] = scratch.load_s
            self._passed("The engine loads it", f"{scratch.info.dtype} on {scratch.info.device}")
            if scratch.info.task == "embed":
                await self._embedding_probed(scratch, directory)
            else:
                await self._generation_probed(scratch, is_chat=bool(chat_template_in(directory)))
            health = await scratch.client.ping(probes.TIMEOUT_S)
            self._figures["memory_mb"] = health.rss_bytes / 1e6

    def _files_read(self, directory: Path, version: "ModelVersion") -> int:
        def on_bytes(done: int, total: int) -> None:
            if self._is_over:
                raise ReadingStopped
            self._at(VerificationStep.FILES, 100 * done // max(1, total))

        with suppress(ReadingStopped):
            return files_check(
                directory,
                manifest=version.manifest,
                manifest_sha256=version.manifest_sha256,
                on_bytes=on_bytes,
            )
        return 0

    async def _generation_probed(self, scratch: ScratchEngine, *, is_chat: bool) -> None:
        client = scratch.client
        self._at(VerificationStep.ANSWERS)
        self._checks += await probes.answers_check(
            client, is_chat=is_chat, on_part=self._part_of(VerificationStep.ANSWERS)
        )
        self._at(VerificationStep.PERPLEXITY)
        self._checks += await probes.perplexity_measure(client, figures=self._figures)
        self._at(VerificationStep.LATENCY)
        await probes.latency_measure(
            client, figures=self._figures, on_part=self._part_of(VerificationStep.LATENCY)
        )

    async def _embedding_probed(self, scratch: ScratchEngine, directory: Path) -> None:
        client = scratch.client
        self._at(VerificationStep.ANSWERS)
        pooling = json.loads((directory / "pooling.json").read_text())
        self._checks += await probes.vectors_check(
            client, is_normalised=bool(pooling.get("normalize")), figures=self._figures
        )
        self._at(VerificationStep.LATENCY)
        await probes.embedding_speed_measure(
            client, figures=self._figures, on_part=self._part_of(VerificationStep.LATENCY)
        )

    def _part_of(self, step: VerificationStep) -> probes.OnPart:
        return lambda done, total: self._at(step, 100 * done // total)

    def _at(self, step: VerificationStep, percent: int = 0) -> None:
        self._step, self._percent = step, percent
        self._on_progress(step, percent)

    def _passed(self, name: str, said: str) -> None:
        self._checks.append(VerificationCheck(name=name, is_passed=True, said=said))

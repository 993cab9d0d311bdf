"""Engines' journals as files of this machine: which there are, and what has been added to one.

An engine's own format is read here and nowhere else; no database.
"""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from apps.engines.types import JournalPlace, RequestEnd
from engine_service.protocol.journal import (
    JournalRecord,
    is_writer_alive,
    live_path,
    log_numbers,
    log_path,
    read_live,
    read_log,
)

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"e(?P<process_id>\d+)-(?P<epoch>\d+)-(?P<opened_ns>[0-9a-f]+)")
_MOST: Final = 2**31
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFiles:
    """The journal of one start of an engine. name: no other start ever has it."""

    directory: Path
    name: str
    process_id: int
    epoch: int
    opened_at: datetime

    def is_over(self) -> bool:
        """True once its engine is gone. Ask before reading: what is then read is all of it."""
        return not is_writer_alive(self.directory, self.name)

    def added(
        self, place: JournalPlace, *, limit: int
    ) -> Iterator[tuple[list[RequestEnd], JournalPlace]]:
        """Yield what was added after ``place``, up to ``limit`` records at a time, each with the
        place after it. No records with a place: what was before it is lost."""
        numbers = [n for n in log_numbers(self.directory, self.name) if n >= place.log_number]
        if numbers and numbers[0] > max(place.log_number, 1):  # dropped by its engine
            yield [], JournalPlace(log_number=numbers[0], log_end=0)
        for number in numbers:
            path = log_path(self.directory, self.name, number=number)
            end = place.log_end if number == place.log_number else 0
            while (part := read_log(path, start=end, limit=limit)).records:
                end = part.end
                place = JournalPlace(log_number=number, log_end=end)
                yield list(_ends(part.records, epoch=self.epoch)), place
            if not part.is_whole and number != numbers[-1]:
                logger.error("%s is damaged after byte %d", path, part.end)
                yield [], JournalPlace(log_number=number + 1, log_end=0)

    def may_lack_its_end(self) -> bool:
        """Whether its engine's machine went down: nothing was forced to its disk."""
        return self.opened_at < _machine_started_at()

    def running(self) -> frozenset[str]:
        """Return the ids of the requests that its engine has not ended. One that is not there has
        ended before, and can be read, or begins after."""
        records = read_live(live_path(self.directory, self.name), epoch=self.epoch)
        return frozenset(record.request_id for record in records)

    def unfinished(self) -> list[RequestEnd]:
        """Return the requests that an engine that is gone had not ended; they may be among those
        that it ended, too, under the same key."""
        records = read_live(live_path(self.directory, self.name), epoch=self.epoch)
        return list(_ends(records, epoch=self.epoch))

    def trim(self, place: JournalPlace) -> None:
        """Delete the logs before the one that was read last."""
        for number in log_numbers(self.directory, self.name):
            if number < place.log_number:
                log_path(self.directory, self.name, number=number).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all of it, what it is found by at last."""
        for number in log_numbers(self.directory, self.name):
            log_path(self.directory, self.name, number=number).unlink(missing_ok=True)
        live_path(self.directory, self.name).unlink(missing_ok=True)


def journals_in(directory: Path) -> list[JournalFiles]:
    """Return the journals of a directory, which need not be there."""
    return [
        JournalFiles(
            directory=directory,
            name=path.stem,
            process_id=int(match["process_id"]),
            epoch=int(match["epoch"]),
            opened_at=datetime.fromtimestamp(int(match["opened_ns"], 16) / _NS, UTC),
        )
        for path in sorted(directory.glob("*.live"))
        if (match := _NAME.fullmatch(path.stem)) is not None
    ]


def _machine_started_at() -> datetime:
    return datetime.fromtimestamp(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME), UTC)


def _ends(records: tuple[JournalRecord, ...], *, epoch: int) -> Iterator[RequestEnd]:
    for record in records:
        if _is_possible(record, epoch=epoch):
            yield _request_end(record)
        else:
            logger.error("A journal of epoch %d has a record that cannot be: %r", epoch, record)


def _is_possible(record: JournalRecord, *, epoch: int) -> bool:
    """After a loss of power a table may hold anything."""
    counts = (record.n_prompt_tokens, record.n_cached_tokens, record.n_completion_tokens)
    steps = (record.first_step, record.last_step)
    moments = (record.started_at, record.first_token_at or 0.0, record.ended_at)
    return (
        record.epoch == epoch
        and all(0 <= count < _MOST for count in counts)
        and all(0 <= step < _MOST * _MOST for step in (record.key, *steps))
        and all(0 <= moment < _MOST * 2 for moment in (*moments, record.waited_s))
        and len(record.request_id) <= 128
        and "\0" not in record.request_id
    )


def _request_end(record: JournalRecord) -> RequestEnd:
    return RequestEnd(
        key=record.key,
        request_id=record.request_id,
        n_prompt_tokens=record.n_prompt_tokens,
        n_cached_tokens=record.n_cached_tokens,
        n_completion_tokens=record.n_completion_tokens,
        finish_reason=record.finish_reason[:16],
        error_code=record.error_code[:60],
        first_step=record.first_step,
        last_step=record.last_step,
        waited_ms=record.waited_s * 1000,
        started_at=datetime.fromtimestamp(record.started_at, UTC),
        first_token_at=(
            None
            if record.first_token_at is None
            else datetime.fromtimestamp(record.first_token_at, UTC)
        ),
        ended_at=datetime.fromtimestamp(record.ended_at, UTC),
    )

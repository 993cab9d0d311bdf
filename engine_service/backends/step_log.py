"""What each step did and how long its parts took: a window for statistics, a trace for a person."""

import json
import queue
import statistics
import threading
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine_service.errors import ModelError
from engine_service.protocol import Spread, StepStats

PHASES: Final = ("schedule", "forward", "sample", "update")
_WINDOW_STEPS = 512
_MAX_TRACED_STEPS = 500_000


@dataclass(frozen=True, slots=True)
class StepRecord:
    """marks_s: when the step began and when each of ``PHASES`` ended, on one clock."""

    marks_s: tuple[float, float, float, float, float]
    n_sequences: int
    n_decode_tokens: int
    n_prefill_tokens: int
    n_draft_tokens: int
    n_waiting: int
    n_blocks_free: int


class StepLog:
    """Keeps the last steps; made and used by the step thread, at a few microseconds a step."""

    def __init__(self, trace: "TraceWriter | None" = None) -> None:
        self._records: deque[StepRecord] = deque(maxlen=_WINDOW_STEPS)
        self._trace = trace

    def add(self, record: StepRecord) -> None:
        self._records.append(record)
        if self._trace is not None:
            self._trace.add(record)

    def stats(self, *, waits_s: SequenceOf[float]) -> StepStats | None:
        """Sum up the window; None before the first step. waits_s: how long requests queued."""
        records = self._records
        if not records:
            return None
        marks = [record.marks_s for record in records]
        phases = {
            f"{name}_ms": spread_ms([mark[i + 1] - mark[i] for mark in marks])
            for i, name in enumerate(PHASES)
        }
        return StepStats(
            n_steps=len(records),
            step_ms=spread_ms([mark[-1] - mark[0] for mark in marks]),
            **phases,
            wait_ms=spread_ms(waits_s),
            mean_sequences=statistics.fmean(record.n_sequences for record in records),
            mean_decode_tokens=statistics.fmean(record.n_decode_tokens for record in records),
            mean_prefill_tokens=statistics.fmean(record.n_prefill_tokens for record in records),
        )


class TraceWriter:
    """Writes steps as trace events, for chrome://tracing or Perfetto, on a thread of its own.

    The file is the format's array form, which is whole without its closing bracket; so it can be
    read after a crash, too. It ends after half a million steps, some 400 MB. (Trace Event Format:
    https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU)

    Raises:
        ModelError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w")
        except OSError as error:
            raise ModelError(f"trace: cannot write {path}: {error}") from error
        self._file.write("[\n")
        self._n_left = _MAX_TRACED_STEPS
        self._records: queue.SimpleQueue[StepRecord] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="engine-trace", daemon=True).start()

    def add(self, record: StepRecord) -> None:
        if self._n_left:
            self._n_left -= 1
            self._records.put(record)

    def _run(self) -> None:
        while True:
            for event in trace_events(self._records.get()):
                self._file.write(json.dumps(event) + ",\n")
            if self._records.empty():
                self._file.flush()


def trace_events(record: StepRecord) -> Iterator[dict[str, Any]]:
    """Yield the step, its parts within it, and its counters; times in microseconds."""
    start, *_, end = record.marks_s
    place = {"pid": 1, "tid": 1}
    counts = {
        "sequences": record.n_sequences,
        "decode tokens": record.n_decode_tokens,
        "prefill tokens": record.n_prefill_tokens,
        "draft tokens": record.n_draft_tokens,
    }
    yield (
        {"name": "step", "ph": "X", "ts": start * 1e6, "dur": (end - start) * 1e6}
        | place
        | {"args": counts}
    )
    for name, begin, stop in zip(PHASES, record.marks_s, record.marks_s[1:], strict=False):
        yield {"name": name, "ph": "X", "ts": begin * 1e6, "dur": (stop - begin) * 1e6} | place
    for name, value in (("waiting", record.n_waiting), ("free blocks", record.n_blocks_free)):
        yield {"name": name, "ph": "C", "ts": start * 1e6, "args": {name: value}} | place


def spread_ms(values_s: SequenceOf[float]) -> Spread:
    if not values_s:
        return Spread()
    return Spread(median=statistics.median(values_s) * 1e3, worst=max(values_s) * 1e3)

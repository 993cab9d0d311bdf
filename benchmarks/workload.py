"""The workload that benchmarks share, and what is measured of it: the same token ids, lengths and
order for every system, so that only the systems differ."""

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request: random token ids, answered by exactly ``n_new`` tokens (end-of-text ignored)."""

    prompt: tuple[int, ...]
    n_new: int
    seed: int


@dataclass(slots=True)
class Timeline:
    """When the tokens of one answer came, in seconds; ``n_tokens`` of each arrival."""

    started: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def saw(self, n_tokens: int) -> None:
        self.arrivals.append((perf_counter(), n_tokens))

    @property
    def n_tokens(self) -> int:
        return sum(n for _, n in self.arrivals)

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0][0] - self.started

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: the wait before each arrival, spread over its tokens."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return [(b[0] - a[0]) / b[1] for a, b in pairs for _ in range(b[1])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Output tokens a second; medians where the name says no other share."""

    tokens_per_s: float
    ttft_ms: float
    ttft_p95_ms: float
    itl_ms: float
    itl_p99_ms: float
    itl_worst_ms: float


Runner = Callable[[Job, Timeline], Awaitable[None]]


def jobs(*, n: int, vocab_size: int, n_new: int, seed: int) -> list[Job]:
    """Return ``n`` jobs with prompts of 32 to 128 ids."""
    rng = random.Random(seed)
    return [
        Job(
            prompt=tuple(rng.randrange(100, vocab_size) for _ in range(rng.randint(32, 128))),
            n_new=n_new,
            seed=rng.randrange(2**31),
        )
        for _ in range(n)
    ]


async def measure(run: Runner, batch: list[Job], *, concurrency: int) -> Measure:
    """Run the jobs with that many under way at any time.

    Raises:
        RuntimeError: a job gave another number of tokens than it should, so the run is void.
    """
    return measure_of(batch, await timelines_of(run, batch, concurrency=concurrency))


async def timelines_of(run: Runner, batch: list[Job], *, concurrency: int) -> list[Timeline]:
    """Run the jobs with that many under way at any time, and return when their tokens came."""
    pending = list(reversed(range(len(batch))))
    timelines = [Timeline(0.0) for _ in batch]

    async def worker() -> None:
        while pending:
            index = pending.pop()
            timelines[index].started = perf_counter()
            await run(batch[index], timelines[index])

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return timelines


def measure_of(batch: list[Job], timelines: list[Timeline]) -> Measure:
    """Return the figures of one run, from its first start to its last token.

    Raises:
        RuntimeError: a job gave another number of tokens than it should, so the run is void.
    """
    for job, timeline in zip(batch, timelines, strict=True):
        if timeline.n_tokens != job.n_new:
            raise RuntimeError(f"{timeline.n_tokens} tokens came, {job.n_new} were due")
    started_s = min(timeline.started for timeline in timelines)
    elapsed_s = max(timeline.arrivals[-1][0] for timeline in timelines) - started_s
    ttfts = sorted(timeline.ttft_s for timeline in timelines)
    gaps = sorted(gap for timeline in timelines for gap in timeline.gaps_s)
    return Measure(
        tokens_per_s=sum(t.n_tokens for t in timelines) / elapsed_s,
        ttft_ms=1000 * statistics.median(ttfts),
        ttft_p95_ms=1000 * ttfts[int(len(ttfts) * 0.95)],
        itl_ms=1000 * statistics.median(gaps),
        itl_p99_ms=1000 * gaps[int(len(gaps) * 0.99)],
        itl_worst_ms=1000 * gaps[-1],
    )


def median_of(measures: list[Measure]) -> Measure:
    """Return the median of each figure over rounds."""
    return Measure(
        **{
            name: statistics.median(getattr(m, name) for m in measures)
            for name in Measure.__dataclass_fields__
        }
    )

"""What engines did over time, at a bounded rate: a row each ten seconds for an hour or two, one
each minute for a day, one each hour for a season. Plots read them; nothing depends on them."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import transaction

from apps.engines.models import EngineProcess, EngineSample, JournalEntry

SPAN_S: Final = 10
# From each span to the next coarser one, and how long rows of a span are kept.
COARSER: Final = {10: 60, 60: 3600}
KEEP: Final = {10: timedelta(hours=2), 60: timedelta(hours=26), 3600: timedelta(days=90)}
_MOST_REQUESTS: Final = 5_000  # of one span; the newest are representative
_MEANS: Final = (
    "n_running",
    "n_waiting",
    "prompt_tokens_per_s",
    "completion_tokens_per_s",
    "kv_used",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counters:
    """As the engine had counted them when it was ``uptime_s`` old."""

    epoch: int
    uptime_s: float
    n_prompt_tokens: int
    n_completion_tokens: int


class Sampler:
    """Of one agent. Its first look at a start of an engine gives no rates, and no row."""

    def __init__(self) -> None:
        self._before: dict[int, _Counters] = {}
        self._read_until: datetime | None = None
        self._period: dict[int, datetime] = {}

    @transaction.atomic
    def sample(self, now: datetime, *, process_ids: Collection[int]) -> int:
        """Write a row for each of these engines that is ready, thin what is complete, and drop what
        is old; return how many were written. Another call in the same ten seconds does nothing."""
        at = _floor(now, SPAN_S)
        if self._period.get(SPAN_S) == at:
            return 0
        self._period[SPAN_S] = at
        processes = EngineProcess.objects.filter(
            pk__in=process_ids, state=EngineProcess.State.READY
        )
        latencies = self._latencies(now)
        rows = [
            row
            for process in processes
            if process.stats and (row := self._row(process, at, latencies)) is not None
        ]
        EngineSample.objects.bulk_create(rows, ignore_conflicts=True)
        self._thin(now)
        return len(rows)

    def _row(
        self, process: EngineProcess, at: datetime, latencies: "dict[str, _Latencies]"
    ) -> EngineSample | None:
        stats: dict[str, Any] = process.stats
        counters = _Counters(
            epoch=process.epoch,
            uptime_s=stats["uptime_s"],
            n_prompt_tokens=stats["n_prompt_tokens"],
            n_completion_tokens=stats["n_completion_tokens"],
        )
        before = self._before.get(process.pk)
        self._before[process.pk] = counters
        if before is None or before.epoch != counters.epoch:
            return None
        passed_s = counters.uptime_s - before.uptime_s
        if passed_s <= 0:  # the agent has heard nothing new
            return None
        n_total = stats["n_blocks_total"]
        n_prompt = counters.n_prompt_tokens - before.n_prompt_tokens
        n_completion = counters.n_completion_tokens - before.n_completion_tokens
        return EngineSample(
            engine_name=process.name,
            span_s=SPAN_S,
            at=at,
            n_running=stats["n_running"],
            n_waiting=stats["n_waiting"],
            prompt_tokens_per_s=n_prompt / passed_s,
            completion_tokens_per_s=n_completion / passed_s,
            rss_bytes=stats["rss_bytes"],
            kv_used=1 - stats["n_blocks_free"] / n_total if n_total else 0.0,
            **latencies[process.name].fields() if process.name in latencies else _NO_REQUESTS,
        )

    def _latencies(self, now: datetime) -> "dict[str, _Latencies]":
        """Return those of the requests whose records were read since the last look, by engine."""
        since, self._read_until = self._read_until, now
        found: defaultdict[str, _Latencies] = defaultdict(_Latencies)
        if since is None:
            return found
        entries = JournalEntry.objects.filter(
            read_at__gt=since, read_at__lte=now, first_token_at__isnull=False
        ).order_by("-read_at", "-id")
        for name, started_at, first_at, ended_at, n_tokens in entries.values_list(
            "journal__engine_name",
            "started_at",
            "first_token_at",
            "ended_at",
            "n_completion_tokens",
        )[:_MOST_REQUESTS]:
            assert first_at is not None  # as asked for
            found[name].add(
                ttft_ms=(first_at - started_at).total_seconds() * 1000,
                decode_ms=(ended_at - first_at).total_seconds() * 1000,
                n_tokens=n_tokens,
            )
        return found

    def _thin(self, now: datetime) -> None:
        for fine, coarse in COARSER.items():
            begun = _floor(now, coarse)
            if self._period.get(coarse) == begun:
                continue
            self._period[coarse] = begun
            EngineSample.objects.bulk_create(
                thinned(_within(fine, begun - timedelta(seconds=coarse), begun), span_s=coarse),
                ignore_conflicts=True,
            )
            for span_s in (fine, coarse):
                EngineSample.objects.filter(span_s=span_s, at__lt=now - KEEP[span_s]).delete()


def thinned(rows: Iterable[EngineSample], *, span_s: int) -> list[EngineSample]:
    """Return one row for each engine and span: of gauges and rates the mean, of memory the most, of
    medians the mean by requests, and of the slow ends the worst."""
    groups: defaultdict[tuple[str, datetime], list[EngineSample]] = defaultdict(list)
    for row in rows:
        groups[row.engine_name, _floor(row.at, span_s)].append(row)
    return [
        EngineSample(
            engine_name=name,
            span_s=span_s,
            at=at,
            rss_bytes=max(row.rss_bytes for row in group),
            n_requests=sum(row.n_requests for row in group),
            ttft_ms=_mean_by_requests(group, "ttft_ms"),
            itl_ms=_mean_by_requests(group, "itl_ms"),
            ttft_p95_ms=_worst(group, "ttft_p95_ms"),
            itl_p95_ms=_worst(group, "itl_p95_ms"),
            **{each: sum(getattr(row, each) for row in group) / len(group) for each in _MEANS},
        )
        for (name, at), group in groups.items()
    ]


class _Latencies:
    def __init__(self) -> None:
        self._ttft_ms: list[float] = []
        self._itl_ms: list[float] = []

    def add(self, *, ttft_ms: float, decode_ms: float, n_tokens: int) -> None:
        self._ttft_ms.append(max(0.0, ttft_ms))
        if n_tokens > 1:
            self._itl_ms.append(max(0.0, decode_ms) / (n_tokens - 1))

    def fields(self) -> dict[str, Any]:
        return {
            "n_requests": len(self._ttft_ms),
            "ttft_ms": quantile(self._ttft_ms, 0.5),
            "ttft_p95_ms": quantile(self._ttft_ms, 0.95),
            "itl_ms": quantile(self._itl_ms, 0.5),
            "itl_p95_ms": quantile(self._itl_ms, 0.95),
        }


_NO_REQUESTS: Final[dict[str, Any]] = {"n_requests": 0}


def quantile(values: Sequence[float], part: float) -> float | None:
    """Return the smallest value that at least ``part`` of them do not exceed; None of none."""
    if not values:
        return None
    ranked = sorted(values)
    index = -(-len(ranked) * round(part * 100) // 100) - 1
    return ranked[max(0, index)]


def _mean_by_requests(group: Sequence[EngineSample], name: str) -> float | None:
    known = [(getattr(row, name), row.n_requests) for row in group]
    pairs = [(value, n) for value, n in known if value is not None]
    n_all = sum(n for _, n in pairs)
    return sum(value * n for value, n in pairs) / n_all if n_all else None


def _worst(group: Sequence[EngineSample], name: str) -> float | None:
    values = [value for row in group if (value := getattr(row, name)) is not None]
    return max(values, default=None)


def _within(span_s: int, since: datetime, until: datetime) -> list[EngineSample]:
    return list(EngineSample.objects.filter(span_s=span_s, at__gte=since, at__lt=until))


def _floor(moment: datetime, span_s: int) -> datetime:
    seconds = int(moment.timestamp())
    return datetime.fromtimestamp(seconds - seconds % span_s, UTC)

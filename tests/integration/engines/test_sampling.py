"""What is written of engines over time: at a bounded rate, thinned, and dropped."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apps.engines.models import EngineProcess, EngineSample
from apps.engines.services import Sampler
from tests.factories import EngineProcessFactory
from tests.factories.journals import EngineJournalFactory, JournalEntryFactory
from tests.factories.samples import EngineSampleFactory

pytestmark = pytest.mark.django_db

T0 = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


def stats(uptime_s: float, n_completion: int, **changes: Any) -> dict[str, Any]:
    return {
        "n_running": 2, "n_waiting": 1, "n_blocks_total": 64, "n_blocks_free": 48,
        "n_prompt_tokens": 10 * n_completion, "n_completion_tokens": n_completion,
        "uptime_s": uptime_s, "rss_bytes": 1024, **changes,
    }  # fmt: skip


@pytest.fixture
def engine() -> EngineProcess:
    process: EngineProcess = EngineProcessFactory(ready=True, name="m-0", stats=stats(100, 1000))
    return process


def told(engine: EngineProcess, **fields: Any) -> None:
    EngineProcess.objects.filter(pk=engine.pk).update(**fields)


def sampled(sampler: Sampler, engine: EngineProcess, *, after_s: float) -> int:
    return sampler.sample(T0 + timedelta(seconds=after_s), process_ids=[engine.pk])


def test_a_row_each_ten_seconds_with_rates_between_two_looks(engine: EngineProcess) -> None:
    sampler = Sampler()
    assert sampled(sampler, engine, after_s=0) == 0
    told(engine, stats=stats(108, 1400))
    assert sampled(sampler, engine, after_s=2) == 0
    assert sampled(sampler, engine, after_s=10) == 1
    assert sampled(sampler, engine, after_s=13) == 0
    (row,) = EngineSample.objects.all()
    assert (row.engine_name, row.span_s) == ("m-0", 10)
    assert row.at == datetime(2026, 3, 1, 12, 0, 10, tzinfo=UTC)
    assert (row.completion_tokens_per_s, row.prompt_tokens_per_s) == (50.0, 500.0)
    assert (row.n_running, row.n_waiting, row.rss_bytes, row.kv_used) == (2.0, 1.0, 1024, 0.25)
    assert (row.n_requests, row.ttft_ms, row.itl_p95_ms) == (0, None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": 2, "stats": stats(3, 20)},
        {"stats": stats(100, 1000)},
        {"stats": {}},
        {"state": "backing_off"},
    ],
    ids=["started anew", "nothing new", "no word", "not ready"],
)
def test_what_gives_no_rate_gives_no_row(engine: EngineProcess, fields: dict[str, Any]) -> None:
    sampler = Sampler()
    sampled(sampler, engine, after_s=0)
    told(engine, **fields)
    assert sampled(sampler, engine, after_s=10) == 0


def test_engines_of_others_are_theirs_to_sample(engine: EngineProcess) -> None:
    sampler = Sampler()
    for after_s in (0, 10):
        told(engine, stats=stats(100 + after_s, 1000))
        now = T0 + timedelta(seconds=after_s)
        assert sampler.sample(now, process_ids=[engine.pk + 1]) == 0


def test_latencies_are_those_of_the_requests_that_ended(engine: EngineProcess) -> None:
    sampler = Sampler()
    sampled(sampler, engine, after_s=0)
    journal = EngineJournalFactory(engine_name="m-0")
    for n in range(20):
        JournalEntryFactory(
            journal=journal,
            n_completion_tokens=11,
            started_at=T0,
            first_token_at=T0 + timedelta(milliseconds=100 * (n + 1)),
            ended_at=T0 + timedelta(milliseconds=100 * (n + 1) + 10 * (n + 1)),
            read_at=T0 + timedelta(seconds=5),
        )
    JournalEntryFactory(journal=journal, first_token_at=None, read_at=T0 + timedelta(seconds=5))
    JournalEntryFactory(journal=journal, read_at=T0 - timedelta(seconds=1))
    told(engine, stats=stats(110, 1000))
    assert sampled(sampler, engine, after_s=10) == 1
    row = EngineSample.objects.get()
    assert (row.n_requests, row.ttft_ms, row.ttft_p95_ms) == (20, 1000.0, 1900.0)
    assert (row.itl_ms, row.itl_p95_ms) == (10.0, 19.0)


def test_a_minute_becomes_one_row_and_old_rows_go(engine: EngineProcess) -> None:
    minute = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    for n in range(6):
        EngineSampleFactory(
            engine_name="m-0",
            at=minute + timedelta(seconds=10 * n),
            completion_tokens_per_s=10.0 * n,
            rss_bytes=n,
            n_requests=1 if n < 2 else 0,
            ttft_ms=None if n > 1 else 100.0 + n,
            ttft_p95_ms=None if n > 1 else 200.0 + n,
        )
    for span_s, age in ((10, timedelta(hours=2)), (60, timedelta(hours=26))):
        for seconds in (0, 5):
            EngineSampleFactory(
                span_s=span_s, engine_name="old", at=T0 + timedelta(seconds=60 + seconds - 2) - age
            )
    assert sampled(Sampler(), engine, after_s=60) == 0
    row = EngineSample.objects.get(span_s=60, engine_name="m-0")
    assert row.at == minute
    assert (row.completion_tokens_per_s, row.rss_bytes) == (25.0, 5)
    assert (row.n_requests, row.ttft_ms, row.ttft_p95_ms, row.itl_ms) == (2, 100.5, 201.0, None)
    assert EngineSample.objects.filter(engine_name="old").count() == 2
    assert sampled(Sampler(), engine, after_s=65) == 0
    assert EngineSample.objects.filter(span_s=60, engine_name="m-0").count() == 1

"""What the scaler takes of an engine's answer."""

from datetime import UTC, datetime
from typing import Any

import pytest

from apps.deployments.scaler import _load
from apps.engines.types import EngineObservation

NOW = datetime(2026, 5, 1, tzinfo=UTC)
STATS = dict.fromkeys(
    ("n_running", "n_waiting", "n_prompt_tokens", "n_cached_tokens", "n_completion_tokens"), 1
)


def seen(**stats: Any) -> EngineObservation:
    return EngineObservation(
        process_id=1, state="ready", pid=1, epoch=1, socket_path="", log_path="",
        started_at=NOW, ready_at=NOW, last_pong_at=NOW, ping_ms=1.0, n_restarts=0,
        last_error="", info={}, stats={**STATS, "oldest_wait_ms": 4000.0, **stats},
    )  # fmt: skip


@pytest.mark.parametrize(("is_asleep", "wait_s"), [(False, 4.0), (True, 0.0)])
def test_who_waits_for_a_wake_waits_for_no_replica_more(is_asleep: bool, wait_s: float) -> None:
    load = _load(seen(is_asleep=is_asleep))
    assert (load.oldest_wait_s, load.n_waiting) == (wait_s, 1)
    assert _load(seen()).oldest_wait_s == 4.0

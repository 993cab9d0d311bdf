"""Observed state in the database."""

from datetime import UTC, datetime
from typing import Any

import pytest

from apps.core.selectors import change_stamps
from apps.engines.models import EngineProcess
from apps.engines.services import (
    engine_epoch_take,
    engine_processes_remove,
    observations_record,
    stale_states_correct,
)
from apps.engines.types import EngineObservation
from tests.factories import EngineProcessFactory

pytestmark = pytest.mark.django_db


def observation(process: EngineProcess, **values: Any) -> EngineObservation:
    fields: dict[str, Any] = {
        "process_id": process.pk,
        "state": "ready",
        "pid": 77,
        "epoch": 5,
        "socket_path": "/run/e.sock",
        "log_path": "/logs/e.log",
        "started_at": datetime(2026, 1, 2, tzinfo=UTC),
        "ready_at": None,
        "last_pong_at": None,
        "ping_ms": 0.5,
        "n_restarts": 2,
        "last_error": "",
        "info": {"backend": "native"},
        "stats": {"n_running": 1},
    }
    return EngineObservation(**{**fields, **values})


def stamp() -> int:
    return change_stamps().get("replicas", 0)


def test_epochs_count_up() -> None:
    process = EngineProcessFactory(epoch=0)
    EngineProcess.objects.update(state="ready", pid=1, socket_path="/run/x.sock", stats={"x": 1})
    assert [engine_epoch_take(process.pk) for _ in range(3)] == [1, 2, 3]
    process.refresh_from_db()
    found = (process.state, process.pid, process.socket_path, process.stats)
    assert found == ("starting", None, "", {})


def test_a_removed_slot_gives_no_epoch() -> None:
    with pytest.raises(EngineProcess.DoesNotExist):
        engine_epoch_take(4711)


def test_a_log_may_lie_as_deep_as_the_system_allows() -> None:
    """PostgreSQL refused a longer path, which the agent took for a database that is away."""
    process = EngineProcessFactory()
    path = "/" + "d/" * 2000 + "e.log"
    observations_record([observation(process, log_path=path)], is_routing_changed=False)
    process.refresh_from_db()
    assert process.log_path == path


def test_an_observation_is_written_whole_but_never_the_epoch() -> None:
    """An agent that has just begun knows no epoch; it once reset the count, so that two starts
    shared a socket path."""
    process = EngineProcessFactory(epoch=9)
    observations_record([observation(process, epoch=0)], is_routing_changed=False)
    process.refresh_from_db()
    assert (process.epoch, process.pid, process.state) == (9, 77, "ready")
    assert (process.socket_path, process.log_path) == ("/run/e.sock", "/logs/e.log")
    assert (process.info, process.stats) == ({"backend": "native"}, {"n_running": 1})
    assert stamp() == 0


def test_a_change_of_routing_is_told() -> None:
    observations_record([observation(EngineProcessFactory())], is_routing_changed=True)
    assert stamp() == 1


def test_an_observation_of_a_removed_slot_is_dropped() -> None:
    process = EngineProcessFactory()
    engine_processes_remove([process.pk])
    assert stamp() == 1
    process.pk = 4711
    observations_record([observation(process)], is_routing_changed=False)
    assert not EngineProcess.objects.exists()


def test_what_a_killed_agent_left_is_corrected() -> None:
    held = {"rss_bytes": 2**30, "n_running": 3}
    EngineProcessFactory(ready=True, name="left", stats=held)
    EngineProcessFactory(name="starting", state=EngineProcess.State.STARTING)
    EngineProcessFactory(name="stopped", state=EngineProcess.State.STOPPED)
    assert stale_states_correct() == 2
    rows = EngineProcess.objects.order_by().values_list("state", "pid", "socket_path", "ping_ms")
    assert list(rows.distinct()) == [("stopped", None, "", None)]
    # Else the memory of the dead would count as held when its replica is placed anew.
    assert [row.stats for row in EngineProcess.objects.all()] == [{}, {}, {}]
    assert stamp() == 1
    assert stale_states_correct() == 0
    assert stamp() == 1

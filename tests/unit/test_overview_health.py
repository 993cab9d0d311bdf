"""From rows to words; nothing here touches a database."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from apps.console.health import by_urgency, deployment_card, engine_card, overall
from apps.console.types import DeploymentCard
from apps.deployments.models import Deployment
from apps.engines.models import EngineProcess
from apps.engines.types import STATE_LABELS

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
STATS = {
    "n_running": 3,
    "n_waiting": 2,
    "n_blocks_total": 200,
    "n_blocks_free": 150,
    "rss_bytes": 4096,
}


def _engine(state: str = "ready", *, pong_age_s: float | None = 1.0, **fields: Any) -> Any:
    pong_at = None if pong_age_s is None else NOW - timedelta(seconds=pong_age_s)
    pid = None if state in ("stopped", "failed", "backing_off") else 42
    fields = {"stats": STATS, **fields}
    return EngineProcess(pk=1, name="e-0", state=state, pid=pid, last_pong_at=pong_at, **fields)


@pytest.mark.parametrize(
    ("state", "said"), [("ready", "Asleep"), ("draining", "Draining"), ("stopped", "Stopped")]
)
def test_an_engine_that_sleeps_is_said_to_and_counts_as_ready(state: str, said: str) -> None:
    engine = _engine(state, stats=STATS | {"is_asleep": True})
    assert engine.state_said == said
    assert said in STATE_LABELS
    assert engine_card(engine, now=NOW).label == said
    if state == "ready":
        assert (_card(engine).label, _card(engine).n_ready) == ("Asleep", 1)
        assert _card(engine).tone == engine_card(engine, now=NOW).tone == "good"
        assert _card(engine, _engine(), n_replicas=2).label == "Ready"
        assert _card(_engine(stats=engine.stats, pong_age_s=60)).label == "Silent"


def test_an_engine_that_waits_for_memory_is_said_to() -> None:
    """To start, or to wake for a request."""
    asleep = STATS | {"is_asleep": True}
    wakes = _engine(stats=asleep | {"waits_for_memory": True})
    for engine in (_engine("waiting"), wakes):
        assert engine.state_said == "Waiting for memory"
        assert engine.state_said in STATE_LABELS
        assert engine_card(engine, now=NOW).label == "Waiting for memory"
        assert _card(engine).label == "Waiting for memory"
        assert _card(engine).tone == "busy"
    assert _card(wakes, _engine(stats=asleep), n_replicas=2).label == "Waiting for memory"
    assert _card(wakes, _engine(), n_replicas=2).label == "Ready", "one is awake"
    works_on = _engine(stats=STATS | {"is_asleep": False, "waits_for_memory": True})
    assert works_on.state_said == "Ready"


def _card(*engines: Any, desired: str = "running", n_replicas: int = 1, name: str = "d") -> Any:
    replicas = [
        SimpleNamespace(engine_process=engine, index=index, refusal="")
        for index, engine in enumerate(engines)
    ]
    row = SimpleNamespace(
        pk=1,
        name=name,
        model_name="smollm2 v1",
        desired_state=desired,
        get_desired_state_display=lambda: Deployment.DesiredState(desired).label,
        n_replicas=n_replicas,
        replicas=SimpleNamespace(all=lambda: replicas),
    )
    return deployment_card(row, route_names=["chat"], now=NOW)  # type: ignore[arg-type]


def test_a_ready_engine_shows_its_last_figures() -> None:
    card = engine_card(_engine(n_restarts=2), now=NOW)
    assert (card.label, card.tone) == ("Ready", "good")
    assert (card.n_running, card.n_waiting) == (3, 2)
    assert (card.n_blocks_used, card.n_blocks_total, card.blocks_percent) == (50, 200, 25)
    assert (card.pong_age_s, card.n_restarts, card.rss_bytes) == (1.0, 2, 4096)


def test_an_engine_that_is_gone_holds_nothing() -> None:
    card = engine_card(_engine("backing_off", last_error="exit code 1"), now=NOW)
    assert (card.label, card.tone, card.last_error) == ("Backing off", "warn", "exit code 1")
    assert (card.n_running, card.n_waiting, card.n_blocks_used, card.blocks_percent) == (0, 0, 0, 0)


def test_an_engine_that_waits_for_its_files_says_how_far_they_are() -> None:
    fetching = _engine("fetching", n_fetched_bytes=3 << 20, n_fetch_bytes=8 << 20)
    card = engine_card(fetching, now=NOW)
    assert (card.label, card.tone) == ("Fetching", "busy")
    assert card.fetch_said.replace("\xa0", " ") == "3.0 MB of 8.0 MB fetched"
    assert _card(fetching).label == "Starting"
    assert engine_card(_engine("starting"), now=NOW).fetch_said == ""


@pytest.mark.parametrize("pong_age_s", [15.5, None])
def test_a_ready_engine_of_which_nothing_is_heard_is_silent(pong_age_s: float | None) -> None:
    card = engine_card(_engine(pong_age_s=pong_age_s), now=NOW)
    assert (card.label, card.tone) == ("Silent", "warn")
    assert _card(_engine(pong_age_s=pong_age_s)).label == "Silent"


@pytest.mark.parametrize(
    ("states", "desired", "label", "tone", "n_ready"),
    [
        (["ready", "ready"], "running", "Ready", "good", 2),
        (["ready", "starting"], "running", "Degraded", "warn", 1),
        (["starting"], "running", "Starting", "busy", 0),
        (["failed"], "running", "Failed", "bad", 0),
        (["backing_off"], "running", "Failing", "bad", 0),
        (["crash_loop"], "running", "Crash loop", "bad", 0),
        ([], "running", "Starting", "busy", 0),
        (["draining"], "stopped", "Stopping", "warn", 0),
        ([], "stopped", "Stopped", "off", 0),
    ],
)
def test_verdict(states: list[str], desired: str, label: str, tone: str, n_ready: int) -> None:
    card = _card(
        *[_engine(state) for state in states], desired=desired, n_replicas=max(1, len(states))
    )
    assert (card.label, card.tone, card.n_ready) == (label, tone, n_ready)


def test_what_needs_a_look_comes_first() -> None:
    cards: list[DeploymentCard] = [
        _card(desired="stopped", name="a"),
        _card(_engine(), name="c"),
        _card(_engine(), name="b"),
        _card(_engine("failed"), name="d"),
    ]
    assert [card.name for card in by_urgency(cards)] == ["d", "b", "c", "a"]


def test_overall() -> None:
    ready, failed, stopped = _card(_engine()), _card(_engine("failed")), _card(desired="stopped")
    assert overall([]) == ("Nothing is deployed yet", "off")
    assert overall([stopped]) == ("Every deployment is stopped", "off")
    assert overall([ready, stopped]) == ("All deployments are ready", "good")
    assert overall([ready, failed]) == ("1 of 2 deployments ready", "bad")
    assert overall([_card(_engine("starting"))]) == ("0 of 1 deployments ready", "busy")

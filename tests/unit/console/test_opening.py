"""When a start has nothing left to wait for, and what it then says."""

import pytest

from apps.console.bootstrap import Access
from apps.console.management.commands.serve import banner
from apps.console.opening import is_settled
from apps.deployments.types import LiveState


def state(word: str, *, n_restarts: int = 0) -> LiveState:
    return LiveState(word=word, n_ready=0, n_replicas=1, n_restarts=n_restarts, last_error="")


FAILED, STARTING, READY = state("Failed"), state("Starting"), state("Ready")


@pytest.mark.parametrize(
    ("states", "answers", "expected"),
    [
        ({}, {}, True),
        ({"a": STARTING}, {"a": "no engine is ready"}, False),
        ({"a": READY}, {"a": "ok"}, True),
        ({"a": READY}, {}, False),
        ({"a": FAILED}, {"a": "no engine is ready"}, True),
        ({"a": FAILED, "b": STARTING}, {"b": "no engine is ready"}, False),
        ({"a": FAILED, "b": READY}, {"a": "no engine is ready", "b": "ok"}, True),
        ({"a": state("Failing", n_restarts=2)}, {}, False),
        ({"a": state("Failing", n_restarts=3)}, {}, True),
        ({"a": state("Crash loop")}, {}, True),
    ],
)
def test_one_that_failed_keeps_nobody_from_waiting_for_the_others(
    states: dict[str, LiveState], answers: dict[str, str], expected: bool
) -> None:
    assert is_settled(states, answers=answers) is expected


def test_the_banner_has_a_command_only_where_a_model_answers() -> None:
    access = Access(
        base_url="http://h/v1", ws_url="ws://h", api_token="t", admin_user="a", admin_password=None
    )
    with_model = banner(access, origin="h", file="f", model="m")
    assert "curl http://h/v1/chat/completions" in with_model
    assert '"model": "m"' in with_model
    without = banner(access, origin="h", file="f", model="")
    assert "curl" not in without
    assert "No model answers" in without

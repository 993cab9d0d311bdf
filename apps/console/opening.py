"""Waits until the house that was just started gives a client an answer."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Final

from apps.console.probe import Answer, chat, http_get
from apps.core.hop import database_hop
from apps.deployments.selectors import deployments_all, live_state
from apps.deployments.types import LiveState
from apps.monitoring.selectors import OK
from apps.routing.selectors import snapshot

Report = Callable[[str], None]

_POLL_S: Final = 0.1
_CHAT_TIMEOUT_S: Final = 120.0
# An engine that failed this often will hardly come up while somebody waits.
_HOPELESS_RESTARTS: Final = 3


async def wait_until_open(*, host: str, port: int, token: str, report: Report) -> str:
    """Return the name of a model that was chatted with; empty when there is none to ask.

    What stays broken is reported, and the wait ends: the admin is there to repair it.
    """
    said: dict[str, str] = {}
    while True:
        ready = await http_get(host, port, "/readyz", timeout_s=5)
        states = await database_hop(_running)
        for name, state in states.items():
            if said.get(name) != state.word:
                said[name] = state.word
                report(f"  deployment {name}: {state.word.lower()}")
        if ready is not None and is_settled(states, answers=_answers(ready)):
            for name, state in states.items():
                if _is_hopeless(state):
                    report(f"Deployment {name} does not come up: {state.last_error}")
            return await _round_trip(host=host, port=port, token=token, report=report)
        await asyncio.sleep(_POLL_S)


def is_settled(states: Mapping[str, LiveState], *, answers: Mapping[str, str]) -> bool:
    """Whether nothing is left to wait for: each deployment answers the server or is hopeless."""
    return all(answers.get(name) == OK or _is_hopeless(state) for name, state in states.items())


def _answers(ready: Answer) -> Mapping[str, str]:
    """Return what the server said of each deployment."""
    try:
        found = json.loads(ready.body)["deployments"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


async def _round_trip(*, host: str, port: int, token: str, report: Report) -> str:
    model = await database_hop(_route_to_ask)
    if not model:
        return ""
    answer = await chat(host, port, token=token, model=model, timeout_s=_CHAT_TIMEOUT_S)
    if answer is None or answer.status != 200:
        said = "nothing" if answer is None else f"{answer.status} {answer.text()[:500]}"
        report(f"A first chat with {model} was not answered: {said}")
    return model


def _running() -> Mapping[str, LiveState]:
    states = {deployment.name: live_state(deployment) for deployment in deployments_all()}
    ending = ("Draining", "Stopping", "Stopped")
    return {name: state for name, state in states.items() if state.word not in ending}


def _route_to_ask() -> str:
    current = snapshot()
    answered = (
        name
        for name, model in current.routes.items()
        if model.task == "generate" and current.is_ready(model)
    )
    return min(answered, default="")


def _is_hopeless(state: LiveState) -> bool:
    restarts = state.word == "Failing" and state.n_restarts >= _HOPELESS_RESTARTS
    return state.word in ("Failed", "Crash loop") or restarts

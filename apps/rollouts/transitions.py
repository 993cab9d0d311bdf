"""Which way a rollout can go from where it is. Pure: it knows no rows and no clock, only what
happened and what was planned."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from apps.rollouts.exceptions import RolloutConflict
from apps.rollouts.types import Approval, State

Event = Literal[
    "approved", "step_passed", "guardrail_breached", "candidate_lost", "paused", "resumed",
    "aborted",
]  # fmt: skip
TERMINAL: Final = frozenset({"completed", "rolled_back", "aborted"})

_ALREADY: Final[dict[str, str]] = {
    "completed": "The rollout is completed.",
    "rolled_back": "The rollout was rolled back.",
    "aborted": "The rollout was aborted.",
}
_AS_IT_IS: Final[dict[str, str]] = {
    "pending": "It waits for approval to start.",
    "running": "It is running.",
    "awaiting": "It waits for approval of its next step.",
    "paused": "It is paused.",
}
_ASKED: Final[dict[str, str]] = {
    "approved": "There is nothing to approve",
    "step_passed": "No step can pass",
    "guardrail_breached": "Nothing can be rolled back",
    "candidate_lost": "Nothing can be rolled back",
    "paused": "It cannot be paused",
    "resumed": "There is nothing to resume",
    "aborted": "It cannot be aborted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was agreed at the start. n_steps: at least 1, the last of them everything."""

    n_steps: int
    approval: Approval = "automatic"
    needs_second_person: bool = False

    def waits_before(self, step: int) -> bool:
        """Return whether somebody has to approve that step."""
        return self.approval == "each" or (self.approval == "last" and step == self.n_steps - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a rollout is. step: of those planned, from 0; the last that there was, once it has
    ended. paused_from: what it is resumed to; None unless it is paused."""

    state: State
    step: int = 0
    paused_from: State | None = None

    @property
    def has_traffic(self) -> bool:
        """Whether the new version gets a share by the rollout's doing."""
        return self.state in ("running", "awaiting", "paused")


def begun(plan: Plan) -> Position:
    """Return where a rollout begins."""
    return Position(state="pending" if plan.needs_second_person else "running")


def moved(position: Position, event: Event, plan: Plan) -> Position:
    """Return where an event leads.

    Raises:
        RolloutConflict: it leads nowhere from here; says why, for the person who asked.
    """
    after = _ended(position, event) or _forward(position, event, plan) or _held(position, event)
    if after is None:
        now = _ALREADY.get(position.state) or _AS_IT_IS[position.state]
        raise RolloutConflict(f"{_ASKED[event]}: {now[0].lower()}{now[1:]}")
    return after


def _ended(position: Position, event: Event) -> Position | None:
    if event == "aborted" and position.state not in TERMINAL:
        return replace(position, state="aborted", paused_from=None)
    if event in ("guardrail_breached", "candidate_lost") and position.has_traffic:
        return replace(position, state="rolled_back", paused_from=None)
    return None


def _forward(position: Position, event: Event, plan: Plan) -> Position | None:
    if event == "approved" and position.state == "pending":
        return replace(position, state="running")
    if event == "approved" and position.state == "awaiting":
        return replace(position, state="running", step=position.step + 1)
    if event == "step_passed" and position.state == "running":
        following = position.step + 1
        if following == plan.n_steps:
            return replace(position, state="completed")
        if plan.waits_before(following):
            return replace(position, state="awaiting")
        return replace(position, step=following)
    return None


def _held(position: Position, event: Event) -> Position | None:
    if event == "paused" and position.state in ("running", "awaiting"):
        return replace(position, state="paused", paused_from=position.state)
    if event == "resumed" and position.state == "paused" and position.paused_from is not None:
        return replace(position, state=position.paused_from, paused_from=None)
    return None

"""Which way a rollout can go: nothing leads out of an end, and a pause changes nothing."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.rollouts.exceptions import RolloutConflict
from apps.rollouts.transitions import TERMINAL, Event, Plan, Position, begun, moved
from apps.rollouts.types import Approval, State

EVENTS: tuple[Event, ...] = get_args(Event)
PLANS = st.builds(
    Plan,
    n_steps=st.integers(1, 5),
    approval=st.sampled_from(get_args(Approval)),
    needs_second_person=st.booleans(),
)


def walked(plan: Plan, events: list[Event]) -> list[Position]:
    """Return every position on the way; what is refused leads nowhere."""
    positions = [begun(plan)]
    for event in events:
        try:
            positions.append(moved(positions[-1], event, plan))
        except RolloutConflict as refused:
            assert refused.message
    return positions


@given(PLANS, st.lists(st.sampled_from(EVENTS), max_size=30))
def test_every_walk_is_whole(plan: Plan, events: list[Event]) -> None:
    positions = walked(plan, events)
    for before, after in pairwise(positions):
        assert before.state not in TERMINAL
        assert before != after
        assert before.step <= after.step <= before.step + 1
    for position in positions:
        assert 0 <= position.step < plan.n_steps
        assert (position.paused_from is not None) is (position.state == "paused")
    last = positions[-1]
    if last.state == "completed":
        assert last.step == plan.n_steps - 1


@given(PLANS, st.lists(st.sampled_from(EVENTS), max_size=30))
def test_a_pause_changes_nothing(plan: Plan, events: list[Event]) -> None:
    for position in walked(plan, events):
        if position.state in ("running", "awaiting"):
            paused = moved(position, "paused", plan)
            assert moved(paused, "resumed", plan) == position


@given(PLANS, st.sampled_from(sorted(TERMINAL)), st.sampled_from(EVENTS))
def test_nothing_leads_out_of_an_end(plan: Plan, state: State, event: Event) -> None:
    ended = Position(state=state, step=plan.n_steps - 1)
    with pytest.raises(RolloutConflict):
        moved(ended, event, plan)


@given(PLANS, st.lists(st.sampled_from(EVENTS), max_size=30))
def test_a_step_that_waits_is_entered_by_approval_only(plan: Plan, events: list[Event]) -> None:
    position = begun(plan)
    for event in events:
        try:
            after = moved(position, event, plan)
        except RolloutConflict:
            continue
        entered = after.has_traffic and (after.step > position.step or not position.has_traffic)
        if entered and (plan.waits_before(after.step) or not position.has_traffic):
            assert event == "approved"
        position = after


def test_each_state_is_reached() -> None:
    plan = Plan(n_steps=2, approval="each", needs_second_person=True)
    reached: set[Position] = {begun(plan)}
    while True:
        found = {
            after
            for position in reached
            for event in EVENTS
            for after in _after(position, event, plan)
        }
        if found <= reached:
            break
        reached |= found
    assert {position.state for position in reached} == set(get_args(State))


def _after(position: Position, event: Event, plan: Plan) -> list[Position]:
    try:
        return [moved(position, event, plan)]
    except RolloutConflict:
        return []


@pytest.mark.parametrize(
    ("state", "event", "said"),
    [
        ("running", "approved", "There is nothing to approve: it is running."),
        ("running", "resumed", "There is nothing to resume: it is running."),
        ("pending", "paused", "It cannot be paused: it waits for approval to start."),
        (
            "pending",
            "candidate_lost",
            "Nothing can be rolled back: it waits for approval to start.",
        ),
        ("awaiting", "step_passed", "No step can pass: it waits for approval of its next step."),
        ("completed", "aborted", "It cannot be aborted: the rollout is completed."),
    ],
)
def test_what_cannot_be_is_said(state: State, event: Event, said: str) -> None:
    with pytest.raises(RolloutConflict) as refused:
        moved(Position(state=state), event, Plan(n_steps=3))
    assert (refused.value.message, refused.value.status) == (said, 409)

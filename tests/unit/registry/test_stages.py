"""The table of stages: what leads where, and on whose word."""

from itertools import product

import pytest

from apps.registry.exceptions import StageMoveRefused
from apps.registry.stages import APPROVE, CHANGE, MOVES, move_permission
from apps.registry.types import Stage

BY_HAND = {
    ("verified", "approved"): APPROVE,
    ("approved", "verified"): APPROVE,
    ("approved", "retired"): APPROVE,
    ("draft", "retired"): CHANGE,
    ("verified", "draft"): CHANGE,
    ("verified", "retired"): CHANGE,
    ("retired", "draft"): CHANGE,
}


@pytest.mark.parametrize(("before", "after"), list(product(Stage.values, Stage.values)))
def test_a_move_by_hand_is_in_the_table_or_refused(before: str, after: str) -> None:
    if (before, after) in BY_HAND:
        assert move_permission(Stage(before), Stage(after)) == BY_HAND[before, after]
        return
    with pytest.raises(StageMoveRefused) as caught:
        move_permission(Stage(before), Stage(after))
    assert (caught.value.param, caught.value.code) == ("stage", "stage_move_refused")


def test_a_refusal_says_what_there_is() -> None:
    with pytest.raises(
        StageMoveRefused, match="approved cannot become draft; it can become verified or retired"
    ):
        move_permission(Stage.APPROVED, Stage.DRAFT)
    with pytest.raises(StageMoveRefused, match="by a verification that it passes"):
        move_permission(Stage.DRAFT, Stage.VERIFIED)


def test_every_stage_is_reached_and_left() -> None:
    assert {after for _, after in MOVES} == set(Stage)
    assert {before for before, _ in MOVES} == set(Stage)

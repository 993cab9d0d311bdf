"""Which stage of its life a version may go to, and on whose word. A table, and nothing else."""

from collections.abc import Mapping
from typing import Final

from apps.registry.exceptions import StageMoveRefused
from apps.registry.types import Stage

CHANGE: Final = "registry.change_modelversion"
APPROVE: Final = "registry.approve_modelversion"
# Nobody says so by hand: a verification that passed does.
BY_VERIFICATION: Final = ""

MOVES: Final[Mapping[tuple[Stage, Stage], str]] = {
    (Stage.DRAFT, Stage.VERIFIED): BY_VERIFICATION,
    (Stage.DRAFT, Stage.RETIRED): CHANGE,
    (Stage.VERIFIED, Stage.APPROVED): APPROVE,
    (Stage.VERIFIED, Stage.DRAFT): CHANGE,
    (Stage.VERIFIED, Stage.RETIRED): CHANGE,
    (Stage.APPROVED, Stage.VERIFIED): APPROVE,
    (Stage.APPROVED, Stage.RETIRED): APPROVE,
    (Stage.RETIRED, Stage.DRAFT): CHANGE,
}


def move_permission(before: Stage, after: Stage) -> str:
    """Return what somebody must be allowed to do for a move by hand.

    Raises:
        StageMoveRefused: there is no such move, or none by hand.
    """
    permission = MOVES.get((before, after))
    if permission is None:
        starts = [(to, by) for (start, to), by in MOVES.items() if start is before]
        ways = [to.label.lower() for to, by in starts if by]
        raise StageMoveRefused(
            f"A version that is {before.label.lower()} cannot become {after.label.lower()}; "
            f"it can become {' or '.join(ways)}."
        )
    if permission == BY_VERIFICATION:
        raise StageMoveRefused("A draft becomes verified by a verification that it passes.")
    return permission

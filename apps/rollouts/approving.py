"""Who is kept from approving a rollout, whatever they hold: permissions are the doors' to ask."""

from typing import TYPE_CHECKING

from apps.audit.types import Actor

if TYPE_CHECKING:
    from apps.rbac.models import User
    from apps.rollouts.models import Rollout


def approval_refused(rollout: "Rollout", *, by: "User | None", actor: Actor | None) -> str | None:
    """Return why this person may not approve, whatever their permissions; None where they may."""
    if by is None:
        if rollout.needs_second_person or (actor is not None and actor.kind == "token"):
            return "Only somebody can approve it: a token of nobody cannot."
        return None
    if rollout.needs_second_person and by.pk == rollout.started_by_id:
        return "You started it; somebody else has to approve it."
    return None

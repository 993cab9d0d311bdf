"""Who is kept from approving a rollout, whatever they hold: permissions are the doors' to ask."""

from typing import TYPE_CHECKING

from apps.audit.types import Actor
from apps.rbac.selectors import is_themselves

if TYPE_CHECKING:
    from apps.rbac.models import User
    from apps.rollouts.models import Rollout


def approval_refused(rollout: "Rollout", *, by: "User | None", actor: Actor | None) -> str | None:
    """Return why this person may not approve, whatever their permissions; None where they may.
    actor: None where they look at a page."""
    if by is None and (rollout.needs_second_person or (actor and actor.kind == "token")):
        return "Only somebody can approve it: a token of nobody cannot."
    if not rollout.needs_second_person:
        return None
    if by is not None and by.pk == rollout.started_by_id:
        return "You started it; somebody else has to approve it."
    if not is_known(by, actor=actor):
        return f"Two persons are needed, and {UNKNOWN}."
    return None


def is_known(by: "User | None", *, actor: Actor | None) -> bool:
    """Return whether it is certain who acts, so that two of them are two persons."""
    token_id = actor.id if actor is not None and actor.kind == "token" else None
    return is_themselves(by, api_token_id=token_id)


UNKNOWN = (
    "a service account, or a token that somebody else has made, does not say which person it is"
)

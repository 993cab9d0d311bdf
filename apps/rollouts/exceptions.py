"""Why a rollout cannot be started or moved."""

from apps.core.exceptions import Conflict, PermissionDenied


class RolloutConflict(Conflict):
    """Somebody else has moved it meanwhile, or its state does not allow what was asked for."""

    default_code = "rollout_conflict"
    default_message = "The rollout was changed by someone else."


class SecondPersonNeeded(PermissionDenied):
    default_code = "second_person_needed"
    default_message = "Somebody else than who started it has to approve it."

"""Why a judge cannot be changed."""

from apps.core.exceptions import Conflict


class JudgeConflict(Conflict):
    """Somebody else has changed it meanwhile, or it has scored by what was to change."""

    default_code = "judge_conflict"
    default_message = "The judge was changed by someone else."

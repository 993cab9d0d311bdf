"""Why an experiment cannot be changed."""

from apps.core.exceptions import Conflict


class ExperimentConflict(Conflict):
    """Somebody else has changed it meanwhile, or its state does not allow what was asked for."""

    default_code = "experiment_conflict"
    default_message = "The experiment was changed by someone else."

"""Refuses a standing that would upset the queue."""

import math
from typing import Final

from engine_service.errors import RequestError
from engine_service.protocol import Standing

MIN_WEIGHT: Final = 0.001
MAX_WEIGHT: Final = 1000.0
MAX_PRIORITY: Final = 100
MAX_TENANT_CHARS: Final = 256


def check_standing(standing: Standing) -> None:
    """Raises RequestError, which names the field."""
    # Written as what must hold, because every comparison with NaN is false.
    if not MIN_WEIGHT <= standing.weight <= MAX_WEIGHT:
        raise _wrong_standing("weight", f"from {MIN_WEIGHT} to {MAX_WEIGHT}")
    if not -MAX_PRIORITY <= standing.priority <= MAX_PRIORITY:
        raise _wrong_standing("priority", f"from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    if standing.deadline_s is not None and not 0.0 < standing.deadline_s < math.inf:
        raise _wrong_standing("deadline_s", "positive")
    if len(standing.tenant) > MAX_TENANT_CHARS:
        raise _wrong_standing("tenant", f"at most {MAX_TENANT_CHARS} characters")


def _wrong_standing(name: str, expected: str) -> RequestError:
    return RequestError(f"{name} must be {expected}.", code="invalid_value", param=name)

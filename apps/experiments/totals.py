"""How many subjects and requests the totals of arms say there are."""

from apps.experiments.judging import Ground
from apps.experiments.metrics import REQUESTS
from apps.experiments.models import Variant
from apps.experiments.tallies import CROSSED


def n_subjects_of(ground: Ground, variant: Variant, segment: str = "") -> int:
    return ground.total(variant, REQUESTS, segment).n


def n_requests_of(ground: Ground, variant: Variant) -> int:
    return ground.total(variant, REQUESTS).y


def n_crossed_of(ground: Ground, variant: Variant) -> int:
    """Return how many subjects began in an arm and were seen in another one too."""
    return ground.total(variant, CROSSED).n

"""How far from nothing an estimate must be, whenever one looks: Robbins' normal mixture.

A standardised estimate whose information grows is a Brownian motion W. For any fixed scale, the
mixture of exp(l W - l^2 t / 2) over normal l is a martingale that starts at 1 and reaches 1/alpha
with probability alpha at most (Ville). Where it does is this boundary. What is called a ratio here
is the information at hand over that of the mixture's prior: it grows with the units, and the
boundary is narrowest, in units of the standard error, where it is ``tuned_ratio``.
"""

from math import exp, inf, log, sqrt
from typing import Final

TUNING_ALPHA: Final = 0.05  # the scale is one for all levels, so that p-values have no level


def tuned_ratio(n_mixed: int) -> float:
    """Return the ratio at which a mixture over so many parameters is narrowest.

    It is the minimum of (1 + r) / r * (n log(1 + r) - 2 log alpha) over r.
    """
    ratio = 1.0
    for _ in range(60):
        ratio = log(1 + ratio) - 2 * log(TUNING_ALPHA) / n_mixed
    return ratio


MEANS_RATIO: Final = tuned_ratio(1)  # the difference is mixed over
RATES_RATIO: Final = tuned_ratio(2)  # the rates of both arms are


def equal_units(n_control: float, n_treatment: float) -> float:
    """Return how many units in two equal arms, both together, tell as much as these."""
    total = n_control + n_treatment
    return 4 * n_control * n_treatment / total if total else 0.0


def radius(ratio: float, *, alpha: float, n_mixed: int = 1) -> float:
    """Return how many standard errors from nothing is too far, at any time."""
    if ratio <= 0:
        return inf
    return sqrt((1 + ratio) / ratio * (n_mixed * log(1 + ratio) - 2 * log(alpha)))


def always_valid_p(z: float, ratio: float) -> float:
    """Return the least level at which so many standard errors are too far, 1 at most."""
    return min(1.0, sqrt(1 + ratio) * exp(-z * z * ratio / (2 * (1 + ratio))))

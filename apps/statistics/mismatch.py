"""Whether arms have the sizes that their shares say: a sequential sample-ratio mismatch."""

from collections.abc import Sequence
from math import exp, lgamma, log
from typing import Final

# How near the shares the prior of the alternative lies: deviations of a hundredth of a share, and
# gross ones, which the first alone would take thousands of units to believe.
CONCENTRATION: Final = 10_000
COARSE: Final = 100


def mismatch_p_value(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Return the always-valid p-value of: units fall to the arms by these shares.

    Lindon and Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022): the
    likelihood under a Dirichlet mixture around the shares, over that under the shares; here of two
    such mixtures, a half of each, which is one too. It may be looked at after every unit. counts:
    units of each arm since the shares were last changed, each once. shares: positive, in any unit.
    Raises ValueError for lists that do not fit each other, a share that is not positive and a
    negative count.
    """
    if len(counts) != len(shares) or not shares:
        raise ValueError("every arm has a count and a share")
    if min(shares) <= 0 or min(counts) < 0:
        raise ValueError("shares are positive and counts not negative")
    fine, coarse = (_evidence(counts, shares, each) for each in (CONCENTRATION, COARSE))
    most = max(fine, coarse)
    evidence = most + log((exp(fine - most) + exp(coarse - most)) / 2)
    return exp(-evidence) if evidence > 0 else 1.0


def _evidence(counts: Sequence[int], shares: Sequence[float], concentration: float) -> float:
    """Return the logarithm of the likelihood ratio."""
    whole, n = sum(shares), sum(counts)
    evidence = lgamma(concentration) - lgamma(concentration + n)
    for count, share in zip(counts, shares, strict=True):
        prior = concentration * share / whole
        evidence += lgamma(prior + count) - lgamma(prior) - count * log(share / whole)
    return evidence

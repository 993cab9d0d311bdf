"""Which weights a route might get when a deployment joins it. Pure."""

from collections.abc import Sequence
from typing import Final

WHOLE: Final = 100
# What is offered to a newcomer, in percent; the first unless somebody says so.
SHARES: Final = (10, 30, 50, 100)


def weights_proposed(weights: Sequence[int], *, share: int) -> tuple[int, ...]:
    """Return weights for those that there are and, last, for a newcomer that gets ``share`` percent
    of all. They sum to 100; the others keep the proportion that they have among themselves, as
    nearly as whole numbers can (largest remainders). Where none of them has a weight, the newcomer
    gets everything."""
    together = sum(weights)
    if not together:
        return (*weights, WHOLE)
    left = WHOLE - share
    whole = [left * weight // together for weight in weights]
    by_rest = sorted(range(len(weights)), key=lambda n: (-(left * weights[n] % together), n))
    for number in by_rest[: left - sum(whole)]:
        whole[number] += 1
    return (*whole, share)


def shares_said(weights: Sequence[tuple[str, int]]) -> str:
    """Say which share each gets by its weight."""
    together = sum(weight for _, weight in weights)
    if not together:
        return "nobody gets anything"
    return ", ".join(f"{name} {100 * weight / together:.1f} %" for name, weight in weights)

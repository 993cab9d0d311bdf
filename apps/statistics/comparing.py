"""Two arms side by side: the effect of the treatment, and how sure it is whenever one looks."""

from dataclasses import dataclass
from math import exp
from typing import Literal

from apps.statistics.means import MICRO, compare_means
from apps.statistics.moments import Moments
from apps.statistics.rates import compare_rates

Kind = Literal["rate", "mean", "log_mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is known of one metric, treatment against control.

    ``control`` and ``treatment`` are the metric as observed: y/x for a rate or a mean, exp(y/x/1e6)
    for a log_mean; None without any x. ``effect`` is relative (0.05: 5 % more); ``low`` and
    ``high`` hold it, -1 to inf. ``difference`` and its bounds are in the metric's own unit. All
    bounds are confidence sequences: with probability 1 - alpha they are right at every look, and
    one may stop at any. ``p_value`` is of no difference, valid at any look too. ``is_reduced``:
    the estimates are adjusted by what the units did before (CUPED), so that they are not exactly
    the quotient and the difference of the values observed.

    None stands for what cannot be said: all of it while there are too few units, the relative
    effect where an arm's mean is not positive. A rate of a control without any success has an
    effect of inf (0 if the treatment has none either), with bounds.
    """

    control: float | None
    treatment: float | None
    effect: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_value: float | None
    n_control: int
    n_treatment: int
    is_reduced: bool


def compare(
    control: Moments, treatment: Moments, *, kind: Kind, alpha: float, planned_units: int
) -> Comparison:
    """Compare two arms at this moment.

    planned_units: units of both arms together at which the bounds are to be narrowest, as of two
    equal arms (``boundary.equal_units`` says what unequal ones count); it must not be changed by
    what was seen. Too many or too few cost width, never validity. Raises ValueError for a level
    or a plan that is none, and for rates outside 0 to 1.
    """
    if not 0 < alpha < 1:
        raise ValueError("alpha lies between 0 and 1")
    if planned_units < 1:
        raise ValueError("planned_units is at least 1")
    if kind == "rate":
        found = compare_rates(control, treatment, alpha=alpha, planned_units=planned_units)
    else:
        found = compare_means(
            control, treatment,
            is_log=kind == "log_mean", alpha=alpha, planned_units=planned_units,
        )  # fmt: skip
    return Comparison(
        control=metric_value(control, kind),
        treatment=metric_value(treatment, kind),
        effect=found.effect,
        low=found.low,
        high=found.high,
        difference=found.difference,
        difference_low=found.difference_low,
        difference_high=found.difference_high,
        p_value=found.p_value,
        n_control=control.n,
        n_treatment=treatment.n,
        is_reduced=found.is_reduced,
    )


def metric_value(moments: Moments, kind: Kind) -> float | None:
    """Return the metric as observed, None without any denominator."""
    if moments.x <= 0:
        return None
    return exp(moments.y / moments.x / MICRO) if kind == "log_mean" else moments.y / moments.x

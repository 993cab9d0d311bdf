"""Verdicts in words, for each that there is."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from apps.experiments.results import ArmLine, Effect, MetricLine, Mismatch, Power, Verdict
from apps.experiments.verdicts import (
    breach_said,
    effect_said,
    mismatch_said,
    percent,
    signed,
    verdict_of,
)

EFFECT = Effect(
    arm="b", metric="latency", value=94.0, control=100.0, effect=-0.06, low=-0.09, high=-0.03,
    difference=-6.0, difference_low=-9.0, difference_high=-3.0, p_value=0.001, n_subjects=500,
    is_reduced=False, word="better", said="",
)  # fmt: skip
UNCLEAR = replace(EFFECT, effect=0.01, low=-0.04, high=0.07, difference=1.0, word="unclear")
SAME = replace(EFFECT, effect=0.0, low=-0.02, high=0.03, difference=0.1, word="same")
WORSE = replace(EFFECT, effect=0.2, low=0.1, high=0.3, difference=20.0, word="worse")
NOTHING = replace(
    EFFECT, effect=None, low=None, high=None, difference=None, p_value=None, word="nothing"
)
OK = Mismatch(counts={}, p_value=1.0, is_alarm=False, said="")
POWER = Power(
    n_subjects=1000, n_planned=2300, min_effect=0.05, power=0.8, detectable=0.08, n_more=1300,
    per_day=650.0, days=2.0,
)  # fmt: skip
CONTROL = ArmLine(
    id=1, name="control", is_control=True, weight=50, n_subjects=500, n_requests=900, n_crossed=0,
    share=0.5, expected=0.5,
)  # fmt: skip


def line(*effects: Effect, **changes: Any) -> MetricLine:
    whole = MetricLine(
        key="latency", label="Time of the whole answer", unit="ms", kind="log_mean", says="",
        role="primary", better="lower", tolerance=0.1, alpha=0.05, values={}, totals={},
        effects=effects,
    )  # fmt: skip
    return replace(whole, **changes)


def verdict(*metrics: MetricLine, **changes: Any) -> Verdict:
    return verdict_of(
        **{
            "state": "running", "stopped_because": "", "subject": "end_user", "arms": [CONTROL],
            "metrics": metrics, "breaches": (), "mismatch": OK, "power": POWER, **changes,
        }
    )  # fmt: skip


def test_better() -> None:
    found = verdict(line(EFFECT))
    assert found.headline == "b is better: Time of the whole answer is 3-9 % lower. You may stop."
    assert (found.tone, found.may_stop, found.best) == ("good", True, "b")


def test_the_best_of_several_is_named_first() -> None:
    other = replace(EFFECT, arm="c", effect=-0.2, low=-0.3, high=-0.1)
    found = verdict(line(EFFECT, other))
    assert found.headline.startswith("c is better: Time of the whole answer is 10-30 % lower.")
    assert found.best == "c"
    assert found.what_next == ("b is better than the control too.",)


def test_better_by_less_than_is_worth_it() -> None:
    found = verdict(line(replace(EFFECT, effect=-0.02, low=-0.03, high=-0.01)))
    assert found.what_next == ("It is less than the 5 % that are worth finding.",)


def test_not_clear() -> None:
    found = verdict(line(UNCLEAR))
    assert found.headline == (
        "Not clear yet in Time of the whole answer. b lies between -4 % and +7 %."
    )
    assert found.what_next == (
        "About 1,300 more subjects (2 days at the present rate) would find a difference of 5 % "
        "with a chance of 80 %.",
        "An arm whose whole interval is on the good side of 0 is better; one within ±5 % makes no "
        "difference that is worth finding.",
    )
    assert not found.may_stop


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (None, ""),
        (0.01, " (less than an hour"),
        (0.2, " (5 hours"),
        (1.2, " (1 day"),
        (30.4, " (30 days"),
    ],
)
def test_how_long_it_takes(days: float | None, said: str) -> None:
    (first, _) = verdict(line(UNCLEAR), power=replace(POWER, days=days)).what_next
    rest = " at the present rate)" if said else ""
    assert first.startswith(f"About 1,300 more subjects{said}{rest} would find")


def test_the_plan_is_reached() -> None:
    found = verdict(line(UNCLEAR), power=replace(POWER, n_more=0))
    assert found.what_next[0].startswith("The planned 2,300 subjects are reached")


def test_no_difference() -> None:
    found = verdict(line(SAME))
    assert found.headline == (
        "No difference of 5 % or more for the better in Time of the whole answer. b lies between "
        "-2 % and +3 %. You may stop."
    )
    assert (found.may_stop, found.best) == (True, None)


def test_worse() -> None:
    found = verdict(line(WORSE))
    assert found.headline == (
        "The control is better in Time of the whole answer. b: 10-30 % higher. You may stop."
    )
    assert (found.tone, found.may_stop, found.best) == ("warn", True, None)


def test_one_worse_and_one_open() -> None:
    found = verdict(line(WORSE, replace(UNCLEAR, arm="c")))
    assert found.headline.startswith("Not clear yet in")
    assert "b is worse: 10-" in found.headline
    assert "c lies between -4 % and +7 %." in found.headline


def test_too_little() -> None:
    found = verdict(line(NOTHING), power=replace(POWER, n_more=None, n_planned=None))
    assert found.headline.endswith("b: too little to say anything.")
    assert found.what_next[0] == "How many subjects it takes is known once the control has some."


def test_nobody() -> None:
    found = verdict(line(NOTHING), power=replace(POWER, n_subjects=0))
    assert found.headline == "Nobody has taken part."
    assert found.what_next == ("Its subjects are end users: requests have to name one in 'user'.",)


def test_a_mismatch_comes_before_everything() -> None:
    alarm = Mismatch(
        counts={}, p_value=1e-5, is_alarm=True,
        said=mismatch_said({"control": 300, "b": 100}, {"control": 0.5, "b": 0.5}, 1e-5),
    )  # fmt: skip
    crossed = replace(CONTROL, n_crossed=7)
    found = verdict(line(EFFECT), mismatch=alarm, arms=[crossed], breaches=("b breaks.",))
    assert found.headline == (
        "These results are not to be believed. control has 300 where 200 are expected, b has 100 "
        "where 200 are expected; by chance that comes once in 100,000 times at most."
    )
    assert "begin anew" in found.what_next[0]
    assert found.what_next[1] == "7 subjects were seen in more than one arm, and are left out."
    assert (found.tone, found.may_stop, found.best) == ("bad", False, None)


def test_a_broken_guardrail() -> None:
    guardrail = line(WORSE, key="error_rate", label="Error rate", role="guardrail", tolerance=0.05)
    said = breach_said(guardrail, WORSE)
    assert said.startswith("b breaks a guardrail: Error rate is 10-")
    assert said.endswith(" % higher; 5 % worse was allowed.")
    found = verdict(line(EFFECT), guardrail, breaches=(said,))
    assert found.headline == said
    assert found.best is None


def test_what_else_is_worse_is_told() -> None:
    cost = line(WORSE, key="cost", label="Cost per request", role="secondary")
    found = verdict(line(EFFECT), cost)
    assert found.best == "b"
    assert found.what_next[0].startswith("Mind that Cost per request of b is 10-")


def test_stopped() -> None:
    found = verdict(line(EFFECT), state="stopped", stopped_because="we know enough.")
    assert found.headline == (
        "b is better: Time of the whole answer is 3-9 % lower. It was stopped: we know enough."
    )


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (EFFECT, "Better: 3-9 % lower"),
        (UNCLEAR, "Not clear: between -4 % and +7 %"),
        (replace(UNCLEAR, high=inf), "Not clear: above -4 %"),
        (SAME, "No difference of 5 % or more"),
        (NOTHING, "Too little to say anything"),
        (replace(WORSE, effect=inf, low=0.4, high=inf), "Worse: at least 40 % higher"),
        (replace(EFFECT, low=-0.09, high=0.01), "Better: about 6 % lower"),
        (replace(EFFECT, effect=None, low=None, high=None), "Better: lower"),
    ],
)
def test_an_effect(effect: Effect, said: str) -> None:
    assert effect_said(effect, role="primary", min_effect=0.05) == said


def test_a_kept_guardrail() -> None:
    assert effect_said(SAME, role="guardrail", min_effect=0.1) == "Kept: between -2 % and +3 %"


def test_numbers() -> None:
    assert [percent(x) for x in (0.0, 0.0005, 0.0123, 0.5, inf)] == [
        "0 %", "0.05 %", "1.2 %", "50 %", "without bound",
    ]  # fmt: skip
    assert [signed(x) for x in (0.1, -0.1, 0.0)] == ["+10 %", "-10 %", "0 %"]

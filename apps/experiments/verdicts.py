"""Results in plain words: what is known, whether one may stop, and what would change it."""

from collections.abc import Sequence
from math import isfinite
from typing import Final

from apps.experiments.results import ArmLine, Effect, MetricLine, Mismatch, Power, Verdict

_SUBJECTS: Final = {
    "end_user": "end users: requests have to name one in 'user'",
    "token": "API tokens: requests of people in the playground have none",
    "conversation": "conversations: requests have to name one in X-Conversation-Id",
}
_MISMATCH_WHY: Final = (
    "Arms that fail before a request is written, rules that hold for one arm only, or a changed "
    "way of naming subjects do this. Find out which; then begin anew."
)


def verdict_of(
    *,
    state: str,
    stopped_because: str,
    subject: str,
    arms: Sequence[ArmLine],
    metrics: Sequence[MetricLine],
    breaches: Sequence[str],
    mismatch: Mismatch,
    power: Power,
) -> Verdict:
    """Say what came of an experiment. breaches: what guardrails found, in words."""
    if state == "draft":
        return _verdict("busy", "It has not started.", ("Start it; nothing is counted before.",))
    end = f" It was stopped: {stopped_because}" if state == "stopped" and stopped_because else ""
    if mismatch.is_alarm:
        headline = f"These results are not to be believed. {mismatch.said}{end}"
        return _verdict("bad", headline, (_MISMATCH_WHY, *_crossed(arms)))
    if not power.n_subjects:
        said = (f"Its subjects are {_SUBJECTS[subject]}.",) if state == "running" else ()
        return _verdict("busy", f"Nobody has taken part.{end}", said)
    if breaches:
        return _verdict("bad", f"{' '.join(breaches)}{end}", _crossed(arms), may_stop=True)
    primary = next((line for line in metrics if line.role == "primary"), None)
    if primary is None or not primary.effects:
        return _verdict("busy", f"There is nothing to compare.{end}", ())
    found = _decided(primary, power, state=state)
    return Verdict(
        tone=found.tone,
        headline=found.headline + end,
        what_next=(*found.what_next, *_side_effects(metrics), *_crossed(arms)),
        may_stop=found.may_stop,
        best=found.best,
    )


def effect_said(effect: Effect, *, role: str, min_effect: float) -> str:
    """Say what one effect comes to."""
    match effect.word:
        case "nothing":
            return "Too little to say anything"
        case "better" | "worse":
            return f"{effect.word.capitalize()}: {_change(effect)}"
        case "same" if role == "guardrail":
            return f"Kept: {_between(effect)}"
        case "same":
            return f"No difference of {percent(min_effect)} or more"
        case _:
            return f"Not clear: {_between(effect)}"


def mismatch_said(counts: dict[str, int], expected: dict[str, float], p_value: float) -> str:
    """Say how subjects fall to the arms. expected: shares, 0 to 1."""
    n = sum(counts.values())
    parts = ", ".join(
        f"{name} has {counts[name]:,} where {expected[name] * n:,.0f} are expected"
        for name in counts
    )
    if p_value >= 1:
        return f"{parts}." if n else "No subject has come since the weights were set."
    return f"{parts}; by chance that comes once in {1 / max(p_value, 1e-9):,.0f} times at most."


def breach_said(line: MetricLine, effect: Effect) -> str:
    """Say how an arm breaks a guardrail."""
    return (
        f"{effect.arm} breaks a guardrail: {line.label} is {_change(effect)}; "
        f"{percent(line.tolerance)} worse was allowed."
    )


def percent(value: float) -> str:
    """Say a part as percent, with as many digits as tell."""
    size = abs(100 * value)
    if not isfinite(size):
        return "without bound"
    text = f"{size:,.{0 if size >= 10 else 1 if size >= 1 else 2}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def _decided(primary: MetricLine, power: Power, *, state: str) -> Verdict:
    """Say what the primary metric tells, its guardrails being kept."""
    by_word: dict[str, list[Effect]] = {}
    for effect in primary.effects:
        by_word.setdefault(effect.word, []).append(effect)
    stop = " You may stop." if state == "running" else ""
    if better := by_word.get("better"):
        best = max(better, key=lambda each: abs(each.effect or 0.0))
        others = [f"{each.arm} is better than the control too." for each in better if each != best]
        headline = f"{best.arm} is better: {primary.label} is {_change(best)}.{stop}"
        small = _small(best, power)
        return _verdict("good", headline, (*others, *small), may_stop=True, best=best.arm)
    if len(by_word.get("worse", ())) == len(primary.effects):
        parts = " ".join(f"{each.arm}: {_change(each)}." for each in primary.effects)
        headline = f"The control is better in {primary.label}. {parts}{stop}"
        return _verdict("warn", headline, (), may_stop=True)
    open_ones = by_word.get("unclear", []) + by_word.get("nothing", [])
    if not open_ones:
        parts = " ".join(_open_said(each) for each in primary.effects)
        headline = (
            f"No difference of {percent(power.min_effect)} or more for the better in "
            f"{primary.label}. {parts}{stop}"
        )
        return _verdict(
            "warn", headline, ("A smaller least effect takes more subjects.",), may_stop=True
        )
    parts = " ".join(_open_said(each) for each in primary.effects)
    headline = f"Not clear yet in {primary.label}. {parts}"
    return _verdict("busy", headline, _what_next(power, state=state))


def _what_next(power: Power, *, state: str) -> tuple[str, ...]:
    change = (
        "An arm whose whole interval is on the good side of 0 is better; one within "
        f"±{percent(power.min_effect)} makes no difference that is worth finding."
    )
    if state != "running":
        return ("It has ended; a longer one could tell more.",)
    if power.n_more is None:
        return ("How many subjects it takes is known once the control has some.", change)
    if power.n_more == 0:
        return (
            f"The planned {power.n_planned:,} subjects are reached: a difference of "
            f"{percent(power.min_effect)} would have been found with a chance of "
            f"{percent(power.power)}. It may be stopped, or go on; both are valid.",
            change,
        )
    days = "" if power.days is None else f" ({_days(power.days)} at the present rate)"
    more = (
        f"About {_rounded(power.n_more)} more subjects{days} would find a difference of "
        f"{percent(power.min_effect)} with a chance of {percent(power.power)}."
    )
    return (more, change)


def _side_effects(metrics: Sequence[MetricLine]) -> tuple[str, ...]:
    return tuple(
        f"Mind that {line.label} of {effect.arm} is {_change(effect)}, which is worse."
        for line in metrics
        if line.role != "primary"
        for effect in line.effects
        if effect.word == "worse"
    )


def _crossed(arms: Sequence[ArmLine]) -> tuple[str, ...]:
    n = sum(arm.n_crossed for arm in arms)
    if not n:
        return ()
    return (f"{n:,} subjects were seen in more than one arm, and are left out.",)


def _small(effect: Effect, power: Power) -> tuple[str, ...]:
    if effect.low is None or effect.high is None:
        return ()
    if max(abs(effect.low), abs(effect.high)) < power.min_effect:
        return (f"It is less than the {percent(power.min_effect)} that are worth finding.",)
    return ()


def _open_said(effect: Effect) -> str:
    match effect.word:
        case "nothing":
            return f"{effect.arm}: too little to say anything."
        case "worse":
            return f"{effect.arm} is worse: {_change(effect)}."
        case _:
            return f"{effect.arm} lies {_between(effect)}."


def _change(effect: Effect) -> str:
    """Say a change whose direction is known: "3-9 % lower"."""
    is_higher = (effect.difference or 0.0) > 0
    word = "higher" if is_higher else "lower"
    if effect.effect is None:
        return word
    if effect.low is None or effect.high is None or effect.low < 0 < effect.high:
        return f"about {percent(effect.effect)} {word}"
    near, far = sorted((abs(effect.low), abs(effect.high)))
    if not isfinite(far):
        return f"at least {percent(near)} {word}"
    return f"{percent(near).removesuffix(' %')}-{percent(far)} {word}"


def _between(effect: Effect) -> str:
    if effect.low is None or effect.high is None:
        return "on either side of the control"
    if not isfinite(effect.high):
        return f"above {signed(effect.low)}"
    return f"between {signed(effect.low)} and {signed(effect.high)}"


def signed(value: float) -> str:
    text = percent(value)
    return text if text == "0 %" else f"{'+' if value > 0 else '-'}{text}"


def _days(days: float) -> str:
    if days < 1 / 24:
        return "less than an hour"
    if days < 1:
        return f"{max(1, round(days * 24))} hours"
    return f"{round(days)} days" if round(days) > 1 else "1 day"


def _rounded(n: int) -> str:
    """Say a number to two digits: nobody knows it better."""
    unit = 10 ** max(0, len(str(n)) - 2)
    return f"{-(-n // unit) * unit:,}"


def _verdict(
    tone: str,
    headline: str,
    what_next: tuple[str, ...] = (),
    *,
    may_stop: bool = False,
    best: str | None = None,
) -> Verdict:
    return Verdict(
        tone=tone,  # type: ignore[arg-type]
        headline=headline,
        what_next=what_next,
        may_stop=may_stop,
        best=best,
    )

"""Results as lines for a terminal."""

from collections.abc import Iterator

from apps.experiments.results import Effect, ExperimentResults, JudgeLine, MetricLine


def results_lines(results: ExperimentResults) -> Iterator[str]:
    """Yield the verdict, then each arm, then each metric with what the arms came to."""
    yield f"{results.name}, {results.state}: {results.verdict.headline}"
    yield from (f"   {line}" for line in results.verdict.what_next)
    if results.mismatch.is_alarm:
        yield f"   {results.mismatch.said}"
    yield ""
    for arm in results.arms:
        control = ", the control" if arm.is_control else ""
        yield (
            f"{arm.name}{control}: {arm.n_subjects:,} subjects ({arm.share:.1%}, "
            f"{arm.expected:.1%} wanted), {arm.n_requests:,} requests, {arm.n_crossed:,} crossed"
        )
    for metric in results.metrics:
        yield ""
        yield f"{metric.label} ({metric.role}, {metric.better} is better)"
        yield from _metric_lines(metric)
    for judge in results.judges:
        yield ""
        yield from _judge_lines(judge)


def _metric_lines(metric: MetricLine) -> Iterator[str]:
    effects = {each.arm: each for each in metric.effects}
    for name, value in metric.values.items():
        shown = "-" if value is None else f"{value:.6g} {metric.unit}".rstrip()
        yield f"   {name}: {shown}{_effect_said(effects.get(name))}"


def _judge_lines(judge: JudgeLine) -> Iterator[str]:
    yield f"{judge.name}: {judge.n_counted:,} scores counted here"
    if judge.is_gone:
        yield "   This judge was deleted, and its rubric with it."
        return
    yield (
        f"   of all answers that it took: {judge.n_scored:,} scored, {judge.n_failed:,} without a "
        f"score, {judge.n_waiting:,} wait"
    )
    for text in (judge.last_problem, judge.warning):
        if text:
            yield f"   {text}"
    yield f"   {judge.lowest} to {judge.highest}, by {judge.route}, which is told:"
    yield from (f"   | {line}" for line in judge.rubric.splitlines())


def _effect_said(effect: Effect | None) -> str:
    if effect is None:
        return ""
    if effect.effect is None or effect.low is None or effect.high is None:
        return f"  {effect.said}"
    return f"  {effect.effect:+.1%} ({effect.low:+.1%} to {effect.high:+.1%})  {effect.said}"

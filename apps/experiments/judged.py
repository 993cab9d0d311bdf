"""Experiments whose answers a model judges: which judges they name, whether those could score, what
is partial about them, and how far they are."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from apps.experiments.metrics import JUDGED_PREFIX
from apps.experiments.models import Experiment, ExperimentMetric, Variant
from apps.experiments.results import JudgeLine, MetricLine
from apps.experiments.types import Eligibility
from apps.judging.selectors import judge_problem, judges_by_name, samples_waiting
from apps.routing.selectors import snapshot as routing_snapshot
from apps.routing.selectors import targets_of
from apps.tenants.selectors import is_judging_allowed

if TYPE_CHECKING:
    from apps.judging.models import Judge
    from apps.routing.models import Route

State = Experiment.State


def judge_names_in(keys: Iterable[str]) -> list[str]:
    """Return the judges that metrics name by their keys, each once."""
    found = [key.removeprefix(JUDGED_PREFIX) for key in keys if key.startswith(JUDGED_PREFIX)]
    return list(dict.fromkeys(found))


def experiments_judged_by(name: str) -> list[str]:
    """Return the experiments that are not over and count what a judge of this name says."""
    rows = ExperimentMetric.objects.filter(metric=f"{JUDGED_PREFIX}{name}")
    rows = rows.exclude(experiment__state=State.STOPPED).order_by("experiment__name")
    names = rows.values_list("experiment__name", flat=True).distinct()
    return [f"experiment {each}" for each in names]


def judges_named(experiment: Experiment) -> list[str]:
    rows = ExperimentMetric.objects.filter(experiment=experiment)
    return judge_names_in(rows.values_list("metric", flat=True))


def judges_problem(names: Sequence[str]) -> str | None:
    """Return why one of these could score nothing now; None where each could."""
    if not names:
        return None
    judges, routing = judges_by_name(names), routing_snapshot()
    for name in names:
        if (judge := judges.get(name)) is None:
            return f"There is no judge {name[:60]!r}."
        if problem := judge_problem(judge, routing=routing):
            return problem
    return None


def judging_warnings(experiment: Experiment, names: Sequence[str]) -> list[str]:
    """Return what should give somebody pause, and is no reason to refuse. names: of its judges."""
    if not names:
        return []
    judges, variants = judges_by_name(names), _variants(experiment)
    found = [_partial(judge, experiment.route, variants) for judge in judges.values()]
    slugs = Eligibility.read(experiment.eligibility).tenants
    if not is_judging_allowed(slugs):
        whose = "None of the tenants that take part" if slugs else "No tenant"
        found.append(f"{whose} lets its answers be judged: there will be no score.")
    return [each for each in found if each]


def _partial(judge: "Judge", route: "Route", variants: Sequence[Variant]) -> str:
    """Say which of the compared deployments a judge would ask; nothing where it asks another."""
    asked = {each.deployment.pk: each.deployment for each in targets_of(judge.route)}
    compared = {pk for each in variants for pk in _deployment_ids(each, route)}
    both = sorted(str(asked[pk]) for pk in asked.keys() & compared)
    if not both:
        return ""
    return (
        f"The judge {judge} asks {', '.join(both)}, which is compared here: models prefer answers "
        "like their own. Better let another one judge."
    )


def _variants(experiment: Experiment) -> list[Variant]:
    return list(Variant.objects.filter(experiment=experiment).select_related("other_route"))


def _deployment_ids(variant: Variant, route: "Route") -> Iterator[int]:
    if variant.deployment_id is not None:
        yield variant.deployment_id
        return
    for each in targets_of(variant.other_route or route):
        yield each.deployment.pk


def judge_lines(experiment: Experiment, metrics: Sequence[MetricLine]) -> tuple[JudgeLine, ...]:
    """Return the judges of an experiment, with how far each is; no query where no model judges."""
    if not (names := judge_names_in(each.key for each in metrics)):
        return ()
    judges, variants = judges_by_name(names), _variants(experiment)
    waiting = samples_waiting({each.pk for each in judges.values()})
    counted = {each.key: sum(n for _, n in each.totals.values()) for each in metrics}
    lines = []
    for name in names:
        key, judge = f"{JUDGED_PREFIX}{name}", judges.get(name)
        if judge is None:
            lines.append(JudgeLine(key=key, name=name, n_counted=counted[key], is_gone=True))
            continue
        lines.append(
            JudgeLine(
                key=key,
                name=name,
                rubric=judge.rubric,
                lowest=judge.lowest,
                highest=judge.highest,
                route=judge.route.name,
                is_on=judge.is_on,
                n_counted=counted[key],
                n_scored=judge.n_scored,
                n_failed=judge.n_failed,
                n_waiting=waiting.get(judge.pk, 0),
                last_problem=judge.last_problem,
                warning=_partial(judge, experiment.route, variants),
            )
        )
    return tuple(lines)

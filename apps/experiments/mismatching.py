"""Whether subjects fall to the arms as the weights say. If they do not, arms differ in more than in
what they are, and nothing of the results is to be believed."""

from datetime import timedelta
from typing import Final

from django.db.models import Count

from apps.experiments.judging import Ground
from apps.experiments.models import Assignment
from apps.experiments.results import Mismatch
from apps.experiments.totals import n_crossed_of, n_subjects_of
from apps.experiments.verdicts import mismatch_said
from apps.statistics.mismatch import mismatch_p_value

ALARM: Final = 0.001
# After new weights, until every process knows of them.
_SETTLING: Final = timedelta(seconds=5)


def mismatch_of(ground: Ground) -> Mismatch:
    """Test the subjects that came since the weights were last set: each in the arm in which it was
    first, also where it was seen in another one since. In one query where weights were set while it
    ran, else in none."""
    variants = ground.variants
    if not variants:
        return Mismatch(counts={}, p_value=1.0, is_alarm=False, said="There are no arms.")
    experiment = ground.experiment
    since = experiment.weights_set_at
    if since is None or since == experiment.started_at:
        found = {
            each.pk: n_subjects_of(ground, each) + n_crossed_of(ground, each) for each in variants
        }
    else:
        rows = Assignment.objects.filter(
            experiment=experiment, first_seen_at__gte=since + _SETTLING
        )
        found = dict(rows.order_by().values_list("variant_id").annotate(Count("id")))
    counts = {each.name: found.get(each.pk, 0) for each in variants}
    weights = [each.weight for each in variants]
    p_value = mismatch_p_value(list(counts.values()), weights)
    expected = {each.name: each.weight / sum(weights) for each in variants}
    return Mismatch(
        counts=counts,
        p_value=p_value,
        is_alarm=p_value < ALARM,
        said=mismatch_said(counts, expected, p_value),
    )

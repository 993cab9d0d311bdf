"""Whether there is something new of experiments, for pages that somebody looks at: two queries for
all of them, of a few rows each, however many subjects they have."""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

from apps.experiments.models import Experiment, VariantTotal


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentNews:
    """shape: another one where a page has to be made anew, buttons and all. news: another one where
    a number has changed."""

    id: int
    state: str
    state_label: str
    shape: str
    news: str


def experiments_news(ids: Collection[int]) -> list[ExperimentNews]:
    """Return the news of those that there are."""
    rows = list(Experiment.objects.filter(pk__in=ids))
    totals = VariantTotal.objects.filter(variant__experiment_id__in=ids, segment="").order_by("id")
    sums: dict[int, blake2b] = {row.pk: blake2b(digest_size=8) for row in rows}
    counted = totals.values_list("variant__experiment_id", "pk", "moments")
    for experiment_id, pk, moments in counted:
        if experiment_id in sums:
            sums[experiment_id].update(f"{pk}:{moments}".encode())
    return [
        ExperimentNews(
            id=row.pk,
            state=row.state,
            state_label=row.get_state_display(),
            shape=f"{row.state} {row.version}",
            news=f"{sums[row.pk].hexdigest()} {row.looked_at or ''}",
        )
        for row in rows
    ]

"""What subjects did before an experiment, on the same route: it explains a part of how they differ,
and comparisons are sharper without that part (CUPED). A conversation has no past."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from apps.experiments.assigning import subject_digest
from apps.experiments.metrics import Metric
from apps.experiments.models import Experiment
from apps.metering.selectors import requests_before
from apps.metering.types import ObservedRequest, Whose

# Of the subjects of one batch together, the newest: a token may have made millions, and its mean
# is known from these.
MAX_ROWS: Final = 20_000


def baselines_of(
    experiment: Experiment,
    metrics: Mapping[str, Metric],
    first_requests: Mapping[str, ObservedRequest],
) -> dict[str, dict[str, list[int]]]:
    """Return of each subject metric → [numerator, denominator] of the time before; ``u`` alone
    says that it was looked up. first_requests: by the subject's digest. In one query; in none where
    there is nothing to look for."""
    if not (experiment.pre_period_days and experiment.started_at and first_requests):
        return {}
    kind = experiment.subject
    if kind == Experiment.Subject.CONVERSATION:
        return {}
    rows = requests_before(
        route_name=experiment.route.name,
        since=experiment.started_at - timedelta(days=experiment.pre_period_days),
        until=experiment.started_at,
        whose=_whose(kind, first_requests),
        limit=MAX_ROWS,
    )
    found: dict[str, dict[str, list[int]]] = {digest: {"u": [0, 1]} for digest in first_requests}
    digests: dict[tuple[int, str], str] = {}
    for row in rows:
        who = (row.tenant_id, _identifier(kind, row))
        if who not in digests:
            digests[who] = subject_digest(
                salt=experiment.salt, kind=kind, tenant_id=who[0], identifier=who[1]
            )
        totals = found.get(digests[who])
        if totals is None:  # of another tenant's person of that name
            continue
        for key, metric in metrics.items():
            if metric.of_request and (pair := metric.of_request(row)) is not None:
                there = totals.setdefault(key, [0, 0])
                there[0] += pair[0]
                there[1] += pair[1]
    return found


def _whose(kind: str, first_requests: Mapping[str, ObservedRequest]) -> Whose:
    rows = first_requests.values()
    tenants = frozenset(row.tenant_id for row in rows)
    if kind == Experiment.Subject.TOKEN:
        tokens = (row.api_token_id for row in rows)
        return Whose(tenant_ids=tenants, api_token_ids=frozenset(t for t in tokens if t))
    return Whose(tenant_ids=tenants, end_users=frozenset(row.end_user for row in rows))


def _identifier(kind: str, row: ObservedRequest) -> str:
    return str(row.api_token_id) if kind == Experiment.Subject.TOKEN else row.end_user

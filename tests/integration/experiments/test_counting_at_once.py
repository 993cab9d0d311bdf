"""Several who count and look at once: each row once, and nobody waits for ever."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from apps.experiments.counting import rows_count
from apps.experiments.looks import looks_take
from apps.feedback.models import MetricEvent
from apps.metering.models import UsageRecord
from tests.integration.experiments.made import experiment, said, totals
from tests.integration.experiments.plenty import plenty
from tests.integration.experiments.recount import recount
from tests.rows import all_of


@pytest.mark.django_db(transaction=True)
def test_each_row_counts_once() -> None:
    one, two = experiment(name="one"), experiment(name="two")
    rows = [*plenty(one, n_people=60), *plenty(two, n_people=60, seed=2)]
    by_name = {row.request_id: row for row in rows}
    for each in (one, two):  # and some are in both
        other = two if each is one else one
        arms = {
            row.end_user: row.experiment_arm
            for row in rows
            if row.experiment_arm.startswith(f"e{other.pk}.")
        }
        for row in [row for row in rows if row.experiment_arm.startswith(f"e{each.pk}.")][::5]:
            both = f"{row.experiment_arm},{arms[row.end_user]}"
            all_of(UsageRecord).filter(request_id=row.request_id).update(experiment_arm=both)
    for row in all_of(UsageRecord).filter(request_id__in=list(by_name))[:80]:
        said(row, "score", 1.5)

    def run(job: int) -> int:
        try:
            return rows_count(rows_at_a_time=7) if job % 5 else looks_take() * 0
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        n_counted = sum(pool.map(run, range(20)))
    while n_more := rows_count():
        n_counted += n_more
    assert n_counted == len(rows) + 80
    assert not all_of(UsageRecord).filter(is_in_experiments=False).exists()
    assert not all_of(MetricEvent).filter(is_in_experiments=False).exists()
    for made in (one, two):
        assert totals(made) == recount(made)

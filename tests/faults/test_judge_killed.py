"""`kill -9` of whoever has answers scored, at every point: each has its score once, or still waits
for it, and whoever comes next makes that so."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.feedback.models import MetricEvent
from apps.gateway.tasks import judge
from apps.judging.models import AnswerSample, Judge
from apps.judging.samples import samples_keep
from apps.judging.services import judge_create
from apps.judging.types import JudgedText, Turn
from apps.routing.models import Route
from apps.tenants.models import Tenant
from tests.factories import ApiTokenFactory, TenantFactory, UsageRecordFactory
from tests.faults.killing import Doomed, doomed
from tests.integration.gateway.conftest import engine_process, route
from tests.rows import all_of

__all__ = ["engine_process", "route"]

pytestmark = pytest.mark.django_db(transaction=True)

# Where it dies; how often the sample was taken then, or None where it has its score.
POINTS = {
    "forgetting": 0,
    "begun": 0,
    "taking": 0,  # its transaction is not ended
    "taken": 1,
    "asking": 1,
    "answered": 1,
    "scoring": 1,
    "forgotten": 1,  # as above
    "told": 1,
    "scored": None,
    "closing": None,
}
IMPORTS = """
from apps.gateway import judging, tasks
from apps.judging import samples
"""
PLACES = """{
    "forgetting": (judging, "withdrawn_samples_forget", before),
    "begun": (judging, "samples_take", before),
    "taking": (samples, "_taken", after),
    "taken": (judging, "samples_take", after),
    "asking": (judging, "judge_body", before),
    "answered": (judging, "verdict_of", before),
    "scoring": (judging, "score_record", before),
    "forgotten": (samples, "metric_event_record", before),
    "told": (samples, "metric_event_record", after),
    "scored": (judging, "score_record", after),
    "closing": (judging, "aclose", before),
}"""


@pytest.fixture(scope="module")
def workers(django_db_setup: None) -> Iterator[Doomed]:
    with doomed(imports=IMPORTS, places=PLACES, work="tasks.judge()") as running:
        yield running


def one_that_waits(route: str) -> None:
    made = judge_create(
        actor=SYSTEM,
        name="helpful",
        rubric="5 helps, 1 does not.",
        route=Route.objects.get(name=route),
        api_token=ApiTokenFactory(),
    )
    tenant: Tenant = TenantFactory(allows_judging=True)
    UsageRecordFactory(tenant_id=tenant.pk, request_id="chatcmpl-1")
    text = JudgedText(asked=(Turn("user", "What is two and two?"),), answer="Four.")
    assert samples_keep(
        judge_ids=[made.pk],
        tenant_id=tenant.pk,
        request_id="chatcmpl-1",
        end_user="",
        text=text,
    )


def there_is(attempt: int | None) -> None:
    """A score and nothing that waits, or the other way round."""
    made = Judge.objects.get()
    n_scores = int(attempt is None)
    assert all_of(MetricEvent).count() == made.n_scored == n_scores
    assert list(all_of(AnswerSample).values_list("attempt", flat=True)) == (
        [] if attempt is None else [attempt]
    )
    assert (made.n_taken, made.n_failed) == (1, 0)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(workers: Doomed, route: str, point: str) -> None:
    one_that_waits(route)
    workers.killed_at(point)
    there_is(POINTS[point])
    if POINTS[point]:
        judge()  # it is held yet, by nobody
        there_is(POINTS[point])
    for _ in range(3):  # what the random model spoils is tried again
        all_of(AnswerSample).update(due_at=timezone.now() - timedelta(seconds=1))
        judge()
    there_is(None)
    (event,) = all_of(MetricEvent)
    assert (event.name, event.request_id) == ("judge:helpful", "chatcmpl-1")
    assert event.value in (1.0, 2.0, 3.0, 4.0, 5.0)
    judge()
    there_is(None)

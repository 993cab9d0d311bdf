"""The running product has its own model judge what it answers: of a tenant that allows that, and of
no other; and the scores become results of the experiment."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.furnished import furnished_var
from tests.serve import RunningProduct, in_django, running_product
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

N_PEOPLE = 12
SET_UP = """
from apps.audit.types import SYSTEM
from apps.core.tenancy import every_tenant
from apps.experiments.services import experiment_create, experiment_start
from apps.experiments.types import MetricSpec, VariantSpec
from apps.judging.services import judge_create
from apps.rbac.models import ApiToken
from apps.rbac.services import api_token_issue
from apps.routing.models import Route
from apps.tenants.services import tenant_create, tenant_update

with every_tenant("the test sets up all of them"):
    route = Route.objects.get(name=sys.argv[1])
    own = ApiToken.objects.select_related("tenant").order_by("pk").first()
    own.tenant.allows_judging = True
    tenant_update(tenant=own.tenant, actor=SYSTEM)
    other = tenant_create(name="Reserved", slug="reserved", plan=own.tenant.plan, actor=SYSTEM)
    issued = api_token_issue(tenant=other, name="reserved", actor=SYSTEM)
    judge_create(
        actor=SYSTEM, name="helpful", route=route, api_token=own,
        rubric="5: it answers what was asked. 1: it does not.",
    )
    draft = experiment_create(
        actor=SYSTEM, name="judged", route=route,
        variants=[
            VariantSpec(name="control", is_control=True),
            VariantSpec(name="b", prompt_template="You speak like a pirate."),
        ],
        metrics=[
            MetricSpec(metric="judge:helpful", role="primary", better="higher"),
            MetricSpec(metric="completion_tokens"),
        ],
    )
    experiment_start(experiment=draft, seen=draft.version, actor=SYSTEM)
    print(issued.secret)
"""
RESULTS = """
import json
from apps.core.tenancy import every_tenant
from apps.experiments.models import Experiment
from apps.experiments.selectors import experiment_results

with every_tenant("the test reads all of them"):
    found = experiment_results(Experiment.objects.select_related("route").get(name="judged"))
    line = next(each for each in found.metrics if each.key == "judge:helpful")
    print(json.dumps({name: list(totals) for name, totals in line.totals.items()}))
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """One of its own: its experiment takes in whoever asks."""
    with running_product(furnished_var(tmp_path_factory, "judging")) as running:
        yield running


def chat(product: RunningProduct, secret: str, person: str) -> str:
    body = {
        "model": product.model, "user": person, "max_tokens": 16, "temperature": 0,
        "messages": [{"role": "user", "content": f"{person} asks: what is a zebrafinch?"}],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {secret}"}
    url = f"{product.base_url}/chat/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_scores_of_a_tenant_that_allows_it(product: RunningProduct) -> None:
    reserved = in_django(product, SET_UP, product.model)
    time.sleep(1)  # every process hears of it within a second: what is kept is checked below
    people = [f"person-{number}" for number in range(N_PEOPLE)]
    with ThreadPoolExecutor(4) as pool:
        asked = set(pool.map(lambda person: chat(product, product.api_token, person), people))
        others = set(pool.map(lambda person: chat(product, reserved, person), people[:6]))
    started = time.monotonic()

    def judge() -> tuple[Any, ...]:
        (row,) = product.rows("SELECT n_taken, n_scored, n_failed, last_problem FROM judging_judge")
        return row

    def is_counted() -> bool:
        n_taken, n_scored, n_failed, _ = judge()
        (n_left,) = product.rows(
            "SELECT count(*) FROM feedback_metricevent WHERE is_in_experiments = 0"
        )[0]
        return bool(n_taken == N_PEOPLE and n_scored + n_failed == n_taken and not n_left)

    for sealed, *_ in product.rows("SELECT sealed FROM judging_answersample"):
        assert "zebrafinch" not in sealed
    wait_until("scores to be counted", is_counted, timeout_s=150)
    n_taken, n_scored, _, problem = judge()
    print(f"{n_scored} scores of {n_taken} answers in {time.monotonic() - started:.0f} s")
    assert n_scored >= N_PEOPLE - 2, problem  # a small model may fail to say one in its length
    events = product.rows("SELECT request_id, name, value, comment FROM feedback_metricevent")
    assert len(events) == n_scored
    assert {request_id for request_id, *_ in events} <= asked
    assert not {request_id for request_id, *_ in events} & others
    assert {(name, value in (1, 2, 3, 4, 5)) for _, name, value, _ in events} == {
        ("judge:helpful", True)
    }
    assert all(comment for *_, comment in events)
    assert product.rows("SELECT count(*) FROM judging_answersample") == [(0,)]
    check_results(product, events)
    check_ledger(product)


def check_results(product: RunningProduct, events: list[tuple[Any, ...]]) -> None:
    """What people read is the sum of the scores, by the arm that the ledger says."""
    arms = dict(product.rows("SELECT request_id, experiment_arm FROM metering_usagerecord"))
    names = dict(product.rows("SELECT id, name FROM experiments_variant"))
    expected = {name: [0, 0] for name in ("control", "b")}
    for request_id, _, value, _ in events:
        variant = re.fullmatch(r"e\d+\.v(\d+)\.[0-9a-f]{16}", arms[request_id])
        assert variant is not None
        sums = expected[names[int(variant.group(1))]]
        sums[0] += round(value * 1_000_000)
        sums[1] += 1
    assert all(n for _, n in expected.values())
    assert json.loads(in_django(product, RESULTS)) == expected


def check_ledger(product: RunningProduct) -> None:
    """A judge's own requests are in no arm, and its token pays for them."""
    rows = product.rows(
        "SELECT DISTINCT experiment_arm, outcome, n_charged_tokens > 0, api_token_id "
        "FROM metering_usagerecord WHERE door = 'judge' AND outcome = 'completed'"
    )
    ((token_id,),) = product.rows("SELECT api_token_id FROM judging_judge")
    assert [(arm, bool(paid), token) for arm, _, paid, token in rows] == [("", True, token_id)]

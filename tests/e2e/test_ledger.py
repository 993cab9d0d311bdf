"""The ledger of the whole product: who asked, rolled up by the worker that ``make serve`` starts,
and in agreement with itself."""

import json

import openai
import pytest

from tests.serve import RunningProduct, manage
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_a_request_is_rolled_up_by_the_products_own_worker(product: RunningProduct) -> None:
    client = openai.OpenAI(base_url=product.base_url, api_key=product.api_token)
    answer = client.chat.completions.create(
        model=product.model,
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=4,
        user="person-7",
    )
    columns = "state, end_user, attempt, n_completion_tokens, cost_micro"
    row = f"FROM metering_usagerecord WHERE request_id = '{answer.id}'"
    assert answer.usage is not None
    assert product.rows(f"SELECT {columns} {row}") == [
        ("settled", "person-7", 1, answer.usage.completion_tokens, 0)
    ]
    wait_until(
        "the roll-up",
        lambda: product.rows(f"SELECT is_rolled_up {row}") == [(1,)],
        timeout_s=90,
    )
    sums = "SELECT sum(n_requests) FROM metering_usagerollup WHERE granularity = "
    ((n_by_hour,),) = product.rows(f"{sums} 'hour'")
    assert n_by_hour >= 1


def test_the_ledger_of_real_traffic_agrees(product: RunningProduct) -> None:
    done = manage(product, "reconcile", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["findings"] == []

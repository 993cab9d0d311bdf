"""What looks after traffic waits for no batch: with the worker held up, requests are still added to
the roll-ups, and rollouts and experiments are looked at."""

import os
import signal
import time

import httpx
import pytest

from tests.processes import wait_until
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

ROLLED_UP = (
    "SELECT coalesce(sum(n_requests), 0) FROM metering_usagerollup WHERE granularity = 'day'"
)


def test_a_worker_that_is_held_up_holds_up_no_short_job(product: RunningProduct) -> None:
    [pid] = wait_until("a worker", product.worker_pids, timeout_s=30)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(6)  # whatever message it had taken is its own
        before = int(product.rows(ROLLED_UP)[0][0])
        answer = httpx.post(
            f"{product.origin}/v1/chat/completions",
            headers={"Authorization": f"Bearer {product.access['api_token']}"},
            json={
                "model": product.model,
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 2,
            },
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        wait_until(
            "the request to be rolled up",
            lambda: int(product.rows(ROLLED_UP)[0][0]) > before,
            timeout_s=60,
        )
        assert product.worker_pids() == [pid]
    finally:
        os.kill(pid, signal.SIGCONT)

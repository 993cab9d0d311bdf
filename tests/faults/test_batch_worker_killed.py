"""`kill -9` of the worker, twice in the middle of a batch: it ends with as many results as there
were requests, each once, and nothing else was started anew."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.batches import BatchClient
from tests.furnished import furnished_var
from tests.serve import RunningProduct, running_product
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """One of its own: rows of the ledger that a killed worker leaves open stay so for a while."""
    with running_product(furnished_var(tmp_path_factory, "batches")) as running:
        yield running


@pytest.mark.parametrize(
    "n",
    [60, pytest.param(500, marks=(pytest.mark.prove, pytest.mark.timeout(1800)))],
)
def test_every_request_has_one_result(product: RunningProduct, n: int) -> None:
    batches = BatchClient(product)
    web_pid, agent_pid, engine_pid = product.web_pid(), product.agent_pid(), product.engine().pid
    before = {row[0] for row in product.rows("SELECT id FROM metering_usagerecord")}
    started = time.monotonic()
    batch_id = batches.submit(n)

    for kill in (1, 2):
        at_least = kill * n // 3

        def is_far_enough(at_least: int = at_least) -> bool:
            return batches.n_completed(batch_id) >= at_least

        wait_until(f"{at_least} results", is_far_enough, timeout_s=300)
        [pid] = wait_until("a worker", product.worker_pids, timeout_s=30)
        os.kill(pid, signal.SIGKILL)
        done = batches.n_completed(batch_id)
        print(f"kill {kill} of worker {pid} with {done} of {n} results")
        assert done < n
        assert batches.client.batches.retrieve(batch_id).status == "in_progress"
        wait_until("the worker to be gone", lambda gone=pid: gone not in product.worker_pids())

    batch = batches.wait(batch_id, timeout_s=600)
    print(f"{n} requests and two kills took {time.monotonic() - started:.1f} s")
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (n, n, 0)
    assert batch.error_file_id is None
    results = batches.results(batch.output_file_id)
    assert [result["custom_id"] for result in results] == [f"request-{k}" for k in range(n)]
    request_ids = Counter(result["response"]["request_id"] for result in results)
    assert set(request_ids.values()) == {1}
    assert len(request_ids) == n

    rows = product.rows("SELECT id, request_id, outcome FROM metering_usagerecord")
    made = {request_id: outcome for pk, request_id, outcome in rows if pk not in before}
    assert {made[request_id] for request_id in request_ids} == {"completed"}
    lost = Counter(outcome for request_id, outcome in made.items() if request_id not in request_ids)
    print(f"begun and lost with a worker: {json.dumps(lost)}")
    # Each kill costs what ran at that moment, and no more: eight lines at once.
    assert sum(lost.values()) <= 2 * 8
    assert (product.web_pid(), product.agent_pid()) == (web_pid, agent_pid)
    assert product.engine().pid == engine_pid
    assert product.is_ready()
    assert "The worker ended by itself (signal 9) and is started again" in product.log

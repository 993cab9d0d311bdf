"""An engine process that dies or hangs comes back by itself, with all its blocks free."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.serve import CHAT_ENGINE, EMBEDDING_ENGINE, EngineRow, RunningProduct
from tests.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.e2e

BACK_S = 30.0
LAST_ERROR = f"SELECT last_error FROM engines_engineprocess WHERE name = '{CHAT_ENGINE}'"


async def back_again(product: RunningProduct, before: EngineRow, *, since: float) -> None:
    """Wait until another process is ready, within the bound from ``since``."""
    await wait_until_async(
        "another engine to be ready",
        lambda: product.engine().epoch > before.epoch and product.is_ready(),
        timeout_s=since + BACK_S - time.monotonic(),
    )
    after = product.engine()
    assert after.state == "ready"
    assert after.pid != before.pid
    assert after.epoch == before.epoch + 1
    stats = await product.engine_stats()
    assert stats.n_blocks_free == stats.n_blocks_total > 0
    assert (stats.n_running, stats.n_waiting) == (0, 0)
    other = product.engine(EMBEDDING_ENGINE)
    assert (other.state, other.epoch) == ("ready", 1)
    sockets = {Path(after.socket_path), Path(other.socket_path)}
    assert set((product.var / "run").iterdir()) == sockets


async def test_a_killed_engine_is_replaced(product: RunningProduct) -> None:
    before = product.engine()
    killed_at = time.monotonic()
    os.kill(before.pid, signal.SIGKILL)
    await back_again(product, before, since=killed_at)
    ((error,),) = product.rows(LAST_ERROR)
    assert error == "killed by SIGKILL"


async def test_a_hung_engine_is_killed_and_replaced(product: RunningProduct) -> None:
    before = product.engine()
    stopped_at = time.monotonic()
    os.kill(before.pid, signal.SIGSTOP)
    wait_until("the hung engine to be gone", lambda: not psutil.pid_exists(before.pid))
    await back_again(product, before, since=stopped_at)
    ((error,),) = product.rows(LAST_ERROR)
    assert error == "did not answer a ping in 5 s"

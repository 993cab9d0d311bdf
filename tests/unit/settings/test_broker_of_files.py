"""The broker of files that ``make serve`` has: what is written to it while a worker looks."""

import threading
import time
from pathlib import Path
from queue import Empty

import pytest
from celery.worker import state
from kombu import Connection
from kombu.simple import SimpleQueue

from config.celery import app

N_MESSAGES = 60
TEXT = "x" * 2_000_000


def test_nobody_reads_half_a_message(tmp_path: Path) -> None:
    folders = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path)}
    options = {**folders, "control_folder": str(tmp_path / "control"), "polling_interval": 0.001}
    assert app is not None  # it says which transport is meant

    def write() -> None:
        with Connection("filesystem://", transport_options=options) as connection:
            queue = connection.SimpleQueue("work")
            for number in range(N_MESSAGES):
                queue.put({"number": number, "text": TEXT})

    writer = threading.Thread(target=write)
    with Connection("filesystem://", transport_options=options) as connection:
        queue = connection.SimpleQueue("work")
        writer.start()
        found = [_next(queue) for _ in range(N_MESSAGES)]
        writer.join()
    assert sorted(found) == list(range(N_MESSAGES))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.parametrize(("should_stop", "waits"), [(None, True), (0, False)])
def test_a_worker_that_is_to_stop_waits_for_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, should_stop: int | None, waits: bool
) -> None:
    options = {name: str(tmp_path) for name in ("data_folder_in", "data_folder_out")}
    options |= {"control_folder": str(tmp_path / "control"), "polling_interval": 0.01}
    monkeypatch.setattr(state, "should_stop", should_stop)
    with Connection("filesystem://", transport_options=options) as connection:
        connection.SimpleQueue("work")
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.5)
        assert (time.monotonic() - began_s >= 0.5) == waits


def _next(queue: SimpleQueue) -> int:
    try:
        message = queue.get(timeout=30)
    except Empty:
        raise AssertionError("a message was lost") from None
    message.ack()
    assert message.payload["text"] == TEXT
    number: int = message.payload["number"]
    return number

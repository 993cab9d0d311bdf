"""What a process loads is looked at by no collection of garbage: not then, and not later."""

import gc
import subprocess
import sys

import pytest

from config.loading import loading


def test_nothing_is_collected_in_it_nor_looked_at_behind_it() -> None:
    before = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
        loaded = [[number] for number in range(10_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() - before >= len(loaded)


def test_a_failure_leaves_it_on() -> None:
    with pytest.raises(ValueError, match="no"), loading():
        raise ValueError("no")
    assert gc.isenabled()


def test_what_was_loaded_and_what_came_later_is_left_alone_at_the_end() -> None:
    """A command's own end still is one: what is registered for it is done."""
    code = (
        "import atexit, gc; from config.loading import loading\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 100_000))\n"
        "with loading(): pass\n"
        "later = [[number] for number in range(100_000)]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": "platform"}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("True\n", "")

"""A test leaves nothing in the context of those after it: thousands of variables of others made
each hop between threads take milliseconds."""

from contextvars import ContextVar

_left: ContextVar[bool] = ContextVar("left", default=False)


def test_that_leaves_something() -> None:
    _left.set(True)
    assert _left.get()


def test_that_comes_after_it_finds_nothing() -> None:
    assert not _left.get()

"""Whose rows the current work is about: those of some tenants, or of whichever. The manager of
tenants' rows asks it, and on PostgreSQL the database is told (``apps.core.tenant_wall``)."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final


class _Every:
    """The rows of whichever tenant."""

    def __repr__(self) -> str:
        return "EVERY"


EVERY: Final = _Every()
Whose = frozenset[int] | _Every | None

_whose: ContextVar[Whose] = ContextVar("whose_rows", default=None)


def whose_rows() -> Whose:
    """Return the ids of the tenants whose rows the current work may touch, ``EVERY``, or None while
    nobody has said."""
    return _whose.get()


@contextmanager
def every_tenant(reason: str) -> Iterator[None]:
    """Within it, queries need not say whose rows they want. Also a decorator.

    reason: why it is nobody's in particular, for whoever reads the code.
    """
    del reason
    with _rows_of(EVERY):
        yield


@contextmanager
def nobody_yet() -> Iterator[None]:
    """Around work that comes from outside, such as a request: it begins without anybody's rows, and
    leaves nobody's behind."""
    with _rows_of(None):
        yield


def tenants_only(tenant_ids: Collection[int]) -> None:
    """From here to the end of ``nobody_yet``, the work is about the rows of these tenants."""
    _whose.set(frozenset(tenant_ids))


def whichever_tenant() -> None:
    """From here to the end of ``nobody_yet``, the work is of somebody who may see every tenant's
    rows."""
    _whose.set(EVERY)


@contextmanager
def _rows_of(whose: Whose) -> Iterator[None]:
    before = _whose.get()
    _whose.set(whose)
    try:
        yield
    finally:
        _whose.set(before)  # not by a token: a request may end in another context than it began

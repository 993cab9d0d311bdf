"""The way to the database while no connection can be had."""

import pytest
from django.db import DatabaseError, OperationalError
from psycopg_pool import PoolTimeout

from apps.core.exceptions import AppError, Unavailable
from apps.core.hop import DatabaseAway, Outage


class Database:
    """Counts who waits in vain while it is away."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.is_away = False
        self.n_asked = 0
        self.outage = Outage(look_every_s=1.0, clock=lambda: self.now_s)

    def ask(self) -> str:
        return self.outage.run(self._query)

    def _query(self) -> str:
        self.n_asked += 1
        if self.is_away:
            try:
                raise OperationalError("couldn't get a connection") from PoolTimeout()
            except OperationalError as error:
                raise Unavailable("The key cannot be checked.") from error
        return "rows"


def test_only_one_a_second_waits_while_it_is_away() -> None:
    database = Database()
    assert database.ask() == "rows"
    database.is_away = True
    for n_asked in (2, 2, 2):
        with pytest.raises(DatabaseAway):
            database.ask()
        assert database.n_asked == n_asked
    database.now_s += 1.0
    for n_asked in (3, 3):
        with pytest.raises(DatabaseAway):
            database.ask()
        assert database.n_asked == n_asked


def test_everybody_goes_through_once_one_came_through() -> None:
    database = Database()
    database.is_away = True
    with pytest.raises(DatabaseAway):
        database.ask()
    database.is_away = False
    with pytest.raises(DatabaseAway):
        database.ask()
    database.now_s += 1.0
    assert [database.ask() for _ in range(3)] == ["rows"] * 3


def test_other_failures_are_their_own_affair() -> None:
    outage = Outage()

    def deadlock() -> None:
        raise OperationalError("deadlock detected")

    for _ in range(2):
        with pytest.raises(OperationalError, match="deadlock"):
            outage.run(deadlock)
    assert outage.run(lambda: 1) == 1


def test_it_is_an_answer_and_what_callers_of_the_orm_expect() -> None:
    error = DatabaseAway()
    assert isinstance(error, AppError)
    assert isinstance(error, DatabaseError)
    assert (error.status, error.code) == (503, "unavailable")
    assert str(error) == error.message == "The database cannot be reached at the moment."

"""Writes that are made in groups: each request's fate is its own."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError

from apps.core.exceptions import Unavailable
from apps.core.hop import DatabaseAway, database_hop
from apps.core.limits import Limits
from apps.gateway import ledger, ledger_writer
from apps.gateway.ledger import LedgerEntry
from apps.gateway.runtime import GatewayRuntime
from apps.metering.exceptions import LimitExceeded
from apps.metering.models import Meter, UsageRecord
from apps.metering.types import Ending, Grant, Outcome, Reservation, Scope
from apps.rbac.types import Principal
from tests.rows import all_of
from tests.waiting import wait_until_async

pytestmark = pytest.mark.django_db(transaction=True)

ENDING = Ending(outcome=Outcome.COMPLETED, n_completion_tokens=20, total_ms=1.0)


def reservation(name: str, *, tokens_per_day: int | None = None) -> Reservation:
    limits = Limits(tokens_per_day=tokens_per_day)
    return Reservation(
        request_id=name,
        principal=Principal(tenant_id=1, tenant_slug="t", cache_salt="s", label="l", limits=limits),
        door="rest",
        endpoint="chat.completions",
        route_name="m",
        deployment_id=1,
        model_version_id=1,
        engine_name="m-0",
        engine_epoch=1,
        n_prompt_tokens=10,
        n_reserved_tokens=30,
        n_least_tokens=11,
        scopes=(Scope(key="tenant:1", said="You", limits=limits),),
        lifetime_s=60.0,
    )


async def states() -> dict[str, tuple[str, int]]:
    rows = await database_hop(
        lambda: list(all_of(UsageRecord).values_list("request_id", "state", "n_charged_tokens"))
    )
    return {name: (state, n_charged) for name, state, n_charged in rows}


async def metered() -> tuple[int, int]:
    day, _ = await database_hop(
        lambda: list(all_of(Meter).filter(period__contains="-").values_list("n_used", "n_held"))
    )
    return day


@pytest.fixture
async def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes there were in each group of more than one."""
    sizes: list[int] = []
    real = ledger_writer.write_group

    def counted(writes: Sequence[ledger_writer.Write]) -> Any:
        sizes.append(len(writes))
        return real(writes)

    monkeypatch.setattr(ledger_writer, "write_group", counted)
    return sizes


async def test_two_hundred_at_once_with_a_budget_for_ten(groups: list[int]) -> None:
    runtime = GatewayRuntime()

    async def request(n: int) -> int:
        entry = LedgerEntry(runtime=runtime, reservation=reservation(f"r-{n}", tokens_per_day=300))
        try:
            grant = await entry.reserve()
        except LimitExceeded:
            return 0
        await entry.settle(ENDING)
        return grant.n_tokens

    granted = await asyncio.gather(*map(request, range(200)))
    await runtime.aclose()
    assert sorted(granted)[-10:] == [30] * 10
    assert sum(granted) == 300
    assert list((await states()).values()) == [("settled", 30)] * 10
    assert await metered() == (300, 0)
    assert max(groups) > 50


async def test_the_fault_of_one_is_not_the_others(groups: list[int]) -> None:
    runtime = GatewayRuntime()
    await runtime.ledger.reserve(reservation("known"))
    names = ["a", "known", "b", "a"]
    answers = await asyncio.gather(
        *(runtime.ledger.reserve(reservation(name)) for name in names), return_exceptions=True
    )
    assert groups == [4]
    assert [type(each) for each in answers[1:3]] == [IntegrityError, Grant]
    assert {type(answers[0]), type(answers[3])} == {Grant, IntegrityError}
    assert set(await states()) == {"a", "b", "known"}
    assert await metered() == (0, 90)


async def test_a_group_that_was_written_although_nobody_heard_of_it_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is lost between the commit and the word of it."""
    real = ledger_writer.write_group

    def lose_the_word(writes: Sequence[ledger_writer.Write]) -> None:
        real(writes)
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(ledger_writer, "write_group", lose_the_word)
    monkeypatch.setattr(ledger, "SETTLE_AGAIN_S", 0.01)
    runtime = GatewayRuntime()
    entries = [LedgerEntry(runtime=runtime, reservation=reservation(f"r-{n}")) for n in range(3)]
    refused = await asyncio.gather(*(each.reserve() for each in entries), return_exceptions=True)
    assert [type(each) for each in refused] == [Unavailable] * 3

    async def are_closed() -> bool:
        return set((await states()).values()) == {("settled", 0)}

    await wait_until_async("the rows to be closed", are_closed, timeout_s=5)
    assert len(await states()) == 3
    assert await metered() == (0, 0)
    await runtime.aclose()


async def test_a_database_that_is_away_is_asked_once_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime, n_asked = GatewayRuntime(), 0

    def away(_: object) -> None:
        nonlocal n_asked
        n_asked += 1
        raise DatabaseAway

    for name in ("write_group", "reserve"):
        monkeypatch.setattr(ledger_writer, name, away)
    asked = [runtime.ledger.reserve(reservation(f"r-{n}")) for n in range(50)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in answers] == [DatabaseAway] * 50
    assert n_asked == 1
    assert await states() == {}


async def test_who_leaves_while_it_is_reserved_is_settled(groups: list[int]) -> None:
    runtime = GatewayRuntime()
    entries = [LedgerEntry(runtime=runtime, reservation=reservation(f"r-{n}")) for n in range(4)]
    tasks = [asyncio.create_task(entry.reserve()) for entry in entries]
    await asyncio.sleep(0)
    for task in tasks[:2]:
        task.cancel()
    aborted = Ending(outcome=Outcome.ABORTED, n_completion_tokens=0, total_ms=1.0)
    await asyncio.gather(*(entry.settle(aborted) for entry in entries[:2]))
    await asyncio.gather(*tasks[2:])
    found = await states()
    assert [found[f"r-{n}"] for n in range(4)] == [("settled", 10)] * 2 + [("reserved", 0)] * 2
    assert groups[0] == 4
    await runtime.aclose()

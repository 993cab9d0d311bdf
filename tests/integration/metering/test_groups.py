"""The ledger's grouped writes: to each request what it would have got alone, both or neither."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone

from apps.core.limits import Limits
from apps.core.prices import Prices
from apps.metering.exceptions import LimitExceeded
from apps.metering.models import Meter, UsageRecord
from apps.metering.services import orphans_close, reserve, settle, write_group
from apps.metering.types import Ending, Grant, Outcome, Reservation, Scope, Settlement
from apps.rbac.types import Principal
from tests.rows import all_of

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
Write = Reservation | Settlement


def reservation(
    name: str, *scopes: Scope, least: int = 11, most: int = 30, is_open: bool = True
) -> Reservation:
    return Reservation(
        request_id=name,
        principal=Principal(
            tenant_id=1,
            tenant_slug="t",
            cache_salt="s",
            label="l",
            limits=Limits(),
            prices=Prices(prompt=3, cached=1, completion=7),
        ),
        end_user="x\0y",
        door="rest",
        endpoint="chat.completions",
        route_name="m",
        deployment_id=1,
        model_version_id=1,
        engine_name="m-0",
        engine_epoch=1,
        n_prompt_tokens=least - 1,
        n_reserved_tokens=most,
        n_least_tokens=least,
        scopes=scopes,
        is_open=is_open,
        lifetime_s=60.0,
    )


def used(n_completion_tokens: int = 1) -> Ending:
    return Ending(outcome=Outcome.COMPLETED, n_completion_tokens=n_completion_tokens, total_ms=5.5)


def settlement(asked: Reservation, grant: Grant, ending: Ending | None = None) -> Settlement:
    return Settlement(
        request_id=asked.request_id,
        grant=grant,
        n_prompt_tokens=asked.n_prompt_tokens,
        prices=asked.principal.prices,
        ending=ending or used(),
    )


def alone(write: Write) -> Grant | LimitExceeded | bool:
    if isinstance(write, Settlement):
        return settle(write)
    try:
        return reserve(write)
    except LimitExceeded as refusal:
        return refusal


def said(answer: Grant | LimitExceeded | bool) -> object:
    """An answer as values; the ids of meters are of one database's making."""
    if isinstance(answer, LimitExceeded):
        return type(answer), str(answer), answer.retry_after_s, answer.budget
    return (answer.n_tokens, answer.budget) if isinstance(answer, Grant) else answer


def state() -> tuple[list[Any], list[Any]]:
    """All rows and meters, without what a database numbers by itself. A refusal alone takes back
    the empty meters that it made; in a group they stay."""
    rows = list(all_of(UsageRecord).order_by("request_id").values())
    meters = {
        each["id"]: (each["scope"], each["period"], each["n_used"], each["n_held"])
        for each in all_of(Meter).values()
    }
    for row in rows:
        del row["id"]
        row["meter_ids"] = sorted(meters[each] for each in row["meter_ids"])
    return rows, sorted(meter for meter in meters.values() if any(meter[2:]))


def one_by_one(writes: Sequence[Write]) -> list[object]:
    """As a group is said to be: its settlements first."""
    answers: dict[int, object] = {}
    for kind in (Settlement, Reservation):
        for index, each in enumerate(writes):
            if isinstance(each, kind):
                answers[index] = said(alone(each))
    return [answers[index] for index in range(len(writes))]


def grouped(writes: Sequence[Write]) -> list[object]:
    return [said(answer) for answer in write_group(writes)]


def some_limits(random: Random) -> Limits:
    def cap(most: int) -> int | None:
        return random.choice([None, random.randrange(most)])

    return Limits(
        tokens_per_day=cap(150), tokens_per_month=cap(200), max_concurrent_requests=cap(5)
    )


def some_ending(random: Random) -> Ending:
    return Ending(
        outcome=random.choice(list(Outcome)),
        n_completion_tokens=random.randrange(20),
        n_cached_tokens=random.randrange(10),
        finish_reason=random.choice(["stop", "length", ""]),
        error_code=random.choice(["", "e" * 70]),
        ttft_ms=random.choice([None, random.random() * 1e3]),
        total_ms=random.random() * 1e4,
    )


def history(seed: int, write: Callable[[Sequence[Write]], list[object]]) -> list[object]:
    """Write groups that a seed chooses, of three tenants and their keys; return all answers."""
    random = Random(seed)
    scopes = [
        Scope(key=key, said=key, limits=some_limits(random))
        for key in ("tenant:1", "tenant:2", "tenant:3", "key:1", "key:2")
    ]
    answers: list[object] = []
    known: list[Reservation] = []
    for n_group in range(12):
        writes: list[Write] = []
        for n in range(random.randrange(5)):
            least = random.randrange(1, 15)
            writes.append(
                reservation(
                    f"r-{n_group}-{n}",
                    *random.sample(scopes, random.randrange(4)),
                    least=least,
                    most=least + random.randrange(30),
                    is_open=random.random() < 0.8,
                )
            )
        for asked in random.sample(known, random.randrange(len(known) + 1)):
            ending = some_ending(random)
            row = all_of(UsageRecord).filter(request_id=asked.request_id).first()
            # Of one that was refused or is settled too: it must change nothing.
            grant = Grant(
                n_tokens=row.n_reserved_tokens if row else 9,
                meter_ids=tuple(row.meter_ids) if row else (),
            )
            writes += [settlement(asked, grant, ending)] * random.choice([1, 1, 2])
        random.shuffle(writes)
        known += [each for each in writes if isinstance(each, Reservation)]
        answers.append(write(writes))
        answers.append(state())
    return answers


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(25))
def test_a_group_is_its_writes_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)
    together = history(seed, grouped)
    all_of(UsageRecord).all().delete()
    all_of(Meter).all().delete()
    assert history(seed, one_by_one) == together
    refused = [each for each in str(together).split() if "Exceeded" in each or "Held" in each]
    assert refused or seed != 0  # the histories are not all peaceful


@pytest.mark.django_db
def test_a_group_costs_four_statements(django_assert_num_queries: Any) -> None:
    mine = Scope(key="tenant:1", said="You", limits=Limits(tokens_per_day=10_000))
    before = [reservation(f"a-{n}", mine) for n in range(20)]
    grants = write_group(before)  # makes the meters of the day
    writes: list[Write] = [reservation(f"b-{n}", mine) for n in range(20)]
    for asked, grant in zip(before, grants, strict=True):
        assert isinstance(grant, Grant)
        writes.append(settlement(asked, grant))
    with django_assert_num_queries(6):  # and the two of the test's savepoint
        write_group(writes)


@pytest.mark.django_db(transaction=True)
def test_a_group_with_a_fault_writes_nothing() -> None:
    mine = Scope(key="tenant:1", said="You", limits=Limits(tokens_per_day=100))
    asked = reservation("a", mine)
    (grant,) = write_group([asked])
    assert isinstance(grant, Grant)
    before = state()
    with pytest.raises(IntegrityError):
        write_group([settlement(asked, grant), reservation("b", mine), reservation("a", mine)])
    assert state() == before


@pytest.mark.django_db(transaction=True)
def test_two_hundred_in_groups_at_once_share_a_budget_for_ten() -> None:
    """Groups, single writes and the sweeper: none overspends, none waits in a circle."""
    mine = Scope(key="tenant:1", said="You", limits=Limits(tokens_per_day=300))
    keys = [Scope(key=f"key:{n}", said="Key", limits=Limits()) for n in range(3)]

    def work(n_thread: int) -> list[int]:
        random, granted = Random(n_thread), []
        names = [f"{n_thread}-{n}" for n in range(25)]
        while names:
            n = random.randrange(1, 8)
            writes = [
                reservation(each, mine, *random.sample(keys, random.randrange(3)))
                for each in names[:n]
            ]
            del names[:n]
            answers = write_group(writes) if random.random() < 0.8 else list(map(alone, writes))
            closing: list[Write] = []
            for asked, answer in zip(writes, answers, strict=True):
                if isinstance(answer, Grant):
                    granted.append(answer.n_tokens)
                    closing.append(settlement(asked, answer, used(answer.n_tokens - 10)))
            if closing:
                assert write_group(closing) == [True] * len(closing)
            orphans_close(timezone.now())
        connection.close()
        return granted

    with ThreadPoolExecutor(8) as pool:
        granted = [n for found in pool.map(work, range(8)) for n in found]
    assert sorted(granted) == [30] * 10
    day = all_of(Meter).get(scope="tenant:1", period=f"{timezone.now():%Y-%m-%d}")
    assert (day.n_used, day.n_held) == (300, 0)
    assert not all_of(Meter).filter(n_held__gt=0).exists()
    assert all_of(UsageRecord).filter(state="settled").count() == 10

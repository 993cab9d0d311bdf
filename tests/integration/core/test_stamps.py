import pytest
from django.db import OperationalError, transaction

from apps.core.hop import database_hop
from apps.core.selectors import change_stamps
from apps.core.services import change_stamp_bump
from apps.core.stamps import StampWatcher
from tests.waiting import wait_until_async


@pytest.mark.django_db
def test_bump_counts_from_one_and_belongs_to_the_transaction() -> None:
    change_stamp_bump("routes")
    change_stamp_bump("routes")
    change_stamp_bump("access")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change_stamp_bump("access")
        raise ZeroDivisionError
    assert change_stamps() == {"routes": 2, "access": 1}


@pytest.mark.django_db(transaction=True)
async def test_a_change_is_told_to_its_subscribers_only() -> None:
    told: list[str] = []
    watcher = StampWatcher()
    watcher.subscribe("routes", told.append)
    await watcher.poll()
    assert told == []
    await database_hop(change_stamp_bump, "routes")
    await database_hop(change_stamp_bump, "access")
    await watcher.poll()
    await watcher.poll()
    assert told == ["routes"]


@pytest.mark.django_db(transaction=True)
async def test_a_failing_subscriber_and_a_failing_database_stop_nothing() -> None:
    answers = iter([{"a": 1}, None, {"a": 2}])
    told: list[str] = []

    def read() -> dict[str, int]:
        answer = next(answers, {"a": 2})
        if answer is None:
            raise OperationalError("away")
        return answer

    def fail(_name: str) -> None:
        raise ValueError("a subscriber's fault")

    watcher = StampWatcher(interval_s=0.01, read=read)
    watcher.subscribe("a", fail)
    watcher.subscribe("a", told.append)
    watcher.start()
    watcher.start()
    await wait_until_async("the second change", lambda: told == ["a", "a"], timeout_s=5)
    await watcher.stop()

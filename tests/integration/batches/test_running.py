"""Leases and results: of two workers that believe they hold a batch, one writes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from apps.batches import running
from apps.batches.exceptions import LeaseLost
from apps.batches.models import Batch, BatchItem, UploadedFile
from apps.batches.types import Claim, Ending, Line, Outcome, StoredOutput
from apps.core.exceptions import AuthenticationFailed
from apps.gateway.types import Answer
from apps.rbac.models import ApiToken
from tests.factories import BatchFactory, BatchItemFactory
from tests.integration.batches.conftest import states
from tests.rows import all_of

pytestmark = pytest.mark.django_db(transaction=True)

GOOD = Answer(status=200, body=b'{"id":"x"}', request_id="chatcmpl-1")
BAD = Answer(status=400, body=b'{"error":{}}', request_id="req-1")
LEASE_S = 60.0


def claim_next(owner: str = "one") -> Claim | None:
    return running.batch_claim_next(owner=owner, lease_s=LEASE_S)


def claimed(owner: str = "one") -> Claim:
    found = claim_next(owner)
    assert found is not None
    return found


def lease_ends() -> None:
    all_of(Batch).update(lease_until=timezone.now() - timedelta(seconds=1))


@pytest.fixture
def batch(token: ApiToken) -> Batch:
    """One in progress, with five lines."""
    batch = BatchFactory(running=True, tenant=token.tenant, api_token_id=token.pk, n_total=5)
    for number in range(1, 6):
        BatchItemFactory(batch=batch, line_no=number, custom_id=f"c{number}")
    return batch


def test_who_waited_longest_is_next_and_one_worker_has_it() -> None:
    now = timezone.now()
    late = BatchFactory(served_at=now)
    early = BatchFactory(served_at=now - timedelta(minutes=1))
    BatchFactory(status="completed", served_at=now - timedelta(hours=1))
    assert [claimed("one").pk, claimed("two").pk] == [early.pk, late.pk]
    assert claim_next("three") is None


def test_a_claim_goes_to_one_of_many() -> None:
    BatchFactory()

    def attempt(n: int) -> Any:
        try:
            return claim_next(f"worker-{n}")
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        found = [claim for claim in pool.map(attempt, range(8)) if claim is not None]
    assert len(found) == 1
    assert all_of(Batch).get().lease_owner == found[0].owner


def test_a_batch_that_was_given_back_queues_behind_the_others(batch: Batch) -> None:
    other = BatchFactory()
    first = claimed()
    assert first.pk == batch.pk
    running.lease_release(claim=first)
    assert claimed("two").pk == other.pk
    assert claimed("three").pk == batch.pk


def test_lines_are_taken_in_order_and_once(batch: Batch) -> None:
    claim = claimed()
    taken = [item.line.number for item in running.items_take(claim=claim, limit=2)]
    taken += [item.line.number for item in running.items_take(claim=claim, limit=9)]
    assert taken == [1, 2, 3, 4, 5]
    assert running.items_take(claim=claim, limit=1) == ()
    assert states(batch) == ["running"] * 5


def test_a_result_is_written_and_counted_once(batch: Batch) -> None:
    claim = claimed()
    good, bad = running.items_take(claim=claim, limit=2)
    assert running.item_finish(claim=claim, item=good, answer=GOOD)
    assert running.item_finish(claim=claim, item=bad, answer=BAD)
    assert not running.item_finish(claim=claim, item=good, answer=BAD)
    batch.refresh_from_db()
    assert (batch.n_completed, batch.n_failed) == (1, 1)
    assert states(batch) == ["done", "failed", "pending", "pending", "pending"]
    row = all_of(BatchItem).get(pk=good.pk)
    assert row.response == '{"status_code":200,"request_id":"chatcmpl-1","body":{"id":"x"}}'


def test_a_worker_thought_dead_writes_nothing_after_another_took_over(batch: Batch) -> None:
    old = claimed("old")
    [written, late] = running.items_take(claim=old, limit=2)
    assert running.item_finish(claim=old, item=written, answer=GOOD)
    lease_ends()
    new = claimed("new")
    assert states(batch) == ["done", *["pending"] * 4]
    assert not running.item_finish(claim=old, item=late, answer=BAD)
    [again, *_] = running.items_take(claim=new, limit=9)
    assert (again.pk, again.attempt) == (late.pk, 2)
    assert not running.item_finish(claim=old, item=late, answer=BAD)
    running.item_put_back(item=late)
    assert running.item_finish(claim=new, item=again, answer=GOOD)
    with pytest.raises(LeaseLost):
        running.items_take(claim=old, limit=1)
    with pytest.raises(LeaseLost):
        running.lease_renew(claim=old, lease_s=LEASE_S)
    with pytest.raises(LeaseLost):
        running.closing_begin(claim=old, outcome=Outcome.COMPLETED)
    running.lease_release(claim=old)
    assert running.lease_renew(claim=new, lease_s=LEASE_S) == "in_progress"
    batch.refresh_from_db()
    assert (batch.n_completed, batch.n_failed, batch.lease_owner) == (2, 0, "new")


def test_many_writers_of_one_line_write_one_result(batch: Batch) -> None:
    claim = claimed()
    [item] = running.items_take(claim=claim, limit=1)

    def finish(_: int) -> bool:
        try:
            return running.item_finish(claim=claim, item=item, answer=GOOD)
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(finish, range(8))) == [False] * 7 + [True]
    batch.refresh_from_db()
    assert batch.n_completed == 1


def test_lines_are_stored_anew_over_what_a_lost_worker_left(token: ApiToken) -> None:
    batch = BatchFactory(tenant=token.tenant, api_token_id=token.pk)
    BatchItemFactory(batch=batch, line_no=1, custom_id="half")
    lines = [Line(number=n, custom_id=f"c{n}", offset=n, n_bytes=1) for n in range(1, 1202)]
    running.lines_store(claim=claimed(), lines=lines)
    batch.refresh_from_db()
    assert (batch.status, batch.n_total) == ("in_progress", 1201)
    found = all_of(BatchItem).order_by("line_no").values_list("custom_id", flat=True)
    assert list(found) == [f"c{n}" for n in range(1, 1202)]


def test_lines_of_a_batch_that_is_being_cancelled_are_not_stored(token: ApiToken) -> None:
    BatchFactory(tenant=token.tenant, api_token_id=token.pk)
    claim = claimed()
    all_of(Batch).update(status="cancelling")
    with pytest.raises(LeaseLost):
        running.lines_store(claim=claim, lines=[Line(number=1, custom_id="a", offset=0, n_bytes=1)])
    assert not all_of(BatchItem).exists()
    assert running.lease_renew(claim=claim, lease_s=LEASE_S) == "cancelling"


@pytest.mark.parametrize("how", ["revoked", "expired", "gone", "tenant"])
def test_nothing_is_taken_for_a_token_that_is_no_longer_good(
    batch: Batch, token: ApiToken, how: str
) -> None:
    claim = claimed()
    match how:
        case "revoked":
            all_of(ApiToken).update(revoked_at=timezone.now())
        case "expired":
            all_of(ApiToken).update(expires_at=timezone.now() - timedelta(seconds=1))
        case "gone":
            all_of(ApiToken).all().delete()
        case "tenant":
            token.tenant.is_active = False
            token.tenant.save()
    with pytest.raises(AuthenticationFailed):
        running.items_take(claim=claim, limit=1)
    assert states(batch) == ["pending"] * 5


def test_the_files_of_results_have_the_same_ids_for_whoever_writes_them(batch: Batch) -> None:
    first = running.closing_begin(claim=claimed("one"), outcome=Outcome.COMPLETED)
    lease_ends()
    claim = claimed("two")
    assert claim.status == "finalizing"
    assert running.closing_begin(claim=claim, outcome=Outcome.COMPLETED) == first


def test_the_end_is_one_step(batch: Batch) -> None:
    claim = claimed()
    [item] = running.items_take(claim=claim, limit=1)
    running.item_finish(claim=claim, item=item, answer=GOOD)
    output_id, error_id = running.closing_begin(claim=claim, outcome=Outcome.CANCELLED)
    ending = Ending(outcome=Outcome.CANCELLED, code="batch_cancelled", message="No.")
    stored = {
        "output": StoredOutput(file_id=output_id, size_bytes=7, n_lines=1),
        "errors": StoredOutput(file_id=error_id, size_bytes=9, n_lines=4),
    }
    running.batch_end(claim=claim, ending=ending, **stored)
    batch.refresh_from_db()
    assert (batch.status, batch.n_completed, batch.n_failed) == ("cancelled", 1, 4)
    assert (batch.lease_owner, batch.lease_until) == ("", None)
    assert set(all_of(UploadedFile).values_list("file_id", "size_bytes", "tenant_id")) == {
        (output_id, 7, batch.tenant_id),
        (error_id, 9, batch.tenant_id),
    }
    with pytest.raises(LeaseLost):
        running.batch_end(claim=claim, ending=ending, **stored)
    assert running.ended_items_purge(now=timezone.now(), limit=3) == 3
    assert running.ended_items_purge(now=timezone.now()) == 2
    assert claim_next() is None


def test_rows_of_open_batches_are_kept(batch: Batch) -> None:
    assert running.ended_items_purge(now=timezone.now()) == 0
    assert len(states(batch)) == 5

"""Whole batches, worked on in this process against a real engine."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.batches import storage, worker
from apps.batches.models import Batch, UploadedFile
from apps.batches.services import batch_cancel, batch_create
from apps.core.hop import database_hop
from apps.core.services import change_stamp_bump
from apps.engines.models import EngineProcess
from apps.gateway.runtime import GatewayRuntime
from apps.metering.models import UsageRecord
from apps.rbac.jwt_tokens import grant_of_jwt
from apps.rbac.models import ApiToken, RoleGrant
from apps.rbac.selectors import principal_of_token
from apps.rbac.services import api_token_update, role_grant_remove, token_family_revoke
from tests.factories import ApiTokenFactory, MembershipFactory
from tests.integration.batches.conftest import (
    ENDPOINT,
    Submit,
    request_line,
    results,
    states,
    store,
)
from tests.integration.rbac.jwts import issue
from tests.processes import EngineRun
from tests.rows import all_of
from tests.waiting import wait_until, wait_until_async

LONG = {"max_tokens": 2000, "ignore_eos": True}


def go_on() -> bool:
    return False


async def fresh(batch: Batch) -> Batch:
    await database_hop(batch.refresh_from_db)
    return batch


async def worked_on(batch: Batch) -> Batch:
    await worker.work(is_stopping=go_on)
    return await fresh(batch)


async def underway(batch: Batch, *, n_done: int) -> "asyncio.Task[None]":
    """Begin to work; return once some lines are done and others are not."""
    task = asyncio.create_task(worker.work(is_stopping=go_on))

    async def is_far_enough() -> bool:
        assert not task.done()
        return (await fresh(batch)).n_completed >= n_done

    await wait_until_async(f"{n_done} lines to be done", is_far_enough, timeout_s=60)
    return task


def ids_and_codes(file_id: str) -> list[tuple[str, str]]:
    return [(line["custom_id"], line["error"]["code"]) for line in results(file_id)]


@pytest.fixture
def few_at_once(settings: Any) -> None:
    settings.BATCH_CONCURRENCY = 2


async def test_answers_and_errors_go_to_their_files_in_order(
    submit: Submit, runtime: GatewayRuntime
) -> None:
    lines = [request_line(f"r{n}", max_tokens=1 + (7 * n) % 5) for n in range(20)]
    lines[3]["body"]["model"] = "nobody"
    lines[7]["body"]["stream"] = True
    lines[9]["body"]["max_tokens"] = "many"
    batch = await worked_on(await database_hop(submit, *lines))
    assert (batch.status, batch.errors) == ("completed", [])
    assert (batch.n_total, batch.n_completed, batch.n_failed) == (20, 17, 3)
    assert None not in (batch.in_progress_at, batch.finalizing_at, batch.ended_at)
    assert (batch.lease_owner, batch.lease_until) == ("", None)

    good = results(batch.output_file_id)
    assert [line["custom_id"] for line in good] == [
        f"r{n}" for n in range(20) if n not in (3, 7, 9)
    ]
    for line in good:
        number = int(line["custom_id"][1:])
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["body"]["usage"]["completion_tokens"] <= 1 + (7 * number) % 5
        assert line["response"]["body"]["id"] == line["response"]["request_id"]
    assert len({line["id"] for line in good}) == 17

    bad = results(batch.error_file_id)
    assert [
        (line["custom_id"], line["response"]["status_code"], line["error"]) for line in bad
    ] == [("r3", 404, None), ("r7", 400, None), ("r9", 400, None)]
    params = [line["response"]["body"]["error"]["param"] for line in bad]
    assert params == ["model", "stream", "max_tokens"]

    ledger = await database_hop(lambda: list(all_of(UsageRecord).order_by("id")))
    assert {row.request_id for row in ledger} == {line["response"]["request_id"] for line in good}
    assert {(row.door, row.state, row.outcome) for row in ledger} == {
        ("batch", "settled", "completed")
    }
    files = await database_hop(lambda: list(all_of(UploadedFile).filter(purpose="batch_output")))
    assert {(file.file_id, file.size_bytes) for file in files} == {
        (file_id, storage.file_path(file_id).stat().st_size)
        for file_id in (batch.output_file_id, batch.error_file_id)
    }


async def test_an_empty_file_of_errors_is_not_made(submit: Submit, runtime: GatewayRuntime) -> None:
    batch = await worked_on(await database_hop(submit, request_line("only")))
    assert batch.status == "completed"
    assert batch.error_file_id == ""
    assert len(results(batch.output_file_id)) == 1


async def test_completions_are_served_too(submit: Submit, runtime: GatewayRuntime) -> None:
    line = {
        "custom_id": "text",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "lab/tiny", "prompt": "Hi", "temperature": 0, "max_tokens": 3},
    }
    batch = await worked_on(await database_hop(lambda: submit(line, endpoint="/v1/completions")))
    [result] = results(batch.output_file_id)
    assert result["response"]["body"]["object"] == "text_completion"


async def test_a_wrong_line_runs_nothing(submit: Submit, runtime: GatewayRuntime) -> None:
    batch = await worked_on(await database_hop(submit, request_line("a"), b"{", request_line("a")))
    assert batch.status == "failed"
    assert [(each["line"], each["code"]) for each in batch.errors] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    assert (batch.n_total, batch.output_file_id, batch.error_file_id) == (0, "", "")
    assert await database_hop(all_of(UsageRecord).count) == 0
    assert await database_hop(states, batch) == []


async def test_an_input_that_is_gone_fails_the_batch(
    submit: Submit, runtime: GatewayRuntime
) -> None:
    batch = await database_hop(submit, request_line("a"))
    storage.file_remove(batch.input_file_id)
    batch = await worked_on(batch)
    assert (batch.status, batch.errors[0]["code"]) == ("failed", "file_not_found")


async def test_a_batch_is_cancelled_in_the_middle(
    submit: Submit, runtime: GatewayRuntime, few_at_once: None, engine_process: EngineRun
) -> None:
    lines = [request_line(f"r{n}", **LONG) for n in range(40)]
    batch = await database_hop(submit, *lines)
    task = await underway(batch, n_done=2)
    await database_hop(lambda: batch_cancel(batch=batch, actor=SYSTEM))
    async with asyncio.timeout(30):
        await task
    batch = await fresh(batch)
    assert batch.status == "cancelled"
    assert 2 <= batch.n_completed < 40
    assert batch.n_completed + batch.n_failed == 40
    done = [line["custom_id"] for line in results(batch.output_file_id)]
    left = ids_and_codes(batch.error_file_id)
    assert {code for _, code in left} == {"batch_cancelled"}
    assert sorted([*done, *(custom_id for custom_id, _ in left)]) == sorted(
        line["custom_id"] for line in lines
    )
    await asyncio.to_thread(wait_until, "the engine to be idle", engine_process.is_idle)
    open_rows = all_of(UsageRecord).filter(state="reserved")
    assert await database_hop(open_rows.count) == 0


async def test_a_batch_is_cancelled_before_it_began(
    submit: Submit, runtime: GatewayRuntime
) -> None:
    batch = await database_hop(submit, request_line("a"))
    await database_hop(lambda: batch_cancel(batch=batch, actor=SYSTEM))
    batch = await worked_on(batch)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", "", "")
    assert batch.n_total == 0


async def test_what_is_late_expires(
    submit: Submit, runtime: GatewayRuntime, few_at_once: None
) -> None:
    lines = [request_line(f"r{n}", **LONG) for n in range(40)]
    batch = await database_hop(submit, *lines)
    soon = timezone.now() + timedelta(seconds=1.5)
    await database_hop(lambda: all_of(Batch).update(expires_at=soon))
    batch = await worked_on(batch)
    assert batch.status == "expired"
    assert batch.n_completed + batch.n_failed == 40
    left = ids_and_codes(batch.error_file_id)
    assert len(left) == batch.n_failed > 0
    assert {code for _, code in left} == {"batch_expired"}


async def test_a_revoked_token_fails_what_is_left(
    submit: Submit, runtime: GatewayRuntime, few_at_once: None
) -> None:
    lines = [request_line(f"r{n}", **LONG) for n in range(40)]
    batch = await database_hop(submit, *lines)
    task = await underway(batch, n_done=2)
    now = timezone.now()
    await database_hop(lambda: all_of(ApiToken).update(revoked_at=now))
    async with asyncio.timeout(30):
        await task
    batch = await fresh(batch)
    assert batch.status == "failed"
    assert batch.errors[0]["code"] == "invalid_api_key"
    assert batch.n_completed + batch.n_failed == 40
    left = results(batch.error_file_id)
    assert len(left) == batch.n_failed > 0
    assert {line["response"]["status_code"] for line in left} == {401}
    assert left[0]["response"]["body"]["error"]["code"] == "invalid_api_key"
    late = all_of(UsageRecord).filter(created_at__gt=now + timedelta(seconds=1))
    assert await database_hop(late.count) == 0


async def test_a_batch_of_a_jwt_ends_with_its_family(
    token: ApiToken, runtime: GatewayRuntime, few_at_once: None
) -> None:
    pair = await database_hop(lambda: issue(token))

    def submit() -> Batch:
        principal = grant_of_jwt(pair.access_token).principal
        file = store(principal, *(request_line(f"r{n}", **LONG) for n in range(40)))
        return batch_create(
            principal=principal, input_file_id=file.file_id, endpoint=ENDPOINT, metadata=None
        )

    batch = await database_hop(submit)
    task = await underway(batch, n_done=2)
    now = timezone.now()
    await database_hop(lambda: token_family_revoke(token=pair.access_token))
    async with asyncio.timeout(30):
        await task
    batch = await fresh(batch)
    assert (batch.status, batch.errors[0]["code"]) == ("failed", "token_revoked")
    codes = {line["response"]["body"]["error"]["code"] for line in results(batch.error_file_id)}
    # What was left, and what ran, if the revocation did not fall between two requests.
    assert "token_revoked" in codes <= {"access_revoked", "token_revoked"}
    late = all_of(UsageRecord).filter(created_at__gt=now + timedelta(seconds=1))
    assert await database_hop(late.count) == 0


@pytest.mark.parametrize("what", ["role", "scope"])
async def test_a_batch_ends_once_its_token_may_make_none(
    runtime: GatewayRuntime, few_at_once: None, what: str
) -> None:
    member = await database_hop(MembershipFactory)
    token = await database_hop(lambda: ApiTokenFactory(tenant=member.tenant, owner=member.user))

    def submit() -> Batch:
        principal = principal_of_token(token.pk)
        file = store(principal, *(request_line(f"r{n}", **LONG) for n in range(40)))
        return batch_create(
            principal=principal, input_file_id=file.file_id, endpoint=ENDPOINT, metadata=None
        )

    def withdraw() -> None:
        if what == "role":
            grant = all_of(RoleGrant).get()
            role_grant_remove(grant=grant, by=None, actor=SYSTEM)
        else:
            token.scopes = ["inference"]
            api_token_update(token=token, actor=SYSTEM)

    batch = await database_hop(submit)
    task = await underway(batch, n_done=2)
    await database_hop(withdraw)
    async with asyncio.timeout(30):
        await task
    batch = await fresh(batch)
    assert (batch.status, batch.errors[0]["code"]) == ("failed", "insufficient_scope")
    assert batch.n_completed + batch.n_failed == 40
    statuses = {line["response"]["status_code"] for line in results(batch.error_file_id)}
    assert 403 in statuses and statuses <= {401, 403}


async def test_a_worker_that_is_told_to_stop_leaves_the_rest_to_the_next(
    submit: Submit, runtime: GatewayRuntime, few_at_once: None
) -> None:
    lines = [request_line(f"r{n}", max_tokens=100, ignore_eos=True) for n in range(30)]
    batch = await database_hop(submit, *lines)
    asked = asyncio.Event()
    task = asyncio.create_task(worker.work(is_stopping=asked.is_set))

    async def has_begun() -> bool:
        return (await fresh(batch)).n_completed >= 2

    await wait_until_async("some lines to be done", has_begun, timeout_s=60)
    asked.set()
    async with asyncio.timeout(30):
        await task
    batch = await fresh(batch)
    assert batch.status == "in_progress"
    assert batch.lease_owner == ""
    assert 2 <= batch.n_completed < 30
    n_before = batch.n_completed
    assert (await database_hop(states, batch)).count("done") == n_before
    batch = await worked_on(batch)
    assert (batch.status, batch.n_completed) == ("completed", 30)
    found = [line["custom_id"] for line in results(batch.output_file_id)]
    assert found == [line["custom_id"] for line in lines]
    assert await database_hop(all_of(UsageRecord).count) == 30  # none was begun twice


async def test_two_batches_take_turns(submit: Submit, runtime: GatewayRuntime) -> None:
    lines = [request_line(f"r{n}", **LONG) for n in range(30)]
    large = await database_hop(submit, *lines)
    small = await database_hop(submit, request_line("a"), request_line("b"))
    while not (await fresh(small)).ended_at:
        await worker.work(is_stopping=go_on, slice_s=0.2)
    assert (await fresh(large)).status == "in_progress"
    await database_hop(lambda: batch_cancel(batch=large, actor=SYSTEM))
    assert (await worked_on(large)).status == "cancelled"


async def test_lines_wait_for_an_engine_that_is_away(
    submit: Submit, runtime: GatewayRuntime
) -> None:
    def observed(**fields: object) -> None:
        EngineProcess.objects.update(**fields)
        change_stamp_bump("replicas")

    batch = await database_hop(submit, request_line("a"), request_line("b"))
    await database_hop(lambda: observed(state="starting"))
    await worker.work(is_stopping=go_on, slice_s=1.0)
    batch = await fresh(batch)
    assert (batch.status, batch.n_completed, batch.n_failed) == ("in_progress", 0, 0)
    assert await database_hop(states, batch) == ["pending", "pending"]
    await database_hop(lambda: observed(state="ready"))
    assert (await worked_on(batch)).n_completed == 2


async def test_an_engine_that_fails_at_a_line_does_not_hold_up_the_batch(
    submit: Submit, runtime: GatewayRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not foreseen becomes that line's error."""
    answer: Callable[..., Any] = worker.answer

    async def failing(**fields: Any) -> Any:
        if b"Hello bad" in fields["body"]:
            raise ValueError("unforeseen")
        return await answer(**fields)

    monkeypatch.setattr(worker, "answer", failing)
    lines = [request_line(name) for name in ("a", "bad", "c")]
    batch = await worked_on(await database_hop(submit, *lines))
    assert (batch.status, batch.n_completed, batch.n_failed) == ("completed", 2, 1)
    [error] = results(batch.error_file_id)
    assert (error["custom_id"], error["response"]["status_code"]) == ("bad", 500)
    assert "unforeseen" not in str(error)

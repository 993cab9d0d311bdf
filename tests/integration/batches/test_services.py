"""Files and batches: made, shown and removed by those they belong to, and by nobody else."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.batches import selectors, storage
from apps.batches.exceptions import (
    BatchNotFound,
    FileInUse,
    FileNotFound,
    NotCancellable,
    StorageFull,
)
from apps.batches.models import Batch, UploadedFile
from apps.batches.services import batch_cancel, batch_create, file_create, file_delete
from apps.core.exceptions import PermissionDenied
from apps.core.limits import UNLIMITED
from apps.rbac.types import Principal
from tests.factories import BatchFactory, UploadedFileFactory
from tests.integration.batches.conftest import ENDPOINT, Submit, request_line, store, upload
from tests.rows import all_of

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_file_is_stored_whole(principal: Principal, files_dir: Path) -> None:
    received = upload(b"one\ntwo")
    row = file_create(principal=principal, upload=received)
    assert storage.file_path(row.file_id).read_bytes() == b"one\ntwo"
    assert storage.file_path(row.file_id).parent == files_dir
    assert not received.draft.exists()
    assert (row.tenant_id, row.size_bytes) == (principal.tenant_id, 7)
    assert list(all_of(AuditEvent).values_list("action", "actor_kind")) == [
        ("file.uploaded", "token")
    ]


def test_a_tenant_stores_no_more_than_it_may(
    principal: Principal, stranger: Principal, settings: Any, files_dir: Path
) -> None:
    settings.FILES_MAX_TENANT_BYTES = 10
    kept = store(principal, b"123456")
    with pytest.raises(StorageFull):
        store(principal, b"12345")
    assert [row.file_id for row in all_of(UploadedFile).all()] == [kept.file_id]
    assert sorted(path.name for path in files_dir.glob("file-*")) == [kept.file_id]
    store(principal, b"1234")
    store(stranger, b"12345")


def test_a_file_is_removed_for_good(principal: Principal) -> None:
    row = store(principal, b"x")
    file_delete(principal=principal, file_id=row.file_id)
    assert not all_of(UploadedFile).exists()
    assert not storage.file_path(row.file_id).exists()


@pytest.mark.parametrize("file_id", ["", "file-1", "file-\x00", "x" * 1000, "../db.sqlite3"])
def test_what_is_no_id_is_not_there(principal: Principal, file_id: str) -> None:
    with pytest.raises(FileNotFound):
        selectors.file_get(tenant_id=principal.tenant_id, file_id=file_id)
    with pytest.raises(FileNotFound):
        file_delete(principal=principal, file_id=file_id)
    with pytest.raises(BatchNotFound):
        selectors.batch_get(tenant_id=principal.tenant_id, batch_id=file_id)


def test_a_strangers_file_is_not_there(principal: Principal, stranger: Principal) -> None:
    row = store(principal, b"x")
    with pytest.raises(FileNotFound):
        file_delete(principal=stranger, file_id=row.file_id)
    with pytest.raises(FileNotFound) as caught:
        batch_create(
            principal=stranger, input_file_id=row.file_id, endpoint=ENDPOINT, metadata=None
        )
    assert caught.value.param == "input_file_id"
    with pytest.raises(FileNotFound):
        selectors.file_get(tenant_id=stranger.tenant_id, file_id=row.file_id)
    assert storage.file_path(row.file_id).exists()
    assert not all_of(Batch).exists()


def test_a_strangers_batch_is_not_there(submit: Submit, stranger: Principal) -> None:
    batch = submit(request_line("a"))
    with pytest.raises(BatchNotFound):
        selectors.batch_get(tenant_id=stranger.tenant_id, batch_id=batch.batch_id)
    assert selectors.batches_page(tenant_id=stranger.tenant_id, limit=10, after=None) == []
    with pytest.raises(BatchNotFound):
        selectors.batches_page(tenant_id=stranger.tenant_id, limit=10, after=batch.batch_id)


def test_results_are_no_input(principal: Principal) -> None:
    row = UploadedFileFactory(tenant_id=principal.tenant_id, purpose="batch_output")
    with pytest.raises(FileNotFound):
        batch_create(
            principal=principal, input_file_id=row.file_id, endpoint=ENDPOINT, metadata=None
        )


def test_a_person_without_a_token_makes_no_batch(principal: Principal) -> None:
    row = store(principal, b"x")
    person = Principal(
        tenant_id=principal.tenant_id,
        tenant_slug="t",
        cache_salt="s",
        label="p",
        limits=UNLIMITED,
        user_id=1,
    )
    with pytest.raises(PermissionDenied):
        batch_create(principal=person, input_file_id=row.file_id, endpoint=ENDPOINT, metadata=None)
    assert not all_of(Batch).exists()


def test_the_input_stays_while_a_batch_reads_it(
    submit: Submit, principal: Principal, actor: Actor
) -> None:
    batch = submit(request_line("a"))
    with pytest.raises(FileInUse, match=batch.batch_id):
        file_delete(principal=principal, file_id=batch.input_file_id)
    assert storage.file_path(batch.input_file_id).exists()
    all_of(Batch).update(status="completed", ended_at=timezone.now())
    file_delete(principal=principal, file_id=batch.input_file_id)
    assert not storage.file_path(batch.input_file_id).exists()


def test_a_batch_waits_to_be_validated(submit: Submit, principal: Principal) -> None:
    before = timezone.now()
    batch = submit(request_line("a"))
    assert (batch.status, batch.api_token_id) == ("validating", principal.api_token_id)
    day = timedelta(hours=24)
    assert before + day <= batch.expires_at <= timezone.now() + day


def test_cancelling_twice_is_cancelling_once(submit: Submit, actor: Actor) -> None:
    batch = submit(request_line("a"))
    first = batch_cancel(batch=batch, actor=actor)
    again = batch_cancel(batch=batch, actor=actor)
    assert (first.status, first.cancelling_at) == ("cancelling", again.cancelling_at)
    actions = list(all_of(AuditEvent).values_list("action", flat=True))
    assert actions.count("batch.cancelled") == 1


@pytest.mark.parametrize("status", ["finalizing", "completed", "failed", "expired", "cancelled"])
def test_what_has_ended_is_not_cancelled(actor: Actor, status: str) -> None:
    batch = BatchFactory(status=status)
    with pytest.raises(NotCancellable):
        batch_cancel(batch=batch, actor=actor)
    batch.refresh_from_db()
    assert (batch.status, batch.cancelling_at) == (status, None)


def test_pages_follow_each_other(principal: Principal) -> None:
    tenant_id = principal.tenant_id
    rows = [UploadedFileFactory(tenant_id=tenant_id) for _ in range(5)]
    UploadedFileFactory(tenant_id=tenant_id, purpose="batch_output")
    asked = {"tenant_id": tenant_id, "limit": 2, "purpose": "batch", "is_ascending": False}
    first = selectors.files_page(**asked, after=None)
    assert first == [rows[4], rows[3]]
    assert selectors.files_page(**asked, after=first[-1].file_id) == [rows[2], rows[1]]
    asked["is_ascending"] = True
    assert selectors.files_page(**asked, after=rows[3].file_id) == [rows[4]]

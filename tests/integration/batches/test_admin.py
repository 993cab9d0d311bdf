"""The admin's pages of batches: to read, and to cancel."""

import pytest
from django.test import Client
from django.urls import reverse

from tests.factories import BatchFactory
from tests.integration.console.pages import actions, messages, staff

pytestmark = pytest.mark.django_db

SUBMITTED = {"_form_submitted": "True"}
LIST = "admin:batches_batch_changelist"


def cancel_url(pk: int) -> str:
    return reverse("admin:batches_batch_cancel", args=[pk])


def test_a_batch_is_cancelled(admin_client: Client) -> None:
    batch = BatchFactory(running=True)
    response = admin_client.post(cancel_url(batch.pk), SUBMITTED)
    assert response["Location"] == reverse(LIST)
    batch.refresh_from_db()
    assert batch.status == "cancelling"
    assert actions() == ["batch.cancelled"]
    assert messages(admin_client, reverse(LIST)) == [f"Batch {batch} is being cancelled."]


def test_one_that_has_ended_stays_so(admin_client: Client) -> None:
    batch = BatchFactory(status="completed")
    admin_client.post(cancel_url(batch.pk), SUBMITTED)
    batch.refresh_from_db()
    assert batch.status == "completed"
    assert actions() == []
    assert messages(admin_client, reverse(LIST)) == [
        "The batch is completed; it cannot be cancelled any more."
    ]


def test_who_may_only_look_cancels_nothing() -> None:
    batch = BatchFactory(running=True)
    client = staff("view_batch")
    assert client.get(reverse(LIST)).status_code == 200
    assert client.post(cancel_url(batch.pk), SUBMITTED).status_code == 403
    batch.refresh_from_db()
    assert batch.status == "in_progress"


def test_who_may_change_batches_cancels_them() -> None:
    batch = BatchFactory(running=True)
    staff("view_batch", "change_batch").post(cancel_url(batch.pk), SUBMITTED)
    batch.refresh_from_db()
    assert batch.status == "cancelling"

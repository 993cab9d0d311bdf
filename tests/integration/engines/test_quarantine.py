"""Who is quarantined, by what engines, journals and gateways have told so far."""

from datetime import timedelta
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.core.models import ChangeStamp
from apps.engines import quarantine
from apps.engines.models import EngineCrash, QuarantinedRequest, Suspicion
from apps.engines.selectors import engine_crashes, quarantine_at
from apps.engines.services import (
    crashes_record,
    suspects_clear,
    suspects_judge,
    suspicions_note,
)
from apps.engines.types import CrashSeen, Suspect
from apps.tenants.models import Tenant
from tests.factories import TenantFactory
from tests.factories.journals import EngineJournalFactory, JournalEntryFactory
from tests.integration.console.pages import staff
from tests.rows import all_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def tenant() -> Tenant:
    return TenantFactory()


def digest(name: str) -> str:
    return name.ljust(64, "0")


def noted(tenant: Tenant, *names: str, epoch: int) -> None:
    """The gateway lost that start of the engine with these requests in it."""
    suspicions_note(
        [
            Suspect(
                tenant_id=tenant.pk,
                digest=digest(name),
                deployment_name="m",
                engine_name="m-0",
                epoch=epoch,
                request_id=f"req-{name}-{epoch}",
            )
            for name in names
        ]
    )


def died(epoch: int, **journal: Any) -> None:
    """The agent saw its end, and has read its journal."""
    crash = CrashSeen(
        engine_name="m-0", epoch=epoch, at=timezone.now(), reason="boom", log_end="a\nb"
    )
    crashes_record([crash])
    fields = {"closed_at": timezone.now()} | journal
    EngineJournalFactory(name=f"e1-{epoch}-0", engine_name="m-0", epoch=epoch, **fields)
    suspects_judge(timezone.now())


def refused() -> set[str]:
    return {each.rstrip("0") for each in quarantine_at(timezone.now()).refused}


def test_two_deaths_alone_are_enough_and_audited(tenant: Tenant) -> None:
    noted(tenant, "x", epoch=1)
    died(1)
    assert refused() == set()
    noted(tenant, "x", epoch=2)
    died(2)
    assert refused() == {"x"}
    (row,) = all_of(QuarantinedRequest)
    assert (row.tenant, row.deployment_name, row.n_deaths) == (tenant, "m", 2)
    assert row.request_id == "req-x-2"
    assert row.expires_at - row.since == timedelta(hours=24)
    (event,) = all_of(AuditEvent)
    assert (event.action, event.tenant_id) == ("quarantine.added", tenant.pk)
    assert event.changes == {"digest": digest("x"), "n_deaths": 2, "deployment": "m"}
    suspects_judge(timezone.now())
    assert all_of(AuditEvent).count() == 1


def test_the_word_of_the_gateway_may_come_last(tenant: Tenant) -> None:
    died(1)
    died(2)
    noted(tenant, "x", epoch=1)
    noted(tenant, "x", epoch=2)
    assert refused() == {"x"}


@pytest.mark.parametrize("lacks", ["crash", "journal", "all of the journal"])
def test_what_is_not_proven_counts_for_nothing(tenant: Tenant, lacks: str) -> None:
    noted(tenant, "x", epoch=1)
    noted(tenant, "x", epoch=2)
    died(1)
    died(2, **({"closed_at": None} if lacks == "all of the journal" else {}))
    if lacks == "crash":
        all_of(QuarantinedRequest).delete()
        EngineCrash.objects.filter(epoch=2).delete()
    elif lacks == "journal":
        all_of(QuarantinedRequest).delete()
        EngineJournalFactory._meta.model.objects.filter(epoch=2).delete()
    suspects_judge(timezone.now())
    assert refused() == set()


def test_a_request_that_had_ended_before_is_innocent(tenant: Tenant) -> None:
    for epoch in (1, 2):
        noted(tenant, "x", "y", epoch=epoch)
        crash = CrashSeen(engine_name="m-0", epoch=epoch, at=timezone.now(), reason="", log_end="")
        crashes_record([crash])
        journal = EngineJournalFactory(
            name=f"e1-{epoch}-0", engine_name="m-0", epoch=epoch, closed_at=timezone.now()
        )
        JournalEntryFactory(journal=journal, request_id=f"req-y-{epoch}")
        JournalEntryFactory(
            journal=journal,
            request_id=f"req-x-{epoch}",
            finish_reason="",
            error_code="engine_died",
        )
    suspects_judge(timezone.now())
    assert refused() == {"x"}


def test_company_is_cleared_by_a_good_end(tenant: Tenant) -> None:
    for epoch in (1, 2):
        noted(tenant, "x", "y", epoch=epoch)
        died(epoch)
    assert refused() == set()
    known = quarantine_at(timezone.now())
    assert known.suspected == {digest("x"), digest("y")}
    before = ChangeStamp.objects.get(name="quarantine").value
    suspects_clear([digest("y")])
    assert refused() == {"x"}
    assert ChangeStamp.objects.get(name="quarantine").value > before


def test_deaths_of_another_day_do_not_count(tenant: Tenant) -> None:
    noted(tenant, "x", epoch=1)
    died(1)
    all_of(Suspicion).update(noted_at=timezone.now() - timedelta(hours=25))
    noted(tenant, "x", epoch=2)
    died(2)
    assert refused() == set()


def test_quarantine_ends_by_itself_and_begins_anew(tenant: Tenant) -> None:
    for epoch in (1, 2):
        noted(tenant, "x", epoch=epoch)
        died(epoch)
    long_ago = timezone.now() - timedelta(hours=25)
    all_of(QuarantinedRequest).update(expires_at=long_ago)
    all_of(Suspicion).update(noted_at=long_ago)
    assert refused() == set()
    for epoch in (3, 4):
        noted(tenant, "x", epoch=epoch)
        died(epoch)
    assert refused() == {"x"}
    assert all_of(QuarantinedRequest).count() == 1


def test_both_tables_are_bounded_for_each_tenant(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_SUSPICIONS", 4)
    monkeypatch.setattr(quarantine, "MAX_QUARANTINED", 2)
    other = TenantFactory()
    noted(other, "o", epoch=1)
    for n, name in enumerate(("a", "b", "c")):
        for epoch in (2 * n + 2, 2 * n + 3):
            noted(tenant, name, epoch=epoch)
            died(epoch)
    assert refused() == {"b", "c"}
    assert all_of(Suspicion).filter(tenant_id=tenant.pk).count() == 4
    assert all_of(Suspicion).filter(tenant_id=other.pk).count() == 1


def test_a_crash_is_kept_once_with_the_end_of_the_log() -> None:
    died(7)
    crashes_record(
        [CrashSeen(engine_name="m-0", epoch=7, at=timezone.now(), reason="other", log_end="")]
    )
    (crash,) = engine_crashes(["m-0"], limit=5)
    assert (crash.epoch, crash.reason, crash.log_end) == (7, "boom", "a\nb")
    assert engine_crashes(["m-1"], limit=5) == []


def quarantined(tenant: Tenant) -> QuarantinedRequest:
    for epoch in (1, 2):
        noted(tenant, "x", epoch=epoch)
        died(epoch)
    return all_of(QuarantinedRequest).get()


def test_lifting_is_audited_and_forgets_what_was_held_against_it(
    tenant: Tenant, admin_client: Any
) -> None:
    row = quarantined(tenant)
    url = reverse("admin:engines_quarantinedrequest_lift", args=[row.pk])
    response = admin_client.post(url, {"_form_submitted": "True"})
    assert response["Location"] == reverse("admin:engines_quarantinedrequest_changelist")
    assert refused() == set()
    assert not all_of(Suspicion).exists()
    event = all_of(AuditEvent).latest("id")
    assert (event.action, event.object_label) == ("quarantine.lifted", "req-x-2")
    assert (event.tenant_id, event.actor_label) == (tenant.pk, "admin")


def test_who_may_only_look_cannot_lift(tenant: Tenant) -> None:
    row = quarantined(tenant)
    client = staff("view_quarantinedrequest")
    assert (
        client.get(reverse("admin:engines_quarantinedrequest_change", args=[row.pk])).status_code
        == 200
    )
    url = reverse("admin:engines_quarantinedrequest_lift", args=[row.pk])
    response = client.post(url, {"_form_submitted": "True"})
    assert response.status_code == 403
    assert refused() == {"x"}
    assert all_of(AuditEvent).latest("id").action == "quarantine.added"

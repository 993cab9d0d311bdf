"""Verifications as rows: asked for, claimed under a lease, ended; and their pages and commands."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.audit.types import Actor
from apps.registry.exceptions import VerificationLost, VerificationRefused
from apps.registry.models import ModelVersion, VerificationRun
from apps.registry.services import (
    verification_ask,
    verification_cancel,
    verification_claim,
    verification_end,
    verification_release,
    verification_renew,
)
from apps.registry.types import VerificationCheck, VerificationOutcome, VerificationStep
from tests.factories import ModelVersionFactory, VerificationRunFactory
from tests.integration.console.pages import actions, messages
from tests.integration.registry.test_versions import state, with_role

pytestmark = pytest.mark.django_db

GOOD = VerificationOutcome(
    checks=(VerificationCheck(name="x", is_passed=True, said="y"),), figures={"perplexity": 12.5}
)
BAD = VerificationOutcome(checks=(VerificationCheck(name="x", is_passed=False, said="y"),))
CONFIRMED = {"_form_submitted": "True"}


def claimed(run: VerificationRun, owner: str = "one") -> Any:
    claim = verification_claim(owner=owner, lease_s=60, run_id=run.pk)
    assert claim is not None
    return claim


def expire(run: VerificationRun) -> None:
    past = timezone.now() - timedelta(seconds=1)
    VerificationRun.objects.filter(pk=run.pk).update(lease_until=past)


def rows() -> list[Any]:
    return [*state(), list(VerificationRun.objects.values())]


def test_a_draft_that_passes_becomes_verified(actor: Actor) -> None:
    version = ModelVersionFactory()
    run = verification_ask(version=version, actor=actor)
    verification_end(claim=claimed(run), outcome=GOOD)
    run.refresh_from_db()
    version.refresh_from_db()
    assert (run.status, run.figures, run.lease_owner) == ("passed", {"perplexity": 12.5}, "")
    assert None not in (run.started_at, run.ended_at)
    assert version.stage == "verified"
    (move,) = version.moves.all()
    assert (move.actor_label, move.reason) == ("alice", f"Verification #{run.pk}")
    assert actions() == [
        "verification.asked", "verification.passed", "model_version.stage_moved",
    ]  # fmt: skip


@pytest.mark.parametrize("outcome", [BAD, VerificationOutcome(error="no")])
def test_one_that_fails_changes_no_stage(actor: Actor, outcome: VerificationOutcome) -> None:
    run = verification_ask(version=ModelVersionFactory(), actor=actor)
    verification_end(claim=claimed(run), outcome=outcome)
    run.refresh_from_db()
    assert run.status == "failed"
    assert ModelVersion.objects.get(pk=run.version_id).stage == "draft"
    assert actions() == ["verification.asked", "verification.failed"]


@pytest.mark.parametrize("stage", ["verified", "approved", "retired"])
def test_only_a_draft_is_moved(stage: str) -> None:
    run = VerificationRunFactory(version__stage=stage)
    verification_end(claim=claimed(run), outcome=GOOD)
    assert ModelVersion.objects.get(pk=run.version_id).stage == stage


def test_what_is_refused(actor: Actor) -> None:
    retired, busy = ModelVersionFactory(stage="retired"), VerificationRunFactory().version
    done = VerificationRunFactory(status="passed")
    seen = rows()
    for refused, said in (
        (lambda: verification_ask(version=retired, actor=actor), "is retired"),
        (lambda: verification_ask(version=busy, actor=actor), "is being verified already"),
        (lambda: verification_cancel(run=done, actor=actor), "has passed already"),
    ):
        with pytest.raises(VerificationRefused, match=said):
            refused()
    assert rows() == seen
    with pytest.raises(IntegrityError), transaction.atomic():
        VerificationRunFactory(version=busy)


def test_a_lease_is_one_workers_until_it_ends() -> None:
    run = VerificationRunFactory()
    first = claimed(run)
    assert verification_claim(owner="two", lease_s=60) is None
    step = VerificationStep.LOADING
    assert not verification_renew(claim=first, lease_s=60, step=step, percent=7)
    run.refresh_from_db()
    assert (run.status, run.step, run.percent, run.attempt) == ("running", "loading", 7, 1)
    expire(run)
    second = claimed(run, "two")
    assert second.attempt == 2
    for write in (
        lambda: verification_renew(claim=first, lease_s=60, step=None, percent=0),
        lambda: verification_end(claim=first, outcome=GOOD),
    ):
        with pytest.raises(VerificationLost):
            write()
    verification_release(claim=first)
    run.refresh_from_db()
    assert (run.status, run.lease_owner) == ("running", "two")


def test_a_worker_that_is_told_to_stop_costs_no_attempt() -> None:
    run = VerificationRunFactory()
    verification_release(claim=claimed(run))
    run.refresh_from_db()
    assert (run.status, run.attempt, run.lease_until) == ("queued", 0, None)


def test_who_waited_longest_is_next() -> None:
    runs = [VerificationRunFactory() for _ in range(3)]
    order = [verification_claim(owner=f"{n}", lease_s=60) for n in range(3)]
    assert [claim and claim.pk for claim in order] == [run.pk for run in runs]


def test_cancelling(actor: Actor) -> None:
    waiting, running = VerificationRunFactory(), VerificationRunFactory()
    claim = claimed(running)
    assert verification_cancel(run=waiting, actor=actor).status == "cancelled"
    assert verification_cancel(run=running, actor=actor).status == "running"
    assert verification_renew(claim=claim, lease_s=60, step=None, percent=0)
    verification_end(claim=claim, outcome=VerificationOutcome(is_cancelled=True))
    running.refresh_from_db()
    assert running.status == "cancelled"
    assert actions() == ["verification.cancelled"] * 2


# -- pages and commands ------------------------------------------------------------------------


def verify_url(version: ModelVersion) -> str:
    return reverse("admin:registry_modelversion_verify", args=[version.pk])


def test_asking_and_cancelling_by_the_buttons(admin_client: Client) -> None:
    version = ModelVersionFactory()
    answer = admin_client.post(verify_url(version), CONFIRMED)
    run = VerificationRun.objects.get()
    page = reverse("admin:registry_verificationrun_change", args=[run.pk])
    assert answer["Location"] == page
    assert "Waits for the worker" in admin_client.get(page).content.decode()
    admin_client.post(verify_url(version), CONFIRMED)
    version_page = reverse("admin:registry_modelversion_change", args=[version.pk])
    assert "is being verified already." in messages(admin_client, version_page)[-1]
    admin_client.post(reverse("admin:registry_verificationrun_cancel", args=[run.pk]), CONFIRMED)
    run.refresh_from_db()
    assert (run.status, run.asked_by_label) == ("cancelled", "admin")


@pytest.mark.parametrize("role", ["viewer", "auditor", "developer"])
def test_who_may_not_ask_or_cancel_changes_nothing(role: str) -> None:
    version, run, client = ModelVersionFactory(), VerificationRunFactory(), with_role(role)
    seen = rows()
    for url in (
        verify_url(version), reverse("admin:registry_verificationrun_cancel", args=[run.pk]),
    ):  # fmt: skip
        assert client.post(url, CONFIRMED).status_code == 403
    assert rows() == seen


def test_an_operator_asks() -> None:
    version = ModelVersionFactory()
    assert with_role("operator").post(verify_url(version), CONFIRMED).status_code == 302
    assert version.verifications.count() == 1


def test_pages_show_what_was_seen(admin_client: Client) -> None:
    run = VerificationRunFactory()
    checks = (VerificationCheck(name="<b>x</b>", is_passed=True, said="<i>y</i>"),)
    outcome = VerificationOutcome(checks=checks, figures={"perplexity": 12.5, "ttft_ms": 8.25})
    verification_end(claim=claimed(run), outcome=outcome)
    page = reverse("admin:registry_verificationrun_change", args=[run.pk])
    html = admin_client.get(page).content.decode()
    for said in ("✓ &lt;b&gt;x&lt;/b&gt;", "&lt;i&gt;y&lt;/i&gt;", "12.500", "8.2 ms", "Passed"):
        assert said in html
    version_page = reverse("admin:registry_modelversion_change", args=[run.version_id])
    html = admin_client.get(version_page).content.decode()
    assert "12.500" in html
    assert "Draft → Verified" in html


def test_figures_side_by_side(admin_client: Client) -> None:
    left, right = (VerificationRunFactory() for _ in range(2))
    for run, figures in ((left, {"ttft_ms": 10.0}), (right, {"ttft_ms": 25.0, "load_s": 1.0})):
        verification_end(claim=claimed(run), outcome=VerificationOutcome(figures=figures))
    url = reverse("admin:registry_modelversion_compare")
    page = admin_client.get(url, {"left": left.version_id, "right": right.version_id})
    found = [(row.label, row.left, row.right, row.ratio) for row in page.context["figures"]]
    assert found == [
        ("Time to first token", "10.0 ms", "25.0 ms", 2.5),
        ("Loading", "-", "1.0 s", None),
    ]


def test_commands() -> None:
    version = ModelVersionFactory(model__name="tiny", stage="approved")
    version.tags.create(name="chat")
    out = StringIO()
    call_command("verify", "tiny:1", "--queue", stdout=out)
    assert (
        out.getvalue() == f"Verification #{VerificationRun.objects.get().pk} of tiny v1 waits "
        "for the worker.\n"
    )
    out = StringIO()
    call_command("versions", "tiny", stdout=out)
    assert out.getvalue().split() == [
        "tiny:1", "approved", "LlamaForCausalLM", "bfloat16", "269", "MB", "[chat]",
    ]  # fmt: skip
    for words, said in (
        (("verify", "tiny:1"), "is being verified already"),
        (("verify", "tiny:2"), "VERSION: there is no version 'tiny:2'"),
        (("verify", "tiny:" + "9" * 30), "there is no version"),
        (("versions", "big"), "NAME: there is no model 'big'"),
    ):
        with pytest.raises(CommandError, match=said):
            call_command(*words)

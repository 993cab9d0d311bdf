"""Judges in a browser, from the real server: made by hand, used in an experiment, and the rubric
unfolded where the number is read; on a wide screen and on a phone."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from apps.experiments.counting import rows_count
from apps.experiments.looks import looks_take
from apps.experiments.models import Experiment, Variant
from apps.judging.models import Judge
from apps.judging.services import samples_take, score_record
from apps.tenants.models import Tenant
from tests.browser import chromium
from tests.factories import (
    AnswerSampleFactory,
    ApiTokenFactory,
    TenantFactory,
    UsageRecordFactory,
    UserFactory,
)
from tests.integration.experiments.made import arm_of
from tests.integration.experiments.setting import ready, route_ready
from tests.integration.experiments.test_pages_browser import LIVE_MS, elsewhere, picture
from tests.integration.gateway.conftest import shared_server
from tests.processes import ServerRun

__all__ = ["shared_server"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

RUBRIC = """You judge answers of a help desk.
5: answers what was asked, completely, and says nothing that is not asked for.
3: answers a part of it.
1: is about something else, or refuses without need."""


@pytest.fixture
def server(transactional_db: None, shared_server: ServerRun) -> ServerRun:
    UserFactory(admin=True, username="ann")
    route_ready("chat")
    route_ready("strict")
    ready("next")
    ApiTokenFactory(name="for judges", tenant=TenantFactory(name="Acme", slug="acme"))
    return shared_server


def judged(first: int, end: int) -> None:
    """Some people asked, and their answers were taken; of each three two are scored."""
    made, judge, acme = Experiment.objects.get(), Judge.objects.get(), Tenant.objects.get()
    control, b = Variant.objects.filter(experiment=made)
    for number in range(first, end):
        row = UsageRecordFactory(
            tenant_id=acme.pk,
            route_name=made.route.name,
            end_user=f"user-{number}",
            experiment_arm=arm_of(
                made, f"user-{number}", tenant_id=acme.pk, variant=b if number % 2 else control
            ),
        )
        AnswerSampleFactory(
            judge=judge, tenant_id=acme.pk, request_id=row.request_id, end_user=row.end_user
        )
    Judge.objects.update(n_taken=end)
    taken = samples_take(limit=(end - first) * 2 // 3, hold_s=600)
    for number, sample in enumerate(taken):
        score_record(sample=sample, score=1 + number % 5, reason="It answers a part of it.")
    rows_count()
    Experiment.objects.update(looked_at=None)
    looks_take()


def test_from_a_rubric_to_the_number_that_it_makes(server: ServerRun, tmp_path: Path) -> None:
    with chromium(base_url=server.base_url, width=1280) as browser:
        page = browser.page
        url = f"{server.base_url}/admin/judging/judge/"
        browser.sign_in(url, username="ann", password="pass-word-1")
        _make(page, tmp_path)
        _allow(page, server, tmp_path)
        _compare(page, server, tmp_path)
        _follow(page, tmp_path)
        page.goto(url)
        expect(page.locator("#result_list")).to_contain_text("kind")
        picture(page, tmp_path, "judge-list")
        page.locator("#result_list").get_by_role("link", name="kind").click()
        expect(page.locator("#judge_form")).to_contain_text("answers a part of it")
        expect(page.get_by_label("Answers a day")).to_be_visible()
        expect(page.get_by_label("Rubric")).to_have_count(0)
        picture(page, tmp_path, "judge-taken")
        assert browser.complaints == []


def _make(page: Page, directory: Path) -> None:
    page.get_by_role("link", name="Judges").first.click()
    page.goto(f"{page.url}add/")
    page.get_by_label("Name").fill("kind")
    page.get_by_label("Rubric").fill(RUBRIC)
    for field, term in (("route", "strict"), ("api_token", "for judges")):
        page.locator(f".field-{field} .select2-selection").click()
        page.locator(".select2-search__field").fill(term)
        page.locator(".select2-results__option", has_text=term).first.click()
    picture(page, directory, "judge-form")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#result_list")).to_contain_text("You judge answers of a help desk")
    expect(page.locator("#result_list")).to_contain_text("1-5")


def _allow(page: Page, server: ServerRun, directory: Path) -> None:
    page.goto(f"{server.base_url}/admin/tenants/tenant/")
    page.get_by_role("link", name="Acme").click()
    page.get_by_text("Answers may be judged").first.scroll_into_view_if_needed()
    picture(page, directory, "judge-tenant")


def _compare(page: Page, server: ServerRun, directory: Path) -> None:
    page.goto(f"{server.base_url}/admin/experiments/experiment/add/")
    page.get_by_label("Name").first.fill("kinder")
    page.get_by_label("Decided by").select_option(label="Score by kind")
    variants = page.get_by_role("region", name="Variants")
    variants.get_by_label("Deployment").nth(1).select_option(label="strict-old")
    page.get_by_role("button", name="Check").click()
    checks = page.get_by_role("region", name="Save")
    expect(checks).to_contain_text("The judge kind asks strict-old, which is compared here")
    expect(checks).to_contain_text("No tenant lets its answers be judged")
    picture(page, directory, "judge-warned")
    variants.get_by_label("Deployment").nth(1).select_option(label="next")
    elsewhere(lambda: Tenant.objects.update(allows_judging=True))
    page.get_by_role("button", name="Start").click()
    expect(page.locator("[data-live-link]").first).to_have_text("Live")


def _follow(page: Page, directory: Path) -> None:
    """What somebody has unfolded to read stays so while numbers come."""
    card = page.locator('[data-judge="kind"]')
    expect(card).to_contain_text("0 scores counted here")
    expect(card.locator(".xp-rubric")).not_to_be_visible()
    card.locator("summary").click()
    expect(card.locator(".xp-rubric")).to_be_visible()
    elsewhere(lambda: judged(0, 30))
    expect(card).to_contain_text("20 scores counted here", timeout=LIVE_MS)
    expect(card).to_contain_text("20 are scored, 0 stay without a score, and 10 wait")
    expect(card.locator(".xp-rubric")).to_be_visible()
    expect(card.locator(".xp-rubric")).to_contain_text("answers a part of it")
    picture(page, directory, "judge-results")

"""Pages of experiments in a browser, from the real server: set up by hand, followed live, ended; on
a wide screen and on a phone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from playwright.sync_api import Page, expect

from apps.experiments.counting import rows_count
from apps.experiments.looks import looks_take
from apps.experiments.models import Experiment, Variant
from apps.routing.models import Route
from apps.tenants.models import Tenant
from tests.browser import chromium
from tests.factories import TenantFactory, UsageRecordFactory, UserFactory
from tests.integration.experiments.made import arm_of
from tests.integration.experiments.setting import ready, route_ready
from tests.integration.gateway.conftest import shared_server
from tests.processes import ServerRun

__all__ = ["shared_server"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

LIVE_MS = 20_000


@pytest.fixture
def server(transactional_db: None, shared_server: ServerRun) -> ServerRun:
    UserFactory(admin=True, username="ann")
    return shared_server


@pytest.fixture
def route(server: ServerRun) -> Route:
    """With a day of requests of two tenants, beside a second version that is ready."""
    made = route_ready()
    ready("faster")
    tenants = [TenantFactory(name="Acme"), TenantFactory(name="Globex Corporation")]
    for number in range(90):
        UsageRecordFactory(
            tenant_id=tenants[number % 3 == 0].pk,
            route_name=made.name,
            end_user=f"before-{number % 30}" if number % 9 else "",
            total_ms=400.0 + 23 * (number % 17),
        )
    return made


def elsewhere(act: Callable[[], Any]) -> Any:
    """Act in a thread: the browser's driver has a loop in this one."""

    def whole() -> Any:
        try:
            return act()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(whole).result()


def came(first: int, end: int) -> None:
    """Some people asked, of whom those of ``b`` had their answers in half the time; it was counted
    and looked at."""
    made = Experiment.objects.get()
    control, b = Variant.objects.filter(experiment=made)
    tenants = sorted(Tenant.objects.values_list("pk", flat=True))[:2]
    for number in range(first, end):
        arm, tenant_id = (b if number % 2 else control), tenants[number // 2 % 2]
        UsageRecordFactory(
            tenant_id=tenant_id,
            route_name=made.route.name,
            end_user=f"user-{number}",
            experiment_arm=arm_of(made, f"user-{number}", tenant_id=tenant_id, variant=arm),
            total_ms=(300.0 if arm == b else 600.0) + 7 * (number % 23),
        )
    rows_count()
    Experiment.objects.update(looked_at=None)
    looks_take()


def picture(page: Page, directory: Path, name: str) -> None:
    """As it is, and on a phone, where nothing is wider than the screen."""
    page.screenshot(path=directory / f"{name}.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.screenshot(path=directory / f"{name}-phone.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 900})


def test_from_an_empty_page_to_the_end(server: ServerRun, route: Route, tmp_path: Path) -> None:
    with chromium(base_url=server.base_url, width=1280) as browser:
        page = browser.page
        url = f"{server.base_url}/admin/experiments/experiment/add/"
        browser.sign_in(url, username="ann", password="pass-word-1")
        _set_up(page, tmp_path)
        page.get_by_role("button", name="Start").click()
        expect(page.locator("[data-live-link]").first).to_have_text("Live")
        expect(page.locator('[data-number="subjects"]')).to_have_text("0")
        _follow(page, tmp_path)
        _end(page, tmp_path)
        assert browser.complaints == []


def _set_up(page: Page, directory: Path) -> None:
    expect(page.get_by_role("region", name="Who would take part")).to_contain_text("Acme")
    page.get_by_label("Name").first.fill("faster-answers")
    page.get_by_label("Hypothesis").fill("The new version answers in half the time.")
    page.get_by_label("Decided by").select_option(label="Time of the whole answer")
    page.get_by_label("Least effect worth finding, %").fill("10")
    page.get_by_role("button", name="Check").click()
    variants = page.get_by_role("region", name="Variants")
    expect(page.get_by_role("region", name="Save")).to_contain_text("It could start now")
    variants.get_by_label("Deployment").nth(1).select_option(label="faster")
    page.get_by_role("button", name="Another variant").click()
    variants.get_by_label("Name").nth(2).fill("c")
    variants.get_by_label("Parameters").nth(2).fill("temperature=9")
    page.get_by_role("button", name="Check").click()
    expect(variants).to_contain_text("temperature must be a number from 0 to 2")
    picture(page, directory, "experiment-refused")
    variants.get_by_label("Name").nth(2).fill("")
    variants.get_by_label("Parameters").nth(2).fill("")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("region", name="Save")).to_contain_text("with 2 variants")
    picture(page, directory, "experiment-setup")


def _follow(page: Page, directory: Path) -> None:
    """Nobody loads the page anew."""
    page.evaluate("window.isTheSame = true")
    elsewhere(lambda: came(0, 30))
    expect(page.locator('[data-number="subjects"]')).to_have_text("30", timeout=LIVE_MS)
    picture(page, directory, "experiment-early")
    for first in range(30, 180, 50):
        elsewhere(lambda n=first: came(n, n + 50))
    expect(page.locator('[data-number="subjects"]')).to_have_text("180", timeout=LIVE_MS)
    expect(page.locator('[data-metric="latency/primary"]')).to_contain_text("Better")
    expect(page.locator("[data-verdict]")).to_contain_text("b is better", timeout=LIVE_MS)
    assert page.evaluate("window.isTheSame") is True
    picture(page, directory, "experiment-results")
    page.get_by_role("link", name="Cost per request").click()
    expect(page.locator(".co-plot").first).to_contain_text("Cost per request")
    page.get_by_label("control", exact=True).fill("60")
    page.get_by_role("button", name="Set the weights").click()
    expect(page.locator('[data-arm-line="control"] [data-label="Weight"]')).to_have_text("60")


def _end(page: Page, directory: Path) -> None:
    page.get_by_label("Why").fill("It is faster, and that is enough.")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".co-verdict .co-badge")).to_have_text("Stopped")
    expect(page.get_by_role("status", name="Verdict")).to_contain_text("that is enough")
    picture(page, directory, "experiment-stopped")
    page.goto(page.url.split("/experiments/experiment/")[0] + "/experiments/experiment/")
    expect(page.locator("#result_list")).to_contain_text("faster-answers")
    picture(page, directory, "experiment-list")

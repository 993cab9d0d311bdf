"""The pages of rollouts in a browser, from the real server: watched without loading them again, and
readable on a phone. What a controller would count and decide, the test writes or does."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from playwright.sync_api import Page, expect

from apps.audit.types import Actor
from apps.rbac.models import User
from apps.rollouts.controller import tick
from apps.rollouts.models import Rollout
from apps.rollouts.services import rollout_start
from tests.browser import chromium
from tests.factories import UserFactory
from tests.integration.gateway.conftest import shared_server
from tests.integration.rollouts.places import QUICK, Place, answered, failed, place
from tests.processes import ServerRun

__all__ = ["shared_server"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]


@pytest.fixture
def ann(transactional_db: None) -> User:
    return UserFactory(admin=True, username="ann")


@pytest.fixture
def server(ann: User, shared_server: ServerRun) -> ServerRun:
    return shared_server


@pytest.fixture
def here(server: ServerRun) -> Place:
    return place()


def elsewhere(act: Callable[[], Any]) -> Any:
    """Act in a thread: the browser's driver has a loop in this one."""

    def whole() -> Any:
        try:
            return act()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(whole).result()


def fits(page: Page, width: int, picture: Path) -> None:
    page.screenshot(path=picture, full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_set_up_watched_and_goes_back_by_itself(
    width: int, server: ServerRun, here: Place, tmp_path: Path
) -> None:
    with chromium(base_url=server.base_url, width=width) as browser:
        page = browser.page
        url = f"{server.base_url}/admin/rollouts/rollout/add/?route={here.route.pk}"
        browser.sign_in(url, username="ann", password="pass-word-1")
        page.get_by_label("New deployment").select_option(label="chat-new")
        page.get_by_role("button", name="10, 100 %", exact=True).click()
        expect(page.get_by_label("New deployment")).to_have_value(str(here.new.pk))
        page.get_by_label("Least requests, step 1").fill("40")
        page.get_by_role("button", name="Check").click()
        expect(page.get_by_label("Checked")).to_contain_text("It may start: 10 %, 100 %")
        fits(page, width, tmp_path / f"rollout-start-{width}.png")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("[data-live-link]")).to_have_text("Live")
        expect(page.locator(".co-rollout-next")).to_contain_text("40 more requests")

        rollout = elsewhere(Rollout.objects.get)
        elsewhere(lambda: (answered(rollout, "baseline", 150), answered(rollout, "candidate", 9)))
        elsewhere(tick)
        expect(page.locator(".co-rollout-track [aria-current]")).to_contain_text("9 of 40 requests")
        fits(page, width, tmp_path / f"rollout-running-{width}.png")

        elsewhere(lambda: failed(rollout, "candidate", 25))
        elsewhere(tick)
        expect(page.locator(".co-badge").first).to_have_text("Rolled back")
        expect(page.get_by_role("status")).to_contain_text(
            re.compile(r"Rolled back at 10 %: 25 of 34 requests of chat-new failed")
        )
        expect(page.locator('[data-guard="error_rate"] .co-interval')).to_have_attribute(
            "data-tone", "bad"
        )
        expect(page.get_by_role("button", name="Pause")).to_have_count(0)
        fits(page, width, tmp_path / f"rollout-back-{width}.png")
        page.goto(f"{server.base_url}/admin/rollouts/rollout/")
        expect(page.locator("#result_list")).to_contain_text("Rolled back at 10 %")
        fits(page, width, tmp_path / f"rollout-list-{width}.png")
        assert browser.complaints == []


def test_a_click_on_what_somebody_else_has_moved_is_told(
    server: ServerRun, here: Place, ann: User
) -> None:
    actor = Actor(kind="user", id=ann.pk, label="ann")
    rollout = rollout_start(route=here.route, candidate=here.new, steps=QUICK, actor=actor, by=ann)
    with chromium(base_url=server.base_url) as browser:
        page = browser.page
        url = f"{server.base_url}/admin/rollouts/rollout/{rollout.pk}/change/"
        browser.sign_in(url, username="ann", password="pass-word-1")
        page.locator("summary").click()
        page.get_by_label("Why, for the audit trail").fill("A reason half ty")
        elsewhere(lambda: Rollout.objects.update(version=7, state="paused", paused_from="running"))
        expect(page.locator("[data-live-link]")).to_contain_text("load the page again")
        expect(page.get_by_label("Why, for the audit trail")).to_have_value("A reason half ty")
        page.get_by_role("button", name="Abort it").click()
        expect(page.locator("body")).to_contain_text("The rollout was changed meanwhile")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(".co-badge").first).to_have_text("Running")
        assert browser.complaints == []

"""Thumbs under the answers of the playground: the page in a browser, and its door by itself."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from django.db import connection
from django.test import Client
from playwright.sync_api import Locator, Page, expect
from pytest_django.live_server_helper import LiveServer

from apps.deployments.models import Deployment
from apps.feedback.models import MetricEvent
from apps.rbac.models import User
from apps.tenants.models import Membership
from tests.browser import Browser, chromium
from tests.factories import MembershipFactory, UsageRecordFactory, UserFactory
from tests.integration.console.test_playground_chat import PAGE, Door, chat, door, say
from tests.rows import all_of

__all__ = ["chat", "door"]

pytestmark = pytest.mark.django_db

T = TypeVar("T")

URL = "/admin/playground/feedback/{}/"
LEAST_TOUCH_PX = 40


def ratings() -> dict[str, float]:
    return dict(all_of(MetricEvent).values_list("request_id", "value"))


# -- the door --------------------------------------------------------------------------------------


def test_a_thumb_is_the_persons_in_the_tenant_that_they_work_in(
    admin_client: Client, member: Membership
) -> None:
    UsageRecordFactory(request_id="r", tenant_id=member.tenant_id)
    for rating, value in (("up", 1.0), ("down", 0.0)):
        answer = admin_client.post(URL.format("r"), {"rating": rating})
        assert answer.json() == {"request_id": "r", "rating": rating}
        row = all_of(MetricEvent).get()
        assert (row.tenant_id, row.user_id, row.api_token_id) == (
            member.tenant_id,
            member.user_id,
            None,
        )
        assert row.value == value


def test_another_tenants_request_is_not_there(admin_client: Client, member: Membership) -> None:
    """Not for a superuser either: they speak for the tenant that they work in."""
    UsageRecordFactory(request_id="theirs", tenant_id=member.tenant_id + 1)
    for request_id in ("theirs", "nobody's"):
        answer = admin_client.post(URL.format(request_id), {"rating": "up"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
    assert ratings() == {}


@pytest.mark.parametrize("posted", [{}, {"rating": ""}, {"rating": "great"}])
def test_a_thumb_is_up_or_down(
    admin_client: Client, member: Membership, posted: dict[str, str]
) -> None:
    UsageRecordFactory(request_id="r", tenant_id=member.tenant_id)
    answer = admin_client.post(URL.format("r"), posted)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "rating")
    assert ratings() == {}


def test_only_who_may_chat_may_rate(admin_client: Client, member: Membership) -> None:
    UsageRecordFactory(request_id="r", tenant_id=member.tenant_id)
    url = URL.format("r")
    assert Client().post(url, {"rating": "up"})["Location"] == f"/admin/login/?next={url}"
    for person in (
        UserFactory(is_staff=True),  # of no tenant
        MembershipFactory(tenant=member.tenant, role="viewer", user__is_staff=True).user,
    ):
        client = Client()
        client.force_login(person)
        assert client.post(url, {"rating": "up"}).status_code == 403
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(member.user)
    assert strict.post(url, {"rating": "up"}).status_code == 403
    assert admin_client.get(url).status_code == 405
    assert ratings() == {}


# -- in a browser ----------------------------------------------------------------------------------


def apart(work: Callable[[], T]) -> T:
    """Ask the database in a thread: the browser's driver has a loop in this one."""

    def whole() -> T:
        try:
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(whole).result()


def answered(browser: Browser, door: Door, *, tenant_id: int) -> Locator:
    """An answer whose request the ledger has; return its thumbs."""
    apart(lambda: UsageRecordFactory(request_id="req_1", tenant_id=tenant_id))
    say(browser, "Hello?")
    door.answer("c1", "Hi **there**.")
    return browser.page.get_by_role("group", name="Was this answer good?")


def picture(page: Page, name: str) -> None:
    directory = Path("var/screenshots")
    directory.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=directory / f"{name}.png")


def test_a_person_rates_an_answer_and_changes_their_mind(
    chat: Browser, door: Door, member: Membership
) -> None:
    page = chat.page
    thumbs = answered(chat, door, tenant_id=member.tenant_id)
    up = thumbs.get_by_role("button", name="Good answer")
    down = thumbs.get_by_role("button", name="Bad answer")
    expect(up).to_have_attribute("aria-pressed", "false")
    up.click()
    expect(up).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#pg-status")).to_have_text("Marked as a good answer.")
    assert apart(ratings) == {"req_1": 1.0}
    down.focus()
    page.keyboard.press("Enter")
    expect(down).to_have_attribute("aria-pressed", "true")
    expect(up).to_have_attribute("aria-pressed", "false")
    assert apart(ratings) == {"req_1": 0.0}
    page.reload()
    expect(down).to_have_attribute("aria-pressed", "true")
    expect(up).to_have_attribute("aria-pressed", "false")
    picture(page, "playground-thumbs")


def test_what_cannot_be_kept_is_said_and_not_shown_as_kept(
    chat: Browser, door: Door, member: Membership
) -> None:
    thumbs = answered(chat, door, tenant_id=member.tenant_id + 1)
    up = thumbs.get_by_role("button", name="Good answer")
    up.click()
    expect(thumbs).to_contain_text("There is no such request in the ledger.")
    expect(up).to_have_attribute("aria-pressed", "false")
    assert apart(ratings) == {}
    (complaint,) = chat.complaints
    assert re.search("status of 404", complaint)
    chat.complaints.clear()


def test_nothing_is_rated_while_it_is_written_or_where_nothing_came(
    chat: Browser, door: Door
) -> None:
    thumbs = chat.page.locator(".pg-thumbs")
    say(chat, "Hello?")
    door.send("started", id="c1", request_id="req_1", model="ready-model")
    door.send("delta", id="c1", text="Once upon")
    expect(chat.page.locator(".pg-body")).to_have_text("Once upon")
    expect(thumbs).to_be_hidden()
    door.answer("c1", " a time")
    expect(thumbs).to_be_visible()
    say(chat, "And?")
    door.send("error", id="c2", error={"message": "Busy.", "code": "overloaded", "param": None})
    expect(chat.page.locator(".pg-error").last).to_contain_text("Busy.")
    expect(thumbs.last).to_be_hidden()


@pytest.fixture
def phone(
    transactional_db: None,
    live_server: LiveServer,
    admin_user: User,
    deployment: Deployment,
    door: Door,
) -> Iterator[Browser]:
    with chromium(
        base_url=live_server.url, width=390, height=844, color_scheme="dark", is_touch=True
    ) as browser:
        browser.page.route_web_socket("**/v1/stream", door.accept)
        browser.sign_in(f"{live_server.url}{PAGE}", username="admin", password="pass-word-1")
        yield browser
        assert browser.complaints == []


def test_a_phone_has_room_for_a_finger(phone: Browser, door: Door, member: Membership) -> None:
    thumbs = answered(phone, door, tenant_id=member.tenant_id)
    for name in ("Good answer", "Bad answer"):
        box = thumbs.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= LEAST_TOUCH_PX
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    thumbs.get_by_role("button", name="Bad answer").tap()
    expect(thumbs.get_by_role("button", name="Bad answer")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert apart(ratings) == {"req_1": 0.0}
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    picture(phone.page, "playground-thumbs-phone")

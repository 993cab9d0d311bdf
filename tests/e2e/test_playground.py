"""A person in front of the whole product: signs in, sees that it is well, and chats with the real
model in a real browser."""

import asyncio
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser import Browser, chromium
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e

ANSWER_TIMEOUT_MS = 60_000


@pytest.fixture
def admin(product: RunningProduct) -> Iterator[Browser]:
    with chromium(base_url=product.origin) as browser:
        access = product.access
        browser.sign_in(
            f"{product.origin}/admin/",
            username=access["admin_user"],
            password=access["admin_password"],
        )
        yield browser
        assert browser.complaints == []


@pytest.fixture
def chat(admin: Browser) -> Page:
    admin.page.get_by_role("link", name="Playground").first.click()
    expect(admin.page.locator("#pg-connection-text")).to_have_text("Connected")
    admin.page.get_by_label("Temperature", exact=True).fill("0")
    return admin.page


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def picture(product: RunningProduct, page: Page, name: str) -> None:
    directory = product.var / "screenshots"
    directory.mkdir(exist_ok=True)
    page.screenshot(path=directory / f"{name}.png")


def test_the_index_shows_the_deployment_healthy(product: RunningProduct, admin: Browser) -> None:
    card = admin.page.locator('[data-deployment="smollm2"]')
    expect(card).to_contain_text("1/1 replica ready")
    expect(card).to_contain_text(product.model)
    expect(card).to_have_attribute("data-tone", "good")
    picture(product, admin.page, "index")


def test_a_chat_makes_sense_and_tells_its_figures(product: RunningProduct, chat: Page) -> None:
    ask(chat, "What is the capital of France?")
    figures = chat.locator(".pg-figures").first
    expect(figures).to_contain_text("Complete", timeout=ANSWER_TIMEOUT_MS)
    expect(chat.locator(".pg-body").first).to_contain_text("Paris")
    said = figures.inner_text()
    assert re.search(r"\b[1-9]\d* tokens\b", said)
    assert re.search(r"\b\d+\.\d tokens/s\b", said)
    assert re.search(r"first token \d", said)
    assert re.search(r"prompt \d+, \d+ cached", said)

    ask(chat, "And of Italy?")
    expect(chat.locator(".pg-figures").nth(1)).to_contain_text(
        "Complete", timeout=ANSWER_TIMEOUT_MS
    )
    expect(chat.locator(".pg-body").nth(1)).to_contain_text("Rome")
    # The first turn is a prefix of the second one's prompt.
    cached = re.search(r"prompt \d+, (\d+) cached", chat.locator(".pg-figures").nth(1).inner_text())
    assert cached is not None and int(cached[1]) >= 32
    picture(product, chat, "playground")

    chat.locator(".pg-figures").nth(1).get_by_role("link", name="Record").click()
    expect(chat.locator("#result_list tbody tr")).to_have_count(1)
    expect(chat.locator("#result_list")).to_contain_text("websocket")


def test_stop_ends_a_long_answer_here_and_in_the_engine(
    product: RunningProduct, admin: Browser, chat: Page
) -> None:
    n_aborted = product.usage_outcomes()["aborted"]
    chat.get_by_label("Max tokens").fill("4000")
    ask(chat, "Write a very long story about a dragon and a small boat.")
    # Long before the last of 4,000 tokens: it is shown as it comes.
    expect(chat.locator(".pg-body")).to_contain_text(re.compile(".{20}"), timeout=ANSWER_TIMEOUT_MS)
    chat.get_by_role("button", name="Stop").click()
    expect(chat.locator(".pg-figures")).to_contain_text("Stopped by you")
    text = chat.locator(".pg-body").inner_text()
    assert product.usage_outcomes()["aborted"] == n_aborted + 1
    assert product.n_open_usage_rows() == 0
    # Still connected, and the answer that was stopped is part of the chat that goes on.
    chat.get_by_label("Max tokens").fill("8")
    ask(chat, "Thank you.")
    expect(chat.locator(".pg-figures").nth(1)).to_contain_text(
        "tokens/s", timeout=ANSWER_TIMEOUT_MS
    )
    assert chat.locator(".pg-body").first.inner_text() == text


def test_an_error_of_the_engine_is_told_in_words(product: RunningProduct, chat: Page) -> None:
    chat.get_by_label("Max tokens").fill("100000")
    ask(chat, "Hello?")
    expect(chat.locator(".pg-error")).to_contain_text("max_tokens")
    chat.get_by_label("Max tokens").fill("8")
    chat.get_by_role("button", name="Retry").click()
    expect(chat.locator(".pg-figures")).to_contain_text(
        "Cut at max tokens", timeout=ANSWER_TIMEOUT_MS
    )
    expect(chat.locator(".pg-error")).to_be_hidden()


def test_fits_a_phone_in_the_dark(product: RunningProduct) -> None:
    access = product.access
    with chromium(base_url=product.origin, width=390, height=844, color_scheme="dark") as browser:
        page = browser.page
        browser.sign_in(
            f"{product.origin}/admin/playground/",
            username=access["admin_user"],
            password=access["admin_password"],
        )
        page.get_by_role("button", name="Settings", exact=True).click()
        page.get_by_label("Max tokens").fill("16")
        page.get_by_role("button", name="Close settings").click()
        ask(page, "Hello?")
        expect(page.locator(".pg-figures")).to_contain_text("tokens/s", timeout=ANSWER_TIMEOUT_MS)
        size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        assert page.evaluate(size) == [390, 844]
        assert page.evaluate("document.documentElement.classList.contains('dark')")
        picture(product, page, "playground-phone")
        assert browser.complaints == []


def test_nothing_of_all_this_is_left_in_the_engine(product: RunningProduct) -> None:
    stats = asyncio.run(product.engine_stats())
    assert (stats.n_running, stats.n_waiting) == (0, 0)
    assert stats.n_blocks_free == stats.n_blocks_total

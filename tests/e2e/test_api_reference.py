"""The browsable page of the API, in a real browser: it shows the document of this server, sends
requests, and asks nothing of any other host."""

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser import chromium
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e


def test_the_page_shows_the_document_and_sends_a_request(product: RunningProduct) -> None:
    document = httpx.get(f"{product.base_url}/openapi.json").json()
    n_operations = sum(len(methods) for methods in document["paths"].values())
    with chromium(base_url=product.origin, height=1400) as browser:
        page = browser.page
        page.goto(f"{product.origin}/docs/api")
        expect(page.locator(".opblock")).to_have_count(n_operations)
        expect(page.get_by_text(document["info"]["title"])).to_be_visible()

        page.locator(".btn.authorize").click()
        page.locator(".auth-container input").fill(product.api_token)
        page.locator(".auth-btn-wrapper .authorize").click()
        page.locator(".auth-btn-wrapper .btn-done").click()

        page.locator("#operations-Models-listModels .opblock-summary-control").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table")).to_contain_text(product.model)

        directory = product.var / "screenshots"
        directory.mkdir(exist_ok=True)
        page.screenshot(path=directory / "api-reference.png", full_page=True)
        assert browser.complaints == []


def test_nothing_on_the_page_needs_a_session(product: RunningProduct) -> None:
    page = httpx.get(f"{product.origin}/docs/api")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "set-cookie" not in page.headers

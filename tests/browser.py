"""A headless Chromium for tests, and what its console said."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
TIMEOUT_MS = 15_000


@dataclass(slots=True)
class Browser:
    """One page of one fresh profile. ``complaints``: console errors and warnings, script errors and
    requests that left the server under test."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def sign_in(self, url: str, *, username: str, password: str) -> None:
        """Open a page of the admin and sign in by the form that comes first."""
        self.page.goto(url)
        self.page.get_by_label("Username").fill(username)
        self.page.get_by_label("Password").fill(password)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(url)


@contextmanager
def chromium(
    *,
    width: int = 1440,
    height: int = 900,
    color_scheme: Literal["light", "dark"] = "light",
    is_touch: bool = False,
    base_url: str,
) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=color_scheme,
            has_touch=is_touch,
            is_mobile=is_touch,
        )
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        watched = Browser(page)

        def on_console(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                watched.complaints.append(f"{message.type}: {message.text}")

        def on_request(url: str) -> None:
            if not url.startswith((base_url, "data:", "blob:")):
                watched.complaints.append(f"request to {url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: watched.complaints.append(f"script: {error}"))
        page.on("request", lambda request: on_request(request.url))
        try:
            yield watched
        finally:
            browser.close()

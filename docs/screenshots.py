"""Makes the pictures of the README anew, from a product that runs:
``.venv/bin/python -m docs.screenshots [var/bootstrap.json]``."""

import json
import re
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser import chromium

IMAGES = Path(__file__).resolve().parent / "images"
QUESTIONS = ("What is the capital of France?", "Give me three tips for writing clear emails.")


def main(bootstrap_file: Path) -> None:
    access = json.loads(bootstrap_file.read_text())
    origin = access["base_url"].removesuffix("/v1")
    IMAGES.mkdir(exist_ok=True)
    with chromium(base_url=origin, width=1360, height=850) as browser:
        page = browser.page
        browser.sign_in(
            f"{origin}/admin/playground/",
            username=access["admin_user"],
            password=access["admin_password"],
        )
        chat(page)
        page.screenshot(path=IMAGES / "playground.png")
        page.goto(f"{origin}/admin/")
        expect(page.locator("[data-deployment]").first).to_be_visible()
        page.screenshot(path=IMAGES / "admin.png")
        guide(page, origin)
        if browser.complaints:
            raise SystemExit("\n".join(browser.complaints))


def guide(page: Page, origin: str) -> None:
    """The newest version of the model to chat with; the picture of docs/guide.md has a second one,
    rolled out there before."""
    page.goto(f"{origin}/admin/guide/")
    page.get_by_role("link", name=re.compile("smollm2")).first.click()
    expect(page.locator("[data-split]")).to_be_visible()
    expect(page.locator("[data-live-link]").first).to_have_text("Live")
    page.screenshot(path=IMAGES / "guide.png", full_page=True)


def chat(page: Page) -> None:
    page.get_by_label("Temperature", exact=True).fill("0")
    for number, question in enumerate(QUESTIONS):
        page.get_by_label("Message").fill(question)
        page.keyboard.press("Enter")
        expect(page.locator(".pg-figures").nth(number)).to_contain_text("Complete", timeout=60_000)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "var/bootstrap.json"))

"""A person at a real browser enrols a second factor, signs out, and signs in by a code that the
test computes; then the command for a locked-out owner takes it away, as the page on it says."""

import os
import re
import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import expect

from tests.authenticator import code_of
from tests.browser import chromium
from tests.processes import ROOT
from tests.serve import RunningProduct

pytestmark = pytest.mark.e2e


def reset_two_factor(product: RunningProduct, username: str) -> str:
    """Run what docs/sign-in.md shows, and return what it says."""
    (command,) = re.findall(
        r"^\.venv/bin/python (manage\.py .*) admin$",
        (ROOT / "docs/sign-in.md").read_text(),
        re.MULTILINE,
    )
    done = subprocess.run(
        [sys.executable, *command.split(), username],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "VAR": str(product.var)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_enrol_sign_out_and_sign_in_by_a_code(product: RunningProduct) -> None:
    admin = f"{product.origin}/admin/"
    access = product.access
    username, password = access["admin_user"], access["admin_password"]
    try:
        with chromium(base_url=product.origin) as browser:
            browser.sign_in(admin, username=username, password=password)
            page = browser.page
            page.goto(f"{admin}account/")
            page.get_by_role("link", name="Enrol an authenticator").click()
            picture = page.locator("svg.co-qr").bounding_box()
            assert picture is not None
            assert picture["width"] > 150
            secret = page.locator("#two-factor-secret").inner_text()
            page.get_by_label("Your password").fill(password)
            page.get_by_label("Code of the new authenticator").fill(code_of(secret))
            page.keyboard.press("Enter")
            expect(page.locator("#backup-codes li")).to_have_count(10)
            page.get_by_role("link", name="I have kept them").click()
            expect(page.locator(".co-badge")).to_have_text("Enrolled")

            page.locator("#logout-form").evaluate("form => form.requestSubmit()")
            page.wait_for_url(f"{admin}logout/")
            page.goto(admin)
            page.get_by_label("Username").fill(username)
            page.get_by_label("Password").fill(password)
            page.keyboard.press("Enter")
            page.wait_for_url(f"{admin}login/code/**")
            # The code that enrolled is used up; the next half minute's is good already.
            page.get_by_label("Code").fill(code_of(secret, steps=1))
            page.keyboard.press("Enter")
            page.wait_for_url(admin)
            expect(page.get_by_text("Overview").first).to_be_visible()

            said = reset_two_factor(product, username)
            assert said == f"The second factor of {username} is reset; every session is ended.\n"
            page.goto(f"{admin}account/")
            expect(page.get_by_label("Username")).to_be_visible()
            assert browser.complaints == []
    finally:
        reset_two_factor(product, username)


def test_five_failures_lock_a_name(product: RunningProduct) -> None:
    """Over the real server, whose middleware runs asynchronously."""
    with httpx.Client(base_url=product.origin) as http:
        http.get("/admin/login/")
        form = {"username": "nobody", "password": "wrong"}
        form["csrfmiddlewaretoken"] = http.cookies["csrftoken"]
        answers = [http.post("/admin/login/", data=form) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429, 429]
    assert 800 < int(answers[-1].headers["retry-after"]) <= 900
    assert "Try again in 15 minutes" in " ".join(answers[-1].text.split())

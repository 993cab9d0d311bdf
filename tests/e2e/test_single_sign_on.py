"""A person at a real browser signs in by the button of the login page at a real provider, enrols an
authenticator without a password, and signs out here and there. The server has nothing of single
sign-on but its environment."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from apps.rbac.models import RoleGrant, User
from apps.sign_in.models import ProviderIdentity
from tests.authenticator import code_of
from tests.browser import chromium
from tests.factories import GroupMappingFactory, TenantFactory
from tests.identity_provider.process import CLIENT_ID, CLIENT_SECRET, PASSWORD
from tests.identity_provider.running import running
from tests.processes import running_server
from tests.rows import all_of

pytestmark = pytest.mark.e2e

# What Chromium says of a page whose status is 403.
REFUSED = "Failed to load resource: the server responded with a status of 403 (Forbidden)"


def sign_in_there(page: Page) -> None:
    page.get_by_label("Username").fill("s-1")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in there").click()


def test_by_the_button_and_back_again(transactional_db: None, tmp_path: Path) -> None:
    GroupMappingFactory(group="engineers", role="operator")
    GroupMappingFactory(group="engineers", role="developer", tenant=TenantFactory(slug="acme"))
    with running(tmp_path, "http://127.0.0.1") as provider:
        provider.person(
            "s-1", preferred_username="ann", email="ann@example.com", email_verified=True,
            groups=["engineers"],
        )  # fmt: skip
        environment = {
            "OIDC_ISSUER": provider.issuer,
            "OIDC_CLIENT_ID": CLIENT_ID,
            "OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "OIDC_NAME": "Acme ID",
            "TWO_FACTOR_REQUIRED": "1",
        }
        with (
            running_server(tmp_path, environment) as server,
            chromium(base_url=server.base_url) as browser,
        ):
            page, admin = browser.page, f"{server.base_url}/admin/"
            page.goto(f"{admin}account/")
            page.get_by_role("link", name="Sign in with Acme ID").click()
            sign_in_there(page)
            page.wait_for_url(f"{admin}account/two-factor/")
            secret = page.locator("#two-factor-secret").inner_text()
            expect(page.get_by_label("Your password")).to_have_count(0)
            page.get_by_label("Code of the new authenticator").fill(code_of(secret))
            page.keyboard.press("Enter")
            expect(page.locator("#backup-codes li")).to_have_count(10)
            page.goto(f"{admin}account/")
            expect(page.get_by_text("You can sign in with Acme ID.")).to_be_visible()

            page.locator("#logout-form").evaluate("form => form.requestSubmit()")
            page.wait_for_url(f"{admin}login/**")  # by way of the provider, who forgot them too
            page.get_by_role("link", name="Sign in with Acme ID").click()
            sign_in_there(page)
            page.wait_for_url(f"{admin}login/code/**")
            # The code that enrolled is used up; the next half minute's is good already.
            page.get_by_label("Code").fill(code_of(secret, steps=1))
            page.keyboard.press("Enter")
            page.wait_for_url(admin)

            provider.person("s-1", preferred_username="ann", groups=[])
            page.context.clear_cookies()
            page.goto(admin)
            page.get_by_role("link", name="Sign in with Acme ID").click()
            sign_in_there(page)
            expect(page.get_by_text("None of your groups gives you access")).to_be_visible()
            origin = provider.issuer.removesuffix("/o")
            left = [each for each in browser.complaints if origin not in each]
    assert left == [f"error: {REFUSED}"]
    assert User.objects.get().username == "ann"
    assert ProviderIdentity.objects.get().subject == "s-1"
    assert not all_of(RoleGrant).exists()

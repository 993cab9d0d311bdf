"""A person uploads the wheel of the real model in a browser, watches it become a version, and the
worker is killed meanwhile."""

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser import Browser, chromium
from tests.models import smollm2_wheel
from tests.serve import RunningProduct
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

IMPORT_TIMEOUT_MS = 240_000


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


def job_of(product: RunningProduct, name: str) -> Any:
    columns = "status, stage, n_attempts, error, model_version_id, job_id"
    return product.rows(f"SELECT {columns} FROM registry_importjob WHERE model_name = '{name}'")[-1]


def picture(product: RunningProduct, admin: Browser, name: str) -> None:
    directory = product.var / "screenshots"
    directory.mkdir(exist_ok=True)
    admin.page.screenshot(path=directory / f"{name}.png")


@pytest.mark.timeout(600)
def test_an_upload_becomes_a_version_although_the_worker_is_killed(
    product: RunningProduct, admin: Browser
) -> None:
    name = "uploaded"
    page = admin.page
    page.goto(f"{product.origin}/admin/registry/importjob/")
    page.goto(f"{product.origin}/admin/registry/importjob/add/")
    page.get_by_label("Model").fill(name)
    page.get_by_label("Source").select_option("upload")
    picture(product, admin, "import-add")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".co-badge")).to_have_text("Uploading")
    picture(product, admin, "import-upload")
    page.locator("#import-file").set_input_files(smollm2_wheel())
    expect(page.locator("#import-upload-text")).to_contain_text(re.compile(r"\d+ %"))
    picture(product, admin, "import-uploading")

    wait_until("it runs", lambda: job_of(product, name)[1] in ("unpack", "convert"), timeout_s=240)
    expect(page.locator(".co-ready")).to_contain_text(re.compile("Unpacking|Converting|Checking"))
    picture(product, admin, "import-running")
    (worker,) = product.worker_pids()
    os.kill(worker, signal.SIGKILL)

    expect(page.locator(".co-import-card")).to_have_attribute(
        "data-status", "done", timeout=IMPORT_TIMEOUT_MS
    )
    status, _, n_attempts, error, version_id, job_id = job_of(product, name)
    assert (status, n_attempts, error) == ("done", 2, "")
    picture(product, admin, "import-done")
    assert not (product.var / "uploads" / job_id).exists()
    assert sorted(path.name for path in (product.var / "models" / name).iterdir()) == [
        ".import-lock",
        "1",
    ]
    page.get_by_role("link", name=f"{name} v1").click()
    expect(page).to_have_url(re.compile(rf"/registry/modelversion/{version_id}/change/"))
    expect(page.locator("body")).to_contain_text("LlamaForCausalLM")
    picture(product, admin, "import-version")
    assert product.is_ready()

"""An operator brings a second version of the real model beside the first on one page, sees how the
chats of real clients are shared, and takes the first away while they stream."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from math import sqrt

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser import Browser, chromium
from tests.clients_at_work import Answer, streaming
from tests.models import smollm2_dir
from tests.serve import RunningProduct, running_product
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.prove, pytest.mark.timeout(1200)]

FIRST, SECOND = "smollm2", "smollm2-135m-instruct-v2"
AT_A_TIME = 4
N_CHATS = 60
SHARE = 0.7
Z_99 = 2.576  # standard deviations, for 99 % on both sides
STEP_MS = 300_000


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """One of its own, which lies otherwise afterwards; with a folder of weights to import."""
    var = tmp_path_factory.mktemp("rollout")
    weights = smollm2_dir()
    names = [path.name for path in weights.iterdir() if path.name != "manifest.json"]
    folder = var / "imports" / "smollm2-again"
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(weights / name, folder / name)
    with running_product(var) as running:
        yield running


@pytest.fixture
def admin(product: RunningProduct) -> Iterator[Browser]:
    with chromium(base_url=product.origin, width=1280) as browser:
        access = product.access
        browser.sign_in(
            f"{product.origin}/admin/",
            username=access["admin_user"],
            password=access["admin_password"],
        )
        yield browser
        assert browser.complaints == []


def picture(product: RunningProduct, page: Page, name: str) -> None:
    """As it is, and on a phone."""
    directory = product.var / "screenshots"
    directory.mkdir(exist_ok=True)
    page.screenshot(path=directory / f"{name}.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=directory / f"{name}-phone.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 900})


def step(page: Page, key: str) -> Locator:
    return page.locator(f'[data-step="{key}"]')


def is_done(page: Page, key: str) -> None:
    """The page comes to it by itself: nobody loads it anew."""
    expect(step(page, key)).to_have_attribute("data-mark", "done", timeout=STEP_MS)


def line(page: Page, deployment: str) -> Locator:
    return page.locator(f'[data-split-line="{deployment}"]')


def counted(page: Page) -> Counter[str]:
    """What the table says, by deployment."""
    return Counter(
        {
            name: int(line(page, name).locator('[data-label="Requests"]').inner_text())
            for name in (FIRST, SECOND)
        }
    )


def versions(product: RunningProduct) -> dict[int, str]:
    """Whose each model version is."""
    rows = product.rows("SELECT model_version_id, name FROM deployments_deployment")
    return dict(rows)


def ledger_agrees(product: RunningProduct, user: str, answers: list[Answer]) -> Counter[str]:
    """Each answer has one row, of the version that it says it is from, and there is no other row;
    return how many each deployment had."""
    query = (
        "SELECT u.request_id, u.outcome, u.attempt, u.model_version_id, d.name "
        "FROM metering_usagerecord u JOIN deployments_deployment d ON d.id = u.deployment_id "
        f"WHERE u.end_user = '{user}'"
    )
    rows = {row[0]: row[1:] for row in product.rows(query)}
    names = versions(product)
    assert rows == {
        each.request_id: ("completed", 1, each.version_id, names[each.version_id])
        for each in answers
    }
    return Counter(names[each.version_id] for each in answers)


def is_as_set(counts: Counter[str]) -> bool:
    n = counts.total()
    off = abs(counts[FIRST] - SHARE * n)
    print(f"{dict(counts)}: {off:.1f} off of {Z_99 * sqrt(n * SHARE * (1 - SHARE)):.1f}")
    return off <= Z_99 * sqrt(n * SHARE * (1 - SHARE))


def test_a_second_version_beside_the_first(product: RunningProduct, admin: Browser) -> None:
    page = admin.page
    page.get_by_role("link", name="Guided rollout").first.click()
    _import(product, page)
    _verify(product, page)
    _deploy(product, page)
    _route(product, page)
    _chat(product, page)
    _share(product, page)
    _drain(product, page)


def _import(product: RunningProduct, page: Page) -> None:
    page.get_by_label("Model", exact=False).first.fill(product.model)
    page.get_by_role("button", name="Check").click()
    expect(step(page, "import")).to_contain_text(f"It becomes {product.model} v2")
    picture(product, page, "guide-import")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(step(page, "import")).to_have_attribute("data-mark", "busy")
    is_done(page, "import")
    expect(page).to_have_url(re.compile(r"/admin/guide/\?version=\d+$"))


def _verify(product: RunningProduct, page: Page) -> None:
    page.get_by_role("button", name="Verify", exact=True).click()
    expect(step(page, "verify")).to_contain_text(
        re.compile("Loading|Asking|Measuring"), timeout=STEP_MS
    )
    picture(product, page, "guide-verify")
    is_done(page, "verify")
    expect(step(page, "verify")).to_contain_text("Perplexity")


def _deploy(product: RunningProduct, page: Page) -> None:
    page.get_by_label("Weights").select_option("int8")
    page.get_by_label("Name").fill(FIRST)
    page.get_by_role("button", name="Check").click()
    expect(step(page, "deploy")).to_contain_text("already exists")
    page.get_by_label("Name").fill(SECOND)
    page.get_by_role("button", name="Check").click()
    expect(step(page, "deploy")).to_contain_text("It fits beside what runs")
    picture(product, page, "guide-deploy")
    page.get_by_role("button", name="Deploy", exact=True).click()
    is_done(page, "deploy")


def _route(product: RunningProduct, page: Page) -> None:
    page.get_by_role("link", name="30 %").click()
    expect(step(page, "route")).to_contain_text(f"{FIRST} 70.0 %, {SECOND} 30.0 %")
    picture(product, page, "guide-route")
    page.get_by_role("button", name="Route", exact=True).click()
    is_done(page, "route")
    expect(line(page, FIRST).locator('[data-label="Set"]')).to_have_text("70.0 %")
    expect(line(page, SECOND).locator('[data-label="Set"]')).to_have_text("30.0 %")


def _chat(product: RunningProduct, page: Page) -> None:
    """In the playground, and back: what was done is still there."""
    address = page.url
    step(page, "watch").get_by_role("link", name="Chat with it").click()
    expect(page.locator("#pg-connection-text")).to_have_text("Connected")
    page.get_by_label("Max tokens").fill("16")
    page.get_by_label("Message").fill("What is the capital of France?")
    page.keyboard.press("Enter")
    expect(page.locator(".pg-figures")).to_contain_text("tokens/s", timeout=60_000)
    page.goto(address)
    expect(page.locator("[data-live-link]").first).to_have_text("Live")
    wait_until("the chat to be counted", lambda: counted(page).total() == 1)


def _share(product: RunningProduct, page: Page) -> None:
    """The interval leaves out one run of a hundred; two in a row would be no chance."""
    for attempt in ("first", "second"):
        before = counted(page)
        user = f"rollout-{attempt}"
        with streaming(product, user=user, n=AT_A_TIME, max_tokens=4) as work:
            wait_until(
                "enough chats",
                lambda w=work: len(w.answers) >= N_CHATS or w.faults,
                timeout_s=300,
            )
            moving = counted(page) - before
            picture(product, page, "guide-split")
        assert work.faults == []
        assert moving.total() > 0, "the table stood still while clients chatted"
        counts = ledger_agrees(product, user, work.answers)
        wait_until(
            "the table to say what the ledger has",
            lambda b=before, c=counts: counted(page) - b == c,
        )
        if is_as_set(counts):
            return
    raise AssertionError("two samples in a row were out of the interval of 99 %")


def _drain(product: RunningProduct, page: Page) -> None:
    with streaming(product, user="drain", n=AT_A_TIME, max_tokens=32) as work:
        wait_until("streams at both", lambda: _at(product) == {FIRST, SECOND}, timeout_s=60)
        line(page, FIRST).get_by_role("button", name="Drain").click()
        expect(line(page, FIRST).locator('[data-label="Weight"]')).to_have_text("0")
        expect(line(page, SECOND).locator('[data-label="Set"]')).to_have_text("100.0 %")
        picture(product, page, "guide-drain")
        line(page, FIRST).get_by_role("button", name="Stop").click()
        expect(line(page, FIRST).locator(".co-badge")).to_have_text("Stopped", timeout=STEP_MS)
        n_then = len(work.answers)
        wait_until(
            "streams at the second alone",
            lambda: len(work.answers) > n_then + AT_A_TIME or work.faults,
            timeout_s=120,
        )
        picture(product, page, "guide-end")
    assert work.faults == []
    counts = ledger_agrees(product, "drain", work.answers)
    assert counts[FIRST] > 0 and counts[SECOND] > AT_A_TIME
    assert _after_the_drain(product) == {SECOND}
    assert product.n_open_usage_rows() == 0


def _at(product: RunningProduct) -> set[str]:
    """Return where streams of this moment are."""
    query = (
        "SELECT DISTINCT d.name FROM metering_usagerecord u "
        "JOIN deployments_deployment d ON d.id = u.deployment_id "
        "WHERE u.state = 'reserved' AND u.end_user = 'drain'"
    )
    return {name for (name,) in product.rows(query)}


def _after_the_drain(product: RunningProduct) -> set[str]:
    """Return who had the last of the streams."""
    query = (
        "SELECT d.name FROM metering_usagerecord u "
        "JOIN deployments_deployment d ON d.id = u.deployment_id "
        f"WHERE u.end_user = 'drain' ORDER BY u.id DESC LIMIT {AT_A_TIME}"
    )
    return {name for (name,) in product.rows(query)}

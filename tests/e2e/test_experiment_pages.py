"""An operator sets up an experiment by hand, sees real answers of the real model arrive in it while
they look, and makes its winner what the route does."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser import Browser, chromium
from tests.serve import RunningProduct, in_django

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

N_PEOPLE = 24
LIVE_MS = 90_000


AS_BEFORE = """
from apps.audit.types import SYSTEM
from apps.experiments.models import Experiment
from apps.experiments.services import experiment_stop
from apps.routing.models import Route
from apps.routing.services import route_update
for row in Experiment.objects.filter(state="running"):
    experiment_stop(experiment=row, seen=row.version, actor=SYSTEM, because="The test has ended.")
route_update(route=Route.objects.get(name=sys.argv[1]), actor=SYSTEM, defaults={})
"""


@pytest.fixture(autouse=True)
def as_before(product: RunningProduct) -> Iterator[None]:
    """Other tests ask the same product: its answers shall have their lengths again."""
    yield
    in_django(product, AS_BEFORE, product.model)
    time.sleep(1)  # every process hears of it within a second


@pytest.fixture
def admin(product: RunningProduct) -> Iterator[Browser]:
    with chromium(base_url=product.origin, width=1280) as browser:
        access = product.access
        browser.sign_in(
            f"{product.origin}/admin/experiments/experiment/add/",
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


def chat(product: RunningProduct, person: str) -> int:
    """Ask as a person, and return how many tokens came."""
    body = {
        "model": product.model, "user": person, "temperature": 0,
        "messages": [{"role": "user", "content": f"{person} asks for a long story."}],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {product.api_token}"}
    url = f"{product.base_url}/chat/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["completion_tokens"])


def arms_of(product: RunningProduct) -> dict[str, list[tuple[str, int]]]:
    """Return of each variant who was in it, and how many tokens they had: by the ledger."""
    names = dict(product.rows("SELECT id, name FROM experiments_variant"))
    rows = product.rows(
        "SELECT experiment_arm, end_user, n_completion_tokens FROM metering_usagerecord "
        "WHERE experiment_arm <> ''"
    )
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in names.values()}
    for arm, person, n_tokens in rows:
        variant = int(re.fullmatch(r"e\d+\.v(\d+)\.[0-9a-f]{16}", arm).group(1))  # type: ignore[union-attr]
        found[names[variant]].append((person, n_tokens))
    return found


def test_an_experiment_by_hand(product: RunningProduct, admin: Browser) -> None:
    page = admin.page
    _set_up(product, page)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("[data-live-link]").first).to_have_text("Live")
    page.evaluate("window.isTheSame = true")
    time.sleep(1)  # every process hears of it within a second: what it says is checked below
    with ThreadPoolExecutor(4) as pool:
        people = [f"person-{number}" for number in range(N_PEOPLE)]
        list(pool.map(lambda person: chat(product, person), people))
    _seen_live(product, page)
    _promoted(product, page)


def _set_up(product: RunningProduct, page: Page) -> None:
    """The variant answers in four tokens, the control in twelve."""
    page.get_by_label("Route", exact=True).select_option(label=product.model)
    page.get_by_label("Name", exact=True).first.fill("short-stories")
    page.get_by_label("Hypothesis").fill("Shorter answers cost less.")
    page.get_by_label("Decided by").select_option(label="Length of answers")
    page.get_by_label("Better is").select_option(label="Lower")
    variants = page.get_by_role("region", name="Variants")
    variants.get_by_label("Parameters").nth(0).fill("max_tokens=12")
    variants.get_by_label("Parameters").nth(1).fill("max_tokens=4")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("region", name="Save")).to_contain_text("It could start now")
    picture(product, page, "experiment-setup")


def _seen_live(product: RunningProduct, page: Page) -> None:
    """Nobody loads the page anew, and it says what the ledger has."""
    expect(page.locator('[data-number="subjects"]')).to_have_text(str(N_PEOPLE), timeout=LIVE_MS)
    assert page.evaluate("window.isTheSame") is True
    arms = arms_of(product)
    assert sorted(len(people) for people in arms.values()) != [0, N_PEOPLE]
    assert sum(len(people) for people in arms.values()) == N_PEOPLE
    assert all(n_tokens <= 4 for _, n_tokens in arms["b"])
    for name, people in arms.items():
        line = page.locator(f'[data-arm-line="{name}"]')
        expect(line.locator('[data-label="Subjects"]')).to_have_text(str(len(people)))
    mean = sum(n_tokens for _, n_tokens in arms["b"]) / len(arms["b"])
    row = page.locator('[data-metric="completion_tokens/primary"] [data-effect="b"]')
    expect(row.locator('[data-label="Variant has"]')).to_have_text(f"{mean:.2f} tokens")
    picture(product, page, "experiment-live")


def _promoted(product: RunningProduct, page: Page) -> None:
    """What it sets becomes the route's defaults, at once and for everybody."""
    page.get_by_label("Variant", exact=True).select_option(label="b")
    page.get_by_role("button", name="Promote it").click()
    expect(page.locator(".co-verdict .co-badge")).to_have_text("Stopped")
    picture(product, page, "experiment-promoted")
    time.sleep(1)  # as above
    assert chat(product, "somebody-else") <= 4
    (count,) = product.rows("SELECT count(*) FROM metering_usagerecord WHERE experiment_arm <> ''")
    assert count == (N_PEOPLE,)
    actions = product.rows(
        "SELECT action FROM audit_auditevent WHERE action LIKE 'experiment.%' ORDER BY id"
    )
    assert [action for (action,) in actions] == [
        "experiment.created", "experiment.started", "experiment.stopped", "experiment.promoted",
    ]  # fmt: skip

"""An operator moves the real model's clients to another deployment of it, step by step and while
they stream; then to one that is slow and fails, which goes back by itself within its first step."""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import openai
import pytest
from aiohttp import web
from playwright.sync_api import Page, expect

from tests.browser import Browser, chromium
from tests.furnished import furnished_var
from tests.remote import DONE, MODEL, Upstream, of_body, piece, streamed, upstream, usage
from tests.serve import RunningProduct, in_django, manage, running_product
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

FIRST, NEXT, BAD = "smollm2", "smollm2-next", "smollm2-bad"
AT_A_TIME = 4
MAX_TOKENS = 4
SLOW_S = 0.7
WAIT_S, WAIT_MS = 600, 600_000


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """One of its own: its routes lie otherwise afterwards."""
    with pytest.MonkeyPatch.context() as patch:  # for its commands as well
        patch.setenv("REMOTE_ALLOWED_NETWORKS", "127.0.0.0/8")
        patch.setenv("ENGINE_PING_DEADLINE_S", "30")  # two models on whatever cores there are
        with running_product(furnished_var(tmp_path_factory, "rollout")) as running:
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


# -- clients ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Work:
    """What clients had: ids of whole answers, and of others how much text came before which
    error."""

    whole: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.whole) + len(self.broken)


@contextmanager
def chatting(product: RunningProduct, *, user: str) -> Iterator[Work]:
    """Have clients stream one chat after another, by OpenAI's own library and without its tries
    again, until the block ends; each then reads the one that it has."""
    work, enough = Work(), threading.Event()

    def run(number: int) -> None:
        client = openai.OpenAI(
            base_url=product.base_url, api_key=product.api_token, max_retries=0, timeout=120
        )
        count = 0
        while not enough.is_set():
            count += 1
            _chat(client, product, work, text=f"Client {number}, question {count}.", user=user)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    try:
        yield work
    finally:
        enough.set()
        for thread in threads:
            thread.join(120)


def _chat(
    client: openai.OpenAI, product: RunningProduct, work: Work, *, text: str, user: str
) -> None:
    request_id, said, reason = "", "", None
    try:
        for chunk in client.chat.completions.create(
            model=product.model,
            messages=[{"role": "user", "content": text}],
            max_tokens=MAX_TOKENS,
            stream=True,
            user=user,
        ):
            request_id = chunk.id
            said += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
    except Exception as error:  # of whatever kind: the test looks at it
        work.broken.append((said, repr(error)))
        return
    if reason is None:
        work.broken.append((said, "it ended without a reason"))
        return
    work.whole.append(request_id)


# -- deployments -----------------------------------------------------------------------------------


def next_deployment(product: RunningProduct) -> None:
    """The same version once more, in an engine process of its own."""
    in_django(
        product,
        "from apps.audit.types import SYSTEM\n"
        "from apps.deployments.models import Deployment\n"
        "from apps.deployments.services import deployment_create\n"
        "first = Deployment.objects.get(name=sys.argv[1])\n"
        "deployment_create(actor=SYSTEM, name=sys.argv[2], model_version=first.model_version,\n"
        "    dtype=first.dtype, kv_cache_tokens=first.kv_cache_tokens)",
        FIRST,
        NEXT,
    )
    is_ready(product, NEXT)


def is_ready(product: RunningProduct, name: str) -> None:
    query = f"SELECT state FROM engines_engineprocess WHERE name = '{name}-0'"
    wait_until(f"{name} to be ready", lambda: product.rows(query) == [("ready",)], timeout_s=WAIT_S)


@dataclass(slots=True)
class BadServer:
    """Of every four requests it refuses the first after a while, breaks off the third after its
    first words, and answers the others late. n_cut: how many it broke off."""

    n_asked: int = 0
    n_cut: int = 0
    run: Upstream | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        number = self.n_asked
        self.n_asked += 1
        await asyncio.sleep(SLOW_S)
        if number % 4 == 0:
            return await of_body(b"{}", status=500)(request)
        if number % 4 == 2:
            self.n_cut += 1
            return await streamed(piece("I was"), 0.1, cuts=True)(request)
        whole = (piece("Late"), SLOW_S, piece(" but", finish_reason="stop"), usage(9, 2), DONE)
        return await streamed(*whole)(request)


@contextmanager
def bad_server() -> Iterator[BadServer]:
    """Run it in a thread of its own until the block ends."""
    bad, began, enough = BadServer(), threading.Event(), threading.Event()

    async def whole() -> None:
        async with upstream() as run:
            run.answer, bad.run = bad.answer, run
            began.set()
            await asyncio.to_thread(enough.wait)

    thread = threading.Thread(target=asyncio.run, args=(whole(),))
    thread.start()
    try:
        assert began.wait(30)
        yield bad
    finally:
        enough.set()
        thread.join(30)


def bad_deployment(product: RunningProduct, bad: BadServer) -> None:
    assert bad.run is not None
    done = manage(
        product, "add_remote", BAD, "--url", bad.run.base_url, "--model", MODEL,
        "--context", "8192", "--route", "nobody-asks-this",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    is_ready(product, BAD)


# -- the ledger and the trail ----------------------------------------------------------------------


def rows_of(product: RunningProduct, user: str) -> list[tuple[str, str, str, int]]:
    """Return (request, deployment, outcome, attempt) of each row of the ledger."""
    query = (
        "SELECT u.request_id, d.name, u.outcome, u.attempt FROM metering_usagerecord u "
        "JOIN deployments_deployment d ON d.id = u.deployment_id "
        f"WHERE u.end_user = '{user}' ORDER BY u.id"
    )
    return list(product.rows(query))


def first_id(request_id: str) -> str:
    """Return the id of a request's first row: what is tried again has a number behind it."""
    return re.sub(r"-[2-9]$", "", request_id)


def leads_to(product: RunningProduct) -> list[tuple[str, int, str]]:
    query = (
        "SELECT d.name, t.weight, t.arm FROM routing_routetarget t "
        "JOIN deployments_deployment d ON d.id = t.deployment_id "
        "JOIN routing_route r ON r.id = t.route_id "
        f"WHERE r.name = '{product.model}' ORDER BY d.name"
    )
    return list(product.rows(query))


def story(product: RunningProduct) -> list[tuple[str, str, str]]:
    """Return (action, who, object) of the newest rollout's events, in their order."""
    query = (
        "SELECT action, actor_kind, object_label FROM audit_auditevent "
        "WHERE object_type = 'rollouts.Rollout' AND object_id = "
        "(SELECT CAST(max(id) AS TEXT) FROM rollouts_rollout) ORDER BY id"
    )
    return list(product.rows(query))


# -- the page --------------------------------------------------------------------------------------


def picture(product: RunningProduct, page: Page, name: str) -> None:
    """As it is, and on a phone."""
    directory = product.var / "screenshots"
    directory.mkdir(exist_ok=True)
    page.screenshot(path=directory / f"{name}.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=directory / f"{name}-phone.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 900})


def set_up(page: Page, product: RunningProduct, *, candidate: str) -> None:
    """From the route's page to the one that starts a rollout of 10 %, then 100 %."""
    page.goto(f"{product.origin}/admin/routing/route/")
    page.locator("#result_list").get_by_role("link", name=product.model, exact=True).click()
    page.get_by_role("link", name="Roll out…").first.click()
    page.get_by_label("New deployment").select_option(label=candidate)
    page.get_by_role("button", name="10, 100 %", exact=True).click()


def state_is(page: Page, text: str) -> None:
    """The page comes to it by itself: nobody loads it anew."""
    expect(page.locator(".co-head .co-badge")).to_have_text(text, timeout=WAIT_MS)


def n_shown(page: Page) -> int:
    """How many requests of the new one the page says that the first step has had."""
    text = page.locator(".co-rollout-track li").first.inner_text()
    found = re.search(r"([\d,]+) of [\d,]+ requests", text)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def trail_is_read(page: Page, *actions: str) -> None:
    """The audit trail shows these of the rollout, the newest first."""
    page.get_by_role("link", name="In the audit trail").click()
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(len(actions))
    for row, action in zip(rows.all(), reversed(actions), strict=True):
        expect(row).to_contain_text(action)


@pytest.mark.prove
def test_a_good_version_takes_over_while_clients_stream(
    product: RunningProduct, admin: Browser
) -> None:
    next_deployment(product)
    page = admin.page
    set_up(page, product, candidate=NEXT)
    page.get_by_label("Least requests, step 1").fill("8")
    page.get_by_label("Least minutes, step 1").fill("0")
    page.get_by_label("The next step comes").select_option("each")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_label("Checked")).to_contain_text(
        f"It may start: 10 %, 100 % of what {FIRST}"
    )
    picture(product, page, "rollout-start")
    with chatting(product, user="good") as work:
        page.get_by_role("button", name="Start").click()
        expect(page.locator("[data-live-link]")).to_have_text("Live")
        assert [(name, weight) for name, weight, _ in leads_to(product)] == [
            (FIRST, 900), (NEXT, 100),
        ]  # fmt: skip
        wait_until("the page to count", lambda: n_shown(page) > 0, timeout_s=WAIT_S)
        picture(product, page, "rollout-running")
        state_is(page, "Waits for approval")
        expect(page.get_by_role("button", name="Approve")).to_be_visible()
        picture(product, page, "rollout-waits")
        page.get_by_role("button", name="Approve").click()
        state_is(page, "Completed")
        n_then = work.n
        wait_until("chats after it", lambda: work.n >= n_then + 2 * AT_A_TIME, timeout_s=WAIT_S)
    picture(product, page, "rollout-completed")
    assert work.broken == []
    rows = rows_of(product, "good")
    assert {outcome for _, _, outcome, _ in rows} == {"completed"}
    assert {attempt for *_, attempt in rows} == {1}
    assert sorted(request for request, *_ in rows) == sorted(work.whole)
    counts = Counter(name for _, name, *_ in rows)
    assert counts[FIRST] > 0 and counts[NEXT] >= 8
    assert {name for _, name, *_ in rows[-AT_A_TIME:]} == {NEXT}
    assert [(name, weight > 0, arm) for name, weight, arm in leads_to(product)] == [
        (FIRST, False, ""), (NEXT, True, ""),
    ]  # fmt: skip
    assert [each[:2] for each in story(product)] == [
        ("rollout.started", "user"),
        ("rollout.step_passed", "system"),
        ("rollout.approved", "user"),
        ("rollout.completed", "system"),
    ]
    trail_is_read(
        page, "Rollout started", "Rollout step passed", "Rollout approved", "Rollout completed"
    )


def test_a_bad_version_goes_back_by_itself(product: RunningProduct, admin: Browser) -> None:
    """Clients may see one kind of failure: a stream that the bad server broke off when its first
    words had been sent. What it refuses before that is answered by the old version, and nothing
    else is lost."""
    before = leads_to(product)
    ((baseline, _, _),) = [each for each in before if each[1]]
    page = admin.page
    with bad_server() as bad:
        bad_deployment(product, bad)
        set_up(page, product, candidate=BAD)
        with chatting(product, user="bad") as work:
            page.get_by_role("button", name="Start").click()
            expect(page.locator("[data-live-link]")).to_have_text("Live")
            wait_until("the page to count", lambda: n_shown(page) > 0, timeout_s=WAIT_S)
            picture(product, page, "rollout-bad-running")
            state_is(page, "Rolled back")
            n_asked = bad.n_asked
            expect(page.get_by_role("status")).to_be_visible()
            picture(product, page, "rollout-bad-back")
            n_then = work.n
            wait_until("chats after it", lambda: work.n >= n_then + 3 * AT_A_TIME, timeout_s=WAIT_S)
        assert bad.n_asked <= n_asked + AT_A_TIME
    said = page.get_by_role("status").inner_text()
    why = rf"\d+ of \d+ requests of {BAD} failed|the time .+ of {BAD} is "
    assert re.match(f"Rolled back at 10 %: ({why})", said), said
    expect(page.locator(".co-rollout-track li").nth(1)).to_contain_text("0 requests")
    assert leads_to(product) == before

    assert len(work.broken) == bad.n_cut > 0
    assert all(text == "I was" and "APIError" in error for text, error in work.broken)
    rows = rows_of(product, "bad")
    answered = {first_id(request) for request, _, outcome, _ in rows if outcome == "completed"}
    moved = [(name, outcome) for _, name, outcome, attempt in rows if attempt > 1]
    assert {first_id(each) for each in work.whole} == answered
    assert moved and set(moved) == {(baseline, "completed")}
    failed_there = [name for _, name, outcome, _ in rows if outcome != "completed"]
    assert set(failed_there) == {BAD}
    assert len(failed_there) == len(moved) + len(work.broken)
    wait_until("all rows to be settled", lambda: product.n_open_usage_rows() == 0)

    assert [each[:2] for each in story(product)] == [
        ("rollout.started", "user"),
        ("rollout.rolled_back", "system"),
    ]
    trail_is_read(page, "Rollout started", "Rollout rolled back")

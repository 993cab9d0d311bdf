"""``/admin/live``, which renews pages of deployments, from the real server to a browser."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import Permission
from django.db import connections
from django.utils import timezone
from playwright.sync_api import expect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from apps.audit.types import SYSTEM
from apps.core.hop import database_hop
from apps.deployments.models import Deployment
from apps.engines.models import EngineProcess
from apps.rbac.models import User
from apps.sign_in.services.sessions import sessions_end
from tests.browser import chromium
from tests.factories import (
    DeploymentFactory,
    EngineProcessFactory,
    EngineSampleFactory,
    ImportJobFactory,
    ReplicaFactory,
    RouteFactory,
    UsageRecordFactory,
    VerificationRunFactory,
)
from tests.factories.access import UserFactory
from tests.integration.gateway.conftest import shared_server
from tests.processes import ServerRun

__all__ = ["shared_server"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]

STATS: dict[str, Any] = {
    "n_running": 3, "n_waiting": 2, "n_blocks_total": 100, "n_blocks_free": 60,
    "n_prompt_tokens": 50, "n_completion_tokens": 1000, "uptime_s": 100.0,
    "rss_bytes": 512 * 2**20,
}  # fmt: skip


@pytest.fixture
def server(transactional_db: None, shared_server: ServerRun) -> ServerRun:
    return shared_server


@pytest.fixture
def engine(transactional_db: None, tmp_path: Path) -> EngineProcess:
    process: EngineProcess = EngineProcessFactory(
        ready=True,
        name="smollm2-0",
        stats=STATS,
        log_path=str(tmp_path / "engine.log"),
        last_pong_at=timezone.now() + timedelta(hours=1),  # it falls silent in no test
    )
    log_write(process, "loading\nready\n")
    return process


def log_write(engine: EngineProcess, text: str) -> None:
    Path(engine.log_path).write_text(text)


@pytest.fixture
def deployment(engine: EngineProcess) -> Deployment:
    deployment: Deployment = DeploymentFactory(name="smollm2")
    ReplicaFactory(deployment=deployment, index=0, engine_process=engine)
    return deployment


def session_of(server: ServerRun, username: str) -> str:
    with httpx.Client(base_url=server.base_url) as http:
        http.get("/admin/login/")
        form = {
            "username": username,
            "password": "pass-word-1",
            "csrfmiddlewaretoken": http.cookies["csrftoken"],
        }
        assert http.post("/admin/login/", data=form).status_code == 302
        return http.cookies["sessionid"]


def opened(server: ServerRun, cookie: str, *, query: str = "", origin: str | None = None) -> Any:
    return connect(
        f"ws://{server.host}:{server.port}/admin/live{query}",
        additional_headers={"Cookie": f"sessionid={cookie}"},
        origin=origin or server.base_url,  # type: ignore[arg-type]
    )


async def heard(socket: ClientConnection) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(await socket.recv())
    return found


async def heard_until(socket: ClientConnection, key: str) -> dict[str, str]:
    """What was said up to a word: the first view may be older than what was asked for."""
    texts: dict[str, str] = {}
    while key not in texts:
        texts |= (await heard(socket))["texts"]
    return texts


async def closed_with(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed):
        while True:
            await socket.recv()
    assert socket.close_code is not None
    return socket.close_code


def engine_set(engine: EngineProcess, **fields: Any) -> None:
    EngineProcess.objects.filter(pk=engine.pk).update(**fields)


def elsewhere(engine: EngineProcess, **fields: Any) -> None:
    """As ``engine_set``, from a thread: the browser's driver has a loop in this one."""

    def whole() -> None:
        try:
            engine_set(engine, **fields)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(whole).result()


async def test_a_page_hears_everything_once_and_then_what_is_new(
    server: ServerRun, deployment: Deployment, engine: EngineProcess
) -> None:
    await database_hop(UserFactory, admin=True, username="ann")
    d, e = f"d{deployment.pk}", f"e{engine.pk}"
    async with opened(server, session_of(server, "ann"), query=f"?log={deployment.pk}") as socket:
        first = await heard(socket)
        assert {key: text for key, text in first["texts"].items() if key[0] == "d"} == {
            f"{d}.state": "Ready", f"{d}.replicas": "1 of 1", f"{d}.queue": "3 / 2",
            f"{d}.rate": "-", f"{d}.memory": "512.0\xa0MB", f"{d}.restarts": "0",
        }  # fmt: skip
        assert first["texts"][f"{e}.kv"] == "40 %"
        assert first["tones"] == {f"{d}.state": "good", f"{e}.state": "good"}
        assert first["logs"] == {e: "loading\nready"}

        later = STATS | {"n_running": 4, "n_completion_tokens": 1500, "uptime_s": 102.0}
        await database_hop(engine_set, engine, stats=later)
        assert await heard(socket) == {
            "texts": {
                f"{d}.queue": "4 / 2", f"{d}.rate": "250",
                f"{e}.queue": "4 / 2", f"{e}.rate": "250",
            },
            "tones": {},
            "logs": {},
        }  # fmt: skip
        await asyncio.to_thread(log_write, engine, "loading\nready\nmore\n")
        assert await heard(socket) == {
            "texts": {}, "tones": {}, "logs": {e: "loading\nready\nmore"},
        }  # fmt: skip


async def test_a_page_hears_of_the_topics_that_it_asks_for(
    server: ServerRun, deployment: Deployment
) -> None:
    await database_hop(UserFactory, admin=True, username="ann")
    job, run, route = await database_hop(topics_made, deployment)
    query = f"?job={job.pk}&run={run.pk}&route={route.pk}"
    r = f"r{route.pk}"
    async with opened(server, session_of(server, "ann"), query=query) as socket:
        texts = await heard_until(socket, f"{r}.total")
        assert {key: text for key, text in texts.items() if key[0] in "jv"} == {
            f"j{job.pk}.open": "open", f"j{job.pk}.progress": "Converting: 5 of 20 tensors",
            f"j{job.pk}.percent": "25",
            f"v{run.pk}.open": "open", f"v{run.pk}.progress": "Asking it, 40 %",
            f"v{run.pk}.percent": "40",
        }  # fmt: skip
        assert {key: text for key, text in texts.items() if key[0] == "r"} == {
            f"{r}.total": "1", f"{r}.shape": f"{deployment.pk}:100",
            f"{r}.since": f"{route.updated_at:%H:%M:%S}",
            f"{r}.d{deployment.pk}.got": "100.0 %", f"{r}.d{deployment.pk}.width": "100.0",
            f"{r}.d{deployment.pk}.n": "1", f"{r}.d{deployment.pk}.open": "0",
            f"{r}.d{deployment.pk}.failed": "0",
        }  # fmt: skip

        await database_hop(asked_once_more, route, deployment)
        assert (await heard(socket))["texts"] == {
            f"{r}.total": "2", f"{r}.d{deployment.pk}.n": "2",
        }  # fmt: skip


async def test_nobody_hears_of_a_topic_whose_rows_they_may_not_see(
    server: ServerRun, deployment: Deployment, engine: EngineProcess
) -> None:
    def bob() -> None:
        user: User = UserFactory(is_staff=True, username="bob")
        held = ("view_deployment", "view_route", "view_modelversion")
        user.user_permissions.set(Permission.objects.filter(codename__in=held))

    await database_hop(bob)
    await database_hop(UserFactory, admin=True, username="ann")
    job, run, route = await database_hop(topics_made, deployment)
    query = f"?job={job.pk}&run={run.pk}&route={route.pk}"
    cookies = [session_of(server, name) for name in ("ann", "bob")]
    async with opened(server, cookies[0], query=query) as anns:
        await heard_until(anns, f"r{route.pk}.total")  # it is looked at, then
        async with opened(server, cookies[1], query=query) as socket:
            texts = (await heard(socket))["texts"]
            await database_hop(asked_once_more, route, deployment)
            await database_hop(engine_set, engine, n_restarts=7)
            texts |= await heard_until(socket, f"d{deployment.pk}.restarts")
    assert texts[f"d{deployment.pk}.restarts"] == "7"
    assert {key[0] for key in texts} == {"d", "e"}


def topics_made(deployment: Deployment) -> tuple[Any, Any, Any]:
    """An import and a verification under way, and a route with a request."""
    job = ImportJobFactory(status="running", stage="convert", stage_done=5, stage_total=20)
    run = VerificationRunFactory(status="running", step="answers", percent=40)
    route = RouteFactory(name="chat", deployment=deployment)
    asked_once_more(route, deployment)
    return job, run, route


def asked_once_more(route: Any, deployment: Deployment) -> None:
    UsageRecordFactory(route_name=route.name, deployment_id=deployment.pk)


async def test_signing_out_ends_it_within_seconds(
    server: ServerRun, deployment: Deployment
) -> None:
    ann = await database_hop(UserFactory, admin=True, username="ann")
    async with opened(server, session_of(server, "ann")) as socket:
        await heard(socket)
        await database_hop(sessions_end, user=ann, actor=SYSTEM)
        assert await closed_with(socket) == 4401


async def test_who_may_see_no_deployment_is_refused(
    server: ServerRun, deployment: Deployment
) -> None:
    await database_hop(UserFactory, is_staff=True, username="bob")
    async with opened(server, session_of(server, "bob")) as socket:
        assert await closed_with(socket) == 4403


async def test_another_origin_and_nobody_are_refused(
    server: ServerRun, deployment: Deployment
) -> None:
    await database_hop(UserFactory, admin=True, username="ann")
    cookie = session_of(server, "ann")
    async with opened(server, cookie, origin="http://evil.example") as socket:
        assert await closed_with(socket) == 4403
    async with opened(server, "no-such-session") as socket:
        assert await closed_with(socket) == 4401


async def test_who_was_given_one_deployment_sees_that_one_and_no_log(
    server: ServerRun, deployment: Deployment
) -> None:
    def given() -> int:
        from guardian.shortcuts import assign_perm

        other = ReplicaFactory(deployment__name="other").deployment
        bob: User = UserFactory(is_staff=True, username="bob")
        assign_perm("deployments.view_deployment", bob, other)
        return int(other.pk)

    other = await database_hop(given)
    async with opened(server, session_of(server, "bob"), query=f"?log={deployment.pk}") as socket:
        first = await heard(socket)
    assert {key.partition(".")[0] for key in first["texts"] if key[0] == "d"} == {f"d{other}"}
    assert first["logs"] == {}


async def test_one_session_opens_a_bounded_number(
    server: ServerRun, deployment: Deployment
) -> None:
    await database_hop(UserFactory, admin=True, username="ann")
    cookie = session_of(server, "ann")
    held = [await opened(server, cookie) for _ in range(10)]
    async with opened(server, cookie) as socket:
        assert await closed_with(socket) == 4429
    await held[0].close()
    await heard(held[1])
    for socket in held[1:]:
        await socket.close()


def samples(engine: EngineProcess) -> None:
    """An hour with a gap, in which load rose."""
    now = timezone.now().astimezone(UTC)
    begin = datetime.fromtimestamp(int(now.timestamp()) // 10 * 10, UTC) - timedelta(hours=1)
    EngineSampleFactory._meta.model.objects.bulk_create(
        EngineSampleFactory.build(
            engine_name=engine.name,
            at=begin + timedelta(seconds=10 * n),
            completion_tokens_per_s=40 + n / 4 + 8 * (n % 7),
            prompt_tokens_per_s=300 + 50 * (n % 5),
            n_running=n // 60,
            n_waiting=max(0, n - 300) / 10,
            rss_bytes=(400 + n // 4) * 2**20,
            kv_used=n / 400,
            n_requests=3,
            ttft_ms=80 + n % 40,
            ttft_p95_ms=150 + 3 * (n % 60),
            itl_ms=12 + n % 5,
            itl_p95_ms=25 + n % 30,
        )
        for n in range(360)
        if not 150 < n < 180
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(
    width: int, server: ServerRun, deployment: Deployment, engine: EngineProcess, tmp_path: Path
) -> None:
    UserFactory(admin=True, username="ann")
    samples(engine)
    page_url = f"{server.base_url}/admin/deployments/deployment/{deployment.pk}/change/"
    with chromium(base_url=server.base_url, width=width) as browser:
        page = browser.page
        browser.sign_in(page_url, username="ann", password="pass-word-1")
        expect(page.locator("[data-live-link]")).to_have_text("Live")
        state = page.locator(f'#watch header [data-live="d{deployment.pk}.state"]')
        expect(state).to_have_text("Ready")
        expect(page.locator(".co-plot")).to_have_count(6)
        page.locator("summary", has_text="End of the log").click()
        expect(page.locator("[data-live-log]")).to_have_text("loading\nready")
        page.screenshot(path=tmp_path / f"watch-{width}.png", full_page=True)

        elsewhere(engine, state="crash_loop", pid=None, last_error="5 crashes in a row")
        expect(state).to_have_text("Crash loop")
        expect(state).to_have_attribute("data-tone", "bad")
        expect(page.locator("#watch .co-error")).to_have_text("5 crashes in a row")
        page.get_by_role("button", name="Day").click()
        expect(page.locator('[data-range="day"]')).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#watch")).to_contain_text("Nothing was measured in this time.")
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        page.goto(f"{server.base_url}/admin/deployments/deployment/")
        live = page.locator(f'[data-live="d{deployment.pk}.state"]').first
        expect(live).to_have_text("Crash loop")
        page.screenshot(path=tmp_path / f"list-{width}.png")
        elsewhere(engine, state="ready", pid=4242)
        expect(live).to_have_text("Ready")
        assert browser.complaints == []

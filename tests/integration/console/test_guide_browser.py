"""The guided page in a browser, from the real server: it follows its rows by itself, and loses
nothing that somebody has typed."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from playwright.sync_api import expect

from apps.deployments.models import Deployment
from apps.registry.models import ImportJob, ModelVersion, VerificationRun
from apps.routing.models import Route, RouteTarget
from tests.browser import chromium
from tests.factories import (
    DeploymentFactory,
    ImportJobFactory,
    ModelVersionFactory,
    RegisteredModelFactory,
    ReplicaFactory,
    RouteFactory,
    RouteTargetFactory,
    UsageRecordFactory,
    UserFactory,
    VerificationRunFactory,
)
from tests.integration.gateway.conftest import shared_server
from tests.processes import ServerRun

__all__ = ["shared_server"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.e2e]


@pytest.fixture
def server(transactional_db: None, shared_server: ServerRun) -> ServerRun:
    UserFactory(admin=True, username="ann")
    return shared_server


@pytest.fixture
def second(server: ServerRun) -> Deployment:
    """Of the second version of a model, beside that of its first on one route."""
    model = RegisteredModelFactory(name="smollm2-135m-instruct")
    route = RouteFactory(name=model.name, deployment=None)
    for number, weight in ((1, 70), (2, 30)):
        version = ModelVersionFactory(model=model, version=number, stage="verified")
        deployment = DeploymentFactory(name=f"{model.name}-v{number}", model_version=version)
        ReplicaFactory(deployment=deployment, index=0)
        RouteTargetFactory(route=route, deployment=deployment, weight=weight)
    return Deployment.objects.get(name=f"{model.name}-v2")


def elsewhere(act: Callable[[], Any]) -> None:
    """Act in a thread: the browser's driver has a loop in this one."""

    def whole() -> None:
        try:
            act()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(whole).result()


def asked(deployment: Deployment, n: int) -> None:
    for _ in range(n):
        UsageRecordFactory(route_name="smollm2-135m-instruct", deployment_id=deployment.pk)


@pytest.mark.parametrize("width", [1280, 390])
def test_an_import_and_a_verification_are_followed_to_the_next_step(
    width: int, server: ServerRun, tmp_path: Path
) -> None:
    version = ModelVersionFactory(model__name="chat", version=1)
    job = ImportJobFactory(
        model_name="chat", status="running", stage="convert", stage_done=5, stage_total=20
    )
    url = f"{server.base_url}/admin/guide/?import={job.pk}"
    with chromium(base_url=server.base_url, width=width) as browser:
        page = browser.page
        browser.sign_in(url, username="ann", password="pass-word-1")
        first = page.locator('[data-step="import"]')
        expect(first).to_contain_text("Converting: 5 of 20 tensors")
        expect(page.locator("[data-live-link]")).to_have_text("Live")
        elsewhere(lambda: ImportJob.objects.update(stage_done=15))
        expect(first).to_contain_text("Converting: 15 of 20 tensors")
        expect(first.locator("rect")).to_have_attribute("width", "75")
        page.screenshot(path=tmp_path / f"guide-import-{width}.png", full_page=True)

        elsewhere(lambda: ImportJob.objects.update(status="done", model_version=version))
        expect(page).to_have_url(re.compile(rf"\?version={version.pk}$"))
        expect(first).to_have_attribute("data-mark", "done")

        elsewhere(lambda: VerificationRunFactory(version=version, status="running"))
        page.goto(page.url)
        second = page.locator('[data-step="verify"]')
        expect(second).to_have_attribute("data-mark", "busy")
        elsewhere(lambda: VerificationRun.objects.update(step="answers", percent=40))
        expect(second).to_contain_text("Asking it, 40 %")

        def passed() -> None:
            ModelVersion.objects.update(stage="verified")
            VerificationRun.objects.update(status="passed", figures={"perplexity": 17.5})

        elsewhere(passed)
        expect(second).to_have_attribute("data-mark", "done")
        expect(second).to_contain_text("17.5")
        page.screenshot(path=tmp_path / f"guide-deploy-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_split_moves_while_it_is_looked_at(
    width: int, server: ServerRun, second: Deployment, tmp_path: Path
) -> None:
    first = Deployment.objects.exclude(pk=second.pk).get()
    route = Route.objects.get()
    asked(first, 7)
    url = f"{server.base_url}/admin/guide/?version={second.model_version_id}"
    with chromium(base_url=server.base_url, width=width) as browser:
        page = browser.page
        browser.sign_in(url, username="ann", password="pass-word-1")
        came = page.locator(f'[data-split-line="{second.name}"] [data-label="Came"]')
        expect(came).to_have_text("0.0 %")
        elsewhere(lambda: asked(second, 3))
        expect(came).to_have_text("30.0 %")
        bar = page.locator(f'[data-live-width$="d{second.pk}.width"]')
        expect(bar).to_have_attribute("width", "30.0")
        page.screenshot(path=tmp_path / f"guide-split-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        page.goto(f"{server.base_url}/admin/routing/route/{route.pk}/change/")
        expect(came).to_have_text("30.0 %")
        elsewhere(lambda: asked(second, 4))
        expect(came).to_have_text("50.0 %")
        page.screenshot(path=tmp_path / f"route-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.complaints == []


def test_what_somebody_types_is_not_lost_when_others_change_the_route(
    server: ServerRun, second: Deployment
) -> None:
    url = f"{server.base_url}/admin/guide/?version={second.model_version_id}"
    with chromium(base_url=server.base_url) as browser:
        page = browser.page
        browser.sign_in(url, username="ann", password="pass-word-1")
        expect(page.locator("[data-live-link]").first).to_have_text("Live")
        weight = page.get_by_label(re.compile(f"^{second.name}"))
        expect(weight).to_have_value("30")

        elsewhere(lambda: RouteTarget.objects.filter(deployment=second).update(weight=40))
        expect(weight).to_have_value("40")  # loaded anew, as nobody had typed

        weight.fill("55")
        elsewhere(lambda: RouteTarget.objects.filter(deployment=second).update(weight=20))
        expect(page.locator("[data-live-link]").first).to_contain_text("load the page again")
        expect(weight).to_have_value("55")
        assert browser.complaints == []

"""The provider's process as tests know it: started, told who there is, and signed in to."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from tests.identity_provider.process import PASSWORD
from tests.processes import ROOT
from tests.serve import free_port
from tests.waiting import wait_until


@dataclass(slots=True)
class IdentityProvider:
    """The process, as tests know it, and a browser that is or is not signed in there."""

    directory: Path
    port: int
    browser: httpx.Client = field(default_factory=httpx.Client)

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}/o"

    def person(self, subject: str, **claims: Any) -> None:
        """Make somebody there, or change what is said of them."""
        file = self.directory / "people.json"
        people = json.loads(file.read_text()) if file.exists() else {}
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps({**people, subject: claims}))
        draft.replace(file)

    def sign_in(self, url: str, subject: str) -> str:
        """Go where we send a browser, sign in there by name and password, and return where that
        leads back to."""
        self.browser = httpx.Client()
        answer = self.browser.get(url)
        while answer.is_redirect or answer.status_code == 200:
            if answer.status_code == 200:
                form = {"username": subject, "password": PASSWORD}
                form["csrfmiddlewaretoken"] = self.browser.cookies["provider_csrf"]
                answer = self.browser.post(answer.url, data=form)
                assert answer.is_redirect, answer.text
            location = urljoin(str(answer.url), answer.headers["location"])
            if not location.startswith(f"http://127.0.0.1:{self.port}/"):
                return location
            answer = self.browser.get(location)
        raise AssertionError(f"{answer.status_code} {answer.text}")


@contextlib.contextmanager
def running(directory: Path, *origins: str) -> Iterator[IdentityProvider]:
    provider = IdentityProvider(directory, free_port())
    provider.person("nobody")
    command = [sys.executable, "-m", "tests.identity_provider.process"]
    with (directory / "provider.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(directory), str(provider.port), *origins],
            cwd=ROOT, env={"PATH": os.environ["PATH"]}, stdout=log, stderr=log,
        )  # fmt: skip
    discovery = f"{provider.issuer}/.well-known/openid-configuration"

    def is_up() -> bool:
        assert process.poll() is None, (directory / "provider.log").read_text()
        try:
            return httpx.get(discovery, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until("the identity provider", is_up, timeout_s=60)
        yield provider
    finally:
        process.kill()
        process.wait()

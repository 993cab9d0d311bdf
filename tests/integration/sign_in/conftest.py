"""Single sign-on, switched on for a test against a provider that answers over HTTP."""

from collections.abc import Iterator
from importlib import import_module, reload
from pathlib import Path
from typing import Any

import pytest
from django.urls import clear_url_caches

from apps.sign_in import provider as client
from apps.sign_in.selectors import is_single_sign_on_on
from tests.factories import GroupMappingFactory
from tests.identity_provider.process import CLIENT_ID, CLIENT_SECRET
from tests.identity_provider.running import IdentityProvider, running
from tests.integration.sign_in.hostile_provider import HostileProvider, hostile_provider

ORIGIN = "http://testserver"


# What the addresses are while single sign-on is on, and while it is off.
_addresses: dict[bool, Any] = {}


def _pages_follow_the_settings() -> None:
    """Which pages exist is decided when addresses are first looked at: that is done for each state
    once, since a hundred pages make it a good part of a test."""
    urls, is_on = import_module("config.urls"), is_single_sign_on_on()
    if is_on not in _addresses:
        _addresses[is_on] = reload(urls).urlpatterns
    urls.urlpatterns = _addresses[is_on]
    clear_url_caches()


@pytest.fixture
def switched_on(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that configures a provider, with other settings beside it."""

    def switch(issuer: str, **others: Any) -> None:
        settings.OIDC_ISSUER = issuer
        settings.OIDC_CLIENT_ID = CLIENT_ID
        settings.OIDC_CLIENT_SECRET = CLIENT_SECRET
        settings.OIDC_NAME = "Acme ID"
        for name, value in others.items():
            setattr(settings, name, value)
        _pages_follow_the_settings()

    monkeypatch.setattr(client, "_discovered", None)
    yield switch
    for name in ("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET"):
        setattr(settings, name, "")
    _pages_follow_the_settings()


@pytest.fixture(scope="session")
def provider_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    directory: Path = tmp_path_factory.mktemp("provider")
    with running(directory, ORIGIN) as provider:
        yield provider


@pytest.fixture
def idp(provider_process: IdentityProvider, switched_on: Any) -> IdentityProvider:
    """The real provider, and single sign-on by it."""
    switched_on(provider_process.issuer)
    return provider_process


@pytest.fixture
def hostile(switched_on: Any) -> Iterator[HostileProvider]:
    """Our own, which says what a test wants it to, and single sign-on by it."""
    with hostile_provider() as provider:
        switched_on(provider.issuer)
        yield provider


@pytest.fixture
def engineers(db: None) -> None:
    """A group that lets people in."""
    GroupMappingFactory(group="engineers", role="viewer")

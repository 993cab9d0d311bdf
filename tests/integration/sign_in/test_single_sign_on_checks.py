"""A part of the settings of single sign-on stops the start by name, and lets nobody in."""

import os
import subprocess
import sys
from typing import Any

import pytest

from apps.sign_in.checks import single_sign_on_check
from apps.sign_in.selectors import is_single_sign_on_on
from tests.processes import ROOT

WHOLE = {
    "OIDC_ISSUER": "https://id.example.com",
    "OIDC_CLIENT_ID": "nano-llm",
    "OIDC_CLIENT_SECRET": "secret",
}


def found(settings: Any, **values: Any) -> list[str]:
    for name, value in values.items():
        setattr(settings, name, value)
    return [message.msg for message in single_sign_on_check()]


def test_nothing_and_everything_are_right(settings: Any) -> None:
    assert found(settings) == []
    assert not is_single_sign_on_on()
    assert found(settings, **WHOLE) == []
    assert is_single_sign_on_on()


@pytest.mark.parametrize("lacking", WHOLE)
def test_a_part_is_wrong_and_is_off(settings: Any, lacking: str) -> None:
    assert found(settings, **{**WHOLE, lacking: ""}) == [
        f"Single sign-on is configured by half: {lacking} is not set."
    ]
    assert not is_single_sign_on_on()


@pytest.mark.parametrize(
    "issuer",
    [
        "http://id.example.com", "http://10.0.0.1", "http://localhost.evil.test", "id.example.com",
        "https://", "https://id.example.com?x=1", "https://id.example.com#x", "https://[::1",
    ],
)  # fmt: skip
def test_an_issuer_that_is_not_secure(settings: Any, issuer: str) -> None:
    (message,) = found(settings, **{**WHOLE, "OIDC_ISSUER": issuer})
    assert message.startswith(f"OIDC_ISSUER={issuer!r}")


@pytest.mark.parametrize("issuer", ["http://127.0.0.1:9/o", "http://localhost", "http://[::1]:9"])
def test_of_this_very_machine_it_may_be_plain(settings: Any, issuer: str) -> None:
    assert found(settings, **{**WHOLE, "OIDC_ISSUER": issuer}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OIDC_ALLOWED_DOMAINS", ["example.com"]),
        ("OIDC_SECOND_FACTOR_AMR", ["mfa"]),
        ("OIDC_SECOND_FACTOR_ACR", ["1"]),
        ("OIDC_PASSWORD_SIGN_IN", False),
    ],
)
def test_settings_that_would_do_nothing(settings: Any, name: str, value: Any) -> None:
    (message,) = found(settings, **{name: value})
    assert message.startswith(f"{name} is set, but single sign-on is not")


def test_the_start_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings.test", "OIDC_ISSUER": "https://x.test"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "OIDC_CLIENT_ID is not set" in done.stderr
    assert "sign_in.E001" in done.stderr

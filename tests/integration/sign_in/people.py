"""People at the pages of the admin: they sign in, enrol, and have an app that makes codes."""

import html
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db.models import F
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

from apps.rbac.models import User
from tests.authenticator import code_of
from tests.factories import UserFactory

PASSWORD = "pass-word-1"
LOGIN = "/admin/login/"
CODE = "/admin/login/code/"
ENROL = "/admin/account/two-factor/"
INDEX = "/admin/"
WRONG = "Please enter the correct username and password for a staff account."


@dataclass(slots=True)
class Visitor:
    """A browser and whoever sits at it."""

    user: User
    client: Client = field(default_factory=Client)
    secret: str = ""
    backup_codes: list[str] = field(default_factory=list)

    def password_step(self, password: str = PASSWORD, **extra: Any) -> Any:
        form = {"username": self.user.username, "password": password}
        return self.client.post(LOGIN, form, **extra)

    def code_step(self, code: str, **extra: Any) -> Any:
        return self.client.post(CODE, {"code": code}, **extra)

    def is_in(self) -> bool:
        return self.client.get(INDEX).status_code == 200

    def enrol(self) -> Any:
        """Enrol; and half a minute passes, so that the code of now is a fresh one."""
        self.secret = shown_secret(self.client.get(ENROL))
        new_code = code_of(self.secret)
        answer = self.client.post(ENROL, {"password": PASSWORD, "new_code": new_code})
        self.backup_codes = shown_codes(answer)
        codes_become_fresh(self.user)
        return answer


def codes_become_fresh(user: User) -> None:
    """As if every code that was used so far were of an earlier half minute."""
    TOTPDevice.objects.filter(user=user).update(last_t=F("last_t") - 2)


def shown_secret(answer: Any) -> str:
    found = re.search(r'id="two-factor-secret">([A-Z2-7 ]+)<', answer.content.decode())
    assert found is not None
    return found[1]


def shown_codes(answer: Any) -> list[str]:
    return re.findall(r"<li><code>([a-z0-9-]+)</code></li>", answer.content.decode())


def said(answer: Any) -> str:
    """The text of a page, without markup."""
    text = re.sub(r"<(script|style).*?</\1>", " ", answer.content.decode(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def visitor(*, is_signed_in: bool = True, is_enrolled: bool = False, **fields: Any) -> Visitor:
    person = Visitor(UserFactory(is_staff=True, **fields))
    if is_signed_in or is_enrolled:
        assert person.password_step().status_code == 302
    if is_enrolled:
        assert person.enrol().status_code == 200
        if not is_signed_in:
            person.client = Client()
    return person


def act(client: Client, name: str, pk: int, *, page: str = "person") -> Any:
    """Press a button of a list's row, and the one of the dialog that asks back."""
    url = reverse(f"admin:sign_in_{page}_{name}", args=[pk])
    return client.post(url, {"_form_submitted": "True"})


def stored() -> tuple[list[Any], list[Any]]:
    """What the database holds of second factors, to show that nothing changed."""
    devices = TOTPDevice.objects.order_by("pk").values_list("pk", "key", "confirmed")
    return list(devices), list(StaticToken.objects.order_by("pk").values_list("token", flat=True))


def unthrottle() -> None:
    """Let a minute pass for whoever gave a wrong code."""
    past = timezone.now() - timedelta(hours=1)
    for model in (TOTPDevice, StaticDevice):
        model.objects.filter(throttling_failure_count__gt=0).update(
            throttling_failure_timestamp=past
        )

"""Too many failures with one name from one address: a wait with an end, told, seen and lifted."""

import re
from datetime import timedelta
from typing import Any

import pytest
from axes.handlers import proxy
from axes.models import AccessAttempt
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import Permission
from django.http import HttpRequest
from django.test import Client
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from apps.audit.models import AuditEvent
from apps.sign_in.selectors import client_address, counted_address
from tests.authenticator import code_of
from tests.factories import UserFactory
from tests.integration.console.pages import actions
from tests.integration.sign_in.people import (
    ENROL,
    LOGIN,
    PASSWORD,
    WRONG,
    Visitor,
    act,
    said,
    visitor,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db

FAILED = "/admin/sign_in/failedsignin/"


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands, and goes on by ``time_passes``: a pause of a second between codes and the
    end of a lock do not hang on how busy the machine is."""
    moment = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: moment)
    monkeypatch.setattr(proxy, "now", lambda: moment)


def attempt(username: str, password: str = "wrong", **extra: Any) -> Any:
    return Client().post(LOGIN, {"username": username, "password": password}, **extra)


def time_passes(seconds: float) -> None:
    for row in AccessAttempt.objects.all():
        row.attempt_time -= timedelta(seconds=seconds)
        row.save()


def test_the_fifth_failure_locks_for_a_bounded_time() -> None:
    UserFactory(username="ann", is_staff=True)
    for _ in range(4):
        answer = attempt("ann")
        assert (answer.status_code, WRONG in said(answer)) == (200, True)
    locked = attempt("ann")
    assert locked.status_code == 429
    assert locked["Retry-After"] == "900"
    assert re.search(r"Try again in 15 minutes, at \d\d:\d\d:\d\d UTC\.", said(locked))
    right = attempt("ann", PASSWORD)
    assert right.status_code == 429
    assert "sessionid" not in right.cookies
    assert actions() == [*["sign_in.failed"] * 5, "sign_in.locked"]
    time_passes(880)
    assert attempt("ann", PASSWORD).status_code == 429  # and asking did not make it longer
    time_passes(21)
    assert attempt("ann", PASSWORD).status_code == 302
    assert actions()[-1] == "sign_in.succeeded"


def test_the_trail_says_who_from_where_and_until_when() -> None:
    ann = UserFactory(username="ann", is_staff=True)
    for _ in range(5):
        attempt("ann", REMOTE_ADDR="192.0.2.9")
    failed, locked = all_of(AuditEvent).order_by("-id")[1], all_of(AuditEvent).order_by("-id")[0]
    assert (failed.object_id, failed.ip_address, failed.changes) == (
        str(ann.pk),
        "192.0.2.9",
        {"reason": "password", "is_known": True},
    )
    until = AccessAttempt.objects.get().attempt_time + timedelta(minutes=15)
    assert locked.changes == {"until": until.isoformat(), "is_known": True}


def test_a_name_that_nobody_has_gets_the_same_answers_and_is_not_written_down() -> None:
    UserFactory(username="ann", is_staff=True)
    known = [attempt("ann") for _ in range(6)]
    unknown = [attempt("my-pass-word-9") for _ in range(6)]
    assert [page.status_code for page in known] == [page.status_code for page in unknown]
    for one, other in zip(known, unknown, strict=True):
        cut = re.compile(r"at \d\d:\d\d:\d\d UTC")
        assert cut.sub("", said(one)) == cut.sub("", said(other))
    assert "my-pass-word-9" not in str(list(all_of(AuditEvent).values()))


def test_a_name_that_nobody_has_costs_a_hash_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    encode = MD5PasswordHasher.encode

    def counting(self: Any, password: str, salt: str) -> str:
        hashed.append(password)
        return str(encode(self, password, salt))

    UserFactory(username="ann", is_staff=True)
    UserFactory(username="off", is_staff=True, is_active=False)
    UserFactory(username="visitor")
    monkeypatch.setattr(MD5PasswordHasher, "encode", counting)
    for name in ("ann", "nobody", "off", "visitor"):
        hashed.clear()
        attempt(name, "some guess")
        assert hashed == ["some guess"], name


@pytest.mark.parametrize("fields", [{"is_staff": False}, {"is_staff": True, "is_active": False}])
def test_the_right_password_of_who_may_not_come_in_counts_and_reads_as_a_wrong_one(
    fields: dict[str, bool],
) -> None:
    UserFactory(username="visitor", **fields)
    answers = [attempt("visitor", PASSWORD) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429]
    assert WRONG in said(answers[0])


def test_another_address_and_another_name_are_not_locked() -> None:
    for name in ("ann", "bob"):
        UserFactory(username=name, is_staff=True)
    for _ in range(5):
        attempt("ann")
    assert attempt("bob", PASSWORD).status_code == 302
    assert attempt("ann", PASSWORD, REMOTE_ADDR="192.0.2.9").status_code == 302
    assert attempt("ann", PASSWORD).status_code == 429


def test_another_browser_is_no_way_round() -> None:
    UserFactory(username="ann", is_staff=True)
    answers = [attempt("ann", HTTP_USER_AGENT=f"browser {n}") for n in range(5)]
    assert answers[-1].status_code == 429
    assert attempt("ann", PASSWORD, HTTP_USER_AGENT="browser 9").status_code == 429


def test_the_right_guess_among_many_at_once_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five others fail while this one is being checked."""
    UserFactory(username="ann", is_staff=True)
    verify = MD5PasswordHasher.verify

    def slow(self: Any, password: str, encoded: str) -> bool:
        monkeypatch.setattr(MD5PasswordHasher, "verify", verify)
        assert [attempt("ann").status_code for _ in range(5)][-1] == 429
        return bool(verify(self, password, encoded))

    monkeypatch.setattr(MD5PasswordHasher, "verify", slow)
    answer = attempt("ann", PASSWORD)
    assert answer.status_code == 429
    assert "sessionid" not in answer.cookies
    assert "sign_in.succeeded" not in actions()


def test_signing_in_forgets_the_failures() -> None:
    UserFactory(username="ann", is_staff=True)
    for _ in range(4):
        attempt("ann")
    attempt("ann", PASSWORD)
    assert not AccessAttempt.objects.exists()


class TestCodes:
    def test_wrong_codes_count_and_the_right_password_forgets_none(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        person.password_step("wrong")
        for n in range(4):
            TOTPDevice.objects.update(throttling_failure_count=0)
            assert person.password_step().status_code == 302
            assert person.code_step("000000").status_code == (200 if n < 3 else 429)
        TOTPDevice.objects.update(throttling_failure_count=0)
        assert person.code_step(code_of(person.secret)).status_code == 429
        assert person.password_step().status_code == 429
        assert not person.is_in()
        assert actions()[-5:] == [*["sign_in.failed"] * 4, "sign_in.locked"]
        assert all_of(AuditEvent).order_by("-id")[1].changes["reason"] == "code"

    def test_a_code_that_is_not_looked_at_does_not_count(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        person.password_step()
        for _ in range(8):
            assert person.code_step("000000").status_code == 200
        assert AccessAttempt.objects.get().failures_since_start == 1

    def test_guessing_on_the_account_page_counts_too(self) -> None:
        person = visitor(is_enrolled=True)
        url = "/admin/account/two-factor/remove/"
        form = {"password": "wrong", "code": "000000"}
        answers = [person.client.post(url, form).status_code for _ in range(6)]
        assert answers == [200, 200, 200, 200, 429, 429]
        right = {"password": PASSWORD, "code": code_of(person.secret)}
        assert person.client.post(url, right).status_code == 429
        assert TOTPDevice.objects.count() == 1
        assert person.is_in()
        assert person.client.get(ENROL).status_code == 200


class TestInTheAdmin:
    def test_a_lock_is_seen_and_lifted(self, admin_client: Client) -> None:
        UserFactory(username="ann", is_staff=True)
        for _ in range(3):
            attempt("ann", HTTP_USER_AGENT="one")
        assert "Locked until" not in said(admin_client.get(FAILED))
        for _ in range(2):
            attempt("ann", HTTP_USER_AGENT="two")
        assert said(admin_client.get(FAILED)).count("Locked until") == 2
        row = AccessAttempt.objects.order_by("pk")[0]
        assert admin_client.get(f"{FAILED}{row.pk}/change/").status_code == 200
        act(admin_client, "lift", row.pk, page="failedsignin")
        assert not AccessAttempt.objects.exists()
        event = all_of(AuditEvent).order_by("-id")[0]
        assert (event.action, event.actor_label, event.changes) == (
            "sign_in.lock_lifted",
            "admin",
            {"address": "127.0.0.1", "failures": 5, "is_known": True},
        )
        assert attempt("ann", PASSWORD).status_code == 302

    def test_not_by_whoever_may_only_look(self) -> None:
        for _ in range(5):
            attempt("ann")
        person = visitor()
        person.user.user_permissions.set(Permission.objects.filter(codename="view_failedsignin"))
        assert person.client.get(FAILED).status_code == 200
        row = AccessAttempt.objects.get()
        assert act(person.client, "lift", row.pk, page="failedsignin").status_code == 403
        assert AccessAttempt.objects.get().failures_since_start == 5
        assert "sign_in.lock_lifted" not in actions()

    def test_what_no_longer_counts_is_not_listed(self, admin_client: Client) -> None:
        attempt("long-ago")
        time_passes(901)
        assert "0 failed sign-ins" in said(admin_client.get(FAILED))

    def test_a_name_that_nobody_has_is_not_shown(self, admin_client: Client) -> None:
        attempt("my-pass-word-9")
        row = AccessAttempt.objects.get()
        for page in (FAILED, f"{FAILED}{row.pk}/change/"):
            text = said(admin_client.get(page))
            assert "(a name that nobody has)" in text
            assert "my-pass-word-9" not in text


class TestAddresses:
    @pytest.mark.parametrize(
        ("proxies", "forwarded", "address"),
        [
            ((), "203.0.113.5", "192.0.2.1"),
            (("192.0.2.1",), "203.0.113.5", "203.0.113.5"),
            (("192.0.2.0/24",), "198.51.100.66, 203.0.113.5", "203.0.113.5"),
            (("192.0.2.1", "10.0.0.0/8"), "198.51.100.66, 203.0.113.5, 10.0.0.2", "203.0.113.5"),
            (("10.0.0.0/8",), "203.0.113.5", "192.0.2.1"),
            (("192.0.2.1",), "", "192.0.2.1"),
        ],
    )
    def test_only_our_proxies_are_believed(
        self, settings: Any, proxies: tuple[str, ...], forwarded: str, address: str
    ) -> None:
        settings.TRUSTED_PROXIES = proxies
        request = HttpRequest()
        request.META = {"REMOTE_ADDR": "192.0.2.1", "HTTP_X_FORWARDED_FOR": forwarded}
        assert client_address(request) == address

    def test_a_forged_header_is_no_way_round_a_lock(self, settings: Any) -> None:
        UserFactory(username="ann", is_staff=True)
        for n in range(5):
            answer = attempt("ann", HTTP_X_FORWARDED_FOR=f"203.0.113.{n}")
        assert answer.status_code == 429
        AccessAttempt.objects.all().delete()
        settings.TRUSTED_PROXIES = ("127.0.0.1",)
        for n in range(5):
            answer = attempt("ann", HTTP_X_FORWARDED_FOR=f"203.0.113.{n}, 198.51.100.7")
        assert answer.status_code == 429

    @pytest.mark.parametrize(
        ("remote", "counted"),
        [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("", None),
        ],
    )
    def test_of_ipv6_the_network_counts(self, remote: str, counted: str | None) -> None:
        request = HttpRequest()
        request.META = {"REMOTE_ADDR": remote}
        assert counted_address(request) == counted


def test_attempts_hold_neither_passwords_nor_codes() -> None:
    person = visitor(is_enrolled=True, is_signed_in=False)
    person.password_step("hunter2-hunter2")
    person.password_step()
    person.code_step("123123")
    kept = str(list(AccessAttempt.objects.values()))
    assert "hunter2" not in kept
    assert "123123" not in kept
    assert timezone.now() - AccessAttempt.objects.get().attempt_time < timedelta(minutes=1)


def test_two_people_at_one_door() -> None:
    """One's failures lock nobody else at the same address."""
    ann, bob = visitor(is_signed_in=False), visitor(is_signed_in=False)
    for _ in range(6):
        Visitor(ann.user).password_step("wrong")
    assert bob.password_step().status_code == 302
    assert bob.is_in()


def test_a_wrong_old_password_counts_as_a_failed_sign_in() -> None:
    """Else an open session would be a place to guess the password without end."""
    person = visitor()
    form = {"new_password1": "another horse 9", "new_password2": "another horse 9"}
    wrong = {**form, "old_password": "guessed"}
    answers = [person.client.post("/admin/password_change/", wrong) for _ in range(6)]
    assert [each.status_code for each in answers] == [200, 200, 200, 200, 429, 429]
    right = {**form, "old_password": PASSWORD}
    assert person.client.post("/admin/password_change/", right).status_code == 429
    person.user.refresh_from_db()
    assert person.user.check_password(PASSWORD)
    assert actions()[-1] == "sign_in.locked"

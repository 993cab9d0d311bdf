"""The second factor through real pages: enrolled, asked for, used up."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django_otp.plugins.otp_static.models import StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

from apps.audit.models import AuditEvent
from apps.rbac.models import User
from apps.sign_in.two_factor import code_verify
from tests.authenticator import away_from_an_edge, code_of
from tests.factories import UserFactory
from tests.integration.console.pages import actions
from tests.integration.sign_in.people import (
    CODE,
    ENROL,
    PASSWORD,
    WRONG,
    Visitor,
    said,
    shown_codes,
    shown_secret,
    stored,
    unthrottle,
    visitor,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def test_the_tests_own_authenticator_agrees_with_rfc_6238() -> None:
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # "12345678901234567890"
    assert [code_of(secret, at_s=t) for t in (59, 1111111109, 20000000000)] == [
        "287082",
        "081804",
        "353130",
    ]


class TestEnrolment:
    def test_page_shows_the_secret_as_text_and_as_a_picture_made_here(self) -> None:
        person = visitor(username="ann")
        answer = person.client.get(ENROL)
        secret = shown_secret(answer)
        page = answer.content.decode()
        assert len(secret.replace(" ", "")) == 32
        assert page.count('class="co-qr"') == 1
        picture = page[page.index("<svg", page.index("co-enrol")) :]
        assert "://" not in picture[: picture.index("</svg>")]
        assert "no-store" in answer["Cache-Control"]
        url = "otpauth://totp/Nano-LLM%20Engine%3Aann?secret=" + secret.replace(" ", "")
        assert url in page
        assert shown_secret(person.client.get(ENROL)) == secret  # looked at twice, still the same
        assert stored() == ([], [])

    def test_is_in_force_after_one_code_and_shows_ten_backup_codes_once(self) -> None:
        person = visitor(username="ann")
        answer = person.enrol()
        assert len(person.backup_codes) == len(set(person.backup_codes)) == 10
        assert "no-store" in answer["Cache-Control"]
        assert TOTPDevice.objects.get().confirmed
        assert actions() == ["sign_in.succeeded", "two_factor.enrolled"]
        account = said(person.client.get("/admin/account/"))
        assert "Backup codes left: 10 ." in account
        assert person.backup_codes[0] not in account

    def test_neither_the_trail_nor_the_tokens_hold_a_secret(self) -> None:
        person = visitor()
        person.enrol()
        told = str(list(all_of(AuditEvent).values()))
        kept = str(list(StaticToken.objects.values_list("token", flat=True)))
        for secret in (*person.backup_codes, TOTPDevice.objects.get().key):
            assert secret not in told
            assert secret.replace("-", "") not in kept

    @pytest.mark.parametrize(
        ("password", "new_code", "message"),
        [
            (PASSWORD, "000000", "This code is not right."),
            (PASSWORD, "", "This field is required."),
            ("wrong", None, "The password or the code is not right."),
        ],
    )
    def test_a_wrong_code_or_password_enrols_nothing(
        self, password: str, new_code: str | None, message: str
    ) -> None:
        person = visitor()
        code = code_of(shown_secret(person.client.get(ENROL)))
        form = {"password": password, "new_code": code if new_code is None else new_code}
        answer = person.client.post(ENROL, form)
        assert message in said(answer)
        assert shown_codes(answer) == []
        assert stored() == ([], [])
        assert "two_factor.enrolled" not in actions()

    def test_is_for_staff_who_are_signed_in(self) -> None:
        nobody, no_staff = Client(), Client()
        no_staff.force_login(UserFactory())
        for client in (nobody, no_staff):
            answer = client.get(ENROL)
            assert (answer.status_code, answer["Location"]) == (302, f"/admin/login/?next={ENROL}")
        assert stored() == ([], [])


class TestSecondStep:
    def test_password_alone_leads_to_the_code_and_lets_nobody_in(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        answer = person.client.post(
            "/admin/login/?next=/admin/playground/",
            {"username": person.user.username, "password": PASSWORD},
        )
        assert answer["Location"] == f"{CODE}?next=%2Fadmin%2Fplayground%2F"
        assert not person.is_in()
        page = person.client.get(answer["Location"])
        assert page.status_code == 200
        assert person.user.username in said(page)
        assert "Overview" not in said(page)

    def test_code_signs_in_and_leads_on(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        person.password_step()
        answer = person.client.post(
            f"{CODE}?next=/admin/playground/", {"code": code_of(person.secret)}
        )
        assert answer["Location"] == "/admin/playground/"
        assert person.is_in()
        event = all_of(AuditEvent).order_by("-id")[0]
        assert (event.action, event.changes) == ("sign_in.succeeded", {"second_factor": "totp"})

    def test_leads_to_no_other_site(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        person.password_step()
        answer = person.client.post(
            f"{CODE}?next=https://evil.example/", {"code": code_of(person.secret)}
        )
        assert answer["Location"] == "/admin/"

    def test_a_code_works_once(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        code = code_of(person.secret)
        person.password_step()
        assert person.code_step(code).status_code == 302
        other = Visitor(person.user)
        other.password_step()
        answer = other.code_step(code)
        assert "This code is not right." in said(answer)
        assert not other.is_in()

    def test_who_typed_slowly_once_is_asked_for_no_older_codes_from_then_on(self) -> None:
        person = visitor()
        person.secret = shown_secret(person.client.get(ENROL))
        away_from_an_edge(margin_s=5.0)
        code = code_of(person.secret, steps=-1)
        person.client.post(ENROL, {"password": PASSWORD, "new_code": code})
        assert TOTPDevice.objects.get().drift == 0
        other = Visitor(person.user)
        other.password_step()
        assert other.code_step(code_of(person.secret, steps=1)).status_code == 302
        assert other.is_in()
        assert TOTPDevice.objects.get().drift == 0

    def test_the_code_that_enrolled_signs_nobody_in(self) -> None:
        person = visitor()
        person.secret = shown_secret(person.client.get(ENROL))
        code = code_of(person.secret)
        assert (
            person.client.post(ENROL, {"password": PASSWORD, "new_code": code}).status_code == 200
        )
        other = Visitor(person.user)
        other.password_step()
        other.code_step(code)
        assert not other.is_in()

    def test_codes_of_long_ago_are_wrong(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        TOTPDevice.objects.update(last_t=-1)
        person.password_step()
        person.code_step(code_of(person.secret, steps=-3))
        assert not person.is_in()

    def test_a_backup_code_works_once(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        person.password_step()
        assert person.code_step(person.backup_codes[3].upper()).status_code == 302
        assert person.is_in()
        assert StaticToken.objects.count() == 9
        other = Visitor(person.user)
        other.password_step()
        other.code_step(person.backup_codes[3])
        assert not other.is_in()
        assert StaticToken.objects.count() == 9

    def test_after_a_wrong_code_the_next_one_waits(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        person.password_step()
        person.code_step("000000")
        answer = person.code_step(code_of(person.secret))
        assert "There was a wrong code; try again in 1 s." in said(answer)
        assert not person.is_in()
        unthrottle()
        assert person.code_step(code_of(person.secret)).status_code == 302

    def test_the_wait_has_a_bound(self) -> None:
        person = visitor(is_enrolled=True)
        for _ in range(12):
            unthrottle()
            assert code_verify(person.user, code="000000").factor is None
        assert TOTPDevice.objects.get().throttling_failure_count == 9
        assert code_verify(person.user, code="000000").wait_s == 256

    def test_without_the_first_step_there_is_no_second(self) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        answer = person.code_step(code_of(person.secret))
        assert (answer.status_code, answer["Location"]) == (302, "/admin/login/")
        assert not person.is_in()

    @pytest.mark.parametrize("change", ["password", "inactive", "no staff", "time"])
    def test_the_first_step_ends(self, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
        person = visitor(is_enrolled=True, is_signed_in=False)
        person.password_step()
        user = person.user
        match change:
            case "password":
                user.set_password("another horse 9")
            case "inactive":
                user.is_active = False
            case "no staff":
                user.is_staff = False
            case "time":
                monkeypatch.setattr("apps.sign_in.services.entry.PENDING_S", -1)
        user.save()
        assert person.code_step(code_of(person.secret))["Location"] == "/admin/login/"
        assert not person.is_in()


@pytest.mark.django_db(transaction=True)
def test_of_two_requests_with_one_code_one_is_right() -> None:
    person = visitor(is_enrolled=True)
    code, user_id = code_of(person.secret), person.user.pk

    def attempt(_: int) -> str | None:
        try:
            return code_verify(User.objects.get(pk=user_id), code=code).factor
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        factors = list(pool.map(attempt, range(4)))
    assert sorted(factors, key=str) == [None, None, None, "totp"]


def test_a_wrong_answer_to_the_first_step_reads_the_same_with_and_without_a_device() -> None:
    person = visitor(is_enrolled=True, is_signed_in=False)
    assert WRONG in said(person.password_step("wrong"))
    assert Session.objects.count() <= 1

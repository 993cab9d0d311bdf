"""What somebody does with their own second factor: replaces it, removes it, makes new codes."""

import pytest

from apps.sign_in.two_factor import code_verify
from tests.authenticator import code_of
from tests.integration.console.pages import actions
from tests.integration.sign_in.people import (
    ENROL,
    PASSWORD,
    Visitor,
    codes_become_fresh,
    said,
    shown_codes,
    shown_secret,
    stored,
    unthrottle,
    visitor,
)

pytestmark = pytest.mark.django_db

REMOVE = "/admin/account/two-factor/remove/"
CODES = "/admin/account/two-factor/backup-codes/"


def test_replacing_asks_for_password_and_code_and_voids_the_old_one() -> None:
    person = visitor(is_enrolled=True)
    old, old_codes, before = person.secret, person.backup_codes, stored()
    fresh = shown_secret(person.client.get(ENROL))
    assert fresh != old
    form = {"password": PASSWORD, "code": code_of(old), "new_code": code_of(fresh)}
    for wrong in ({"password": "wrong"}, {"code": "zzzz-zzzz-zzzz"}, {"new_code": "000000"}):
        person.client.post(ENROL, {**form, **wrong})
        assert stored() == before
    unthrottle()
    answer = person.client.post(ENROL, form)
    assert len(shown_codes(answer)) == 10
    assert person.is_in()
    assert actions()[-1] == "two_factor.replaced"
    codes_become_fresh(person.user)
    other = Visitor(person.user)
    other.password_step()
    for void in (code_of(old, steps=1), old_codes[0]):
        other.code_step(void)
        assert not other.is_in()
    unthrottle()
    assert other.code_step(code_of(fresh)).status_code == 302


def test_removing_asks_for_password_and_code() -> None:
    person, elsewhere = visitor(is_enrolled=True), None
    elsewhere = Visitor(person.user)
    elsewhere.password_step()
    elsewhere.code_step(person.backup_codes[0])
    assert elsewhere.is_in()
    before = stored()
    for form in ({"password": PASSWORD, "code": "000000"}, {"password": "no", "code": "1"}):
        assert "The password or the code is not right." in said(person.client.post(REMOVE, form))
        assert stored() == before
    unthrottle()
    answer = person.client.post(REMOVE, {"password": PASSWORD, "code": code_of(person.secret)})
    assert answer["Location"] == "/admin/account/"
    assert stored() == ([], [])
    assert actions()[-1] == "two_factor.removed"
    assert person.is_in()
    assert not elsewhere.is_in()


def test_new_backup_codes_void_the_old_ones() -> None:
    person = visitor(is_enrolled=True)
    form = {"password": PASSWORD, "code": person.backup_codes[0]}
    codes = shown_codes(person.client.post(CODES, form))
    assert len(codes) == 10
    assert not set(codes) & set(person.backup_codes)
    assert actions()[-1] == "backup_codes.renewed"
    assert code_verify(person.user, code=person.backup_codes[1]).factor is None
    unthrottle()
    assert code_verify(person.user, code=codes[1]).factor == "backup_code"


def test_no_backup_codes_without_an_authenticator() -> None:
    person = visitor()
    answer = person.client.post(CODES, {"password": PASSWORD})
    assert "Enrol an authenticator first." in said(answer)
    assert stored() == ([], [])

"""Mechanics of the second factor: secrets, their picture, and the check of one code. It writes no
audit events and knows no request; services do."""

import hashlib
import math
import re
import secrets
from typing import TYPE_CHECKING, Final

import segno
from django.db import transaction
from django.utils import timezone
from django_otp.models import ThrottlingMixin
from django_otp.oath import totp
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice
from django_otp.util import random_hex

from apps.sign_in.types import CodeVerdict, EnrolmentDraft, Factor

if TYPE_CHECKING:
    from apps.rbac.models import User

N_BACKUP_CODES: Final = 10
_CODE_CHARS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # 32, none that is read as another
_N_CODE_CHARS: Final = 12  # 60 bits: a stolen digest of it is not searched
# Waits double with each wrong code; at this one they stay, at about four minutes, so that whoever
# knows a password cannot keep its owner out for days.
_MAX_THROTTLE_COUNT: Final = 9
_TOTP: Final = re.compile(r"[0-9]{6}")


def draft_key() -> str:
    return str(random_hex(20))


def enrolment_draft(user: "User", *, key: str) -> EnrolmentDraft:
    """Return the secret as text, as the address that apps know, and as a picture of that."""
    device = TOTPDevice(user=user, key=key)
    url = device.config_url
    secret = url.partition("secret=")[2].partition("&")[0]
    qr = segno.make(url, error="m", micro=False)
    return EnrolmentDraft(
        secret=" ".join(secret[i : i + 4] for i in range(0, len(secret), 4)),
        url=url,
        qr_svg=qr.svg_inline(
            scale=5, border=2, omitsize=True, dark="#000", light="#fff", svgclass="co-qr"
        ),
    )


@transaction.atomic
def code_verify(user: "User", *, code: str) -> CodeVerdict:
    """Check a code of the authenticator, or a backup code, and use it up.

    The row of the device stays locked meanwhile: of two requests with one code only one is right.
    """
    text = code.strip().replace(" ", "").replace("-", "").lower()
    is_totp = _TOTP.fullmatch(text) is not None
    model: type[TOTPDevice] | type[StaticDevice] = TOTPDevice if is_totp else StaticDevice
    factor: Factor = "totp" if is_totp else "backup_code"
    device = (
        model.objects.select_for_update()
        .filter(user_id=user.pk, confirmed=True)
        .order_by("-pk")
        .first()
    )
    if device is None:
        return CodeVerdict()
    if (wait_s := _wait_s(device)) > 0:
        return CodeVerdict(wait_s=wait_s)
    if device.verify_token(text if is_totp else backup_digest(user, text)):
        return CodeVerdict(factor=factor)
    model.objects.filter(pk=device.pk, throttling_failure_count__gt=_MAX_THROTTLE_COUNT).update(
        throttling_failure_count=_MAX_THROTTLE_COUNT
    )
    return CodeVerdict()


def _wait_s(device: ThrottlingMixin) -> float:
    is_allowed, why = device.verify_is_allowed()
    if is_allowed:
        return 0.0
    return float(math.ceil((why["locked_until"] - timezone.now()).total_seconds())) or 1.0


def code_is_of(key: str, *, code: str) -> bool:
    """Whether a code is of a secret that is in force nowhere yet; changes nothing."""
    text = code.strip().replace(" ", "")
    device = TOTPDevice(key=key)
    return _TOTP.fullmatch(text) is not None and any(
        secrets.compare_digest(f"{totp(device.bin_key, drift=drift):06d}", text)
        for drift in (-1, 0, 1)
    )


def authenticator_put(user: "User", *, key: str, code: str) -> TOTPDevice | None:
    """Make the authenticator of a person who has none, if ``code`` is of it; else None, and the
    caller's transaction must not commit. The code is used up."""
    device = TOTPDevice.objects.create(user=user, name="authenticator", key=key, confirmed=True)
    return device if device.verify_token(code.strip().replace(" ", "")) else None


def devices_delete(user: "User") -> int:
    """Delete every device and backup code of a person; returns how many authenticators."""
    n, _ = TOTPDevice.objects.filter(user_id=user.pk).delete()
    StaticDevice.objects.filter(user_id=user.pk).delete()
    return int(n)


def backup_codes_put(user: "User") -> tuple[str, ...]:
    """Make new backup codes in place of the old ones. They are returned, and nowhere else."""
    StaticDevice.objects.filter(user_id=user.pk).delete()
    device = StaticDevice.objects.create(user=user, name="backup codes", confirmed=True)
    codes = [
        "".join(secrets.choice(_CODE_CHARS) for _ in range(_N_CODE_CHARS))
        for _ in range(N_BACKUP_CODES)
    ]
    StaticToken.objects.bulk_create(
        StaticToken(device=device, token=backup_digest(user, code)) for code in codes
    )
    return tuple("-".join(code[i : i + 4] for i in range(0, len(code), 4)) for code in codes)


def backup_digest(user: "User", code: str) -> str:
    """What is kept of a backup code: 64 bits of a hash, which no code can be read out of."""
    return hashlib.sha256(f"backup-code:{user.pk}:{code}".encode()).hexdigest()[:16]

"""A person's authenticator app, written from RFC 6238 and not from the library under test."""

import base64
import hashlib
import hmac
import struct
import time

STEP_S = 30


def code_of(secret: str, *, steps: int = 0, at_s: float | None = None) -> str:
    """The code that an app shows for a secret as people see it (base32, spaces allowed); steps: of
    a later or an earlier half minute."""
    key = base64.b32decode(secret.replace(" ", ""))
    counter = int(time.time() if at_s is None else at_s) // STEP_S + steps
    digest = hmac.new(key, struct.pack(">Q", counter), hashlib.sha1).digest()
    start = digest[-1] & 15
    number = struct.unpack(">I", digest[start : start + 4])[0] & 0x7FFFFFFF
    return f"{number % 10**6:06d}"


def away_from_an_edge(*, margin_s: float) -> None:
    """Wait, if need be, until the half minute lasts for so long at least."""
    left_s = STEP_S - time.time() % STEP_S
    if left_s < margin_s:
        time.sleep(left_s + 0.1)

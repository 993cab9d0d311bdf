"""Secrets at rest: sealed by a key that is derived from the installation's secret key, one for each
purpose, and opened by it or by one of those before it (``SECRET_KEY_FALLBACKS``)."""

import base64
import functools

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class SealBroken(Exception):
    """It was sealed by a secret key that is not known here, or for another purpose."""


def seal(secret: bytes, *, purpose: str) -> str:
    """Return a text that only ``unseal`` with the same purpose can open."""
    return _sealer(purpose).encrypt(secret).decode("ascii")


def unseal(sealed: str, *, purpose: str) -> bytes:
    """Return what was sealed; raises SealBroken."""
    try:
        return _sealer(purpose).decrypt(sealed.encode("ascii"))
    except (InvalidToken, UnicodeEncodeError):
        raise SealBroken("The secret key is another than the one it was sealed by.") from None


def _sealer(purpose: str) -> MultiFernet:
    keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return MultiFernet([_fernet(key, purpose) for key in keys])


@functools.lru_cache(maxsize=32)
def _fernet(secret_key: str, purpose: str) -> Fernet:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(
        secret_key.encode()
    )
    return Fernet(base64.urlsafe_b64encode(derived))

"""The embedded default (`make serve`): SQLite, no other server, everything under VAR."""

import contextlib
import os
import secrets

from django.core.exceptions import ImproperlyConfigured

from config.settings import env
from config.settings.base import *  # noqa: F403
from config.settings.base import VAR_DIR

DEBUG = env.boolean("DEBUG", default=False)
ALLOWED_HOSTS = env.strings("ALLOWED_HOSTS", default=("localhost", "127.0.0.1", "[::1]"))


def _secret_key() -> str:
    """A key of this installation's own, made once, so that none stands in the source."""
    file = VAR_DIR / "secret_key"
    if not file.exists():
        VAR_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48))
        with contextlib.suppress(FileExistsError):  # another process was first: its key counts
            file.hardlink_to(draft)
        draft.unlink()
    return file.read_text()


try:
    SECRET_KEY = env.text("SECRET_KEY", "") or _secret_key()
except OSError as error:
    raise ImproperlyConfigured(f"VAR={VAR_DIR} cannot be used: {error.strerror}") from error
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

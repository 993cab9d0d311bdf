"""Tests: a throw-away key, quick password hashes; the database of DATABASE_URL or SQLite."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("VAR", str(Path(tempfile.gettempdir()) / f"nano-llm-test-{os.getuid()}"))

from config.settings.base import *  # noqa: F403
from config.settings.base import DATABASES, VAR_DIR

VAR_DIR.mkdir(parents=True, exist_ok=True)
SECRET_KEY = "only-for-tests-0123456789-0123456789-0123456789-0123456789"  # noqa: S105
DEBUG = False
CELERY_BROKER_URL, CELERY_BROKER_TRANSPORT_OPTIONS = "memory://localhost/", {}
ALLOWED_HOSTS = ["*"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = True

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, because threads and processes that share an in-memory database lock each other out;
    # named by the process, so that two runs at a time do not meet.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR_DIR / f"test-{os.getpid()}.sqlite3")}

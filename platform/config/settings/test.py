"""Tests: a throw-away key, quick password hashes; the database of DATABASE_URL or SQLite."""

import os
import tempfile
from pathlib import Path

# Workers of pytest-xdist have files of their own.
os.environ.setdefault(
    "VAR",
    str(
        Path(tempfile.gettempdir())
        / f"nano-llm-test-{os.getuid()}"
        / os.environ.get("PYTEST_XDIST_WORKER", "")
    ),
)

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

# Nothing of a test outlives a power cut: no commit waits for the disk.
_database = DATABASES["default"]
if _database["ENGINE"].endswith("sqlite3"):
    _database["OPTIONS"]["init_command"] += " PRAGMA synchronous=OFF;"
    # A file, because threads and processes that share an in-memory database lock each other out;
    # named by the process, so that two runs at a time do not meet.
    _database["TEST"] = {"NAME": str(VAR_DIR / f"test-{os.getpid()}.sqlite3")}
else:
    _database["OPTIONS"]["options"] = "-c synchronous_commit=off"

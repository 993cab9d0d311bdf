"""An installation with a little of everything, and room for another one beside it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection

from apps.console.backup.databases import address
from apps.console.backup.installation import Installation, installation_here
from tests.factories import ApiTokenFactory, UploadedFileFactory
from tests.integration.maintenance.places import file_write

SECRET_KEY = "a-key-that-no-other-test-has-0123456789-abcdefghijklmnop"


@pytest.fixture
def here(tmp_path: Path, settings: Any, db: None) -> Installation:
    """The installation of this test's settings and database."""
    var = tmp_path / "here"
    settings.VAR_DIR = var
    settings.MODELS_DIR = var / "models"
    settings.FILES_DIR = var / "files"
    settings.MEDIA_ROOT = str(var / "media")
    settings.SECRET_KEY = SECRET_KEY
    file_write(var / "bootstrap.json", "{}")
    file_write(var / "models" / "tiny" / "1" / "weights", "w" * 5000)
    file_write(var / "models" / "tiny" / ".import-lock")
    file_write(var / "models" / "tiny" / ".2.partial" / "weights")
    file_write(var / "media" / "a" / "picture.png")
    stored = UploadedFileFactory()
    file_write(var / "files" / stored.file_id, '{"custom_id": "ä"}\n')
    file_write(var / "files" / "drafts" / "draft-1")
    (var / "media" / "link").symlink_to("/etc/passwd")
    file_write(var / "logs" / "server.log")
    ApiTokenFactory(name="kept")
    return installation_here()


@pytest.fixture
def there(tmp_path: Path, db: None) -> Iterator[Installation]:
    """An empty place for the same kind of database."""
    var = tmp_path / "there"
    var.mkdir()
    with _OtherDatabase(var) as database:
        yield Installation(
            var_dir=var,
            models_dir=var / "models",
            files_dir=var / "files",
            media_dir=var / "media",
            secret_key="another",
            database=database,
        )


@pytest.fixture
def var(tmp_path: Path, settings: Any) -> Path:
    settings.VAR_DIR = tmp_path
    settings.MODELS_DIR = tmp_path / "models"
    settings.FILES_DIR = tmp_path / "files"
    tmp_path.chmod(0o700)
    return tmp_path


class _OtherDatabase:
    """A database that no other test has, dropped at the end."""

    def __init__(self, var: Path) -> None:
        self._name = f"nano_llm_restored_{os.getpid()}"
        self._var = var

    def __enter__(self) -> Mapping[str, Any]:
        settings: dict[str, Any] = dict(connection.settings_dict)
        if connection.vendor == "sqlite":
            return settings | {"NAME": str(self._var / "db.sqlite3")}
        self._run(f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)")
        self._run(f"CREATE DATABASE {self._name}")
        return settings | {"NAME": self._name}

    def __exit__(self, *_: object) -> None:
        if connection.vendor == "postgresql":
            self._run(f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        place = address(connection.settings_dict)
        with psycopg.connect(place, dbname="postgres", autocommit=True) as server:
            server.execute(statement)  # type: ignore[call-overload]

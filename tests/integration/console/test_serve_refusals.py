"""What ``manage.py serve`` cannot work with, it says in a line, and leaves alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.serve import free_port


def said(var: Path, *arguments: str) -> list[str]:
    """Return the lines of a serve that refuses."""
    inherited = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "manage.py", "serve", *arguments],
        cwd=ROOT,
        env={**inherited, "VAR": str(var), "DATABASE_URL": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        text=True,
    )
    assert done.returncode != 0
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("port", ["0", "80x"])
def test_a_port_that_is_none(port: str, tmp_path: Path) -> None:
    lines = said(tmp_path / "var", "--port", port)
    assert lines[-1].endswith(f"argument --port: {port!r} is not a port from 1 to 65535")


def test_a_var_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert said(file) == [f"manage.py: VAR={file} cannot be used: File exists"]
    below = file / "var"
    assert said(below) == [f"manage.py: VAR={below} cannot be used: Not a directory"]


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite3").mkdir()
    last = said(tmp_path, "--port", str(free_port()))[-1]
    assert last == f"CommandError: VAR={tmp_path} or the database: unable to open database file"

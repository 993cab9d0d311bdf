"""A VAR as a first start leaves it, made once and kept: products that are not about their first
start begin on a copy of it."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.models import CACHE, minilm_wheel, smollm2_wheel
from tests.processes import ROOT

# What `manage.py serve` does on an empty VAR before it starts processes.
_FIRST_START: Final = """
import os, sys
sys.path[:0] = [".", "platform"]
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings.development"
os.umask(0o077)
import django
django.setup()
from django.conf import settings
from django.core.management import call_command
from apps.console.bootstrap import bootstrap
call_command("migrate", verbosity=0, interactive=False)
bootstrap(
    file=settings.VAR_DIR / "bootstrap.json",
    downloads=(settings.BASE_DIR / "var" / "downloads",),
    origin="127.0.0.1:8000",
    report=print,
)
"""
# What it depends on: another one is made where a file of these is another.
_SOURCES: Final = ("apps/**/*.py", "platform/**/*.py", "engine_service/**/*.py", "requirements/*")
_STRANGE: Final = ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "MODELS_DIR")
_TIMEOUT_S: Final = 240


def inherited_environment() -> dict[str, str]:
    """This process's environment, without what would lead to the tests' own settings."""
    return {name: value for name, value in os.environ.items() if name not in _STRANGE}


def furnished_var(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a new directory with a database, models, a secret key and access of its own to them.
    Weights are hard links, since nothing alters them: a test that does makes a first start."""
    var = factory.mktemp(name)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".furnished-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.copytree(_made_once(), var, copy_function=_weights_linked, dirs_exist_ok=True)
    return var


def _made_once() -> Path:
    var = CACHE / f"furnished-{_digest()}"
    if not var.exists():
        for stale in CACHE.glob("furnished-*"):
            shutil.rmtree(stale)
        smollm2_wheel()  # below the project's own var, where a first start looks
        minilm_wheel()
        new = CACHE / "furnished-new"
        done = subprocess.run(
            [sys.executable, "-c", _FIRST_START],
            cwd=ROOT,
            env={**inherited_environment(), "VAR": str(new)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        new.rename(var)
    return var


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _weights_linked(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copy2(source, target)

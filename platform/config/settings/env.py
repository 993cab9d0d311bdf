"""Typed reading of environment variables. A bad value stops the start and names the variable."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def text(name: str, default: str | None = None) -> str:
    """Return the variable, or ``default``; raises ImproperlyConfigured when neither is there."""
    value = os.environ.get(name, default)
    if value is None or (value == "" and default is None):
        raise ImproperlyConfigured(f"{name} is not set")
    return value


def boolean(name: str, *, default: bool) -> bool:
    raw = os.environ.get(name)
    if raw is None:
        return default
    if raw.lower() in _TRUE:
        return True
    if raw.lower() in _FALSE:
        return False
    raise ImproperlyConfigured(f"{name}={raw!r} is not a boolean (1/0, true/false, yes/no, on/off)")


def integer(name: str, *, default: int, minimum: int = 0) -> int:
    raw = os.environ.get(name)
    if raw is None:
        return default
    try:
        value = int(raw)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={raw!r} is not an integer") from None
    if value < minimum:
        raise ImproperlyConfigured(f"{name}={value} is under {minimum}")
    return value


def strings(name: str, *, default: tuple[str, ...] = ()) -> list[str]:
    """Return a comma-separated list."""
    raw = os.environ.get(name)
    if raw is None:
        return list(default)
    return [part.strip() for part in raw.split(",") if part.strip()]


def path(name: str, *, default: Path) -> Path:
    return Path(os.environ.get(name) or default).expanduser().resolve()


def database(name: str, *, sqlite_default: Path) -> dict[str, Any]:
    """Return a ``DATABASES`` entry from ``postgresql://user:password@host:port/name?option=…`` or
    ``sqlite:///path``."""
    raw = os.environ.get(name)
    if not raw:
        return sqlite(sqlite_default)
    parts = urlsplit(raw)
    if parts.scheme == "sqlite":
        return sqlite(Path(unquote(parts.path)))
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ImproperlyConfigured(
            f"{name} starts with {parts.scheme!r}; expected postgresql:// or sqlite:///"
        )
    try:
        port = parts.port
    except ValueError:
        raise ImproperlyConfigured(f"{name} has a port that is not a number") from None
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(port or ""),
        "CONN_MAX_AGE": 0,
        "OPTIONS": {
            # A server that vanished without a word is given up soon; the address may say otherwise.
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            **dict(parse_qsl(parts.query)),
            "pool": {
                "min_size": 1,
                "max_size": integer("DATABASE_POOL_SIZE", default=16, minimum=1),
                "timeout": 3,
                # Past it the next to ask tries at once; before, the pauses double up to minutes.
                "reconnect_timeout": 1,
            },
        },
    }


def sqlite(file: Path) -> dict[str, Any]:
    """WAL lets readers go on beside one writer; IMMEDIATE avoids the deadlock of two readers that
    both want to write; FULL keeps a committed ledger row across a power cut."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(file),
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": (
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-16000;"
            ),
        },
    }

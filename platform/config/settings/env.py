"""Typed reading of environment variables. A bad value stops the start and names the variable."""

import os
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_S3_OPTIONS = {
    "endpoint": "endpoint_url",
    "region": "region_name",
    "addressing": "addressing_style",
}
_BROKERS = {"redis", "rediss", "amqp", "amqps"}


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


def words(name: str, *, default: tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    """Return a comma-separated list of one or more words of those that are known."""
    found = strings(name, default=default)
    if unknown := [word for word in found if word not in known]:
        raise ImproperlyConfigured(f"{name} has {unknown[0]!r}; it takes {', '.join(known)}")
    if not found:
        raise ImproperlyConfigured(f"{name} is empty; it takes {', '.join(known)}")
    return found


def networks(name: str) -> list[str]:
    """Return a comma-separated list of addresses and networks such as ``10.0.0.0/8``."""
    found = strings(name)
    for each in found:
        try:
            ip_network(each)
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}: {error}") from None
    return found


def path(name: str, *, default: Path) -> Path:
    return Path(os.environ.get(name) or default).expanduser().resolve()


def paths(name: str, *, default: Path) -> list[Path]:
    """Return a comma-separated list of directories, links resolved."""
    return [Path(each).expanduser().resolve() for each in strings(name, default=(str(default),))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where messages to workers wait."""

    url: str
    options: dict[str, Any]


def broker(name: str, *, directory_default: Path) -> Broker:
    """Return a broker from ``redis://…``, ``amqp://…`` (RabbitMQ) or ``filesystem:///path``; files
    in a directory of this machine's when it is not set."""
    raw = os.environ.get(name) or f"filesystem://{quote(str(directory_default))}"
    parts = urlsplit(raw)
    if parts.scheme in _BROKERS:
        is_redis = parts.scheme.startswith("redis")  # whose client would wait for ever
        return Broker(url=raw, options={"socket_connect_timeout": 3} if is_redis else {})
    if parts.scheme != "filesystem" or parts.netloc or not parts.path.startswith("/"):
        raise ImproperlyConfigured(
            f"{name} is not understood; expected redis://, rediss://, amqp://, amqps:// or "
            "filesystem:///path"
        )
    directory = Path(unquote(parts.path))
    messages = directory / "messages"
    return Broker(
        url="filesystem://localhost/",
        options={
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(directory / "control"),
            "polling_interval": 0.25,
        },
    )


def cache(name: str, *, serializer: str | None = None) -> dict[str, Any]:
    """Return a ``CACHES`` entry from ``redis://…``; this process's memory when it is not set.

    serializer: what encodes values for Redis, by its path; None is Django's own.
    """
    raw = os.environ.get(name)
    if not raw:
        return {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            # Past it the library throws counters away, and with them limits.
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        }
    if urlsplit(raw).scheme not in {"redis", "rediss"}:
        raise ImproperlyConfigured(f"{name} is not understood; expected redis:// or rediss://")
    options: dict[str, Any] = {"socket_connect_timeout": 1, "socket_timeout": 1}
    if serializer is not None:
        options["serializer"] = serializer
    return {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": raw,
        "OPTIONS": options,
    }


def artifacts(name: str) -> dict[str, Any]:
    """Return a ``STORAGES`` entry from ``s3://bucket/prefix?endpoint=https://…&region=…``; the
    models directory when it is not set. Keys are no part of it: the client finds them by itself, in
    the environment or with the machine's role."""
    raw = os.environ.get(name)
    if not raw:
        return {"BACKEND": "apps.registry.storage.ModelsDirectory"}
    parts = urlsplit(raw)
    if "@" in parts.netloc:
        raise ImproperlyConfigured(
            f"{name} holds a key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    if parts.scheme != "s3" or not parts.netloc:
        raise ImproperlyConfigured(
            f"{name} is not understood; expected s3://bucket/prefix?endpoint=https://…"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := given.keys() - _S3_OPTIONS.keys():
        raise ImproperlyConfigured(
            f"{name} has {min(unknown)!r}; it takes {', '.join(_S3_OPTIONS)}"
        )
    if urlsplit(given.get("endpoint", "https://")).scheme not in {"http", "https"}:
        raise ImproperlyConfigured(f"{name}: the endpoint is no http:// or https:// address")
    return {
        "BACKEND": "apps.registry.s3_storage.S3Artifacts",
        "OPTIONS": {
            "bucket_name": parts.netloc,
            "location": unquote(parts.path.strip("/")),
            **{_S3_OPTIONS[option]: value for option, value in given.items()},
        },
    }


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

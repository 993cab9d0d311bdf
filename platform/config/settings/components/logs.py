"""One line a record on standard error; the level comes from LOG_LEVEL."""

from typing import Any

from config.settings import env

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.text("LOG_LEVEL", "INFO")},
    "loggers": {
        "django.channels.server": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
        "asyncio": {"level": "WARNING"},
        "authlib": {"level": "INFO"},  # below it, it says the secrets of flows
        "axes": {"level": "ERROR"},  # its warnings name who tried; the audit trail does better
        "celery": {"level": "WARNING"},  # it says every message that comes
    },
}

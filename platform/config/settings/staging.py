"""Staging is production with a shorter promise to browsers."""

from config.settings.production import *  # noqa: F403

SECURE_HSTS_SECONDS = 3600
SECURE_HSTS_PRELOAD = False

"""Production: every secret and host comes from the environment, and the start refuses defaults."""

from django.core.exceptions import ImproperlyConfigured

from config.settings import env
from config.settings.base import *  # noqa: F403
from config.settings.base import CACHES, DATABASES, STORAGES

DEBUG = False
if env.boolean("DEBUG", default=False):
    raise ImproperlyConfigured("DEBUG is set; production never runs with it")

SECRET_KEY = env.text("SECRET_KEY")
if len(SECRET_KEY) < 50 or len(set(SECRET_KEY)) < 5:
    raise ImproperlyConfigured("SECRET_KEY is too short or too regular; use 50 random characters")

ALLOWED_HOSTS = env.strings("ALLOWED_HOSTS")
if not ALLOWED_HOSTS or "*" in ALLOWED_HOSTS:
    raise ImproperlyConfigured("ALLOWED_HOSTS must name the hosts that are served, without *")

if "sqlite" in DATABASES["default"]["ENGINE"] and not env.boolean("ALLOW_SQLITE", default=False):
    raise ImproperlyConfigured(
        "DATABASE_URL is not set to PostgreSQL; set ALLOW_SQLITE=1 to run on SQLite knowingly"
    )

if "locmem" in CACHES["default"]["BACKEND"] and not env.boolean("ALLOW_LOCAL_CACHE", default=False):
    raise ImproperlyConfigured(
        "CACHE_URL is not set to Redis, by which processes share their limits; set "
        "ALLOW_LOCAL_CACHE=1 to run a single server process knowingly"
    )

CSRF_TRUSTED_ORIGINS = env.strings("CSRF_TRUSTED_ORIGINS")
SECURE_SSL_REDIRECT = env.boolean("SECURE_SSL_REDIRECT", default=True)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_HSTS_SECONDS = env.integer("SECURE_HSTS_SECONDS", default=31_536_000)
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
# Off only by name: TWO_FACTOR_REQUIRED=0.
TWO_FACTOR_REQUIRED = env.boolean("TWO_FACTOR_REQUIRED", default=True)
SESSION_ABSOLUTE_S = env.integer("SESSION_ABSOLUTE_S", default=12 * 3600, minimum=60)
SESSION_IDLE_S = env.integer("SESSION_IDLE_S", default=3600, minimum=60)
SESSION_COOKIE_AGE = SESSION_ABSOLUTE_S
SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True
STORAGES = STORAGES | {
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

"""What every environment shares. Each environment module decides on keys, hosts and strictness."""

from pathlib import Path

from config.settings import env
from config.settings.components.admin_theme import *  # noqa: F403
from config.settings.components.api_document import *  # noqa: F403
from config.settings.components.jobs import *  # noqa: F403
from config.settings.components.logs import LOGGING  # noqa: F401
from config.settings.components.sign_in import *  # noqa: F403
from config.settings.components.single_sign_on import *  # noqa: F403

BASE_DIR = Path(__file__).resolve().parents[3]
VAR_DIR = env.path("VAR", default=BASE_DIR / "var")
MODELS_DIR = env.path("MODELS_DIR", default=VAR_DIR / "models")
# Where versions' files are: MODELS_DIR, or a bucket, from which each node fetches what its engines
# need into a cache, by the hash of the manifest, of so many bytes at most.
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "artifacts": env.artifacts("ARTIFACTS_URL"),
}
NODE_CACHE_DIR = env.path("NODE_CACHE_DIR", default=VAR_DIR / "node-cache")
NODE_CACHE_BYTES = env.integer("NODE_CACHE_BYTES", default=64 * 1024**3, minimum=1)
# Of versions in these stages deployments may be made and started.
DEPLOY_STAGES = env.words(
    "DEPLOY_STAGES",
    default=("draft", "verified", "approved"),
    known=("draft", "verified", "approved"),
)

PRODUCT_NAME = "Nano-LLM Engine"

INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",  # the plain one would put its own site in place of ours
    "apps.console.apps.ConsoleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "guardian",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "django_otp.plugins.otp_static",
    "axes",
    "apps.core",
    "apps.audit",
    "apps.tenants",
    "apps.rbac",
    "apps.sign_in",
    "apps.registry",
    "apps.engines",
    "apps.verification",
    "apps.metering",
    "apps.deployments",
    "apps.feedback",
    "apps.judging",
    "apps.routing",
    "apps.rollouts",
    "apps.experiments",
    "apps.gateway",
    "apps.batches",
    "apps.management",
    "apps.monitoring",
    "apps.console.apps.ConsoleConfig",
]

# Inference (/v1/) and health never pass through these: see config/asgi.py.
MIDDLEWARE = [
    "config.middleware.begin_without_tenants",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "config.middleware.content_security_policy",
    "config.middleware.QueriesWithoutNul",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "apps.sign_in.middleware.SessionGate",
    "apps.rbac.middleware.TenantRowsGate",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",  # answers in place of a view that met a lock
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {"default": env.database("DATABASE_URL", sqlite_default=VAR_DIR / "db.sqlite3")}
# On PostgreSQL: the role that sees every tenant's rows, while the server's own sees those of the
# tenants that it names. Empty: the database keeps nobody apart.
DATABASE_PLATFORM_ROLE = env.text("DATABASE_PLATFORM_ROLE", "")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Requests per minute are counted here: processes that share no cache would each allow all of them.
CACHES = {
    "default": env.cache("CACHE_URL"),
    # Answers that processes share where it is Redis: bytes as they are, and never a pickle.
    "responses": env.cache("CACHE_URL", serializer="apps.core.caches.BytesSerializer"),
}
RATELIMIT_USE_CACHE = "default"

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

AUTH_USER_MODEL = "rbac.User"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",  # first: refuses who is locked out, hashes nothing
    "apps.sign_in.backends.PersonBackend",
    "guardian.backends.ObjectPermissionBackend",
]
ANONYMOUS_USER_NAME = None  # guardian's: nobody who is not signed in is given anything
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
FORMAT_MODULE_PATH = ["config.formats"]

STATIC_URL = "/static/"
STATIC_ROOT = env.path("STATIC_ROOT", default=VAR_DIR / "static")
STATICFILES_DIRS = [BASE_DIR / "static"]

# Whose X-Forwarded-For is believed: addresses or networks, by commas.
TRUSTED_PROXIES = env.networks("TRUSTED_PROXIES")

# Who issues JWTs, and for whom, as they say it. Others refuse what another installation issued.
JWT_ISSUER = env.text("JWT_ISSUER", "nano-llm")
JWT_AUDIENCE = env.text("JWT_AUDIENCE", "nano-llm-api")

# How often a minute one API token is exchanged for JWTs, and one address may refresh, and revoke.
AUTH_REQUESTS_PER_MINUTE = env.integer("AUTH_REQUESTS_PER_MINUTE", default=120, minimum=1)

# Secret keys of before, by commas: what they sealed can be read still, and is sealed no more.
SECRET_KEY_FALLBACKS = env.strings("SECRET_KEY_FALLBACKS")

X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"

# Doors. Sizes in bytes, times in seconds.
GATEWAY_MAX_BODY_BYTES = env.integer("GATEWAY_MAX_BODY_BYTES", default=4 * 1024 * 1024)
GATEWAY_STALL_TIMEOUT_S = env.integer("GATEWAY_STALL_TIMEOUT_S", default=30, minimum=1)
GATEWAY_REQUEST_TIMEOUT_S = env.integer("GATEWAY_REQUEST_TIMEOUT_S", default=600, minimum=1)
GATEWAY_DRAIN_S = env.integer("GATEWAY_DRAIN_S", default=10, minimum=0)
# Of requests with an Idempotency-Key: how long one waits for its like, and the largest answer that
# is kept.
GATEWAY_IDEMPOTENCY_WAIT_S = env.integer("GATEWAY_IDEMPOTENCY_WAIT_S", default=30)
GATEWAY_IDEMPOTENCY_MAX_BYTES = env.integer("GATEWAY_IDEMPOTENCY_MAX_BYTES", default=1024 * 1024)
# Answers that are kept for equal requests, on routes that say so: how long, in all of one process's
# memory, and the largest one.
RESPONSE_CACHE_TTL_S = env.integer("RESPONSE_CACHE_TTL_S", default=3600, minimum=1)
RESPONSE_CACHE_MAX_ENTRIES = env.integer("RESPONSE_CACHE_MAX_ENTRIES", default=2000)
RESPONSE_CACHE_MAX_BYTES = env.integer("RESPONSE_CACHE_MAX_BYTES", default=64 * 1024 * 1024)
RESPONSE_CACHE_MAX_ANSWER_BYTES = env.integer(
    "RESPONSE_CACHE_MAX_ANSWER_BYTES", default=1024 * 1024
)

# Where remote replicas may be beside the public Internet, and without TLS: addresses or networks.
REMOTE_ALLOWED_NETWORKS = env.networks("REMOTE_ALLOWED_NETWORKS")

# What plans' prices and the ledger's costs are in.
CURRENCY = env.text("CURRENCY", "USD")

# Files that clients store, and batches. Processes on several machines need one shared FILES_DIR.
FILES_DIR = env.path("FILES_DIR", default=VAR_DIR / "files")
GATEWAY_MAX_FILE_BYTES = env.integer("GATEWAY_MAX_FILE_BYTES", default=100 * 1024 * 1024)
FILES_MAX_TENANT_BYTES = env.integer("FILES_MAX_TENANT_BYTES", default=10 * 1024**3)
# Days after which a client's file is deleted; 0 keeps it until its client deletes it.
FILES_KEEP_DAYS = env.integer("FILES_KEEP_DAYS", default=0)
# Days after which feedback and events of programs are deleted; 0 keeps them, as the ledger's rows.
FEEDBACK_KEEP_DAYS = env.integer("FEEDBACK_KEEP_DAYS", default=0)
BATCH_MAX_REQUESTS = env.integer("BATCH_MAX_REQUESTS", default=50_000, minimum=1)
BATCH_CONCURRENCY = env.integer("BATCH_CONCURRENCY", default=8, minimum=1)
# A worker that is not heard of for so long is thought dead, and another one takes its batch.
BATCH_LEASE_S = env.integer("BATCH_LEASE_S", default=15, minimum=2)

# A worker that verifies a version and is not heard of for so long has lost it to the next one.
VERIFY_LEASE_S = env.integer("VERIFY_LEASE_S", default=15, minimum=2)
VERIFY_TIMEOUT_S = env.integer("VERIFY_TIMEOUT_S", default=1800, minimum=10)
# Where what is imported from the admin may lie, by commas; and where uploads are put until they are
# imported. Processes on several machines need them shared.
IMPORT_ROOTS = env.paths("IMPORT_ROOTS", default=VAR_DIR / "imports")
IMPORT_UPLOADS_DIR = env.path("IMPORT_UPLOADS_DIR", default=VAR_DIR / "uploads")
IMPORT_MAX_UPLOAD_BYTES = env.integer("IMPORT_MAX_UPLOAD_BYTES", default=64 * 1024**3, minimum=1)
# A worker that is not heard of for so long is thought dead, and another one takes its import.
IMPORT_LEASE_S = env.integer("IMPORT_LEASE_S", default=15, minimum=2)

_broker = env.broker("CELERY_BROKER_URL", directory_default=VAR_DIR / "broker")
CELERY_BROKER_URL, CELERY_BROKER_TRANSPORT_OPTIONS = _broker.url, _broker.options

# How long meters of past days, and logs that nobody writes to, are kept: `manage.py prune`.
PRUNE_KEEP_DAYS = env.integer("PRUNE_KEEP_DAYS", default=30, minimum=1)

# An engine that answers no ping for so long is killed; a step of a large model on a slow processor
# must fit in it.
ENGINE_PING_DEADLINE_S = env.integer("ENGINE_PING_DEADLINE_S", default=5, minimum=1)
# So many crashes in a row without a minute of work, and an engine is left alone for so long.
ENGINE_CRASHES = env.integer("ENGINE_CRASHES", default=5, minimum=1)
ENGINE_CRASH_PAUSE_S = env.integer("ENGINE_CRASH_PAUSE_S", default=600, minimum=1)
# For so long a request that killed its engine twice is refused, and deaths count together.
QUARANTINE_HOURS = env.integer("QUARANTINE_HOURS", default=24, minimum=1)

"""The process: ``python -m tests.identity_provider.process DIRECTORY PORT ORIGIN…``.
``DIRECTORY/people.json`` says who there is, ``{subject: claims}``, and is read anew for each
token."""

import sys
from pathlib import Path

CLIENT_ID = "nano-llm"
CLIENT_SECRET = "provider-secret-1"
PASSWORD = "provider-pass-1"
CALLBACK = "/admin/login/sso/callback/"
LOGGED_OUT = "/admin/login/"


def _configure(directory: Path, port: int) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from django.conf import settings

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    login = '<form method="post">{% csrf_token %}{{ form }}<button>Sign in there</button></form>'
    loaders = [("django.template.loaders.locmem.Loader", {"registration/login.html": login})]
    settings.configure(
        SECRET_KEY="x" * 50,
        # Browsers keep the cookies of a host, whatever the port: ours would be overwritten.
        SESSION_COOKIE_NAME="provider_session",
        CSRF_COOKIE_NAME="provider_csrf",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF="tests.identity_provider.urls",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        AUTHENTICATION_BACKENDS=["tests.identity_provider.urls.PeopleBackend"],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {"loaders": loaders},
            }
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(directory / "provider.sqlite3"),
            }
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        LOGIN_URL="/login/",
        PEOPLE_DIRECTORY=directory,
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True,
            "OIDC_ISS_ENDPOINT": f"http://127.0.0.1:{port}/o",
            "OIDC_RSA_PRIVATE_KEY": pem.decode(),
            "OIDC_RP_INITIATED_LOGOUT_ENABLED": True,
            "OIDC_RP_INITIATED_LOGOUT_ALWAYS_PROMPT": False,
            "OAUTH2_VALIDATOR_CLASS": "tests.identity_provider.urls.PeopleValidator",
            "SCOPES": {"openid": "", "profile": "", "email": ""},
            "PKCE_REQUIRED": True,
        },
    )


def main() -> None:
    directory, port, *origins = sys.argv[1:]
    _configure(Path(directory), int(port))
    import django
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command
    from django.core.servers.basehttp import run

    django.setup()
    call_command("migrate", verbosity=0)
    from oauth2_provider.models import Application

    Application.objects.create(
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=" ".join(origin + CALLBACK for origin in origins),
        post_logout_redirect_uris=" ".join(origin + LOGGED_OUT for origin in origins),
        client_type="confidential",
        authorization_grant_type="authorization-code",
        algorithm="RS256",
        skip_authorization=True,
    )
    run("127.0.0.1", int(port), WSGIHandler(), threading=True)


if __name__ == "__main__":
    main()

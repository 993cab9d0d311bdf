"""``manage.py create_token TENANT NAME``: an API token, without the admin."""

from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.audit.types import SYSTEM
from apps.console.options import (
    LIMIT_OPTIONS,
    FieldOption,
    duration,
    options_add,
    options_read,
    refusals,
)
from apps.rbac.selectors import user_named
from apps.rbac.services import api_token_issue
from apps.rbac.types import DEFAULT_SCOPES, SCOPES
from apps.tenants.selectors import tenant_by_slug

# Whatever else a token carries is one more row here: it is handed to ``api_token_issue`` by the
# field's name.
TOKEN_OPTIONS: Final = (
    FieldOption(
        field="scopes",
        help=f"what it may be used for: {', '.join(SCOPES)}; "
        f"{' and '.join(DEFAULT_SCOPES)} if not given",
        metavar="SCOPE",
        parse=list,
        is_list=True,
    ),
    FieldOption(
        field="owner",
        help="whose power it has, by user name; the tenant's own if not given",
        metavar="USER",
        parse=lambda text: _user(text),
    ),
    FieldOption(
        field="allowed_networks",
        help="where it may come from, such as 192.0.2.0/24; anywhere if not given",
        metavar="NETWORK",
        parse="\n".join,
        is_list=True,
    ),
    *LIMIT_OPTIONS,
)
_EXPIRES_IN: Final = FieldOption(
    field="expires_in",
    help="how long it is good, such as 12h or 90d; for ever if not given",
    metavar="TIME",
    parse=lambda text: _moment(text),
)


class Command(BaseCommand):
    help = (
        "Make an API token of a tenant. Its secret is shown this once, alone on standard output; "
        "limits given here hold beside the tenant's."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug of the tenant that it belongs to")
        parser.add_argument("name", help="what it is for, as lists show it")
        options_add(parser, (_EXPIRES_IN, *TOKEN_OPTIONS))

    def handle(self, *args: Any, **options: Any) -> None:
        expires_at = options_read((_EXPIRES_IN,), options).get("expires_in")
        with refusals({"name": "NAME", "tenant": "TENANT", "expires_at": _EXPIRES_IN.flag}):
            tenant = tenant_by_slug(options["tenant"])
            if tenant is None:
                raise CommandError(f"TENANT: there is no tenant {options['tenant']!r}")
            fields = options_read(TOKEN_OPTIONS, options)
            issued = api_token_issue(
                tenant=tenant,
                name=options["name"],
                actor=SYSTEM,
                expires_at=expires_at,
                **fields,
            )
        until = f"until {expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else "until it is revoked"
        self.stderr.write(f"Made the token {issued.token} of {tenant.slug}, good {until}.")
        self.stdout.write(issued.secret)


def _user(text: str) -> Any:
    user = user_named(text)
    if user is None:
        raise ValueError(f"there is no user {text[:150]!r}")
    return user


def _moment(text: str) -> Any:
    try:
        return timezone.now() + duration(text)
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None

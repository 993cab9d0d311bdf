"""``manage.py database_roles``: the roles by which PostgreSQL itself keeps tenants apart."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection

from apps.core.database_roles import roles_make


class Command(BaseCommand):
    help = (
        "Make the roles and policies by which PostgreSQL keeps tenants apart, or bring them up to "
        "date. Run it as the tables' owner, after each `migrate`."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--application", required=True, metavar="ROLE", help="as which the server connects"
        )
        parser.add_argument(
            "--platform", required=True, metavar="ROLE", help="that sees every tenant's rows"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise CommandError("only PostgreSQL has row-level security")
        application, platform = options["application"], options["platform"]
        try:
            roles_make(application=application, platform=platform)
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(
            f"Tenants are kept apart for {application}. Give it a password (ALTER ROLE "
            f"{application} PASSWORD …), let DATABASE_URL of servers, workers and agents name it, "
            f"set DATABASE_PLATFORM_ROLE={platform} for them, and restart them."
        )

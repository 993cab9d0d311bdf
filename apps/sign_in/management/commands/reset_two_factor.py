"""``manage.py reset_two_factor USERNAME``: for an owner whom no page lets in any more. Whoever may
run it holds the database anyway."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import SYSTEM
from apps.sign_in.services.devices import two_factor_reset
from apps.sign_in.services.locks import locks_lift


class Command(BaseCommand):
    help = "Take away a person's authenticator and backup codes, and lift the locks of their name."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")

    def handle(self, *args: Any, **options: Any) -> None:
        username = options["username"]
        user = get_user_model()._default_manager.filter(username=username).first()
        if user is None:
            raise CommandError(f"there is no user {username!r}")
        had = two_factor_reset(user=user, actor=SYSTEM)
        n_failures = locks_lift(username=username, actor=SYSTEM)
        said = "is reset; every session is ended" if had else "was not enrolled"
        self.stdout.write(f"The second factor of {username} {said}.")
        if n_failures:
            self.stdout.write(f"Forgot {n_failures} failed sign-ins.")

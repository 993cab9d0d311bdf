"""``manage.py erase_feedback``: forget what one person wrote of answers, and that it was them."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import Actor
from apps.core.exceptions import NotFound
from apps.feedback.services import end_user_erase

_ACTOR = Actor(kind="system", label="manage.py erase_feedback")


class Command(BaseCommand):
    help = "Empty the comments of one whom a tenant serves, and their name; the numbers stay."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG")
        parser.add_argument(
            "--person",
            required=True,
            metavar="ID",
            help="as the tenant's requests and events name them in the field user",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            n_events = end_user_erase(
                tenant_slug=options["tenant"], end_user=options["person"], actor=_ACTOR
            )
        except NotFound as error:
            raise CommandError(error.message) from None
        self.stdout.write(f"Erased in {n_events} row{'' if n_events == 1 else 's'}.")

"""``manage.py erase_feedback``: forget what one person wrote of answers, and that it was them; and
their answers that wait for a judge."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import Actor
from apps.core.exceptions import NotFound
from apps.judging.erasing import person_erase

_ACTOR = Actor(kind="system", label="manage.py erase_feedback")


class Command(BaseCommand):
    help = (
        "Empty the comments of one whom a tenant serves, and their name; the numbers stay. Their "
        "answers that wait for a judge go."
    )

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
            erased = person_erase(
                tenant_slug=options["tenant"], end_user=options["person"], actor=_ACTOR
            )
        except NotFound as error:
            raise CommandError(error.message) from None
        rows = f"{erased.n_events} row{'' if erased.n_events == 1 else 's'}"
        answers = f"{erased.n_samples} answer{'' if erased.n_samples == 1 else 's'}"
        self.stdout.write(f"Erased in {rows}, and {answers} that waited for a judge.")

"""``manage.py purge_cache``: forget kept answers, in every process within a second."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import Actor
from apps.registry.selectors import model_version_of
from apps.routing.services import (
    person_responses_purge,
    tenant_responses_purge,
    version_responses_purge,
)
from apps.tenants.selectors import tenant_by_slug

_ACTOR = Actor(kind="system", label="manage.py purge_cache")


class Command(BaseCommand):
    help = "Forget answers that are kept for equal requests: of a tenant, a person or a model."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", default="", metavar="SLUG", help="of one tenant")
        parser.add_argument(
            "--person",
            default="",
            metavar="ID",
            help="of one whom that tenant serves, as its requests name them in the field user",
        )
        parser.add_argument("--model", default="", metavar="NAME", help="of a registered model")
        parser.add_argument("--number", type=int, metavar="N", help="of one of its versions")

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["tenant"]) == bool(options["model"]):
            raise CommandError("Say either --tenant or --model.")
        if options["person"] and not options["tenant"]:
            raise CommandError("Say whose --person it is: --tenant.")
        if options["tenant"]:
            self._tenant_purge(options["tenant"], person=options["person"])
        else:
            self._version_purge(options["model"], options["number"])
        self.stdout.write("Forgotten.")

    def _tenant_purge(self, slug: str, *, person: str) -> None:
        tenant = tenant_by_slug(slug)
        if tenant is None:
            raise CommandError(f"There is no tenant {slug!r}.")
        if person:
            person_responses_purge(tenant=tenant, person=person, actor=_ACTOR)
        else:
            tenant_responses_purge(tenant=tenant, actor=_ACTOR)

    def _version_purge(self, name: str, number: int | None) -> None:
        if number is None:
            raise CommandError("Say which version: --number.")
        version = model_version_of(name, number=number)
        if version is None:
            raise CommandError(f"There is no version {number} of {name!r}.")
        version_responses_purge(model_version=version, actor=_ACTOR)

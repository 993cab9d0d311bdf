"""``manage.py create_tenant SLUG``: a tenant, without the admin."""

from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import SYSTEM
from apps.console.options import LIMIT_OPTIONS, options_add, options_read, refusals
from apps.tenants.selectors import plan_by_slug, plan_slugs
from apps.tenants.services import tenant_create


class Command(BaseCommand):
    help = "Make a tenant. Limits given here stand in place of its plan's."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", help="short name, such as acme")
        parser.add_argument("--name", help="as people say it; the slug if not given")
        parser.add_argument("--plan", default="free", help="slug of its plan (free)")
        parser.add_argument(
            "--allows-judging",
            action="store_true",
            help="its answers may be kept, sealed, until a model has scored them",
        )
        options_add(parser, LIMIT_OPTIONS)

    def handle(self, *args: Any, **options: Any) -> None:
        limits = options_read(LIMIT_OPTIONS, options)
        with refusals({"slug": "SLUG"}):
            try:
                plan = plan_by_slug(options["plan"])
            except ObjectDoesNotExist:
                known = ", ".join(plan_slugs())
                raise CommandError(
                    f"--plan: there is no plan {options['plan']!r}; there are: {known}"
                ) from None
            slug = options["slug"]
            name = slug if options["name"] is None else options["name"]
            tenant = tenant_create(
                name=name,
                slug=slug,
                plan=plan,
                allows_judging=options["allows_judging"],
                actor=SYSTEM,
                **limits,
            )
        self.stdout.write(f"Made the tenant {tenant.slug} ({tenant.name}) on the plan {plan.slug}.")

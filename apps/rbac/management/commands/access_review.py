"""``manage.py access_review``: who may do what, and why."""

import csv
import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from apps.core.wording import cell_text
from apps.rbac.review import access_review
from apps.rbac.types import AccessEntry


class Command(BaseCommand):
    help = "Say who may do what, where, and why: people, service accounts and API tokens."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", default="", metavar="NAME", help="of one person alone")
        parser.add_argument("--tenant", default="", metavar="SLUG", help="of one tenant's people")
        parser.add_argument("--format", choices=["csv", "json"], default="csv")

    def handle(self, *, user: str, tenant: str, format: str, **_: Any) -> None:
        entries = access_review(username=user, tenant_slug=tenant)
        if format == "json":
            self.stdout.write(json.dumps([asdict(each) for each in entries], indent=2))
            return
        writer = csv.writer(self.stdout, lineterminator="\n")
        writer.writerow(AccessEntry.columns())
        writer.writerows([cell_text(str(value)) for value in each.row()] for each in entries)

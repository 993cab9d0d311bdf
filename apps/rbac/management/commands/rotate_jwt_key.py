"""``manage.py rotate_jwt_key``: sign JWTs with a new key."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from apps.audit.types import SYSTEM
from apps.rbac.services import jwt_key_rotate


class Command(BaseCommand):
    help = "Sign JWTs with a new key; the one before verifies until its last token is over."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--at-once",
            action="store_true",
            help="end every JWT and every earlier key now: somebody may have the key",
        )

    def handle(self, *, at_once: bool, **_: Any) -> None:
        key = jwt_key_rotate(actor=SYSTEM, at_once=at_once)
        self.stdout.write(f"JWTs are signed with the key {key.kid} from now on.")
        self.stdout.write(
            "Every JWT issued before is refused."
            if at_once
            else "Those signed with the key before it are good until they expire, 24 hours at most."
        )

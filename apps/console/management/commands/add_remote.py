"""``manage.py add_remote NAME``: a model at a remote server, and the public name leading to it."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from apps.audit.types import SYSTEM
from apps.console.options import refusals
from apps.deployments.services import deployment_create, remote_server_create
from apps.routing.services import route_create
from apps.routing.types import all_to


class Command(BaseCommand):
    help = (
        "Make a remote server, a deployment of one of its models and a route to it. The key is "
        "read from a file or from standard input, so that no list of processes shows it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="short name of server and deployment, such as cluster")
        parser.add_argument("--url", required=True, help="such as https://models.example.com/v1")
        parser.add_argument("--model", required=True, help="what the server calls the model")
        parser.add_argument("--context", required=True, type=int, help="its context, in tokens")
        parser.add_argument("--route", help="what clients call it; as the server does if not given")
        parser.add_argument("--key-file", help="file with the server's API key; - reads it here")
        parser.add_argument("--ca-file", default="", help="PEM file of who is believed, for TLS")
        parser.add_argument("--concurrency", type=int, default=64, help="requests at a time (64)")
        parser.add_argument("--embeds", action="store_true", help="it makes embeddings")

    def handle(self, *args: Any, **options: Any) -> None:
        name, route = options["name"], options["route"] or options["model"]
        api_key = _key(options["key_file"])
        with (
            refusals(
                {"base_url": "--url", "remote_model": "--model", "max_model_len": "--context"}
            ),
            transaction.atomic(),
        ):
            server = remote_server_create(
                name=name,
                base_url=options["url"],
                ca_file=options["ca_file"],
                max_concurrency=options["concurrency"],
                api_key=api_key,
                actor=SYSTEM,
            )
            deployment = deployment_create(
                name=name,
                model_version=None,
                remote=server,
                remote_model=options["model"],
                remote_task="embed" if options["embeds"] else "generate",
                max_model_len=options["context"],
                actor=SYSTEM,
            )
            route_create(name=route, targets=all_to(deployment), actor=SYSTEM)
        self.stdout.write(f"Made the remote server {name} and the route {route} to it.")


def _key(file: str | None) -> str:
    if file is None:
        return ""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise CommandError(f"--key-file: {error}") from error
    return text.strip()

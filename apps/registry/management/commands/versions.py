"""``manage.py versions [NAME]``: the catalogue, a line for each version."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.registry.models import ModelVersion, VerificationRun
from apps.registry.selectors import model_versions_described, verifications_passed


class Command(BaseCommand):
    help = "List the versions of models with their stages and the figures of their verifications."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", nargs="?", help="of one model")
        parser.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        rows = model_versions_described()
        if options["name"] is not None:
            rows = rows.filter(model__name=options["name"])
        versions = list(rows)
        if options["name"] is not None and not versions:
            raise CommandError(f"NAME: there is no model {options['name']!r}")
        runs = verifications_passed([version.pk for version in versions])
        found = [_facts(version, runs.get(version.pk)) for version in versions]
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=2))
            return
        for facts in found:
            tags = f"  [{', '.join(facts['tags'])}]" if facts["tags"] else ""
            self.stdout.write(
                f"{facts['version']:<32} {facts['stage']:<9} {facts['architecture']:<24} "
                f"{facts['dtype']:<9} {facts['size_bytes'] / 1e6:8,.0f} MB{tags}"
            )


def _facts(version: ModelVersion, run: VerificationRun | None) -> dict[str, Any]:
    return {
        "version": f"{version.model.name}:{version.version}",
        "stage": version.stage,
        "tags": version.tag_names,
        "architecture": version.architecture,
        "n_parameters": version.n_parameters,
        "context_length": version.context_length,
        "dtype": version.dtype,
        "size_bytes": version.size_bytes,
        "license": version.license,
        "parent": None
        if version.parent is None
        else f"{version.parent.model.name}:{version.parent.version}",
        "lineage": version.lineage,
        "manifest_sha256": version.manifest_sha256,
        "figures": {} if run is None else run.figures,
    }

"""``manage.py route set|list``: where a public model name leads."""

import json
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import SYSTEM
from apps.console.options import refusals, whole_number
from apps.deployments.selectors import deployment_named
from apps.routing.selectors import (
    defaults_read,
    route_named,
    routes_all,
    targets_merged,
    targets_of,
)
from apps.routing.services import route_create, route_update
from apps.routing.types import TargetSpec

_PARTS = {"targets": "--to", "aliases": "--alias", "defaults": "--default", "name": "NAME"}


class Command(BaseCommand):
    help = "Set where a public model name leads, or list where all of them do."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="one line a route").add_argument(
            "--json", action="store_true", help="for programs"
        )
        change = verbs.add_parser("set", help="make a route, or change what is given of one")
        change.add_argument("name", help="what clients put in the field model")
        for flag, metavar, said in (
            ("--to", "DEPLOYMENT[=WEIGHT]", "gets that share of the requests; 100 if not given"),
            ("--fallback", "DEPLOYMENT", "asked on overload or failure, in the order given"),
            ("--alias", "NAME", "a further name"),
            ("--default", "FIELD=VALUE", "where a request says nothing, as temperature=0.2"),
        ):
            change.add_argument(flag, action="append", metavar=metavar, help=said)
        for part in ("fallbacks", "aliases", "defaults"):
            change.add_argument(f"--no-{part}", action="store_true", help=f"take its {part} away")
        state = change.add_mutually_exclusive_group()
        state.add_argument("--on", action="store_const", const=True, dest="is_active")
        state.add_argument("--off", action="store_const", const=False, dest="is_active")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] == "list":
            self._list(as_json=options["json"])
        else:
            self._set(options)

    def _set(self, options: dict[str, Any]) -> None:
        with refusals(_PARTS):
            route = route_named(options["name"])
            before = targets_of(route) if route is not None else []
            fields: dict[str, Any] = {}
            if options["is_active"] is not None:
                fields["is_active"] = options["is_active"]
            if options["default"] or options["no_defaults"]:
                fields["defaults"] = _defaults(options["default"] or ())
            if options["alias"] or options["no_aliases"]:
                fields["aliases"] = sorted(set(options["alias"] or ()))
            if options["to"] or options["fallback"] or options["no_fallbacks"]:
                fields["targets"] = _targets(options, before)
            if route is not None:
                route_update(route=route, actor=SYSTEM, **fields)
            else:
                if "targets" not in fields:
                    raise CommandError("--to: say which deployment the new route leads to.")
                route_create(name=options["name"], actor=SYSTEM, **fields)
        made = "Changed" if route is not None else "Made"
        self.stdout.write(f"{made} the route {options['name']}.")

    def _list(self, *, as_json: bool) -> None:
        with refusals({}):
            routes = routes_all()
        found = [
            {
                "name": route.name,
                "is_active": route.is_active,
                "to": {str(each.deployment): each.weight for each in route.targets.all()
                       if each.fallback_order is None},
                "fallbacks": [str(each.deployment) for each in route.targets.all()
                              if each.fallback_order is not None],
                "aliases": [alias.name for alias in route.aliases.all()],
                "defaults": route.defaults,
            }
            for route in routes
        ]  # fmt: skip
        if as_json:
            self.stdout.write(json.dumps(found, indent=2))
            return
        for each in found:
            self.stdout.write("  ".join(_words(each)))


def _words(route: dict[str, Any]) -> list[str]:
    words = [route["name"] if route["is_active"] else f"{route['name']} (off)"]
    words += [f"{name}={weight}" for name, weight in route["to"].items()]
    for part in ("fallbacks", "aliases"):
        words += [f"{part}: {', '.join(route[part])}"] if route[part] else []
    if route["defaults"]:
        values = ", ".join(f"{name}={value}" for name, value in sorted(route["defaults"].items()))
        words.append(f"defaults: {values}")
    return words


def _targets(options: dict[str, Any], before: Sequence[TargetSpec]) -> list[TargetSpec]:
    """Return the targets as they shall be: of weights and fallbacks, those that are not given
    stay."""
    shares = [_share(word) for word in options["to"] or ()]
    chain = [_deployment(name, flag="--fallback") for name in options["fallback"] or ()]
    is_chain_given = bool(chain) or options["no_fallbacks"]
    return targets_merged(before, shares=shares or None, chain=chain if is_chain_given else None)


def _share(word: str) -> TargetSpec:
    name, mark, weight = word.partition("=")
    try:
        n = whole_number(weight) if mark else 100
    except ValueError as error:
        raise CommandError(f"--to: {error}") from None
    return TargetSpec(deployment=_deployment(name, flag="--to"), weight=n)


def _deployment(name: str, *, flag: str) -> Any:
    found = deployment_named(name)
    if found is None:
        raise CommandError(f"{flag}: there is no deployment {name[:60]!r}.")
    return found


def _defaults(words: Sequence[str]) -> dict[str, int | float]:
    try:
        return defaults_read(words)
    except ValueError as error:
        raise CommandError(f"--default: {error}") from None

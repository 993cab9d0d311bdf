"""``manage.py experiment create|start|stop|promote|weights|list|results``: experiments without the
admin."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import Actor
from apps.core.exceptions import AppError
from apps.experiments.assigning import N_SLOTS, n_slots
from apps.experiments.judged import judges_named, judging_warnings
from apps.experiments.models import Experiment, Variant
from apps.experiments.results_text import results_lines
from apps.experiments.selectors import (
    experiment_named,
    experiments_described,
    layer_named,
    slots_of,
)
from apps.experiments.services import (
    experiment_create,
    experiment_promote,
    experiment_start,
    experiment_stop,
    variant_weights_set,
)
from apps.experiments.summary import experiment_results
from apps.experiments.types import DOORS
from apps.experiments.words import metric_read, variant_read, weights_read
from apps.rbac.selectors import user_named
from apps.routing.selectors import route_named

_NAME: Final = "manage.py experiment"
_FLAGS: Final = {
    "variants": "--variant", "metrics": "--metric", "route": "--route", "name": "NAME",
    "share_percent": "--share", "winner": "--winner", "variant": "VARIANT", "weights": "WEIGHT",
    "min_effect": "--least-effect", "pre_period_days": "--days-before",
    "eligibility": "--tenant, --door or --end-user-prefix",
}  # fmt: skip
_SHOWN_AT_MOST: Final = 100


class Command(BaseCommand):
    help = "Make, start, stop and list experiments, and say what came of them."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        _create_arguments(verbs.add_parser("create", help="make a draft"))
        verbs.add_parser("start", help="have subjects take part")
        stop = verbs.add_parser("stop", help="end it; its subjects go where the route leads")
        stop.add_argument("--because", required=True, help="for whoever reads it later")
        stop.add_argument("--winner", metavar="VARIANT", help="what it was decided for")
        promote = verbs.add_parser("promote", help="stop it with a winner, and roll that out")
        weights = verbs.add_parser("weights", help="change the shares of variants")
        verbs.add_parser("results", help="what came of it")
        for verb in ("start", "stop", "promote", "weights", "results"):
            verbs.choices[verb].add_argument("name", metavar="NAME")
        promote.add_argument("variant", metavar="VARIANT")
        promote.add_argument("--as", dest="person", metavar="USER", help="who asks for it")
        weights.add_argument("weights", nargs="+", metavar="VARIANT=WEIGHT")
        for verb in ("list", "results"):
            one = verbs.choices.get(verb) or verbs.add_parser(verb, help="what there is")
            one.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        getattr(self, f"_{options['verb']}")(options)

    def _create(self, options: dict[str, Any]) -> None:
        fields: dict[str, Any] = {
            "name": options["name"],
            "hypothesis": options["hypothesis"],
            "share_percent": options["share"],
            "subject": options["subject"],
            "eligibility": _eligibility(options),
            "min_effect": options["least_effect"],
            "pre_period_days": options["days_before"],
        }
        route = route_named(options["route"])
        if route is None:
            raise CommandError(f"--route: there is no route {options['route'][:120]!r}.")
        if options["layer"] is not None:
            fields["layer"] = layer_named(options["layer"])
            if fields["layer"] is None:
                raise CommandError(f"--layer: there is no layer {options['layer'][:60]!r}.")
        with _read("--variant"):
            variants = [variant_read(w, control=options["control"]) for w in options["variant"]]
        metrics = []
        for role in ("primary", "secondary", "guardrail"):
            with _read("--metric" if role == "primary" else f"--{role}"):
                metrics += [metric_read(word, role=role) for word in options[role]]
        with _refusals():
            made = experiment_create(
                actor=_actor(), route=route, variants=variants, metrics=metrics, **fields
            )
        self.stdout.write(f"{made.name} is a draft.")

    def _start(self, options: dict[str, Any]) -> None:
        found = _experiment(options)
        with _refusals():
            begun = experiment_start(experiment=found, seen=found.version, actor=_actor())
        share = n_slots(slots_of(begun)) * 100 / N_SLOTS
        self.stdout.write(f"{begun.name} runs on {begun.route}, for {share:g} % of its subjects.")
        for warning in judging_warnings(begun, judges_named(begun)):
            self.stderr.write(warning)

    def _stop(self, options: dict[str, Any]) -> None:
        found = _experiment(options)
        winner = None if options["winner"] is None else _variant(found, options["winner"])
        with _refusals():
            experiment_stop(
                experiment=found,
                seen=found.version,
                actor=_actor(),
                because=options["because"],
                winner=winner,
            )
        self.stdout.write(f"{found.name} has stopped.")

    def _promote(self, options: dict[str, Any]) -> None:
        found = _experiment(options)
        person = None if options["person"] is None else user_named(options["person"])
        if options["person"] is not None and (person is None or not person.is_active):
            raise CommandError(f"--as: there is nobody {options['person'][:150]!r}.")
        with _refusals():
            done = experiment_promote(
                experiment=found,
                variant=_variant(found, options["variant"]),
                seen=found.version,
                actor=_actor(),
                by=person,
            )
        if done.rollout is None:
            said = f"its parameters are the defaults of {found.route}"
        else:
            said = f"rollout {done.rollout.pk} moves {found.route} to it"
        self.stdout.write(f"{options['variant']} has won {found.name}: {said}.")

    def _weights(self, options: dict[str, Any]) -> None:
        found = _experiment(options)
        with _read("WEIGHT"):
            weights = weights_read(options["weights"])
        with _refusals():
            variant_weights_set(
                experiment=found, seen=found.version, actor=_actor(), weights=weights
            )
        rows = Variant.objects.filter(experiment=found)
        self.stdout.write(" ".join(f"{row.name}={row.weight}" for row in rows))

    def _list(self, options: dict[str, Any]) -> None:
        found = [_described(each) for each in experiments_described()[:_SHOWN_AT_MOST]]
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=2))
            return
        for each in found:
            variants = " ".join(f"{name}={weight}" for name, weight in each["variants"].items())
            self.stdout.write(f"{each['name']}  {each['state']} on {each['route']}: {variants}")
        if not found:
            self.stdout.write("There is no experiment.")

    def _results(self, options: dict[str, Any]) -> None:
        results = experiment_results(_experiment(options))
        if options["json"]:
            said = msgspec.json.encode(results)  # what has no bound is null, as JSON wants it
            self.stdout.write(msgspec.json.format(said, indent=2).decode())
        else:
            self.stdout.write("\n".join(results_lines(results)))


def _create_arguments(create: CommandParser) -> None:
    create.add_argument("name", metavar="NAME")
    create.add_argument("--route", required=True, help="whose requests")
    create.add_argument(
        "--variant", action="append", required=True,
        metavar="NAME=WEIGHT[:deployment=D|:route=R][:FIELD=VALUE][:template=FILE]",
        help="what it leaves out is as the route has it, as b=50:temperature=0.2",
    )  # fmt: skip
    create.add_argument("--control", default="control", metavar="NAME", help="which is the control")
    for flag, role, said in (
        ("--metric", "primary", "what it is decided by"),
        ("--secondary", "secondary", "what is told as well"),
        ("--guardrail", "guardrail", "what stops a variant that is so much worse, as cost=0.1"),
    ):
        create.add_argument(
            flag, dest=role, action="append", default=[], help=said,
            metavar="METRIC[=higher|=lower][=TOLERANCE]",
        )  # fmt: skip
    create.add_argument("--hypothesis", default="", help="what is expected, in words")
    create.add_argument("--share", type=float, default=100.0, metavar="PERCENT", help="of subjects")
    create.add_argument("--layer", help="whose experiments exclude each other")
    create.add_argument(
        "--subject", default="end_user", choices=Experiment.Subject.values, help="who is assigned"
    )
    create.add_argument("--tenant", action="append", default=[], help="only of these")
    create.add_argument("--door", action="append", default=[], choices=DOORS, help="only by these")
    create.add_argument("--end-user-prefix", action="append", default=[], help="only these people")
    create.add_argument(
        "--least-effect", type=float, default=0.05, help="worth finding; 0.05: 5 %%"
    )
    create.add_argument("--days-before", type=int, default=0, help="that make it sharper (CUPED)")


def _eligibility(options: dict[str, Any]) -> dict[str, list[str]]:
    found = {
        "tenants": options["tenant"],
        "doors": options["door"],
        "end_user_prefixes": options["end_user_prefix"],
    }
    return {name: values for name, values in found.items() if values}


def _described(experiment: Experiment) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "state": experiment.state,
        "version": experiment.version,
        "route": experiment.route.name,
        "layer": experiment.layer.name,
        "share_percent": experiment.share_percent,
        "subject": experiment.subject,
        "variants": {each.name: each.weight for each in experiment.variants.all()},
        "winner": experiment.winner and experiment.winner.name,
    }


def _experiment(options: dict[str, Any]) -> Experiment:
    found = experiment_named(options["name"])
    if found is None:
        raise CommandError(f"NAME: there is no experiment {options['name'][:60]!r}.")
    return found


def _variant(experiment: Experiment, name: str) -> Variant:
    found = Variant.objects.filter(experiment=experiment, name=name).first()
    if found is None:
        raise CommandError(f"{experiment} has no variant {name[:40]!r}.")
    return found


def _actor() -> Actor:
    """Whoever has a shell here."""
    return Actor(kind="system", label=_NAME)


@contextlib.contextmanager
def _read(flag: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CommandError(f"{flag}: {error}") from None


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say what is refused in one line that names the argument."""
    try:
        yield
    except ValidationError as error:
        lines = [
            f"{_FLAGS.get(field, f'--{field}')}: {' '.join(texts)}"
            for field, texts in error.message_dict.items()
        ]
        raise CommandError("; ".join(lines)) from error
    except AppError as error:
        raise CommandError(error.message) from error

"""``manage.py rollout start|status|approve|pause|resume|abort``: rollouts without the admin."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import Actor
from apps.core.exceptions import AppError
from apps.deployments.selectors import deployment_named
from apps.rbac.selectors import user_named
from apps.rollouts.models import Rollout
from apps.rollouts.selectors import open_rollout_of, rollout_get, rollout_report, rollouts_latest
from apps.rollouts.services import (
    rollout_abort,
    rollout_approve,
    rollout_pause,
    rollout_resume,
    rollout_start,
)
from apps.rollouts.types import DEFAULT_STEPS, GuardrailSpec, RolloutReport, StepSpec
from apps.routing.selectors import route_named

_NAME: Final = "manage.py rollout"
_CLICKS: Final = {
    "approve": (rollout_approve, "rollouts.approve_rollout"),
    "pause": (rollout_pause, "rollouts.change_rollout"),
    "resume": (rollout_resume, "rollouts.change_rollout"),
    "abort": (rollout_abort, "rollouts.change_rollout"),
}
_FLAGS: Final = {
    "route": "ROUTE", "candidate": "--to", "baseline": "--from", "steps": "--step",
    "guardrails": "--guardrail", "by": "--as",
}  # fmt: skip


class Command(BaseCommand):
    help = "Start, watch, approve, pause, resume or abort a rollout."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        start = verbs.add_parser("start", help="move a route to another deployment, stepwise")
        _start_arguments(start)
        status = verbs.add_parser("status", help="how rollouts go")
        status.add_argument("which", nargs="?", metavar="ROUTE|ID", help="the latest ten if none")
        status.add_argument("--json", action="store_true", help="for programs")
        for verb in _CLICKS:
            click = verbs.add_parser(verb)
            click.add_argument("id", type=int, metavar="ID")
            click.add_argument("--reason", default="", help="for the audit trail")
            click.add_argument(
                "--seen", type=int, metavar="VERSION",
                help="refuse where it was changed since `status` showed this version",
            )  # fmt: skip
        for verb in ("start", *_CLICKS):
            verbs.choices[verb].add_argument(
                "--as", dest="person", metavar="USER", help="who asks for it; they must be allowed"
            )

    def handle(self, *args: Any, **options: Any) -> None:
        match options["verb"]:
            case "start":
                self._start(options)
            case "status":
                self._status(options)
            case _:
                self._click(options)

    def _start(self, options: dict[str, Any]) -> None:
        route = route_named(options["route"])
        if route is None:
            raise CommandError(f"ROUTE: there is no route {options['route'][:120]!r}.")
        candidate = _deployment(options["to"], flag="--to")
        baseline = options["baseline"] and _deployment(options["baseline"], flag="--from")
        steps = [_step(word) for word in options["step"] or ()] or DEFAULT_STEPS
        guardrails = [_guardrail(word) for word in options["guardrail"] or ()] or None
        person = _person(options, "rollouts.add_rollout", route=route)
        with _refusals():
            rollout = rollout_start(
                route=route,
                candidate=candidate,
                baseline=baseline or None,
                actor=_actor(person),
                by=person,
                steps=steps,
                guardrails=guardrails,
                approval=options["approval"],
                needs_second_person=options["two_persons"],
                alpha=options["alpha"],
            )
        self._tell(rollout)

    def _click(self, options: dict[str, Any]) -> None:
        service, permission = _CLICKS[options["verb"]]
        rollout = rollout_get(options["id"])
        if rollout is None:
            raise CommandError(f"ID: there is no rollout {options['id']}.")
        person = _person(options, permission, route=rollout.route)
        with _refusals():
            moved = service(
                rollout=rollout,
                seen=rollout.version if options["seen"] is None else options["seen"],
                actor=_actor(person),
                by=person,
                reason=options["reason"],
            )
        self._tell(moved)

    def _tell(self, rollout: Rollout) -> None:
        report = rollout_report(rollout.pk)
        assert report is not None
        self.stdout.write("\n".join(_lines(report, is_long=False)))

    def _status(self, options: dict[str, Any]) -> None:
        ids = _which(options["which"])
        reports = [report for pk in ids if (report := rollout_report(pk)) is not None]
        if options["json"]:
            self.stdout.write(json.dumps([asdict(each) for each in reports], indent=2, default=str))
            return
        for report in reports:
            self.stdout.write("\n".join(_lines(report, is_long=options["which"] is not None)))
        if not reports:
            self.stdout.write("There is no rollout.")


def _start_arguments(start: CommandParser) -> None:
    start.add_argument("route", metavar="ROUTE", help="what clients put in the field model")
    start.add_argument("--to", required=True, metavar="DEPLOYMENT", help="the new version")
    start.add_argument(
        "--from", dest="baseline", metavar="DEPLOYMENT",
        help="the old version; needed where several deployments share the route",
    )  # fmt: skip
    start.add_argument(
        "--step", action="append", metavar="PERCENT[:REQUESTS[:MINUTES]]",
        help="its share, and how long it lasts at least; the last is 100",
    )  # fmt: skip
    start.add_argument(
        "--guardrail", action="append", metavar="METRIC=TOLERANCE",
        help="how much worse it may be, as error_rate=0.01 (a point) or ttft=0.25 (a quarter)",
    )  # fmt: skip
    start.add_argument(
        "--approval", default="automatic", choices=Rollout.Approval.values,
        help="which steps wait for somebody",
    )  # fmt: skip
    start.add_argument("--two-persons", action="store_true", help="who starts it cannot approve it")
    start.add_argument("--alpha", type=float, default=0.05, help="false alarms, at most")


def _which(word: str | None) -> list[int]:
    """Return the ids of what is asked for: one, a route's open or latest one, or the latest."""
    if word is None:
        return [each.pk for each in rollouts_latest(limit=10)]
    if word.isdecimal():
        rollout = rollout_get(int(word[:18]))
        if rollout is None:
            raise CommandError(f"There is no rollout {word[:18]}.")
        return [rollout.pk]
    route = route_named(word)
    if route is None:
        raise CommandError(f"There is no route {word[:120]!r}.")
    found = open_rollout_of(route)
    latest = [found] if found is not None else rollouts_latest(route=route, limit=1)
    return [each.pk for each in latest]


def _lines(report: RolloutReport, *, is_long: bool) -> Iterator[str]:
    yield (
        f"{report.id}  {report.route_name}: {report.baseline_name} to {report.candidate_name}, "
        f"{report.state_label.lower()} at {report.percent:g} % (version {report.version})"
    )
    if report.reason:
        yield f"   {report.reason}"
    if report.next_said:
        yield f"   {report.next_said}"
    for step in report.steps if is_long else ():
        mark = "now" if step.is_present else "past" if step.is_past else ""
        yield (
            f"   {step.spec.percent:g} %  {mark:<5}old: {step.n_baseline:,} requests, new: "
            f"{step.n_candidate:,}, {step.n_failed:,} failed"
        )
        for line in step.guardrails if step.is_present else ():
            yield (
                f"      {line.label}: {line.baseline or '-'} before, {line.candidate or '-'} now. "
                f"{line.verdict}"
            )


def _deployment(name: str, *, flag: str) -> Any:
    found = deployment_named(name)
    if found is None:
        raise CommandError(f"{flag}: there is no deployment {name[:60]!r}.")
    return found


def _person(options: dict[str, Any], permission: str, *, route: Any) -> Any:
    """Return who is named, checked as every door checks; None where nobody is: whoever has a shell
    here may do anything, but not be a second person."""
    if options["person"] is None:
        return None
    person = user_named(options["person"])
    if person is None or not person.is_active:
        raise CommandError(f"--as: there is nobody {options['person'][:150]!r}, or not any more.")
    missing = [] if person.has_perm(permission) else [permission]
    if route is not None and not person.has_perm("routing.change_route", route):
        missing.append("routing.change_route")
    if missing:
        raise CommandError(f"--as: {person} has no {' and no '.join(missing)}.")
    return person


def _actor(person: Any) -> Actor:
    label = _NAME if person is None else f"{person.get_username()}, by {_NAME}"
    return Actor(kind="system", label=label, id=None if person is None else person.pk)


def _step(word: str) -> StepSpec:
    parts = word.split(":")
    try:
        if len(parts) > 3:
            raise ValueError
        fields: dict[str, Any] = {"percent": float(parts[0])}
        if parts[1:]:
            fields["min_requests"] = int(parts[1])
        if parts[2:]:
            fields["min_minutes"] = float(parts[2])
    except ValueError:
        text = f"--step: {word[:60]!r} is not as 10:100:5, percent, requests and minutes."
        raise CommandError(text) from None
    if fields["percent"] == 100:
        fields = {"min_requests": 0, "min_minutes": 0.0, **fields}
    return StepSpec(**fields)


def _guardrail(word: str) -> GuardrailSpec:
    metric, mark, tolerance = word.partition("=")
    try:
        if not mark:
            raise ValueError
        return GuardrailSpec(metric=metric, tolerance=float(tolerance))  # type: ignore[arg-type]
    except ValueError:
        raise CommandError(f"--guardrail: {word[:60]!r} is not as error_rate=0.01.") from None


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

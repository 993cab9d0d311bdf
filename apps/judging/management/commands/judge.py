"""``manage.py judge create|set|list|show|delete``: judges without the admin."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.types import Actor
from apps.core.exceptions import AppError
from apps.judging.models import Judge
from apps.judging.selectors import judge_named, judges_described, samples_waiting
from apps.judging.services import judge_create, judge_delete, judge_update
from apps.rbac.selectors import token_among
from apps.routing.selectors import route_named

_ACTOR: Final = Actor(kind="system", label="manage.py judge")
_FLAGS: Final = {
    "name": "NAME", "lowest": "--scale", "highest": "--scale", "api_token": "--token",
    "sample_percent": "--share", "per_day": "--per-day",
}  # fmt: skip


class Command(BaseCommand):
    help = "Make, change, list and remove judges: models that score answers by a stated rubric."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        create = verbs.add_parser("create", help="make one")
        change = verbs.add_parser("set", help="change what is given of one")
        show = verbs.add_parser("show", help="all that is said of one")
        delete = verbs.add_parser("delete", help="remove one; its scores stay")
        for verb in (create, change, show, delete):
            verb.add_argument("name", metavar="NAME")
        for verb, is_new in ((create, True), (change, False)):
            _options(verb, is_new=is_new)
        for verb in (verbs.add_parser("list", help="one line a judge"), show):
            verb.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        getattr(self, f"_{options['verb']}")(options)

    def _create(self, options: dict[str, Any]) -> None:
        with _refusals():
            made = judge_create(name=options["name"], actor=_ACTOR, **_fields(options))
        self.stdout.write(f"{made.name} scores {_scale(made)} by {made.route}.")

    def _set(self, options: dict[str, Any]) -> None:
        found = _judge(options)
        with _refusals():
            judge_update(judge=found, seen=found.version, actor=_ACTOR, **_fields(options))
        self.stdout.write(f"{found.name} is changed.")

    def _delete(self, options: dict[str, Any]) -> None:
        found = _judge(options)
        with _refusals():
            judge_delete(judge=found, seen=found.version, actor=_ACTOR)
        self.stdout.write(f"{found.name} is gone.")

    def _list(self, options: dict[str, Any]) -> None:
        waiting = samples_waiting(None)
        found = [_described(each, waiting) for each in judges_described()]
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=2))
            return
        for each in found:
            self.stdout.write(_line(each))
        if not found:
            self.stdout.write("There is no judge.")

    def _show(self, options: dict[str, Any]) -> None:
        judge = _judge(options)
        found = _described(judge, samples_waiting([judge.pk]))
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=2))
            return
        self.stdout.write(_line(found))
        if found["last_problem"]:
            self.stdout.write(f"Last problem: {found['last_problem']}")
        self.stdout.write(f"\n{found['rubric']}")


def _options(verb: CommandParser, *, is_new: bool) -> None:
    verb.add_argument(
        "--rubric", metavar="FILE", required=is_new,
        help="what makes an answer good, and what each score means",
    )  # fmt: skip
    verb.add_argument("--route", required=is_new, help="the model that scores")
    verb.add_argument("--scale", metavar="LOWEST-HIGHEST", help="such as 1-5")
    verb.add_argument(
        "--token", metavar="BEGINNING",
        help="of the API token in whose name it asks, as lists show it; its tenant pays",
    )  # fmt: skip
    verb.add_argument("--share", type=float, metavar="PERCENT", help="of the answers; 100")
    verb.add_argument("--per-day", type=int, metavar="N", help="answers at most; 1000")
    state = verb.add_mutually_exclusive_group()
    state.add_argument("--off", action="store_const", const=False, dest="is_on")
    if not is_new:
        state.add_argument("--on", action="store_const", const=True, dest="is_on")


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the options set, what they name looked up."""
    fields: dict[str, Any] = {
        "sample_percent": options["share"],
        "per_day": options["per_day"],
        "is_on": options["is_on"],
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    if options["rubric"] is not None:
        fields["rubric"] = _text_of(options["rubric"])
    if options["route"] is not None:
        fields["route"] = route_named(options["route"])
        if fields["route"] is None:
            raise CommandError(f"--route: there is no route {options['route'][:120]!r}.")
    if options["scale"] is not None:
        fields["lowest"], fields["highest"] = _scale_read(options["scale"])
    if options["token"] is not None:
        fields["api_token"] = token_among(None, prefix=options["token"])
        if fields["api_token"] is None:
            raise CommandError("--token: there is no API token that lists show so.")
    return fields


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--rubric: {file[:200]}: {error}") from None


def _scale_read(text: str) -> tuple[int, int]:
    lowest, mark, highest = text.partition("-")
    if not mark or not all(each.isdecimal() and len(each) <= 3 for each in (lowest, highest)):
        raise CommandError(f"--scale: {text[:40]!r} is not such as 1-5.")
    return int(lowest), int(highest)


def _described(judge: Judge, waiting: dict[int, int]) -> dict[str, Any]:
    return {
        "name": judge.name,
        "is_on": judge.is_on,
        "version": judge.version,
        "rubric": judge.rubric,
        "scale": _scale(judge),
        "route": judge.route.name,
        "api_token": judge.api_token and judge.api_token.prefix,
        "tenant": judge.api_token and judge.api_token.tenant.slug,
        "sample_percent": judge.sample_percent,
        "per_day": judge.per_day,
        "n_taken": judge.n_taken,
        "n_scored": judge.n_scored,
        "n_failed": judge.n_failed,
        "n_waiting": waiting.get(judge.pk, 0),
        "last_problem": judge.last_problem,
    }


def _line(each: dict[str, Any]) -> str:
    state = "off" if not each["is_on"] else "on" if each["api_token"] else "on, without a token"
    return (
        f"{each['name']}  {state}, {each['scale']} by {each['route']}: {each['n_taken']:,} taken, "
        f"{each['n_scored']:,} scored, {each['n_failed']:,} without a score, "
        f"{each['n_waiting']:,} wait"
    )


def _scale(judge: Judge) -> str:
    return f"{judge.lowest}-{judge.highest}"


def _judge(options: dict[str, Any]) -> Judge:
    found = judge_named(options["name"])
    if found is None:
        raise CommandError(f"NAME: there is no judge {options['name'][:60]!r}.")
    return found


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

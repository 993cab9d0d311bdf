"""``manage.py judge``: as the page says, and what it refuses."""

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.judging.models import Judge
from tests.factories import (
    AnswerSampleFactory,
    ApiTokenFactory,
    ExperimentFactory,
    ExperimentMetricFactory,
    RouteFactory,
)
from tests.rows import all_of

pytestmark = pytest.mark.django_db
PAGE = Path(__file__).resolve().parents[3] / "docs" / "judges.md"


@pytest.fixture(autouse=True)
def folder(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    RouteFactory(name="strict")
    ApiTokenFactory(secret=f"sk-nano-judge0{'x' * 37}", tenant__slug="acme")
    (tmp_path / "kind.txt").write_text("5: helps.\n1: does not.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("judge", *arguments, stdout=out)
    return out.getvalue()


def create(*more: str) -> str:
    return run("create", "kind", "--rubric", "kind.txt", "--route", "strict", *more)


def test_the_commands_of_the_page() -> None:
    [block] = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said = []
    for line in block.replace("\\\n", "").splitlines():
        words = shlex.split(line)
        assert words[:2] == [".venv/bin/python", "manage.py"]
        out = io.StringIO()
        call_command(*words[2:], stdout=out)
        said.append(out.getvalue())
    made, listed, changed, shown, gone = said
    assert made == "kind scores 1-5 by strict.\n"
    line = "1-5 by strict: 0 taken, 0 scored, 0 without a score, 0 wait\n"
    assert listed == f"kind  on, {line}"
    assert changed == "kind is changed.\n"
    assert shown == f"kind  off, {line}\n5: helps.\n1: does not.\n"
    assert gone == "kind is gone.\n"
    actors = set(all_of(AuditEvent).values_list("actor_kind", "actor_label"))
    assert actors == {("system", "manage.py judge")}


def test_all_that_can_be_said_of_one() -> None:
    assert run("list") == "There is no judge.\n"
    create(
        "--scale",
        "0-10",
        "--token",
        "sk-nano-judge0…",
        "--share",
        "12.5",
        "--per-day",
        "7",
        "--off",
    )
    judge = Judge.objects.get()
    AnswerSampleFactory(judge=judge)
    Judge.objects.update(n_taken=3, n_failed=2, last_problem="It said nothing.")
    expected = {
        "name": "kind", "is_on": False, "version": 1, "rubric": "5: helps.\n1: does not.",
        "scale": "0-10", "route": "strict", "api_token": "sk-nano-judge0", "tenant": "acme",
        "sample_percent": 12.5, "per_day": 7, "n_taken": 3, "n_scored": 0, "n_failed": 2,
        "n_waiting": 1, "last_problem": "It said nothing.",
    }  # fmt: skip
    assert json.loads(run("show", "kind", "--json")) == expected
    assert json.loads(run("list", "--json")) == [expected]
    assert "Last problem: It said nothing." in run("show", "kind")
    run("set", "kind", "--on", "--per-day", "9")
    assert list(Judge.objects.values_list("is_on", "per_day", "sample_percent")) == [
        (True, 9, 12.5)
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "kind", "--route", "strict", "--rubric", "away.txt"), "--rubric: away.txt"),
        (("create", "kind", "--route", "no", "--rubric", "kind.txt"), "--route: there is no route"),
        (("create", "a b", "--route", "strict", "--rubric", "kind.txt"), "NAME: Enter a valid"),
        (("set", "there", "--scale", "5"), "--scale: '5' is not such as 1-5"),
        (("set", "there", "--scale", "5-1"), "--scale: It must be above"),
        (("set", "there", "--share", "nan"), "--share: It must be a number"),
        (("set", "there", "--per-day", "0"), "--per-day: Ensure this value"),
        (("set", "there", "--token", "sk-nano-nobody"), "--token: there is no API token"),
        (("set", "nobody", "--on"), "NAME: there is no judge 'nobody'"),
        (("show", "nobody"), "NAME: there is no judge 'nobody'"),
        (("delete", "there"), "there is what experiment cooler counts"),
    ],
)
def test_what_is_refused_names_the_argument_and_changes_nothing(
    arguments: tuple[str, ...], says: str
) -> None:
    run("create", "there", "--rubric", "kind.txt", "--route", "strict")
    ExperimentMetricFactory(experiment=ExperimentFactory(name="cooler"), metric="judge:there")

    def state() -> list[Any]:
        return [*Judge.objects.values(), *all_of(AuditEvent).values()]

    before = state()
    with pytest.raises(CommandError, match=re.escape(says)):
        run(*arguments)
    assert state() == before

"""``manage.py route``: as the page says, and what it refuses."""

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.routing.models import Route, RouteTarget
from tests.factories import DeploymentFactory, ModelVersionFactory
from tests.integration.console.pages import actions
from tests.rows import all_of

pytestmark = pytest.mark.django_db

PAGE = Path(__file__).resolve().parents[3] / "docs" / "routes.md"


@pytest.fixture(autouse=True)
def deployments() -> None:
    for name in ("smollm2", "smollm2-next", "spare"):
        DeploymentFactory(name=name)


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("route", *arguments, stdout=out)
    return out.getvalue()


def listed() -> dict[str, Any]:
    (found,) = json.loads(run("list", "--json"))
    return dict(found)


def test_the_commands_of_the_page() -> None:
    [block] = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said = []
    for line in block.replace("\\\n", "").splitlines():
        words = shlex.split(line)
        assert words[:3] == [".venv/bin/python", "manage.py", "route"]
        said.append(run(*words[3:]))
    assert said == [
        "Made the route chat.\n",
        "chat  smollm2=70  smollm2-next=30  fallbacks: spare  aliases: chat-latest  "
        "defaults: max_tokens=512, temperature=0.2\n",
    ]
    event = all_of(AuditEvent).get()
    assert (event.action, event.actor_label) == ("route.created", "system")
    assert event.changes["targets"] == ["smollm2-next=30", "smollm2=70", "spare as fallback 1"]


def test_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def test_what_is_not_given_stays() -> None:
    run("set", "chat", "--to", "smollm2=70", "--fallback", "spare", "--alias", "a")
    run("set", "chat", "--default", "top_p=0.9")
    run("set", "chat", "--to", "smollm2-next", "--off")
    assert listed() == {
        "name": "chat",
        "is_active": False,
        "to": {"smollm2-next": 100},
        "fallbacks": ["spare"],
        "aliases": ["a"],
        "defaults": {"top_p": 0.9},
    }
    run("set", "chat", "--fallback", "smollm2", "--fallback", "spare", "--on")
    assert listed()["fallbacks"] == ["smollm2", "spare"]
    run("set", "chat", "--to", "smollm2=1", "--no-aliases", "--no-defaults")
    assert (listed()["to"], listed()["fallbacks"]) == ({"smollm2": 1}, ["spare"])
    run("set", "chat", "--no-fallbacks")
    assert listed() == {
        "name": "chat",
        "is_active": True,
        "to": {"smollm2": 1},
        "fallbacks": [],
        "aliases": [],
        "defaults": {},
    }
    assert actions() == ["route.created"] + ["route.updated"] * 5
    run("set", "chat", "--to", "smollm2=1")
    assert len(actions()) == 6, "what changes nothing is no event"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new"], "--to: say which deployment the new route leads to."),
        (["new", "--to", "nowhere=5"], "--to: there is no deployment 'nowhere'."),
        (["new", "--to", "smollm2=much"], "--to: 'much' is not a whole number"),
        (["new", "--to", "smollm2=1001"], "--to: smollm2: Ensure this value is less than or eq"),
        (["new", "--to", "smollm2=0"], "--to: At least one deployment needs a weight above 0."),
        (["new", "--to", "smollm2", "--to", "smollm2=3"], "--to: smollm2 is there twice."),
        (["new", "--to", "smollm2", "--fallback", "x"], "--fallback: there is no deployment 'x'."),
        (["new", "--to", "smollm2", "--alias", "a b"], "--alias: 'a b': Use letters, digits"),
        (["new", "--to", "smollm2", "--alias", "new"], "--alias: 'new' is the name of a route."),
        (["new", "--to", "smollm2", "--default", "top_p=2"], "--default: top_p must be a number"),
        (["new", "--to", "smollm2", "--default", "top_p"], "--default: 'top_p' is not a name and"),
        (["a b", "--to", "smollm2"], "NAME: Use letters, digits"),
        (["new", "--to", "smollm2", "--to", "embeds"], "--to: Some generate text and some make"),
    ],
)
def test_a_refusal_is_one_line_and_nothing_is_made(arguments: list[str], said: str) -> None:
    DeploymentFactory(name="embeds", model_version=ModelVersionFactory(architecture="BertModel"))
    with pytest.raises(CommandError) as refused:
        run("set", *arguments)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
    assert not Route.objects.exists()
    assert not RouteTarget.objects.exists()
    assert actions() == []

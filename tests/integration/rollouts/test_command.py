"""``manage.py rollout``: as the page says, and what it refuses."""

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.rbac.models import User
from apps.rollouts.controller import tick
from apps.rollouts.models import Rollout
from tests.factories import UserFactory
from tests.integration.rollouts.places import Place, answered, everything, led, place
from tests.rows import all_of

pytestmark = pytest.mark.django_db
PAGE = Path(__file__).resolve().parents[3] / "docs" / "rollouts.md"


@pytest.fixture
def here() -> Place:
    return place()


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("rollout", *arguments, stdout=out)
    return out.getvalue()


def somebody(name: str, *permissions: str) -> User:
    user: User = UserFactory(username=name)
    for each in permissions:
        app, codename = each.split(".")
        user.user_permissions.add(
            Permission.objects.get(content_type__app_label=app, codename=codename)
        )
    return user


def test_the_commands_of_the_page(here: Place) -> None:
    somebody("bob", "rollouts.approve_rollout", "routing.change_route")
    somebody("alice", "rollouts.add_rollout", "routing.change_route")
    [block] = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said = []
    for line in block.replace("\\\n", "").splitlines():
        words = shlex.split(line)
        assert words[:3] == [".venv/bin/python", "manage.py", "rollout"]
        pk = str(Rollout.objects.values_list("pk", flat=True).first() or 0)
        said.append(run(*[pk if word == "7" else word for word in words[3:]]))
    pk = str(Rollout.objects.get().pk)
    assert said[0] == (
        f"{pk}  chat: chat-old to chat-new, waits for approval to start at 0 % (version 1)\n"
        "   No request goes to chat-new until somebody other than alice approves it; then 1 % do.\n"
    )
    assert said[1].startswith(f"{pk}  chat: chat-old to chat-new, running at 1 % (version 2)\n")
    assert "\n   1 %  now  old: 0 requests, new: 0, 0 failed\n" in said[2]
    assert "\n      Failed requests: - before, - now. Nothing to judge yet.\n" in said[2]
    assert said[-1].startswith(f"{pk}  chat: chat-old to chat-new, aborted at 0 % (version 5)\n")
    labels = all_of(AuditEvent).filter(action__startswith="rollout.").order_by("pk")
    assert [event.actor_label for event in labels][:2] == [
        "alice, by manage.py rollout", "bob, by manage.py rollout",
    ]  # fmt: skip
    assert led(here.route) == [("chat-old", 100, None, "")]


def test_status_for_programs(here: Place) -> None:
    assert run("status") == "There is no rollout.\n"
    assert json.loads(run("status", "--json")) == []
    run("start", "chat", "--to", "chat-new", "--step", "10:2:0", "--step", "100")
    rollout = Rollout.objects.get()
    assert rollout.steps[1] == {"percent": 100.0, "min_requests": 0, "min_minutes": 0.0}
    answered(rollout, "candidate", 1)
    tick()
    [found] = json.loads(run("status", "chat", "--json"))
    assert (found["id"], found["state"], found["percent"]) == (rollout.pk, "running", 10.0)
    assert found["steps"][0]["n_candidate"] == 1
    assert found["steps"][0]["guardrails"][0]["candidate"] == "0 %"
    assert json.loads(run("status", str(rollout.pk), "--json")) == [found]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("start nowhere --to chat-new", "ROUTE: there is no route 'nowhere'"),
        ("start chat --to nobody", "--to: there is no deployment 'nobody'"),
        ("start chat --to chat-new --from nobody", "--from: there is no deployment 'nobody'"),
        ("start chat --to chat-old", "--to: chat-old gets a share of this route already"),
        ("start chat --to chat-new --step 10:x", "--step: '10:x' is not as 10:100:5"),
        ("start chat --to chat-new --step 10", "--step: The last step gives 100 %"),
        ("start chat --to chat-new --guardrail ttft", "--guardrail: 'ttft' is not as"),
        ("start chat --to chat-new --guardrail luck=1", "--guardrail: There is no 'luck' here"),
        ("start chat --to chat-new --alpha 7", "--alpha: From 0.0001 to 0.2"),
        ("start chat --to chat-new --two-persons", "--as: Two persons are needed"),
        ("start chat --to chat-new --as nobody", "--as: there is nobody 'nobody'"),
        ("start chat --to chat-new --as carol", "--as: carol has no rollouts.add_rollout and no"),
        ("approve 999", "ID: there is no rollout 999"),
        ("status nowhere", "There is no route 'nowhere'"),
        ("status 999", "There is no rollout 999"),
    ],
)
def test_what_is_refused_changes_nothing(here: Place, words: str, said: str) -> None:
    somebody("carol")
    before = everything()
    with pytest.raises(CommandError, match=re.escape(said)):
        run(*words.split())
    assert everything() == before


def test_nobody_approves_their_own(here: Place) -> None:
    """Not as themselves, not as nobody, and not as somebody who may not."""
    somebody("alice", "rollouts.add_rollout", "rollouts.approve_rollout", "routing.change_route")
    somebody("carol", "routing.change_route")
    run("start", "chat", "--to", "chat-new", "--two-persons", "--as", "alice")
    pk, before = str(Rollout.objects.get().pk), everything()
    for arguments, said in [
        (("--as", "alice"), "You started it; somebody else has to approve it."),
        ((), "Only somebody can approve it"),
        (("--as", "carol"), "--as: carol has no rollouts.approve_rollout."),
    ]:
        with pytest.raises(CommandError, match=re.escape(said)):
            run("approve", pk, *arguments)
        assert everything() == before


def test_what_was_seen_is_compared(here: Place) -> None:
    run("start", "chat", "--to", "chat-new")
    pk = str(Rollout.objects.get().pk)
    run("pause", pk, "--seen", "1", "--reason", "Lunch.")
    before: dict[str, Any] = everything()
    with pytest.raises(
        CommandError, match=re.escape("changed meanwhile; it is now: Paused (Lunch")
    ):
        run("abort", pk, "--seen", "1")
    assert everything() == before


def test_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGE.read_text())
    assert links
    for link in links:
        assert (PAGE.parent / link).exists(), link

"""``add_remote`` as an operator types it, and as docs/remote.md shows it."""

import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.core.sealing import unseal
from apps.deployments.models import Deployment, RemoteServer
from apps.engines.types import REMOTE_KEY_PURPOSE
from apps.routing.models import Route, RouteTarget
from tests.processes import ROOT
from tests.rows import all_of

pytestmark = pytest.mark.django_db

PAGE = ROOT / "docs" / "remote.md"
ASK = ("add_remote", "cluster", "--url", "https://models.example.com/v1", "--context", "4096")


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_the_command_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said, _, command = block.replace("\\\n", "").partition(" | ")
    words = shlex.split(command)
    assert words[:2] == [".venv/bin/python", "manage.py"]
    monkeypatch.setattr("sys.stdin", io.StringIO(shlex.split(said)[1] + "\n"))
    assert run(*words[2:]) == "Made the remote server cluster and the route qwen3-32b to it.\n"
    deployment = RouteTarget.objects.get(route__name="qwen3-32b").deployment
    server = deployment.remote
    assert server is not None
    assert unseal(server.api_key_sealed, purpose=REMOTE_KEY_PURPOSE) == b"sk-their-key"
    assert (deployment.remote_model, deployment.context_length) == ("Qwen/Qwen3-32B", 32768)
    assert (deployment.task, deployment.model_version) == ("generate", None)
    events = all_of(AuditEvent).order_by("id")
    assert [event.action for event in events] == [
        "remote_server.created", "deployment.created", "route.created",
    ]  # fmt: skip
    assert {event.actor_label for event in events} == {"system"}
    assert "sk-their-key" not in str(list(events.values()))


def test_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def test_it_makes_embeddings_and_needs_no_key(tmp_path: Path) -> None:
    run(*ASK, "--model", "e5", "--embeds")
    deployment = Deployment.objects.get()
    assert deployment.task == "embed"
    assert RemoteServer.objects.get().api_key_sealed == ""
    assert Route.objects.get().name == "e5"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--url", "https://10.0.0.1/v1"], "--url: 10.0.0.1 is not a public address"),
        (["--url", "ftp://x"], "--url: It must begin with"),
        (["--key-file", "/nowhere"], "--key-file: "),
        (["--context", "1"], "--context: "),
        (["--ca-file", "/nowhere"], "--ca-file: There is no such file"),
        (["--route", "with space"], "--name: "),
    ],
)
def test_a_refusal_is_one_line_and_nothing_is_made(changed: list[str], said: str) -> None:
    with pytest.raises(CommandError) as refused:
        run(*ASK, "--model", "m", *changed)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
    made: list[Any] = [*RemoteServer.objects.all(), *Deployment.objects.all(), *Route.objects.all()]
    assert made == []
    assert not all_of(AuditEvent).exists()

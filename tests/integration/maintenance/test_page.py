"""The commands that docs/operations.md shows work as they stand there."""

import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command, get_commands, load_command_class

from apps.console.backup.installation import Installation
from apps.rbac.models import ApiToken
from apps.tenants.models import Tenant
from apps.tenants.services import plans_seed
from tests.processes import ROOT
from tests.rows import all_of

PAGE = ROOT / "docs" / "operations.md"
MANAGE = ".venv/bin/python manage.py "
_BLOCK = re.compile(r"^(<!-- run -->\n)?```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines(*, is_run: bool) -> list[str]:
    found = [block[2] for block in _BLOCK.finditer(PAGE.read_text()) if bool(block[1]) == is_run]
    return [line for block in found for line in block.splitlines()]


@pytest.mark.django_db(transaction=True)
def test_every_command_that_is_shown_runs(
    here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the doctor, who wants a platform that is well: tests/e2e/test_operations.py."""
    monkeypatch.chdir(tmp_path)
    plans_seed()
    shown = lines(is_run=True)
    assert [line.removeprefix(MANAGE).split()[0] for line in shown] == [
        *("create_tenant", "create_token", "doctor", "backup", "backup", "prune", "prune")
    ]
    for line in shown:
        assert line.startswith(MANAGE)
        if "doctor" not in line:
            out = io.StringIO()
            call_command(*shlex.split(line.removeprefix(MANAGE)), stdout=out, stderr=io.StringIO())
            assert out.getvalue()
    assert Tenant.objects.get(slug="acme").name == "Acme Inc."
    token = all_of(ApiToken).get(tenant__slug="acme")
    assert (token.name, token.tokens_per_day) == ("nightly job", 50_000)
    assert (tmp_path / "nano-llm.tar.gz").stat().st_mode & 0o777 == 0o600


def test_what_is_only_shown_is_spelled_right() -> None:
    assert lines(is_run=False) == [
        f"VAR=/srv/nano-llm {MANAGE}restore nano-llm.tar.gz",
        "make serve VAR=/srv/nano-llm",
        f"{MANAGE}migrate",
        f"{MANAGE}database_roles --application nano_llm --platform nano_llm_platform",
        r"psql -c '\password nano_llm'",
        "DATABASE_URL=postgresql://nano_llm:…@db/nano",
        "DATABASE_PLATFORM_ROLE=nano_llm_platform",
    ]


@pytest.mark.parametrize(
    "name", ["create_tenant", "create_token", "doctor", "backup", "restore", "prune"]
)
def test_every_option_that_the_page_names_exists(name: str) -> None:
    command: Any = load_command_class(get_commands()[name], name)
    options = {
        flag
        for action in command.create_parser("manage.py", name)._actions
        for flag in action.option_strings
    }
    named = set(re.findall(rf"`?{name}[^`\n]*?(--[a-z-]+)", PAGE.read_text()))
    assert named <= options


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []

"""What docs/sign-in.md says: its commands exist, its settings are those that are read, and every
action that it names is one of the code's."""

import re
import subprocess
import sys

from django.core.management import get_commands, load_command_class

from apps.audit.models import AuditEvent
from config.settings.components import sign_in, single_sign_on
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "sign-in.md").read_text()


def test_its_commands_exist() -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(".venv/bin/python ")]
    _, _, command, username = line.split()
    parser = load_command_class(get_commands()[command], command).create_parser(
        "manage.py", command
    )
    assert parser.parse_args([username]).username == "admin"
    for name in set(re.findall(r"`manage\.py (\w+)", PAGE)):
        assert name in get_commands()


def test_its_settings_are_those_that_are_read() -> None:
    rows = dict(re.findall(r"^\| `((?!OIDC_)[A-Z_]+)` \| `(\d+)` \|", PAGE, re.MULTILINE))
    assert rows == {
        "SIGN_IN_FAILURES": str(sign_in.AXES_FAILURE_LIMIT),
        "SIGN_IN_LOCK_S": str(int(sign_in.AXES_COOLOFF_TIME.total_seconds())),
        "SESSION_ABSOLUTE_S": str(sign_in.SESSION_ABSOLUTE_S),
        "SESSION_IDLE_S": str(sign_in.SESSION_IDLE_S),
    }
    read = (ROOT / "platform/config/settings/components/sign_in.py").read_text()
    for name in (*rows, "TWO_FACTOR_REQUIRED"):
        assert f'"{name}"' in read


def test_its_settings_of_single_sign_on_are_those_that_are_read() -> None:
    said = {
        name: default
        for names, default in re.findall(r"^\| (`OIDC_[^|]+) \| ([^|]+) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    read = {name: each for name, each in vars(single_sign_on).items() if name.startswith("OIDC_")}
    assert set(said) == set(read)
    for name, value in read.items():
        shown = said[name].strip("`")
        match value:
            case bool():
                assert shown == str(int(value)), name
            case list():
                assert shown == (",".join(value) or "none"), name
            case _:
                assert shown == (str(value) or "off"), name


def test_a_setting_that_is_no_number_stops_the_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import config.settings.components.sign_in"],
        env={"PYTHONPATH": str(ROOT / "platform"), "SIGN_IN_FAILURES": "some"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "SIGN_IN_FAILURES" in done.stderr


def test_its_actions_are_those_that_are_recorded() -> None:
    said = set(re.findall(r"`((?:sign_in|two_factor|backup_codes)\.\w+)`", PAGE))
    said |= {f"two_factor{tail}" for tail in re.findall(r"`(\.\w+)`", PAGE)}
    code = "".join(path.read_text() for path in (ROOT / "apps/sign_in/services").glob("*.py"))
    written = set(re.findall(r'"((?:sign_in|two_factor|backup_codes)\.[a-z_]+)"', code))
    assert said == written - {"sign_in.pending", "sign_in.draft"}  # which are keys of sessions
    assert all(len(action) <= 80 for action in said)
    assert AuditEvent._meta.get_field("action").max_length == 80

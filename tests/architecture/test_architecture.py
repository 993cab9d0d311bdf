"""What no single room can see of itself: contracts between rooms, sizes, and what must not stand
in any tracked file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400  # 300 is the aim
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}

# Where these appear, a reader elsewhere could do nothing with them.
_PLACES = ("/" + "work/", "/" + "tmp/team", "/" + "root/")
_INDEX_HOST = re.compile(
    r"(pypi|pythonhosted|pytorch)\.org|https?://[^\s/\"']*(artifact|nexus|devpi|mirror)", re.I
)


def tracked_files(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "-z", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.strip()


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: (\d+) kept, 0 broken", done.stdout), done.stdout


@pytest.mark.parametrize(
    ("importer", "imported", "is_allowed"),
    [
        ("apps.gateway.admission", "apps.metering.services", True),
        ("apps.gateway.admission", "apps.metering.types", True),
        ("apps.gateway.admission", "apps.metering.models", False),
        ("apps.gateway.admission", "apps.metering", False),
        ("apps.gateway.admission", "apps.engines.client", True),
        ("apps.gateway.admission", "apps.engines.supervisor", False),
        ("apps.gateway.admission", "apps.core.hop", True),
        ("apps.metering.services", "apps.metering.models", True),
        ("config.asgi", "apps.metering.models", True),
        ("apps.gateway.admission", "django.db.models", True),
    ],
)
def test_the_faces_contract_judges_single_imports(
    importer: str, imported: str, is_allowed: bool
) -> None:
    code = f"""
from importlinter.application.user_options import UserOptions
from tests.architecture.contracts import AppFacesContract
contract = AppFacesContract(name="faces", session_options={{}}, contract_options=dict(
    container="apps", faces=["services", "selectors", "types", "exceptions"],
    open_apps=["core"], open_modules=["apps.engines.client"]))
print(contract._is_allowed({importer!r}, {imported!r}))
"""
    assert run_python(code) == str(is_allowed)


def test_the_standard_librarys_platform_imports_everywhere() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    found = run_python("import platform; print(platform.system(), platform.__file__)")
    system, file = found.split(" ", 1)
    assert system == "Linux"
    assert not Path(file).is_relative_to(ROOT / "platform")


@pytest.mark.parametrize("package", ["apps", "engine_service", "platform", "tests", "benchmarks"])
def test_no_file_is_too_long_to_read(package: str) -> None:
    too_long = {
        str(file.relative_to(ROOT)): n_lines
        for file in tracked_files(f"{package}/*.py")
        if "/migrations/" not in str(file)
        and (n_lines := len(file.read_text().splitlines())) > MAX_LINES
    }
    assert too_long == {}


def test_no_tracked_file_names_an_index_or_a_place_on_some_machine() -> None:
    found = []
    for file in tracked_files():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            is_bad = any(place in line for place in _PLACES) or _INDEX_HOST.search(line)
            if is_bad and file != Path(__file__):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_engine_and_the_platform_import_apart() -> None:
    engine = "import sys, engine_service.__main__; print('django' in sys.modules)"
    assert run_python(engine) == "False"
    platform = (
        "import os, sys; os.environ['DJANGO_SETTINGS_MODULE'] = 'config.settings.test';"
        "import config.asgi; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert run_python(platform) == "[]"

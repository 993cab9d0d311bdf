"""What the README and the pages of the API show does what it says: examples are run against the
whole product, other commands and links exist."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.serve import RunningProduct, manage

pytestmark = pytest.mark.e2e

README = ROOT / "README.md"
TOKEN_SHOWN = "sk-nano-…"
_BLOCK = re.compile(r"^(<!-- run -->\n)?```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    source: str
    is_run: bool


def blocks(text: str) -> list[Block]:
    return [
        Block(language=found[2], source=found[3], is_run=found[1] is not None)
        for found in _BLOCK.finditer(text)
    ]


def examples(language: str, *, page: Path = README) -> str:
    """The examples of a language, in one script, because a later one builds on an earlier one."""
    found = [
        block.source
        for block in blocks(page.read_text())
        if block.is_run and block.language == language
    ]
    assert found, f"{page.name} has no {language} example that is run"
    return "\n".join(found)


def run_example(
    product: RunningProduct, directory: Path, *command: str, token: str | None = None
) -> str:
    """Run from a place that looks like the root of a clone with a server on port 8000."""
    (directory / "var").symlink_to(product.var)
    script = command[-1].replace("127.0.0.1:8000", f"127.0.0.1:{product.port}")
    script = script.replace(TOKEN_SHOWN, token or product.api_token)
    done = subprocess.run(
        [*command[:-1], script],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_commands_answer(product: RunningProduct, tmp_path: Path) -> None:
    said = run_example(product, tmp_path, "bash", "-euo", "pipefail", "-c", examples("bash"))
    answer, end = json.JSONDecoder().raw_decode(said)
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    health, ready = said[end:].strip().replace("}{", "}\n{").split("\n", 1)
    assert json.loads(health)["status"] == "ok"
    assert json.loads(ready)["status"] == "ready"


def test_the_python_example_answers(product: RunningProduct, tmp_path: Path) -> None:
    said = run_example(product, tmp_path, sys.executable, "-c", examples("python"))
    assert "sky" in said.lower()


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("docs/api.md", "Paris"),
        ("docs/websocket.md", "'finish_reason': '"),
        ("docs/batches.md", "capital-France"),
        ("docs/feedback.md", "'basket.value'"),
    ],
)
def test_the_example_of_a_page_answers(
    product: RunningProduct, tmp_path: Path, page: str, says: str
) -> None:
    source = examples("python", page=ROOT / page)
    said = run_example(product, tmp_path, sys.executable, "-c", source)
    assert says in said


def test_the_commands_of_the_page_on_batches_answer(
    product: RunningProduct, tmp_path: Path
) -> None:
    source = examples("bash", page=ROOT / "docs/batches.md")
    said = run_example(product, tmp_path, "bash", "-euo", "pipefail", "-c", source)
    assert [json.loads(line)["custom_id"] for line in said.splitlines()] == ["a", "b"]


def test_the_commands_of_the_page_on_access_answer(product: RunningProduct, tmp_path: Path) -> None:
    source = examples("bash", page=ROOT / "docs/access.md")
    said = run_example(product, tmp_path, "bash", "-euo", "pipefail", "-c", source)
    models, revoked, keys = (json.loads(each) for each in said.replace("}{", "}\n{").splitlines())
    assert "smollm2-135m-instruct" in {each["id"] for each in models["data"]}
    assert revoked == {"revoked": True}
    assert [each["crv"] for each in keys["keys"]] == ["Ed25519"]


def test_the_commands_of_the_page_on_management_answer(
    product: RunningProduct, tmp_path: Path
) -> None:
    page = ROOT / "docs/management.md"
    (made,) = (block.source for block in blocks(page.read_text()) if not block.is_run)
    done = manage(product, *made.split()[2:])
    assert done.returncode == 0, done.stderr
    (product.var / "imports").mkdir(exist_ok=True)
    (product.var / "imports/my-model.gguf").write_bytes(b"none at all")
    source = examples("bash", page=page)
    said = run_example(
        product, tmp_path, "bash", "-euo", "pipefail", "-c", source, token=done.stdout.strip()
    )
    found = [json.loads(each) for each in said.replace("}{", "}\n{").splitlines()]
    assert [each["object"] for each in found] == [
        *("import", "list", "verification", "verification", "list"),
        *["deployment"] * 3,
        *["route"] * 3,
        "deployment",
    ]
    assert [each["weight"] for each in found[9]["targets"]] == [50, 50]
    assert [each.get("deleted") for each in found[10:]] == [True, True]


def test_every_other_command_exists() -> None:
    """Commands that install or stay in the foreground are not run here; that they are spelled
    right is known all the same."""
    lines = [
        line
        for block in blocks(README.read_text())
        if not block.is_run
        for line in block.source.splitlines()
    ]
    targets = {word for line in lines if line.startswith("make ") for word in line.split()[1:]}
    targets |= set(re.findall(r"`make ([a-z-]+)", README.read_text()))
    assert {"serve", "test", "check", "bench", "help"} <= targets
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    others = [line for line in lines if not line.startswith(("make ", "sudo apt-get install "))]
    assert others == [".venv/bin/python manage.py import_model /path/to/model.gguf --name my-model"]
    command = [sys.executable, "manage.py", "import_model", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--name NAME" in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/adr/README.md",
        "docs/access.md",
        "docs/api.md",
        "docs/feedback.md",
        "docs/ledger.md",
        "docs/management.md",
        "docs/responses-and-messages.md",
    ],
)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert links
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []

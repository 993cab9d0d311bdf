"""The operator's commands beside a product that runs: the doctor finds it well, a backup is made of
it, and nothing is restored over it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.serve import RunningProduct
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def manage(product: RunningProduct, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "VAR": str(product.var)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_doctor_finds_a_running_product_well(product: RunningProduct) -> None:
    query = "SELECT count(*) FROM core_heartbeat"
    wait_until("worker and beat", lambda: product.rows(query) == [(2,)], timeout_s=30)
    done = manage(product, "doctor", "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert [each for each in found.values() if each["status"] == "failure"] == []
    assert done.returncode == 0
    engines = {name: each["seen"] for name, each in found.items() if name.startswith("engine ")}
    assert set(engines) == {"engine smollm2-0", "engine minilm-0"}
    assert engines["engine smollm2-0"].startswith(f"pid {product.engine().pid} answers in ")
    assert found["agent"]["seen"] == f"runs (pid {product.agent_pid()})"
    for name in ("worker", "beat", "model smollm2-135m-instruct v1", "file modes"):
        assert found[name]["status"] == "ok", found[name]


def test_a_backup_is_made_of_it_and_none_restored_over_it(
    product: RunningProduct, tmp_path: Path
) -> None:
    file = tmp_path / "backup.tar.gz"
    made = manage(product, "backup", "--without-models", str(file))
    assert (made.returncode, made.stderr) == (0, "")
    before = product.rows("SELECT count(*) FROM rbac_apitoken")
    refused = manage(product, "restore", "--force", str(file))
    assert refused.returncode == 1
    said = f"another server (pid {product.process.pid}) already works in {product.var}"
    assert f"CommandError: nothing was changed: {said}" in refused.stderr
    assert product.rows("SELECT count(*) FROM rbac_apitoken") == before
    assert product.is_ready()

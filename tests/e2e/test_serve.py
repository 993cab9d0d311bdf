"""``manage.py serve`` as its operator sees it: first start, second start, refusals, the end."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.processes import ROOT
from tests.serve import (
    CHAT_ENGINE,
    EMBEDDING_ENGINE,
    RunningProduct,
    free_port,
    running_product,
    serve_start,
    serve_stop,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

# Beside another worker of pytest-xdist a start has half of the machine.
SECOND_START_S = 40.0 if "PYTEST_XDIST_WORKER" in os.environ else 20.0


@pytest.fixture(scope="module")
def own_product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProduct]:
    """A product that these tests may stop; they run in the order of this file."""
    with running_product(tmp_path_factory.mktemp("serve") / "with space") as running:
        yield running


def banner_command(product: RunningProduct) -> str:
    """The curl of the banner, as one would mark and paste it."""
    text = product.log
    return text[text.index("curl ") : text.index("The same is in")]


def test_the_banner_says_how_to_come_in(own_product: RunningProduct) -> None:
    access = own_product.access
    origin = f"http://127.0.0.1:{own_product.port}"
    assert set(access) == {"base_url", "ws_url", "api_token", "admin_user", "admin_password"}
    assert access["base_url"] == f"{origin}/v1"
    assert access["ws_url"] == f"ws://127.0.0.1:{own_product.port}/v1/stream"
    for said in (f"{origin}/admin/", access["admin_password"], access["api_token"]):
        assert said in own_product.log
    file = own_product.var / "bootstrap.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "was not answered" not in own_product.log


def test_nobody_else_may_read_what_it_writes(own_product: RunningProduct) -> None:
    made_by_the_test = {"serve.log"}
    open_to_others = [
        path.name
        for path in own_product.var.rglob("*")
        if stat.S_IMODE(path.lstat().st_mode) & 0o077 and path.name not in made_by_the_test
    ]
    assert (own_product.var / "db.sqlite3").is_file()
    assert open_to_others == []


def test_a_var_that_is_new_is_ours_alone(tmp_path: Path) -> None:
    var = tmp_path / "new" / "var"
    env = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "manage.py", "check"]
    subprocess.run(command, cwd=ROOT, env={**env, "VAR": str(var)}, check=True, timeout=60)
    assert stat.S_IMODE(var.stat().st_mode) == 0o700


def test_the_curl_of_the_banner_answers_when_pasted(own_product: RunningProduct) -> None:
    done = subprocess.run(
        ["bash", "-c", banner_command(own_product)], capture_output=True, timeout=60, check=True
    )
    answer = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert "Paris" in answer


def test_the_admin_lets_the_bootstrap_user_in(own_product: RunningProduct) -> None:
    access = own_product.access
    with httpx.Client(base_url=own_product.origin, follow_redirects=True) as client:
        page = client.get("/admin/login/")
        fields = {
            "username": access["admin_user"],
            "password": access["admin_password"],
            "csrfmiddlewaretoken": client.cookies["csrftoken"],
        }
        page = client.post("/admin/login/?next=/admin/", data=fields)
    assert page.status_code == 200
    assert page.url.path == "/admin/"
    assert "smollm2" in page.text


def test_a_second_one_in_the_same_var_is_refused(own_product: RunningProduct) -> None:
    before = own_product.access
    process = serve_start(own_product.var, port=free_port(), log_name="second.log")
    assert process.wait(timeout=30) == 1
    said = (own_product.var / "second.log").read_text()
    assert f"another server (pid {own_product.process.pid}) already works in" in said
    assert own_product.access == before
    assert own_product.is_ready()


def test_a_taken_port_is_refused_before_anything_else(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = serve_start(tmp_path / "var", port=port)
        assert process.wait(timeout=30) == 1
    said = (tmp_path / "var" / "serve.log").read_text()
    assert f"port {port} on 127.0.0.1 cannot be used: Address already in use" in said
    assert "choose another: make serve PORT=" in said
    assert not (tmp_path / "var" / "db.sqlite3").exists()


def test_a_server_or_an_agent_that_is_killed_is_started_again(own_product: RunningProduct) -> None:
    headers = {"Authorization": f"Bearer {own_product.api_token}"}
    server, agent = own_product.web_pid(), own_product.agent_pid()
    assert epochs_of(own_product) == [1, 1]
    os.kill(server, signal.SIGKILL)
    # Who comes meanwhile is not refused: the socket is kept, and the next server accepts.
    found = httpx.get(f"{own_product.base_url}/models", headers=headers, timeout=60)
    assert found.status_code == 200
    os.kill(agent, signal.SIGKILL)
    wait_until(
        "engines of another agent",
        lambda: epochs_of(own_product) == [2, 2] and own_product.is_ready(),
        timeout_s=90,
    )
    assert own_product.web_pid() not in (server, agent)
    assert own_product.agent_pid() not in (server, agent)
    for name in ("server", "agent"):
        said = f"The {name} ended by itself (signal 9) and is started again"
        assert own_product.log.count(said) == 1


def test_sigterm_leaves_no_process_and_no_socket(own_product: RunningProduct) -> None:
    """Also of those that were started again."""
    processes = own_product.descendants()
    assert len(processes) == 7, "agent, server, worker, watcher, beat, two engines"
    assert list((own_product.var / "run").glob("*.sock"))
    assert serve_stop(own_product.process) == 0
    _, alive = psutil.wait_procs(processes, timeout=1)
    assert alive == []
    assert list((own_product.var / "run").iterdir()) == []
    assert own_product.log.endswith("Stopped.\n")
    states = own_product.rows("SELECT state FROM engines_engineprocess")
    assert states == [("stopped",), ("stopped",)]


def test_a_second_start_is_quick_keeps_everything_and_ends_by_ctrl_c(
    own_product: RunningProduct,
) -> None:
    access, rows = own_product.access, own_product.usage_outcomes()
    started = time.monotonic()
    with running_product(own_product.var) as again:
        assert time.monotonic() - started < SECOND_START_S
        assert {**again.access, "base_url": "", "ws_url": ""} == {
            **access,
            "base_url": "",
            "ws_url": "",
        }
        assert "Importing" not in again.log
        assert again.usage_outcomes() - rows == {"completed": 1}, "the chat of the start itself"
        assert again.rows("SELECT count(*) FROM rbac_apitoken") == [(1,)]
        assert epochs_of(again) == [3, 3]
        ctrl_c_stops_in_order(again)


def epochs_of(product: RunningProduct) -> list[int]:
    return [product.engine(name).epoch for name in (CHAT_ENGINE, EMBEDDING_ENGINE)]


def ctrl_c_stops_in_order(product: RunningProduct) -> None:
    """The signal reaches the whole group at once."""
    processes = product.descendants()
    os.killpg(product.process.pid, signal.SIGINT)
    assert product.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(processes, timeout=1)
    assert alive == []
    assert list((product.var / "run").iterdir()) == []


def test_a_lost_bootstrap_file_gives_a_new_token_and_a_killed_serve_takes_its_children_along(
    own_product: RunningProduct,
) -> None:
    old = own_product.access
    (own_product.var / "bootstrap.json").unlink()
    with running_product(own_product.var) as again:
        new = again.access
        assert new["api_token"] != old["api_token"]
        assert new["admin_password"] is None
        assert "bootstrap.json was lost" in again.log
        for token in (old["api_token"], new["api_token"]):
            headers = {"Authorization": f"Bearer {token}"}
            assert httpx.get(f"{again.base_url}/models", headers=headers).status_code == 200
        children_end_when_serve_is_killed(again)


def children_end_when_serve_is_killed(product: RunningProduct) -> None:
    processes = product.descendants()
    product.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
    assert list((product.var / "run").iterdir()) == []


def test_a_server_that_ends_before_there_is_an_answer_ends_everything(
    own_product: RunningProduct,
) -> None:
    process = serve_start(own_product.var, port=own_product.port)
    own = RunningProduct(process, var=own_product.var, host="127.0.0.1", port=own_product.port)
    wait_until("the server", lambda: _pid_of(own, "config.server"), timeout_s=60)
    processes = own.descendants()
    os.kill(own.web_pid(), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert "the server ended by itself, so everything stops" in own.log
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []


def _pid_of(product: RunningProduct, word: str) -> int | None:
    """Return a child's pid once it runs its own program."""
    for child in product.descendants():
        with contextlib.suppress(psutil.Error):
            if word in child.cmdline():
                return child.pid
    return None


def test_a_model_that_was_altered_is_said_and_the_admin_stays(own_product: RunningProduct) -> None:
    models = own_product.var / "models"
    (weights,) = (models / own_product.model).rglob("model.safetensors")
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with running_product(own_product.var) as again:
        assert "Deployment smollm2 does not come up: exit code 78:" in again.log
        assert httpx.get(f"{again.origin}/admin/login/").status_code == 200
        assert httpx.get(f"{again.origin}/readyz").status_code == 503
        wait_until("the failed state", lambda: again.engine().state == "failed", timeout_s=5)

"""The gateways that are compared, each as a real process in front of the same upstream."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.gateway.upstream import MODEL
from tests.serve import free_port

ROOT: Final = Path(__file__).parents[2]
LITELLM: Final = "litellm[proxy]>=1.106"
START_TIMEOUT_S: Final = 300.0
INSTALL_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """One that runs. log_file: what its process writes."""

    name: str
    process: psutil.Process
    base_url: str
    key: str
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text()

    def rss_mb(self) -> float:
        return float(self.process.memory_info().rss) / 1e6

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def upstream(directory: Path) -> Iterator[str]:
    """Run the server that does nothing; yield its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway.upstream", str(port)]
    with running(command, log=directory / "upstream.log") as process:
        wait(f"http://127.0.0.1:{port}/v1/models", process=process)
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def litellm(directory: Path, *, upstream_url: str) -> Iterator[Gateway]:
    """Run LiteLLM's proxy: one worker, no database, a key to check."""
    key, port = f"sk-{secrets.token_hex(16)}", free_port()
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": upstream_url,
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": key},
    }
    (directory / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    command = [str(_litellm_binary()), "--config", "config.yaml", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    # Its list of prices is asked for over the network otherwise.
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    log = directory / "litellm.log"
    with running(command, log=log, cwd=directory, env=env) as process:
        wait(f"http://127.0.0.1:{port}/health/liveliness", process=process)
        yield Gateway(
            name="litellm",
            process=psutil.Process(process.pid),
            base_url=f"http://127.0.0.1:{port}/v1",
            key=key,
            log_file=log,
        )


def litellm_version() -> str:
    command = [str(_litellm_binary().with_name("python")), "-c"]
    command.append("from importlib.metadata import version; print(version('litellm'))")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def ours(
    name: str,
    directory: Path,
    *,
    upstream_url: str,
    stores: Mapping[str, str],
    counted: bool = False,
) -> Iterator[Gateway]:
    """Run one server process of ours with production's settings, and the agent that watches the
    remote server.

    stores: the environment that says which database and which cache. counted: the server counts
    its SQL statements.
    """
    directory.mkdir(parents=True, exist_ok=True)
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "CACHE_URL")},
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "config.settings.production",
        "SECRET_KEY": secrets.token_urlsafe(48),
        "ALLOWED_HOSTS": "127.0.0.1",
        "VAR": str(directory),
        "REMOTE_ALLOWED_NETWORKS": "127.0.0.0/8",
        **stores,
    }
    manage = [sys.executable, "manage.py"]
    for command in (
        ["migrate", "--verbosity", "0"],
        [
            "add_remote",
            "nothing",
            "--url",
            upstream_url,
            "--model",
            MODEL,
            "--context",
            "4096",
            "--concurrency",
            "256",
        ],
    ):
        run([*manage, *command], env=env)
    key = run([sys.executable, "-m", "benchmarks.gateway.tenant"], env=env)
    port, log = free_port(), directory / "server.log"
    module = "benchmarks.gateway.counted" if counted else "config.server"
    server = [sys.executable, "-m", module, "--port", str(port)]
    with (
        running([*manage, "run_engines"], log=directory / "agent.log", env=env) as agent,
        running(server, log=log, env=env) as process,
    ):
        gateway = Gateway(
            name=name,
            process=psutil.Process(process.pid),
            base_url=f"http://127.0.0.1:{port}/v1",
            key=key,
            log_file=log,
        )
        wait(f"http://127.0.0.1:{port}/readyz", process=process)
        assert agent.poll() is None
        yield gateway


def _litellm_binary() -> Path:
    """Return its command, from a virtual environment of its own that is made on first use."""
    venv = ROOT / "var" / "litellm-venv"
    binary = venv / "bin" / "litellm"
    if not binary.exists():
        print(f"Installing {LITELLM} below {venv}", file=sys.stderr)
        run([sys.executable, "-m", "venv", "--clear", str(venv)], env=os.environ)
        pip = [str(venv / "bin" / "pip"), "install", "--quiet", LITELLM]
        run(pip, env=os.environ, timeout_s=INSTALL_TIMEOUT_S)
    return binary


def run(command: Sequence[str], *, env: Mapping[str, str], timeout_s: float = 300) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(url: str, *, process: "subprocess.Popen[bytes]") -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"nothing answered at {url} in {START_TIMEOUT_S:.0f} s")

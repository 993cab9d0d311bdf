"""Whether the server hands on what an engine makes: an engine that computes nothing gives each of
many streams a token every few milliseconds; clients read them over HTTP, and over its socket.

    python -m benchmarks.gateway.delivery [--streams 256] [--step-ms 7] [--tokens 512] [--clients 1]

The server is the product's own, on SQLite, with its rows made here. Beside tokens a second, which
other work on the machine moves, it says what processor time a token costs each process.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.gateway.servers import ROOT, run, running, wait
from benchmarks.gateway.streams import Place, play
from tests.models import smollm2_dir
from tests.serve import free_port

MODEL: Final = "paced"


@contextlib.contextmanager
def served(directory: Path, *, step_s: float) -> Iterator[tuple[dict[str, psutil.Process], Any]]:
    """Run the engine and the server; yield their processes, and where both are reached."""
    socket_path = directory / "engine.sock"
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "CACHE_URL")},
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
        "DJANGO_SETTINGS_MODULE": "config.settings.development",
        "VAR": str(directory),
    }
    run([sys.executable, "manage.py", "migrate", "--verbosity", "0"], env=env)
    rows = [sys.executable, "-m", "benchmarks.gateway.delivery", "--make-rows", str(socket_path)]
    key = run(rows, env=env)
    engine = [sys.executable, "-m", "benchmarks.gateway.paced_engine", "--step-s", str(step_s)]
    engine += ["--model", str(smollm2_dir()), "--socket", str(socket_path), "--epoch", "1"]
    engine += ["--journal", str(directory)]
    port = free_port()
    server = [sys.executable, "-m", "config.server", "--port", str(port)]
    with (
        running(engine, log=directory / "engine.log", env=env) as engine_process,
        running(server, log=directory / "server.log", env=env) as server_process,
    ):
        wait(f"http://127.0.0.1:{port}/readyz", process=server_process)
        processes = {
            "engine": psutil.Process(engine_process.pid),
            "server": psutil.Process(server_process.pid),
        }
        http = Place(model=MODEL, host="127.0.0.1", port=port, api_token=key)
        yield processes, {"socket": Place(socket_path=str(socket_path)), "http": http}


def make_rows(socket_path: str) -> None:
    """Make what the agent would have written of a ready engine, a route to it and a token."""
    import django

    django.setup()
    from benchmarks.gateway.tenant import token
    from tests.factories.deployments import DeploymentFactory, EngineProcessFactory, ReplicaFactory
    from tests.factories.routing import RouteFactory

    deployment = DeploymentFactory(name=MODEL)
    process = EngineProcessFactory(ready=True, name="paced-0", epoch=1, socket_path=socket_path)
    ReplicaFactory(deployment=deployment, index=0, engine_process=process)
    RouteFactory(name=MODEL, deployment=deployment)
    print(token().secret)  # type: ignore[attr-defined]


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=7.0)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--answers", type=int, help="in all; as many as streams if not given")
    parser.add_argument("--clients", type=int, default=1, help="processes that read")
    parser.add_argument("--via", nargs="+", default=["socket", "http"])
    parser.add_argument("--make-rows", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make_rows:
        make_rows(options.make_rows)
        return
    with (
        tempfile.TemporaryDirectory(prefix="delivery-") as name,
        served(Path(name), step_s=options.step_ms / 1e3) as (processes, places),
    ):
        for turn, via in enumerate(options.via):
            before = {name: cpu_s(process) for name, process in processes.items()}
            came = play(
                places[via],
                n_streams=options.streams,
                n_jobs=options.answers or options.streams,
                n_new=options.tokens,
                n_processes=options.clients if via == "http" else 1,
                vocab_size=1000,
                seed=turn,
                env=os.environ,
            )
            costs = {
                f"{name}_cpu_us_a_token": round(
                    1e6 * (cpu_s(process) - before[name]) / came.n_tokens, 1
                )
                for name, process in processes.items()
            }
            made = 1e3 * options.streams / options.step_ms
            said = {"via": via, "of_made": round(came.tokens_per_s / made, 3), **asdict(came)}
            print(json.dumps(said | costs), flush=True)


if __name__ == "__main__":
    main()

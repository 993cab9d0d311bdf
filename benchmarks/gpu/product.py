"""The whole product on a GPU beside its engine: the same answers over HTTP, and straight over the
engine's socket, from the same engine process in one run.

python -m benchmarks.gpu.product --model-dir DIR --output FILE --device cuda

It imports and deploys the model by ``manage.py``, starts ``manage.py serve`` on SQLite in a folder
of its own and drives it from client processes. Each answer has a length of its own, so that new
requests come while others run.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.gateway.streams import Came, Place, play
from benchmarks.gpu.child import Child

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "measured"
READY: Final = "Ctrl-C stops everything"
START_TIMEOUT_S: Final = 110.0
STOP_TIMEOUT_S: Final = 25.0
MAX_PROMPT: Final = 128
# Run by ``manage.py shell``: there is no command that makes a deployment.
DEPLOY: Final = """
import json
from apps.audit.types import SYSTEM
from apps.deployments.services import deployment_create
from apps.registry.selectors import model_version_latest
from apps.routing.services import route_create
from apps.routing.types import all_to
fields = json.loads('''{fields}''')
deployment = deployment_create(
    actor=SYSTEM, model_version=model_version_latest('{name}'), name='{name}', **fields
)
route_create(actor=SYSTEM, name='{name}', targets=all_to(deployment))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """n_jobs: by ``n_streams`` at a time. n_new: of an answer, on average."""

    n_streams: int
    n_jobs: int
    n_new: int
    n_clients: int
    n_rounds: int


FULL: Final = Load(n_streams=256, n_jobs=512, n_new=512, n_clients=4, n_rounds=2)
SMALL: Final = Load(n_streams=16, n_jobs=32, n_new=32, n_clients=2, n_rounds=1)


class Product:
    """A product in a folder, made ready by its own commands."""

    def __init__(self, var: Path) -> None:
        self._var = var
        self._python = python_of_its_own(var / "python")
        strange = ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "CACHE_URL", "MODELS_DIR")
        self.env = {k: v for k, v in os.environ.items() if k not in strange} | {"VAR": str(var)}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def manage(self, *words: str) -> str:
        done = subprocess.run(
            [self._python, "manage.py", *words],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"error: manage.py {words[0]}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()

    @contextlib.contextmanager
    def serving(self) -> Iterator[psutil.Process]:
        log = self._var / "serve.log"
        command = [self._python, "manage.py", "serve", "--port", str(self.port)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            until_s = time.monotonic() + START_TIMEOUT_S
            while READY not in log.read_text():
                if process.poll() is not None or time.monotonic() > until_s:
                    raise RuntimeError(f"error: serve: {log.read_text()[-300:]} {self._said()}")
                time.sleep(0.1)
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            process.kill()
            process.wait()

    def engine(self) -> tuple[int, str, dict[str, Any]]:
        """Return the pid, the socket and what the engine said of itself."""
        with contextlib.closing(sqlite3.connect(self._var / "db.sqlite3", timeout=20)) as database:
            (found,) = database.execute(
                "SELECT pid, socket_path, info FROM engines_engineprocess WHERE state = 'ready'"
            ).fetchall()
        return int(found[0]), str(found[1]), json.loads(found[2])

    def token(self) -> str:
        return str(json.loads((self._var / "bootstrap.json").read_text())["api_token"])

    def _said(self) -> str:
        """Return the end of what the engine wrote, which says why it does not come up."""
        logs = sorted(self._var.rglob(f"*{NAME}*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text(errors="replace")[-300:] if logs else ""


def python_of_its_own(directory: Path) -> str:
    """Return a Python that imports what this one does, whatever its environment: some children of
    the product start with an empty one."""
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    (site_packages,) = directory.glob("lib/python*/site-packages")
    found = [path for path in sys.path if Path(path).is_dir() and Path(path).resolve() != ROOT]
    (site_packages / "inherited.pth").write_text("\n".join(found) + "\n")
    return str(python)


def deployment_fields(load: Load, *, device: str) -> dict[str, Any]:
    n_held = load.n_streams * (MAX_PROMPT + 2 * load.n_new)
    return {
        "device_class": device,
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "kv_cache_tokens": max(4096, n_held),
        "max_sequences": load.n_streams,
        "max_batched_tokens": 8192 if device == "cuda" else 512,
        "max_model_len": MAX_PROMPT + 2 * load.n_new,
    }


def measure(product: Product, child: Child, *, load: Load) -> None:
    started_s = time.perf_counter()
    with product.serving() as serve:
        child.put("serve_s", round(time.perf_counter() - started_s, 1))
        (pid, socket_path, info), token = product.engine(), product.token()
        child.put("engine", {k: info[k] for k in ("device", "dtype", "kernels") if k in info})
        watched = {"engine": psutil.Process(pid), "server": _server(serve)}
        places = {
            "socket": Place(socket_path=socket_path),
            "http": Place(model=NAME, host="127.0.0.1", port=product.port, api_token=token),
        }
        rates: dict[str, list[float]] = {name: [] for name in places}
        for name, place in places.items():  # compiled, captured, imported, connected
            _play(place, product, load=load, n_jobs=load.n_streams, n_new=16, seed=len(name))
        for turn in range(load.n_rounds):
            order = list(places) if turn % 2 == 0 else list(reversed(places))
            for name in order:
                before = {each: _cpu_s(process) for each, process in watched.items()}
                came = _play(
                    places[name],
                    product,
                    load=load,
                    n_jobs=load.n_jobs,
                    n_new=load.n_new,
                    seed=100 + 10 * turn + len(name),
                )
                costs = {
                    f"{each}_cpu_us_a_token": round(
                        1e6 * (_cpu_s(process) - before[each]) / came.n_tokens, 1
                    )
                    for each, process in watched.items()
                }
                child.put(f"{name} {turn + 1}", asdict(came) | costs)
                rates[name].append(came.tokens_per_s)
            # After each round: what was measured is kept when the time runs out.
            found = {name: round(median(each), 1) for name, each in rates.items()}
            child.put("tokens_per_s", found)
            child.put("ratio", round(found["http"] / found["socket"], 3))


def _play(
    place: Place, product: Product, *, load: Load, n_jobs: int, n_new: int, seed: int
) -> Came:
    return play(
        place,
        n_streams=load.n_streams,
        n_jobs=n_jobs,
        n_new=n_new,
        n_processes=1 if place.socket_path else load.n_clients,
        vocab_size=250,
        seed=seed,
        env={**product.env, "PYTHONPATH": _path()},
    )


def _server(serve: psutil.Process) -> psutil.Process:
    return next(
        each for each in serve.children(recursive=True) if "config.server" in each.cmdline()
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _path() -> str:
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join((str(ROOT), str(ROOT / "platform"), inherited))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    load, child = SMALL if options.small else FULL, Child(options.output)
    with tempfile.TemporaryDirectory(prefix="product-") as var:
        product = Product(Path(var))
        started_s = time.perf_counter()
        product.manage("migrate", "--verbosity", "0")
        child.put("migrate_s", round(time.perf_counter() - started_s, 1))
        product.manage("import_model", str(options.model_dir), "--name", NAME)
        fields = json.dumps(deployment_fields(load, device=options.device))
        product.manage("shell", "--command", DEPLOY.format(fields=fields, name=NAME))
        child.put("prepare_s", round(time.perf_counter() - started_s, 1))
        measure(product, child, load=load)


if __name__ == "__main__":
    main()

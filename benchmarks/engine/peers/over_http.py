"""The whole product beside vLLM's own server: streaming over HTTP, and what the product's own
engine gives straight over its socket."""

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apps.engines.client import EngineClient
from benchmarks.engine.peers.rounds import Outcome, dropping_out, jobs_of
from benchmarks.engine.peers.vllm_cpu import VllmServer
from benchmarks.runners import http_runner, socket_runner
from benchmarks.workload import Job, Runner, measure, timelines_of
from tests.serve import RunningProduct, running_product

LEVEL: Final = 32
ENGINE, HTTP, VLLM = "product, engine", "product, HTTP", "vLLM, HTTP"


@contextlib.contextmanager
def product_in(var: Path, *, dtype: str) -> Iterator[RunningProduct]:
    """Run the product with its one deployment in ``dtype``; the first start makes the rows."""
    with running_product(var):
        pass
    with contextlib.closing(sqlite3.connect(var / "db.sqlite3")) as database:
        database.execute("UPDATE deployments_deployment SET dtype = ?", (dtype,))
        database.commit()
    (var / "serve.log").unlink()
    with running_product(var) as product:
        yield product


async def play(outcome: Outcome, *, vllm: VllmServer | None, n_rounds: int) -> None:
    """Alternate the product, its engine alone and vLLM's server; the others stay idle."""
    with (
        tempfile.TemporaryDirectory(prefix="nano-bench-") as var,
        product_in(Path(var), dtype="bfloat16") as product,
    ):
        client = EngineClient(product.engine().socket_path, name="benchmark")
        info = await client.connect()
        runners = {ENGINE: socket_runner(client), HTTP: http_runner(product)}
        if vllm is not None:
            runners[VLLM] = http_runner(vllm)
        for turn in range(n_rounds):
            first = turn % len(runners)
            order = [*runners][first:] + [*runners][:first]
            for name in order:
                # Other ids for each: two of the systems share an engine and so its prefix cache.
                kind = 100 * (1 + [*runners].index(name)) + turn
                work = jobs_of(LEVEL, turn=kind, vocab_size=info.vocab_size)
                if name not in outcome.failed:
                    await _take_turn(name, runners[name], outcome, work=work, vllm=vllm)
        await client.close()


async def _take_turn(
    name: str, runner: Runner, outcome: Outcome, *, work: list[Job], vllm: VllmServer | None
) -> None:
    child = vllm.child if vllm is not None and name == VLLM else None
    with dropping_out(name, outcome):
        if child is not None:
            child.resume()
        found = await measure(runner, work, concurrency=LEVEL)
        outcome.measures[name][LEVEL].append(found)
        print(f"  {LEVEL} at once, {name}: {found.tokens_per_s:.0f} tokens/s", flush=True)
        if child is not None:
            child.pause()


async def vllm_server(
    python: Path | None,
    outcome: Outcome,
    *,
    model_dir: Path,
    directory: Path,
    n_sequences: int,
    max_model_len: int,
) -> VllmServer | None:
    """Start and warm vLLM's server, and pause it; None where that cannot be, and it is said."""
    if python is None:
        return None
    server = None
    print(f"starting {VLLM}", flush=True)
    with dropping_out(VLLM, outcome):
        server = await VllmServer.start(
            python,
            model_dir=model_dir,
            n_sequences=n_sequences,
            max_model_len=max_model_len,
            directory=directory,
        )
        work = jobs_of(8, turn=99, vocab_size=1000)
        await timelines_of(http_runner(server), work, concurrency=8)
        server.child.pause()
    return server

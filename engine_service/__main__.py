"""Starts the engine process: arguments, model, socket; then runs until it is told to stop.

Exit codes: 0 stopped as asked, 69 the socket is in use, 70 the step loop failed, a process of the
engine died or the journal cannot be written, 78 the model or the configuration is wrong (starting
again will not help), 143 stopped by a second signal.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, get_args

from engine_service.backends.base import Backend
from engine_service.config import (
    AttentionName,
    BackendName,
    DTypeName,
    EngineConfig,
    KernelsName,
    KVCacheDTypeName,
    QuantizationName,
    SpeculationName,
)
from engine_service.encoder_config import is_encoder
from engine_service.engine import Engine
from engine_service.errors import EngineError, EngineLost, ModelError
from engine_service.frontend import Frontend
from engine_service.journal import Journal, JournalError
from engine_service.server.listening import SocketError, SocketInUse
from engine_service.server.service import EngineService
from engine_service.tokenizer import load_tokenizer

logger = logging.getLogger("engine_service")

EXIT_IN_USE: Final = 69
EXIT_FATAL: Final = 70
EXIT_CONFIGURATION: Final = 78
EXIT_FORCED: Final = 143
_STEP_THREAD_STOP_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    engine: EngineConfig
    socket: Path
    epoch: int
    drain_s: float
    exit_with_parent: bool
    journal: Path | None = None


class _Parser(argparse.ArgumentParser):
    """Makes a wrong command line the same kind of error as a wrong model directory."""

    def error(self, message: str) -> NoReturn:
        raise ModelError(message)


def parse_options(arguments: Sequence[str]) -> Options:
    """Read the command line. Raises ModelError where it is wrong."""
    parser = _Parser(prog="engine_service", description="Serve one model replica.")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--socket", type=Path, required=True, metavar="PATH")
    parser.add_argument("--epoch", type=int, required=True, help="number of this start")
    parser.add_argument("--drain-s", type=float, default=10.0, help="grace for running requests")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when stdin ends")
    parser.add_argument(
        "--journal", type=Path, metavar="DIR", help="keep a record of every request there"
    )
    parser.add_argument("--backend", choices=get_args(BackendName), default="native")
    parser.add_argument("--dtype", choices=get_args(DTypeName), default="auto")
    parser.add_argument("--kernels", choices=get_args(KernelsName), default="auto")
    parser.add_argument("--attention", choices=get_args(AttentionName), default="auto")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write every step, for chrome://tracing"
    )
    parser.add_argument("--kv-cache-dir", type=Path, metavar="DIR", help="where that disk is")
    parser.add_argument("--speculation", choices=get_args(SpeculationName), default="auto")
    parser.add_argument(
        "--draft-model", type=Path, metavar="DIR", help="a small model that guesses for this one"
    )
    parser.add_argument("--quantization", choices=get_args(QuantizationName), default="none")
    parser.add_argument("--kv-cache-dtype", choices=get_args(KVCacheDTypeName), default="auto")
    numbers = {
        "block_size": "tokens in a KV block",
        "kv_cache_tokens": "size of the KV pool",
        "max_sequences": "most sequences in a step",
        "max_batched_tokens": "most tokens in a step",
        "max_model_len": "most tokens of prompt and answer",
        "max_waiting": "most requests that wait",
        "max_waiting_per_tenant": "most requests of one tenant that wait",
        "threads": "threads of the model's arithmetic",
        "tensor_parallel": "GPUs that hold the model together",
        "host_kv_cache_bytes": "host memory for blocks that the KV pool evicts",
        "disk_kv_cache_bytes": "disk for those that host memory evicts",
    }
    for name, text in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=text)
    parser.add_argument(
        "--target-itl-s", type=float, help="bound the time of a step by its share of prefill"
    )
    parser.add_argument(
        "--prefill-slowdown",
        type=float,
        help="or bound it by so many times the time of a step that only decodes",
    )
    parser.add_argument(
        "--sleep-after-s", type=float, help="give the GPU's memory back after so long without work"
    )
    found = parser.parse_args(arguments)
    # What is not given keeps the default that EngineConfig has for it.
    given = {name: value for name in numbers if (value := getattr(found, name)) is not None}
    for name in ("target_itl_s", "prefill_slowdown", "sleep_after_s"):
        if (value := getattr(found, name)) is not None:
            given[name] = value
    if "threads" in given:
        given["n_threads"] = given.pop("threads")
    return Options(
        engine=EngineConfig(
            model_dir=found.model,
            backend=found.backend,
            dtype=found.dtype,
            kernels=found.kernels,
            attention=found.attention,
            speculation=found.speculation,
            draft_model_dir=found.draft_model,
            quantization=found.quantization,
            kv_cache_dtype=found.kv_cache_dtype,
            trace=found.trace,
            kv_cache_dir=found.kv_cache_dir,
            **given,
        ),
        socket=found.socket,
        epoch=found.epoch,
        drain_s=found.drain_s,
        exit_with_parent=found.exit_with_parent,
        journal=found.journal,
    )


class Shutdown:
    """Why the process should end; every handler only sets an event. Made inside the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        self.fatal = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)

    def watch_parent(self) -> None:
        """Ask for the end when stdin ends: its other end is held by the parent."""
        try:
            self._loop.add_reader(sys.stdin.fileno(), self._stdin_ready)
        except OSError as error:
            raise SocketError("--exit-with-parent needs stdin to be a pipe") from error

    def failed(self, error: BaseException) -> None:
        """Called from any thread when the step loop has given up, or waits in vain."""
        logger.critical("the step loop failed: %s", error)
        self._loop.call_soon_threadsafe(self.fatal.set)

    def _signalled(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()

    def _stdin_ready(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            self._loop.remove_reader(sys.stdin.fileno())
            logger.warning("the parent is gone")
            self.asked.set()


def load_backend(config: EngineConfig) -> Backend:
    """Load the model; torch is imported only here, after the arguments were found good."""
    if config.backend == "nanovllm":
        from engine_service.backends.nanovllm.adapter import NanoVllmBackend
        from engine_service.backends.nanovllm.loading import load_package

        return NanoVllmBackend(config, package=load_package(config))
    if is_encoder(config.model_dir):
        from engine_service.backends.embedding import EmbeddingBackend

        return EmbeddingBackend(config)
    from engine_service.backends.native import NativeBackend

    return NativeBackend(config)


def open_journal(options: Options) -> Journal | None:
    """Make the files of this start; their names begin with the socket's.

    Raises:
        JournalError: they cannot be made.
    """
    if options.journal is None:
        return None
    config = options.engine
    return Journal(
        options.journal,
        f"{options.socket.stem}-{time.time_ns():x}",
        epoch=options.epoch,
        # Those in the inbox, those that wait behind it, and those that run.
        capacity=2 * config.max_waiting + config.max_sequences,
    )


def give_back_memory() -> None:
    """Have the C library return what loading freed: of a small model as much as its weights."""
    with contextlib.suppress(AttributeError):  # not every C library keeps it, or can be told
        ctypes.CDLL(None).malloc_trim(0)


async def serve(
    options: Options, *, backend: Backend, frontend: Frontend, journal: Journal | None = None
) -> int:
    """Answer on the socket until told to stop; return the exit code."""
    shutdown = Shutdown()
    service = EngineService(
        frontend=frontend, info=backend.info, epoch=options.epoch, journal=journal
    )
    engine = Engine(
        backend,
        on_outputs=service.on_outputs,
        on_fatal=shutdown.failed,
        max_inbox=options.engine.max_waiting,
        sleep_after_s=options.engine.sleep_after_s,
    )
    # Collecting what loading left would halt a step for some 40 ms, again and again.
    gc.collect()
    gc.freeze()
    gc.enable()
    give_back_memory()
    engine.start()
    file = None
    try:
        if options.exit_with_parent:
            shutdown.watch_parent()
        file = await service.listen(engine, options.socket)
        logger.info("ready on %s, epoch %d", options.socket, options.epoch)
        code = await _run_until_told(shutdown, service=service, drain_s=options.drain_s)
        if code != EXIT_FORCED:
            await service.close()
            if code != EXIT_FATAL:  # else its thread has ended, or will never
                engine.stop(timeout_s=_STEP_THREAD_STOP_S)
            if journal is not None:
                journal.close()
        return code
    finally:
        if file is not None:
            file.remove()


async def _run_until_told(shutdown: Shutdown, *, service: EngineService, drain_s: float) -> int:
    forced = asyncio.create_task(shutdown.forced.wait())
    fatal = asyncio.create_task(shutdown.fatal.wait())
    asked = asyncio.create_task(shutdown.asked.wait())
    await asyncio.wait({asked, fatal}, return_when=asyncio.FIRST_COMPLETED)
    if not fatal.done():
        drained = asyncio.create_task(service.drain(drain_s))
        await asyncio.wait({drained, forced, fatal}, return_when=asyncio.FIRST_COMPLETED)
    if forced.done():
        return EXIT_FORCED
    if fatal.done():
        service.fail_all(EngineError("the engine failed and is being restarted"))
        return EXIT_FATAL
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the process and return its exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    started_at = time.monotonic()
    # What is loaded stays. To look through it for garbage again and again takes a fifth of a start.
    gc.disable()
    # Read by torch's thread pool when torch is imported. By default a thread that waits for its
    # neighbour burns whole time slices, and on busy cores steps of 30 ms were seen to take seconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        options = parse_options(arguments)
        journal = open_journal(options)
        logger.info("loading the tokenizer of %s", options.engine.model_dir)
        tokenizer = load_tokenizer(options.engine.model_dir)
        logger.info("loading the model")
        backend = load_backend(options.engine)
        info = backend.info
        logger.info(
            "loaded %s by the %s backend (%s, %s on %s, %s kernels, quantization %s), context %d, "
            "%d blocks of %d tokens, in %.1f s",
            info.name,
            info.backend,
            info.architecture,
            info.dtype,
            info.device,
            info.kernels,
            info.quantization,
            info.max_model_len,
            info.n_blocks,
            info.block_size,
            time.monotonic() - started_at,
        )
        return asyncio.run(
            serve(options, backend=backend, frontend=Frontend(tokenizer, info), journal=journal),
        )
    except SocketInUse as error:
        logger.error("cannot start: %s", error)
        return EXIT_IN_USE
    except (JournalError, EngineLost) as error:
        logger.error("cannot start: %s", error)
        return EXIT_FATAL  # a disk may be emptied, a process killed: starting again may help
    except (ModelError, SocketError) as error:
        logger.error("cannot start: %s", error)
        return EXIT_CONFIGURATION


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    logging.shutdown()
    # A thread may be deep in arithmetic: nothing that is left is worth waiting for.
    os._exit(exit_code)

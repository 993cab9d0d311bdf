"""The ranks of a tensor-parallel engine live and die together: whichever ends, nothing hangs, every
request is answered, and the engine's exit code has it started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apps.engines.client import EngineClient, EngineStream, SamplingParams, TextPrompt
from apps.engines.exceptions import EngineFault
from engine_service.__main__ import EXIT_CONFIGURATION, EXIT_FATAL
from tests.integration.wire.harness import text_of
from tests.models import ROOT, random_llama_dir
from tests.processes import EngineRun, running_engine
from tests.waiting import wait_until, wait_until_async

NOTICED_S = 5.0
OPTIONS = ("--kernels", "torch", "--dtype", "float32", "--tensor-parallel", "2")


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    """Two ranks on the processor, also where there is one GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("model"))


def rank_of(engine: EngineRun) -> psutil.Process:
    """Return the process of rank 1."""
    (rank,) = psutil.Process(engine.process.pid).children()
    assert "engine_service.runner.rank" in rank.cmdline()
    return rank


async def connected(engine: EngineRun) -> EngineClient:
    client = EngineClient(str(engine.socket_path), name="test", expected_epoch=engine.epoch)
    await client.connect()
    return client


async def start(client: EngineClient, request_id: str, *, max_tokens: int) -> EngineStream:
    """Start an answer and wait for its first token."""
    prepared = await client.prepare(
        request_id=request_id,
        prompt=TextPrompt(text="abc"),
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        max_tokens=max_tokens,
        cache_salt="",
        timeout_s=10.0,
    )
    stream = await client.start(request_id, prepared.max_new_tokens)
    await anext(stream)
    return stream


async def exit_code(engine: EngineRun) -> int:
    ended = engine.process.poll
    await wait_until_async("the end", lambda: ended() is not None, timeout_s=NOTICED_S)
    code: int = engine.process.returncode
    return code


def assert_gone(rank: psutil.Process) -> None:
    wait_until("the rank to be gone", lambda: not rank.is_running(), timeout_s=NOTICED_S)


async def test_a_rank_killed_in_a_step_ends_the_engine_and_its_requests(
    model_dir: Path, tmp_path: Path
) -> None:
    with running_engine(model_dir, tmp_path, *OPTIONS) as engine:
        client = await connected(engine)
        streams = [await start(client, f"r{i}", max_tokens=500) for i in range(3)]
        rank_of(engine).kill()
        for stream in streams:
            with pytest.raises(EngineFault, match="is being restarted"):
                await text_of(stream)
        assert await exit_code(engine) == EXIT_FATAL
        assert not engine.socket_path.exists()
        assert "the step loop failed: " in engine.log.read_text()


async def test_a_rank_killed_while_nothing_runs_ends_the_engine(
    model_dir: Path, tmp_path: Path
) -> None:
    with running_engine(model_dir, tmp_path, *OPTIONS) as engine:
        rank_of(engine).kill()
        assert await exit_code(engine) == EXIT_FATAL
        assert "rank 1 ended: killed by SIGKILL" in engine.log.read_text()


async def test_a_rank_killed_while_all_sleep_ends_the_engine(
    model_dir: Path, tmp_path: Path
) -> None:
    with running_engine(model_dir, tmp_path, *OPTIONS, "--sleep-after-s", "0.2") as engine:
        client = await connected(engine)
        for _ in range(2):  # and wakes again
            await text_of(await start(client, "r", max_tokens=20))

            async def is_asleep() -> bool:
                return (await client.ping(timeout_s=5.0)).is_asleep

            await wait_until_async("them to sleep", is_asleep)
        rank_of(engine).kill()
        assert await exit_code(engine) == EXIT_FATAL
        assert "rank 1 ended: killed by SIGKILL" in engine.log.read_text()


async def test_a_rank_that_hangs_ends_with_the_engine(model_dir: Path, tmp_path: Path) -> None:
    """The agent kills an engine that answers no ping; what it holds of the GPUs must be free."""
    with running_engine(model_dir, tmp_path, *OPTIONS) as engine:
        rank = rank_of(engine)
        await start(await connected(engine), "r", max_tokens=500)
        rank.suspend()
        engine.process.kill()
        assert_gone(rank)


async def test_a_signal_to_all_of_them_drains(model_dir: Path, tmp_path: Path) -> None:
    with running_engine(model_dir, tmp_path, *OPTIONS) as engine:
        rank = rank_of(engine)
        stream = await start(await connected(engine), "r", max_tokens=50)
        for pid in (rank.pid, engine.process.pid):
            os.kill(pid, signal.SIGTERM)
        await text_of(stream)
        assert stream.result is not None
        assert stream.result.n_completion_tokens == 50
        assert await exit_code(engine) == 0
        assert_gone(rank)


def run_engine(model_dir: Path, tmp_path: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "engine_service", "--model", str(model_dir)]
    command += ["--socket", str(tmp_path / "e.sock"), "--epoch", "1", *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_a_rank_killed_while_it_starts_ends_the_engine(model_dir: Path, tmp_path: Path) -> None:
    with run_engine(model_dir, tmp_path, *OPTIONS) as process:
        (rank,) = wait_until("a rank", psutil.Process(process.pid).children, timeout_s=60)
        rank.kill()
        _, log = process.communicate(timeout=NOTICED_S)
    assert process.returncode == EXIT_FATAL
    assert "cannot start: rank 1 ended: killed by SIGKILL" in log


def test_a_model_that_cannot_be_cut_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with run_engine(model_dir, tmp_path, *OPTIONS[:-1], "3") as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == EXIT_CONFIGURATION
    assert "tensor_parallel (3) does not divide the model's num_attention_heads (4)" in log

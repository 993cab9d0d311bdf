"""The benchmark on a GPU: what it asks, what a machine could do, what it makes of the figures."""

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import report, wheels
from benchmarks.gpu.gpu_tests import counts_of, summary_of
from benchmarks.gpu.processes import last_fault, run_python
from benchmarks.gpu.roofline import Rates, floor_s, itl_floor_s, shared_prefix
from benchmarks.gpu.shape import QWEN3_0_6B, TINY
from benchmarks.gpu.workload import SMALL, nano_vllm, workloads
from benchmarks.workload import Job

# A byte a second and as many operations, unless said otherwise: times are then plain sums.
UNIT = Rates(copy_bytes_per_s=1.0, read_bytes_per_s=0.5, flop_per_s=1e30)


def a_job(n_prompt: int, n_new: int) -> Job:
    return Job(prompt=(1,) * n_prompt, n_new=n_new, seed=0)


def test_nano_vllms_workload_is_that_of_its_own_benchmark() -> None:
    random.seed(0)
    prompts = [[random.randint(0, 10000) for _ in range(random.randint(100, 1024))] for _ in range(256)]  # fmt: skip # noqa: E501
    lengths = [random.randint(100, 1024) for _ in range(256)]
    found = nano_vllm()
    assert [list(job.prompt) for job in found.jobs] == prompts
    assert [job.n_new for job in found.jobs] == lengths
    assert found.n_new_tokens == 133_966


def test_the_other_workloads_are_as_large_as_they_say() -> None:
    found = workloads()
    assert {name: len(w.jobs) for name, w in found.items()} == {
        "nano-vllm": 256, "1 stream": 1, "8 streams": 8, "64 streams": 64, "512 streams": 512,
        "8k prompt": 1, "shared prefix": 64,
    }  # fmt: skip
    assert {len(job.prompt) for job in found["512 streams"].jobs} == {256}
    assert {job.n_new for job in found["512 streams"].jobs} == {128}
    assert shared_prefix(found["shared prefix"].jobs) == 1024
    assert shared_prefix(found["64 streams"].jobs) == 0
    assert max(max(job.prompt) for w in workloads(SMALL).values() for job in w.jobs) <= 300


def test_the_model_is_qwen3_0_6b() -> None:
    n_norms = 28 * (2 * 1024 + 2 * 128) + 1024
    assert QWEN3_0_6B.weight_bytes == 2 * (596_049_920 - n_norms)
    assert QWEN3_0_6B.kv_token_bytes == 114_688


def test_the_floor_counts_every_step_of_every_sequence() -> None:
    jobs = [a_job(5, 4), a_job(3, 2), a_job(9, 1)]
    expected = 0.0
    for step in range(1, 4):
        running = [job for job in jobs if job.n_new > step]
        expected += TINY.weight_bytes
        expected += TINY.kv_token_bytes * sum(len(job.prompt) + step for job in running)
        expected += 2 * 2 * TINY.vocab_size * len(running)
    assert floor_s(jobs, shape=TINY, rates=UNIT) == pytest.approx(expected)
    assert itl_floor_s(TINY, rates=UNIT) == TINY.weight_bytes


def test_the_floor_of_prompts_is_their_operations() -> None:
    rates = Rates(copy_bytes_per_s=1e30, read_bytes_per_s=1e30, flop_per_s=1.0)
    layers = 2 * TINY.n_layers * TINY.n_layer_weights
    head = 2 * TINY.n_head_weights
    pair = 4 * TINY.n_layers * TINY.n_heads * TINY.head_dim
    one = floor_s([a_job(4, 1)], shape=TINY, rates=rates)
    assert one == 4 * layers + head + pair * (1 + 2 + 3 + 4)
    # Of two prompts with three ids in common, the second one's fourth alone is computed anew.
    two = floor_s([a_job(4, 1), a_job(4, 1)], shape=TINY, rates=rates, n_shared=3)
    assert two == one + layers + head + pair * 4


def a_result(**parts: Any) -> dict[str, Any]:
    floor = {"roofline_tokens_per_s": 1000.0}
    return {
        "workloads": {"nano-vllm": floor, "1 stream": floor | {"itl_floor_ms": 0.4}},
        "ours": {
            "nano-vllm": {"tokens_per_s": 450.0, "itl_ms": 9.0},
            "1 stream": {"tokens_per_s": 100.0, "itl_ms": 0.7},
        },
        **parts,
    }


def test_what_must_be_shown_is_judged_by_the_figures() -> None:
    peer = {"nano-vllm": {"tokens_per_s": 300.0}, "attention": {"is_flash_attn": True}}
    result = a_result(nano_vllm=peer, tests={"passed": 3})
    found = report.verdicts(result, report.derive(result))
    assert [verdict.is_met for verdict in found] == [True, True, True, False]
    assert [verdict.found for verdict in found][1:] == [
        "45.0%", "1.50 x, nano-vllm through unknown attention", "1.75 x",
    ]  # fmt: skip


def test_a_ratio_through_a_stand_in_is_not_claimed() -> None:
    attention = {"is_flash_attn": False, "attention": "torch's"}
    peer = {"nano-vllm": {"tokens_per_s": 300.0}, "attention": attention}
    result = a_result(nano_vllm=peer)
    verdict = report.verdicts(result, report.derive(result))[1]
    assert verdict.is_met is None
    assert verdict.found == "1.50 x, nano-vllm through torch's: a stand-in, so not claimed"


def test_failed_tests_are_no_success_and_what_is_missing_is_no_verdict() -> None:
    result = {"tests": {"passed": 9, "failed_tests": 1, "failed": "1 failed, 9 passed in 2s"}}
    found = report.verdicts(result, report.derive(result))
    assert [(v.is_met, v.found) for v in found] == [(False, "1 failed, 9 passed in 2s")]


def test_the_table_names_what_failed() -> None:
    result = a_result(nano_vllm={"failed": "its 180 s ran out"}, micro={"left_out": "no time"})
    result["derived"] = report.derive(result)
    lines = report.table(result).splitlines()
    assert lines[2].split() == ["nano-vllm", "450", "45%", "9.00", "-", "-", "-", "-"]
    assert lines[-2:] == ["left out micro: no time", "FAILED nano_vllm: its 180 s ran out"]


def test_the_table_says_what_attends() -> None:
    chosen = {
        "decode": "triton",
        "prefill": "flashinfer",
        "times_us": {"prefill": {"triton": 1200.0, "flashinfer": 800.5}},
        "refused": {"flashinfer, decode": "ValueError: XQA needs SM90"},
    }
    result = a_result(attention={"chosen": chosen}, micro={})
    result["derived"] = report.derive(result)
    assert report.table(result).splitlines()[-3:] == [
        "attention chosen to decode: triton (no library is here to compare with)",
        "attention chosen to prefill: flashinfer (triton 1,200.0 us, flashinfer 800.5 us)",
        "not used: flashinfer, decode: ValueError: XQA needs SM90",
    ]


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("3 passed, 1 skipped in 0.05s", (3, 0, 1)),
        ("1 failed, 3 passed, 2 errors in 61.20s (0:01:01)", (3, 3, 0)),
        ("==== 5 skipped in 0.01s ====", (0, 0, 5)),
    ],
)
def test_pytests_summary_is_read(line: str, counts: tuple[int, int, int]) -> None:
    summary = summary_of(f"..F\n= short =\n{line}\n")
    assert tuple(counts_of(summary).values()) == counts


def test_a_process_that_takes_too_long_ends_and_a_fault_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = {"PYTHONUNBUFFERED": "1"}
    code = "import time; print('here'); time.sleep(60)"
    status, took_s = run_python(["-c", code], timeout_s=1.0, env=env, log=log)
    assert status is None
    assert took_s < 30
    status, _ = run_python(["-c", "1 / 0"], timeout_s=60.0, env=env, log=log)
    assert status == 1
    assert last_fault(log) == "ZeroDivisionError: division by zero"


def test_wheels_that_are_here_already_are_left(tmp_path: Path) -> None:
    (tmp_path / "pytest-1.0-py3-none-any.whl").touch()
    assert wheels.install(tmp_path, target=tmp_path / "site") == (
        [], f"no wheels to install from {tmp_path.name}",
    )  # fmt: skip


def test_a_wheel_that_is_none_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "nothing_of_the_kind-1.0-py3-none-any.whl").write_text("no archive")
    paths, said = wheels.install(tmp_path, target=tmp_path / "site")
    assert paths == []
    assert "could not be installed (nothing_of_the_kind)" in said


def test_folders_that_pth_files_name_are_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "inner" / "packages").mkdir(parents=True)
    (tmp_path / "some.pth").write_text("inner/packages\nimport os\nnot/there\n")
    assert wheels._path_entries(tmp_path) == [tmp_path / "inner" / "packages"]

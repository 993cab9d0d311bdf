"""What attends: the fastest that agrees with our kernels, or what was asked for, or an error that
says why not. The libraries are doubles of their functions (``tests/attention_libraries.py``)."""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_service.errors import ModelError
from engine_service.kernels.device import TorchKernels
from engine_service.kernels.paged_attention import Attention, AttentionShape
from engine_service.runner.attention_choice import choose_attention
from engine_service.runner.attention_trials import StepLimits, Trials, difference
from tests.attention_libraries import (
    flash_attention_2,
    flash_attention_3,
    flash_attention_4,
    flashinfer,
    install,
)

SHAPE: dict[str, Any] = {
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "block_size": 16,
    "dtype": torch.bfloat16,
    "kv_dtype": torch.bfloat16,
    "device": torch.device("cpu"),
}
LIMITS = StepLimits(max_len=640, max_rows=8, max_tokens=64)
OURS = "torch"


class ByName:
    """Says of each kernel what the test wants it to take. seconds: by name, or by name and phase;
    works: what was timed, and whether replayed."""

    def __init__(self, seconds: Mapping[Any, float], *, is_lost: bool = False) -> None:
        self._seconds = seconds
        self._is_lost = is_lost
        self.works: list[tuple[str, str, int, bool]] = []

    def seconds_of(self, work: Callable[[], Tensor], *, is_replayed: bool) -> float:
        bound: Any = work
        (kernels,), case = bound.args, bound.func.__self__
        work()
        self.works.append((kernels.name, case.phase, len(case.q), is_replayed))
        found = self._seconds.get((kernels.name, case.phase))
        return self._seconds[kernels.name] if found is None else found

    def check(self) -> None:
        if self._is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def choose(
    wanted: Any = "auto", *, stopwatch: ByName | None = None, **shape: Any
) -> tuple[Attention, str, str]:
    chosen = choose_attention(
        TorchKernels(),
        wanted=wanted,
        shape=AttentionShape(**SHAPE | shape),
        limits=LIMITS,
        stopwatch=stopwatch
        or ByName({OURS: 1.0, "flash-attn 3": 0.5, "flash-attn 4": 0.6, "flashinfer": 0.7}),
    )
    return chosen, chosen.decode.name, chosen.prefill.name


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_without_libraries_it_is_ours_and_nothing_is_measured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopwatch = ByName({})
    chosen, *names = choose(stopwatch=stopwatch)
    assert names == [OURS, OURS]
    assert (stopwatch.works, dict(chosen.times_us), dict(chosen.refused)) == ([], {}, {})
    assert caplog.records == []
    assert chosen.named("triton with a name") == "triton with a name with torch decode and torch prefill"  # fmt: skip # noqa: E501
    assert chosen.named("torch") == "torch"


def test_each_phase_gets_its_fastest_and_the_log_has_the_times(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, flash_attention_3, flash_attention_4, flashinfer)
    stopwatch = ByName(
        {OURS: 40e-6, "flash-attn 3": 30e-6, "flash-attn 4": 50e-6}
        | {("flashinfer", "decode"): 60e-6, ("flashinfer", "prefill"): 20e-6}
    )
    with caplog.at_level(logging.INFO):
        chosen, *names = choose(stopwatch=stopwatch)
    assert names == ["flash-attn 3", "flashinfer"]
    assert chosen.named("triton") == "triton with flash-attn 3 decode and flashinfer prefill"
    # The rows of 8 and 64 are the same here: a step has no more than 8.
    assert chosen.times_us["decode"] == pytest.approx(
        {OURS: 40.0, "flash-attn 3": 30.0, "flash-attn 4": 50.0, "flashinfer": 60.0}
    )
    assert ("flashinfer", "prefill", 64, False) in stopwatch.works
    assert ("flashinfer", "decode", 8, True) in stopwatch.works
    assert caplog.messages == [
        "attention to decode: flash-attn 3; torch 40.0 us, flash-attn 3 30.0 us, "
        "flash-attn 4 50.0 us, flashinfer 60.0 us",
        "attention to prefill: flashinfer; torch 40.0 us, flash-attn 3 30.0 us, "
        "flash-attn 4 50.0 us, flashinfer 20.0 us",
    ]


def test_ours_stays_where_little_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, flash_attention_3)
    assert choose(stopwatch=ByName({OURS: 1.0, "flash-attn 3": 0.98}))[1:] == (OURS, OURS)
    assert choose(stopwatch=ByName({OURS: 1.0, "flash-attn 3": 0.96}))[1:] == ("flash-attn 3",) * 2


def test_what_is_named_is_taken_though_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, flash_attention_3, flash_attention_4, flashinfer)
    slow = {OURS: 0.1, "flash-attn 3": 3.0, "flash-attn 4": 2.0, "flashinfer": 1.0}
    assert choose("flash-attn", stopwatch=ByName(slow))[1:] == ("flash-attn 4",) * 2
    assert choose("flashinfer", stopwatch=ByName(slow))[1:] == ("flashinfer",) * 2
    assert choose("triton", stopwatch=ByName({}))[1:] == (OURS, OURS)


@pytest.mark.parametrize("maker", [flash_attention_3, flash_attention_4, flashinfer])
def test_what_disagrees_is_not_used_and_what_was_named_is_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, maker: Any
) -> None:
    (library,) = install(monkeypatch, maker)
    assert choose()[1] != OURS
    library.skew = 1.1
    chosen, *names = choose()
    assert names == [OURS, OURS]
    assert len(warnings(caplog)) == len(chosen.refused) == 2
    name = next(iter(chosen.refused)).removesuffix(", decode")
    assert warnings(caplog)[0].startswith(
        f"attention of {name}, decode is not used: its numbers differ from those of torch: "
    )
    wanted = "flashinfer" if name == "flashinfer" else "flash-attn"
    with pytest.raises(ModelError, match=f"attention {wanted} cannot be had: .*its numbers differ"):
        choose(wanted)


def test_what_is_no_number_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    (library,) = install(monkeypatch, flash_attention_3)
    library.skew = float("nan")
    assert choose()[1:] == (OURS, OURS)


def test_what_fails_in_one_phase_may_serve_in_the_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (library,) = install(monkeypatch, flashinfer)
    library.fault = ValueError("XQA needs SM90")
    assert choose()[1:] == (OURS, "flashinfer")
    assert warnings(caplog) == [
        "attention of flashinfer, decode is not used: ValueError: XQA needs SM90"
    ]
    with pytest.raises(
        ModelError, match=r"flashinfer cannot be had: flashinfer, decode: .*XQA needs SM90"
    ):
        choose("flashinfer")


def test_a_graph_that_cannot_hold_it_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(ByName):
        def seconds_of(self, work: Callable[[], Tensor], *, is_replayed: bool) -> float:
            took_s = super().seconds_of(work, is_replayed=is_replayed)
            if is_replayed and self.works[-1][0] != OURS:
                raise RuntimeError("operation not permitted when stream is capturing")
            return took_s

    install(monkeypatch, flash_attention_3)
    stopwatch = Refusing({OURS: 1.0, "flash-attn 3": 0.1})
    assert choose(stopwatch=stopwatch)[1:] == (OURS, "flash-attn 3")


def test_a_device_that_is_lost_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    (library,) = install(monkeypatch, flash_attention_3)
    library.fault = RuntimeError("illegal memory access")
    lost = ByName({OURS: 1.0}, is_lost=True)
    with pytest.raises(
        ModelError, match=r"trying flash-attn 3 left the GPU unusable .*start with attention triton"
    ):
        choose(stopwatch=lost)


def test_memory_that_is_short_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    install(monkeypatch, flash_attention_3)
    monkeypatch.setattr("engine_service.runner.attention_choice.Trials", no_room)
    assert choose()[1:] == (OURS, OURS)
    assert warnings(caplog) == ["attention is ours, for there is no memory to try others: no room"]
    with pytest.raises(ModelError, match="attention flash-attn: no memory to try it"):
        choose("flash-attn")


MISSING = (
    r"flash-attn 3 is not installed \(no module flash_attn_interface or "
    r"flash_attn_3.flash_attn_interface\); .*flash-attn 4 is not installed"
)


@pytest.mark.parametrize(
    ("wanted", "makers", "shape", "reason"),
    [
        ("flash-attn", (), {}, MISSING),
        ("flashinfer", (), {}, r"flashinfer is not installed \(no module flashinfer\)"),
        (
            "flash-attn",
            (flash_attention_2,),
            {},
            "flash-attn 2 reads pages of a multiple of 256 tokens, and a block of the pool has 16",
        ),
        (
            "flash-attn",
            (flash_attention_3,),
            {"dtype": torch.float32, "kv_dtype": torch.float32},
            "flash-attn 3 computes in bfloat16 or float16, not float32",
        ),
        (
            "flash-attn",
            (flash_attention_4,),
            {"kv_dtype": torch.float8_e4m3fn},
            "flash-attn 4 reads K and V in the type of the queries, bfloat16, "
            "and kv_cache_dtype makes them float8_e4m3fn",
        ),
        ("flash-attn", (flash_attention_3,), {"head_dim": 12}, "heads of a multiple of 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    makers: tuple[Any, ...],
    shape: dict[str, Any],
    reason: str,
) -> None:
    install(monkeypatch, *makers)
    with pytest.raises(ModelError, match=f"attention {wanted} cannot be had: .*{reason}"):
        choose(wanted, **shape)


def test_a_library_that_is_broken_is_not_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    (tmp_path / "flash_attn_interface.py").write_text("import flash_attn_3_not_built._C\n")
    (tmp_path / "flashinfer.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert choose()[1:] == (OURS, OURS)
    assert warnings(caplog) == [
        "attention of flash-attn 3 is not used: flash-attn 3 cannot be imported: "
        "No module named 'flash_attn_3_not_built'",
        "attention of flashinfer is not used: flashinfer cannot be imported: "
        "undefined symbol: _ZN3c10",
    ]


def test_a_version_without_the_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, flashinfer)
    monkeypatch.delattr(sys.modules["flashinfer.decode"], "trtllm_batch_decode_with_kv_cache")
    with pytest.raises(
        ModelError,
        match="flashinfer this version has no trtllm_batch_decode_with_kv_cache",
    ):
        choose("flashinfer")


def test_layers_of_a_step_have_one_plan_and_steps_in_flight_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (library,) = install(monkeypatch, flashinfer)
    chosen, *_ = choose("flashinfer")
    trials = Trials(AttentionShape(**SHAPE), limits=LIMITS)
    _, prompts = trials.checked
    library.plans.clear()
    steps = [next(trials.timed("prefill")) for _ in range(4)]
    for step in steps:
        for _ in range(3):  # layers
            step.run(chosen.prefill)
    assert len(library.plans) == 4
    wrappers = [plan["wrapper"] for plan in library.plans]
    assert len(set(wrappers[:3])) == 3
    assert wrappers[3] == wrappers[0]
    assert difference(
        prompts.run(chosen.prefill), prompts.run(TorchKernels()), rows=prompts.rows
    ) == pytest.approx(0.0)
    plan = library.plans[-1]
    assert plan["starts"].tolist() == [0, 2, 7, 24, 64, 193]
    assert plan["pages"].tolist() == [0, 1, 3, 5, 12, 50]
    assert plan["last"].tolist() == [2, 5, 1, 4, 8]


def test_a_small_error_of_one_token_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sees a key too many, which is the commonest fault."""
    trials = Trials(AttentionShape(**SHAPE), limits=LIMITS)
    for case in trials.checked:
        expected = case.run(TorchKernels())
        assert difference(expected, expected, rows=case.rows) == 0.0
        longer = case.rows.context_lens + (case.rows.context_lens > 0).int()
        object.__setattr__(case.rows, "context_lens", longer)
        assert difference(case.run(TorchKernels()), expected, rows=case.rows) > 1.0

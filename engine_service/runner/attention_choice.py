"""Chooses what attends over the KV pool, our kernels or a library's, by measuring both on steps of
this model when it is loaded. What does not agree with ours is not used."""

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import Final

import torch

from engine_service.config import AttentionName, EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.kernels.libraries.flash_attention import (
    FlashAttention3,
    FlashAttention4,
    refuse_flash_attention_2,
)
from engine_service.kernels.libraries.flashinfer import FlashInfer
from engine_service.kernels.paged_attention import (
    Attention,
    AttentionShape,
    MissingError,
    PagedAttention,
    UnfitError,
)
from engine_service.runner.attention_trials import (
    PHASES,
    Case,
    DeviceStopwatch,
    StepLimits,
    Stopwatch,
    Trials,
    difference,
)

logger = logging.getLogger(__name__)

_LIBRARIES: Final[Mapping[str, Mapping[str, Callable[[AttentionShape], PagedAttention]]]] = {
    "flash-attn": {
        FlashAttention3.name: FlashAttention3,
        FlashAttention4.name: FlashAttention4,
        "flash-attn 2": refuse_flash_attention_2,
    },
    "flashinfer": {FlashInfer.name: FlashInfer},
}
# Ours is taken where a library gains less: what is chosen should be the same at every start.
_LEAST_GAIN: Final = 1.03


@torch.inference_mode()
def attention_of(
    config: EngineConfig,
    kernels: PagedAttention,
    *,
    model_config: ModelConfig,
    max_len: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> Attention:
    """Choose for what this process computes of a model, ``model_config``, best before its weights
    take memory. Raises as ``choose_attention``."""
    if config.attention == "auto" and config.kernels == "torch":  # the oracle
        return Attention.of(kernels)
    return choose_attention(
        kernels,
        wanted=config.attention,
        shape=AttentionShape(
            n_heads=model_config.n_heads,
            n_kv_heads=model_config.n_kv_heads,
            head_dim=model_config.head_dim,
            block_size=config.block_size,
            dtype=dtype,
            kv_dtype=kv_dtype,
            device=device,
        ),
        limits=StepLimits(
            max_len=max_len,
            max_rows=config.max_sequences,
            max_tokens=config.max_batched_tokens,
        ),
        stopwatch=DeviceStopwatch(device),
    )


def choose_attention(
    ours: PagedAttention,
    *,
    wanted: AttentionName,
    shape: AttentionShape,
    limits: StepLimits,
    stopwatch: Stopwatch,
) -> Attention:
    """Return the fastest for each phase of what is ``wanted``: by ``auto`` ours and every library
    there is; of one that is named the fastest version is taken, or it is an error.

    Raises:
        ModelError: what is named is not there, does not take this model, fails or disagrees; or
            whatever was tried left the device unusable.
    """
    if wanted == "triton":
        return Attention.of(ours)
    libraries, refused = _libraries(wanted, shape=shape)
    if not libraries:
        if wanted != "auto":
            raise _cannot_be_had(wanted, refused)
        return Attention(decode=ours, prefill=ours, refused=_said(refused))
    try:
        chosen = _tried(
            ours,
            libraries,
            wanted=wanted,
            trials=Trials(shape, limits=limits),
            stopwatch=stopwatch,
            refused=refused,
        )
    except torch.OutOfMemoryError as error:
        if wanted != "auto":
            raise ModelError(f"attention {wanted}: no memory to try it: {error}") from error
        logger.warning("attention is ours, for there is no memory to try others: %s", error)
        return Attention.of(ours)
    for phase, times in chosen.times_us.items():
        logger.info(
            "attention to %s: %s; %s",
            phase,
            getattr(chosen, phase).name,
            ", ".join(f"{name} {time_us:.1f} us" for name, time_us in times.items()),
        )
    return chosen


def _libraries(
    wanted: AttentionName, *, shape: AttentionShape
) -> tuple[list[PagedAttention], dict[str, str]]:
    """Return those that take the model, and why the others do not."""
    found: list[PagedAttention] = []
    refused = {}
    for library, versions in _LIBRARIES.items():
        for name, version in versions.items() if wanted in ("auto", library) else ():
            try:
                found.append(version(shape))
            except MissingError as error:
                if wanted != "auto":
                    refused[name] = str(error)
            except UnfitError as error:
                refused[name] = str(error)
    return found, refused


def _tried(
    ours: PagedAttention,
    libraries: SequenceOf[PagedAttention],
    *,
    wanted: AttentionName,
    trials: Trials,
    stopwatch: Stopwatch,
    refused: dict[str, str],
) -> Attention:
    chosen, times_us = {}, {}
    for phase, checked in zip(PHASES, trials.checked, strict=True):
        timed = list(trials.timed(phase))
        times = {ours.name: _time_us(ours, timed, stopwatch=stopwatch)}
        best = ours if wanted == "auto" else None
        for library in libraries:
            reason = _fault(library, ours, checked=checked, stopwatch=stopwatch)
            if reason is None:
                try:
                    times[library.name] = _time_us(library, timed, stopwatch=stopwatch)
                except Exception as error:  # noqa: BLE001 (a library's, its compiler's, a graph's)
                    reason = _reason(error, library, stopwatch=stopwatch)
            if reason is not None:
                refused[f"{library.name}, {phase}"] = reason
                continue
            least_gain = _LEAST_GAIN if best is ours else 1.0
            if best is None or times[library.name] * least_gain < times[best.name]:
                best = library
        if best is None:
            raise _cannot_be_had(wanted, refused)
        chosen[phase], times_us[phase] = best, times
    return Attention(**chosen, times_us=times_us, refused=_said(refused))


def _fault(
    library: PagedAttention, ours: PagedAttention, *, checked: Case, stopwatch: Stopwatch
) -> str | None:
    """Return why a library cannot be used; None where it agrees with ours."""
    expected = checked.run(ours)
    try:
        units = difference(checked.run(library), expected, rows=checked.rows)
    except Exception as error:  # noqa: BLE001 (its own, its compiler's, the driver's)
        return _reason(error, library, stopwatch=stopwatch)
    if units <= 1.0:
        return None
    return f"its numbers differ from those of {ours.name}: {units:.1f} times what is allowed"


def _reason(error: Exception, library: PagedAttention, *, stopwatch: Stopwatch) -> str:
    """Return what an error says. Raises ModelError where the device is lost with it."""
    said = f"{type(error).__name__}: {error}"
    try:
        stopwatch.check()
    except RuntimeError as lost:
        raise ModelError(
            f"trying {library.name} left the GPU unusable ({said}): start with attention triton"
        ) from lost
    return said


def _time_us(attention: PagedAttention, timed: SequenceOf[Case], *, stopwatch: Stopwatch) -> float:
    return 1e6 * sum(
        stopwatch.seconds_of(partial(case.run, attention), is_replayed=case.phase == "decode")
        for case in timed
    )


def _said(refused: Mapping[str, str]) -> Mapping[str, str]:
    for name, reason in refused.items():
        logger.warning("attention of %s is not used: %s", name, reason)
    return refused


def _cannot_be_had(wanted: AttentionName, refused: Mapping[str, str]) -> ModelError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    return ModelError(f"attention {wanted} cannot be had: {reasons}")

"""Loads a model for what is to compute it, the processor or a GPU, and says what came of it."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Final

import torch

from engine_service.config import DEFAULT_KV_CACHE_TOKENS, EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.models.registry import load_model
from engine_service.runner.device_memory import Holding
from engine_service.runner.kernel_choice import choose_kernels, make_executor
from engine_service.runner.kv_tiers import TierStore, make_tiers
from engine_service.runner.model_runner import ModelRunner, Runner
from engine_service.runner.tensor_parallel import RankGroup
from engine_service.scheduling.model_drafting import DraftModelUse

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """kernels: what computes its steps, for people. max_model_len: most tokens of prompt and answer
    together. n_blocks: of the KV pool. overlaps: whether a step may be launched while another is
    computed. ranks: the processes that hold the other parts of a model that was cut. tiers: what
    holds blocks that the pool evicts, None where nothing does. holdings: what it has of a device,
    which can be given back for a while. draft_model: what is known of the model that guesses for
    this one, None where none does."""

    runner: Runner
    kernels: str
    dtype: torch.dtype
    device: str
    n_blocks: int
    max_model_len: int
    overlaps: bool
    ranks: RankGroup | None = None
    tiers: TierStore | None = None
    holdings: tuple[Holding, ...] = ()
    draft_model: DraftModelUse | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a model is to leave of a GPU's memory for another: so many bytes, and so many more for
    each block of its own pool."""

    n_bytes: int = 0
    n_bytes_per_block: int = 0


NO_ROOM: Final = Room()


def load(
    config: EngineConfig, *, model_config: ModelConfig, leaving: Room = NO_ROOM
) -> LoadedModel:
    """Load a model and make its KV pool, without a draft model.

    Raises:
        ModelError: what is asked for cannot be had, memory is short, or the model is not what its
            configuration says.
    """
    if uses_device(config):
        from engine_service.runner.device_loading import load_on_device

        return load_on_device(config, model_config=model_config, leaving=leaving)
    if config.tensor_parallel > 1:
        raise ModelError("tensor_parallel is for GPUs; this engine computes on the processor")
    if config.attention != "auto":
        raise ModelError(
            f"attention {config.attention} is for a GPU; this engine computes on the processor"
        )
    if config.sleep_after_s is not None:
        raise ModelError(
            "sleep_after_s is for a GPU's kernels; this engine computes with the processor's, "
            "compiled or reference"
        )
    if config.kv_cache_tokens is None:
        config = dataclasses.replace(config, kv_cache_tokens=DEFAULT_KV_CACHE_TOKENS)
    max_model_len = config.effective_max_model_len(
        model_config.context_length, sliding_window=model_config.sliding_window
    )
    choice = choose_kernels(config, model_config=model_config, max_model_len=max_model_len)
    model = load_model(
        config.model_dir, config=model_config, max_model_len=max_model_len, dtype=choice.dtype
    )
    executor = make_executor(
        model, choice, config=config, model_config=model_config, max_model_len=max_model_len
    )
    tiers = make_tiers(config, pool=executor.pool)
    return LoadedModel(
        runner=ModelRunner(executor, tiers=tiers),
        kernels=executor.kernels,
        dtype=choice.dtype,
        device="cpu",
        n_blocks=config.n_blocks,
        max_model_len=max_model_len,
        overlaps=False,
        tiers=tiers,
    )


def uses_device(config: EngineConfig) -> bool:
    """Return whether a device's kernels compute the model. Raises ModelError where there is no GPU
    although one is asked for."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ModelError("device is cuda, and torch finds no GPU")
    if config.kernels in ("triton", "torch"):
        return True
    if config.device == "auto" and has_gpu and config.kernels == "auto":
        return True
    return config.device == "cuda"

"""Loads a model and the one that guesses for it."""

import dataclasses
import logging
from pathlib import Path

from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.models.manifest import read_manifest
from engine_service.runner.device_choice import device_of, dtype_on
from engine_service.runner.drafting import DraftingRunner, DraftModel
from engine_service.runner.loading import LoadedModel, Room, load
from engine_service.scheduling.drafting import StepCost
from engine_service.scheduling.model_drafting import DraftModelUse
from engine_service.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def load_both(config: EngineConfig, *, model_config: ModelConfig) -> LoadedModel:
    """Load a model, and beside it its draft model where there is to be one.

    Raises:
        ModelError: as ``load``, of either; or their tokenizers differ.
    """
    if config.draft_model_dir is None:
        return load(config, model_config=model_config)
    draft_model_config = ModelConfig.from_dir(config.draft_model_dir)
    _check_tokenizers(config.model_dir, config.draft_model_dir)
    room = _room(config, model_config=draft_model_config)
    target = load(config, model_config=model_config, leaving=room)
    try:
        return _with_draft(target, config=config, model_config=model_config)
    except BaseException:
        if target.ranks is not None:
            target.ranks.close()
        raise


def _with_draft(
    target: LoadedModel, *, config: EngineConfig, model_config: ModelConfig
) -> LoadedModel:
    assert config.draft_model_dir is not None
    draft_model_config = ModelConfig.from_dir(config.draft_model_dir)
    draft_config = _draft_config(config, model_config=draft_model_config, target=target)
    draft = load(draft_config, model_config=draft_model_config)
    logger.info(
        "guesses by %s (%s, %s kernels), up to %d tokens",
        config.draft_model_dir.name,
        draft_model_config.architecture,
        draft.kernels,
        draft.max_model_len,
    )
    cost = StepCost()
    draft_model = DraftModel(
        draft.runner,
        block_size=config.block_size,
        max_tokens=config.max_batched_tokens,
        max_len=draft.max_model_len,
        n_ids=draft_model_config.vocab_size,
        n_target_ids=model_config.vocab_size,
        cost=cost,
    )
    forgotten = [dataclasses.replace(each, forget=draft_model.forget) for each in draft.holdings]
    return dataclasses.replace(
        target,
        runner=DraftingRunner(target.runner, draft_model=draft_model),
        draft_model=DraftModelUse(cost),
        holdings=(*target.holdings, *forgotten),
    )


def _draft_config(
    config: EngineConfig, *, model_config: ModelConfig, target: LoadedModel
) -> EngineConfig:
    """Return the settings of a draft model: those of the target, with a pool of as many blocks, on
    one device, where rank 0 is. What its pool evicts it computes again, which is quick."""
    longest = (target.max_model_len, model_config.context_length, model_config.sliding_window)
    assert config.draft_model_dir is not None
    return dataclasses.replace(
        config,
        model_dir=config.draft_model_dir,
        draft_model_dir=None,
        dtype="bfloat16" if "bfloat16" in str(target.dtype) else "float32",
        quantization="none",
        tensor_parallel=1,
        host_kv_cache_bytes=0,
        disk_kv_cache_bytes=0,
        kv_cache_dir=None,
        kv_cache_tokens=target.n_blocks * config.block_size,
        max_model_len=min(length for length in longest if length is not None),
    )


def _room(config: EngineConfig, *, model_config: ModelConfig) -> Room:
    """Return what a draft model needs of a GPU: its weights, of which a head that is tied to the
    embedding is none of its own, and K and V. Its steps take what the target's leave again."""
    assert config.draft_model_dir is not None
    dtype = dtype_on(config, device=device_of(config))
    n_bytes = read_manifest(config.draft_model_dir).n_parameters * dtype.itemsize
    n_numbers = 2 * model_config.n_layers * model_config.n_kv_heads * model_config.head_dim
    width = 1 if config.kv_cache_dtype == "fp8" else dtype.itemsize
    return Room(n_bytes, config.block_size * n_numbers * width)


def _check_tokenizers(model_dir: Path, draft_model_dir: Path) -> None:
    target, draft = (load_tokenizer(each).get_vocab() for each in (model_dir, draft_model_dir))
    if target != draft:
        n_other = len(target.items() ^ draft.items())
        raise ModelError(
            f"{draft_model_dir.name} cannot guess for {model_dir.name}: {n_other} entries of their "
            "tokenizers' vocabularies differ"
        )

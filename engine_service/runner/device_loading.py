"""Loads a model on a device: weights, the memory that its steps take, and of the rest a KV pool."""

import gc
import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import torch

from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.kernels.device import DeviceKernels, TorchKernels
from engine_service.kernels.quantization import GROUP
from engine_service.models.registry import load_model
from engine_service.models.shard import WHOLE, Shard
from engine_service.runner.attention_choice import attention_of
from engine_service.runner.collectives import Collectives, Member
from engine_service.runner.common_tiers import CommonTiers
from engine_service.runner.decode_graphs import CudaGraphApi, DecodeGraphs, graph_sizes
from engine_service.runner.device_choice import device_of, dtype_on, is_cuda
from engine_service.runner.device_memory import Holding
from engine_service.runner.device_model import DeviceModel
from engine_service.runner.device_plan import DevicePlan
from engine_service.runner.device_runner import DeviceRunner
from engine_service.runner.device_sampler import DeviceSampler
from engine_service.runner.device_steps import DeviceSteps, Steps
from engine_service.runner.device_trials import largest_step, warm_up
from engine_service.runner.kv_tiers import BlockPool, KVTiers, TierStore, make_tiers
from engine_service.runner.loading import NO_ROOM, LoadedModel, Room
from engine_service.runner.rehearsal import compiling_ahead
from engine_service.runner.step_packing import TableMirror
from engine_service.runner.tensor_parallel import CommonSteps, RankGroup

logger = logging.getLogger(__name__)

# What graphs and the driver take beside what a trial step was seen to take.
_RESERVE_BYTES: Final = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePart:
    """A model on a device, or a rank's part of it, and what computes its steps. tiers: what holds
    blocks that its pool evicts. max_len: most tokens of a sequence that its tables have room
    for."""

    model: DeviceModel
    steps: DeviceSteps
    sampler: DeviceSampler
    graphs: DecodeGraphs | None
    tiers: KVTiers | None
    dtype: torch.dtype
    n_blocks: int
    max_len: int

    @property
    def holding(self) -> Holding:
        assert self.model.pool is not None
        return Holding(self.model.weights, self.model.pool, self.graphs)


def load_on_device(
    config: EngineConfig, *, model_config: ModelConfig, leaving: Room = NO_ROOM
) -> LoadedModel:
    """Raises as ``loading.load``."""
    if config.tensor_parallel == 1:
        part = load_part(config, model_config=model_config, leaving=leaving)
        return _loaded(part, steps=part.steps, tiers=part.tiers, config=config, ranks=None)
    shard = Shard(0, config.tensor_parallel)
    shard.check(model_config)
    if config.quantization == "int8":
        shard.check_groups(model_config, group=GROUP)
    if is_cuda(config) and torch.cuda.device_count() < shard.n_ranks:
        raise ModelError(
            f"tensor_parallel is {shard.n_ranks}, and torch finds {torch.cuda.device_count()} GPUs"
        )
    ranks = RankGroup(config)
    try:
        collectives = Collectives(shard, rendezvous=ranks.rendezvous, device=device_of(config))
        member = Member(shard=shard, collectives=collectives, agree=ranks.agree)
        part = load_part(config, model_config=model_config, member=member, leaving=leaving)
        ranks.wait_until_ready()
    except BaseException:
        ranks.close()
        raise
    steps = CommonSteps(part.steps, ranks=ranks)
    part.model.ask_all = steps.logits
    tiers = None if part.tiers is None else CommonTiers(part.tiers, ranks=ranks)
    return _loaded(part, steps=steps, tiers=tiers, config=config, ranks=ranks)


def load_part(
    config: EngineConfig,
    *,
    model_config: ModelConfig,
    member: Member | None = None,
    leaving: Room = NO_ROOM,
) -> DevicePart:
    """Load the whole model on this process's device, or what ``member`` has of it: then all ranks
    are to do so at once. Raises as ``loading.load``."""
    shard = WHOLE if member is None else member.shard
    device = device_of(config, rank=shard.rank)
    kernels = _kernels(config, device=device)
    plan = DevicePlan(
        config=config,
        model_config=model_config,
        shard=shard,
        dtype=dtype_on(config, device=device),
        max_len=config.effective_max_model_len(
            model_config.context_length, sliding_window=model_config.sliding_window
        ),
    )
    attention = attention_of(
        config,
        kernels,
        model_config=plan.local_config,
        max_len=plan.max_len,
        dtype=plan.dtype,
        kv_dtype=plan.kv_dtype,
        device=device,
    )
    compiles = device.type == "cuda" and config.kernels != "torch"
    with compiling_ahead(plan, kernels=kernels) if compiles else nullcontext():
        decoder = load_model(
            config.model_dir,
            config=model_config,
            max_model_len=plan.max_len,
            dtype=plan.dtype,
            device=device,
            shard=shard,
            quantization=config.quantization,
        )
    model = plan.model(
        decoder,
        kernels=kernels,
        device=device,
        reduce=None if member is None else member.collectives.reduce,
        gather=None if member is None else member.collectives.gather,
        attention=attention,
    )
    sampler = DeviceSampler(kernels, device=device)
    n_blocks = _make_pool(model, sampler, plan=plan, member=member, leaving=leaving)
    graphs = None
    if device.type == "cuda":
        warm_up(model, sampler, config=config)
        with torch.inference_mode():
            graphs = DecodeGraphs(
                model.decode_and_draw,
                sizes=graph_sizes(config.max_sequences),
                device=device,
                api=CudaGraphApi(),
            )
    steps = DeviceSteps(
        model,
        graphs=graphs,
        max_numbers=_most_numbers(config, max_blocks=plan.max_blocks),
        collectives=None if member is None else member.collectives,
    )
    assert model.pool is not None
    return DevicePart(
        model=model,
        steps=steps,
        sampler=sampler,
        graphs=graphs,
        tiers=make_tiers(config, pool=BlockPool(model.pool.tensor, dim=2)),
        dtype=plan.dtype,
        n_blocks=n_blocks,
        max_len=plan.max_len,
    )


def _loaded(
    part: DevicePart,
    *,
    steps: Steps,
    tiers: TierStore | None,
    config: EngineConfig,
    ranks: RankGroup | None,
) -> LoadedModel:
    block_size = config.block_size
    runner = DeviceRunner(
        part.model,
        steps=steps,
        sampler=part.sampler,
        graphs=part.graphs,
        mirror=TableMirror(
            n_rows=config.max_sequences,
            max_blocks=-(-part.max_len // block_size),
            block_size=block_size,
        ),
        block_size=block_size,
        tiers=tiers,
    )
    return LoadedModel(
        runner=runner,
        kernels=part.model.attention.named(part.model.kernels.name),
        dtype=part.dtype,
        device=str(part.model.device),
        n_blocks=part.n_blocks,
        max_model_len=min(part.max_len, part.n_blocks * block_size),
        overlaps=True,
        ranks=ranks,
        tiers=tiers,
        holdings=(part.holding,),
    )


def _most_numbers(config: EngineConfig, *, max_blocks: int) -> int:
    """Return how many integers a packed step may have, with what aligns its sections."""
    per_row = 7 + 2 * max_blocks
    return 4 * config.max_batched_tokens + config.max_sequences * per_row + 64


def _kernels(config: EngineConfig, *, device: torch.device) -> DeviceKernels:
    if config.kernels == "torch":
        return TorchKernels()
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ModelError("kernels triton need a GPU")
    try:
        from engine_service.kernels.triton.kernels import TritonKernels
    except ImportError as error:
        raise ModelError(f"kernels triton cannot be had: {error}") from error
    return TritonKernels()


def _make_pool(
    model: DeviceModel,
    sampler: DeviceSampler,
    *,
    plan: DevicePlan,
    member: Member | None,
    leaving: Room,
) -> int:
    """Give the model its KV pool; return how many blocks it has."""
    config = plan.config
    n_blocks = config.n_blocks
    if model.device.type == "cuda":
        model.pool = plan.pool(1, device=model.device)
        step_bytes = largest_step(model, sampler, config=config)
        block_bytes = model.pool.shape.n_numbers_per_block * plan.kv_dtype.itemsize
        model.pool = None
        gc.collect()
        torch.cuda.empty_cache()
        n_blocks = _n_blocks(
            config, block_bytes=block_bytes, step_bytes=step_bytes, leaving=leaving
        )
    if member is not None:
        n_blocks = member.agree(n_blocks)
    try:
        model.pool = plan.pool(n_blocks, device=model.device)
    except torch.OutOfMemoryError as error:
        raise ModelError("the KV pool does not fit: lower kv_cache_tokens") from error
    return n_blocks


def _n_blocks(config: EngineConfig, *, block_bytes: int, step_bytes: int, leaving: Room) -> int:
    free, total = torch.cuda.mem_get_info()
    left = int(total * config.gpu_memory_fraction) - (total - free) - step_bytes - _RESERVE_BYTES
    left -= leaving.n_bytes
    fitting = max(0, left) // (block_bytes + leaving.n_bytes_per_block)
    wanted = fitting if config.kv_cache_tokens is None else config.n_blocks
    if wanted < 1 or wanted > fitting:
        raise ModelError(
            f"the GPU has {left / 2**30:.1f} GiB for the KV pool, once weights, "
            f"{step_bytes / 2**30:.1f} GiB for steps and a reserve are taken: "
            f"{fitting * config.block_size} tokens; lower kv_cache_tokens or max_batched_tokens"
        )
    logger.info(
        "KV pool: %d blocks, %.1f GiB; steps take up to %.1f GiB",
        wanted,
        wanted * block_bytes / 2**30,
        step_bytes / 2**30,
    )
    return wanted

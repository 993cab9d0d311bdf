"""The steps that an engine computes before its first request, rehearsed over tensors of torch's
device "meta", which have shapes and no numbers: what of Triton's kernels they would launch is
compiled, on several cores at once, while weights are read.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from engine_service.kernels.device import DeviceKernels
from engine_service.models.registry import MODELS
from engine_service.models.weights import Part, WeightReader
from engine_service.runner.decode_graphs import graph_sizes
from engine_service.runner.device_model import DeviceModel
from engine_service.runner.device_plan import DevicePlan
from engine_service.runner.device_sampler import DeviceSampler
from engine_service.runner.device_trials import warm_up
from engine_service.runner.step_packing import decode_length

META: Final = torch.device("meta")


class ShapesOnly(WeightReader):
    """Reads every tensor that is asked for, of its shape."""

    def __init__(self, plan: DevicePlan) -> None:
        super().__init__(
            (),
            dtype=plan.dtype,
            shard=plan.shard,
            device=META,
            quantization=plan.config.quantization,
        )

    def _stored(self, part: Part, *, columns: slice = slice(None)) -> Tensor:
        whole = torch.empty(part.shape, device=META)[part.rows]
        return whole if whole.dim() == 1 else whole[:, columns]


def shapes_only(plan: DevicePlan, *, kernels: DeviceKernels) -> DeviceModel:
    """Return a model and its KV pool without numbers, of one layer, since all are alike."""
    plan = dataclasses.replace(
        plan, model_config=dataclasses.replace(plan.model_config, n_layers=1)
    )
    read = MODELS[plan.model_config.architecture]
    with ShapesOnly(plan) as weights:
        decoder = read(
            plan.model_config, weights=weights, max_model_len=plan.max_len, dtype=plan.dtype
        )
    n_tokens = plan.model_config.vocab_size
    is_whole = plan.shard.n_ranks == 1
    model = plan.model(
        decoder,
        kernels=kernels,
        device=META,
        reduce=None if is_whole else lambda x: x,
        gather=None if is_whole else lambda part: part.new_empty(len(part), n_tokens),
    )
    model.pool = plan.pool(1, device=META)
    return model


def rehearse(plan: DevicePlan, *, kernels: DeviceKernels) -> None:
    """Have ``kernels`` called for every step that is computed while an engine starts."""
    model = shapes_only(plan, kernels=kernels)
    sampler = DeviceSampler(kernels, device=META)
    warm_up(model, sampler, config=plan.config)
    with torch.inference_mode():
        for n_rows in graph_sizes(plan.config.max_sequences):
            numbers = torch.zeros(decode_length(n_rows), dtype=torch.int32, device=META)
            model.decode_and_draw(n_rows, numbers=numbers)


@contextmanager
def compiling_ahead(plan: DevicePlan, *, kernels: DeviceKernels) -> Iterator[None]:
    """Rehearse, and have Triton's kernels compiled while the context is at it; leaving it waits for
    them. What cannot be compiled fails where it is launched."""
    from engine_service.kernels.triton.compiling import compiling_in_threads, launching_nothing

    with compiling_in_threads():
        with launching_nothing():
            rehearse(plan, kernels=kernels)
        yield

"""What the kernels ask about the GPU that they run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """capability: CUDA's. n_processors: multiprocessors. shared_bytes: of shared memory, what one
    program may have at most."""

    capability: tuple[int, int]
    n_processors: int
    shared_bytes: int


# What Triton's interpreter is taken for.
_INTERPRETED: Final = Gpu(capability=(0, 0), n_processors=4, shared_bytes=227 * 1024)
_assumed: Gpu | None = None


def gpu_of(device: torch.device) -> Gpu:
    return _assumed or _found(device)


@contextmanager
def assuming(gpu: Gpu) -> Iterator[None]:
    """Take every device for this GPU: to compile for one that is not there."""
    global _assumed
    before, _assumed = _assumed, gpu
    try:
        yield
    finally:
        _assumed = before


@cache
def _found(device: torch.device) -> Gpu:
    if device.type != "cuda":
        return _INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        capability=torch.cuda.get_device_capability(device),
        n_processors=properties.multi_processor_count,
        # Torch's types leave it out.
        shared_bytes=getattr(properties, "shared_memory_per_block_optin", 0),
    )

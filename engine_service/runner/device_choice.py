"""Which device a model is computed on, and in which numbers."""

import logging
from typing import Final

import torch

from engine_service.config import EngineConfig
from engine_service.errors import ModelError

logger = logging.getLogger(__name__)

_CPU: Final = torch.device("cpu")
# CUDA's compute capability, (major, minor), from which on Triton compiles for these numbers.
_BFLOAT16_SINCE: Final = (8, 0)
_FP8_SINCE: Final = (8, 9)


def is_cuda(config: EngineConfig) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()


def device_of(config: EngineConfig, *, rank: int = 0) -> torch.device:
    """Return a rank's device, from now on the one that this process uses."""
    if not is_cuda(config):
        return _CPU
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device


def dtype_on(config: EngineConfig, *, device: torch.device) -> torch.dtype:
    """Return what a model is computed in. Raises ModelError where numbers are asked for that the
    GPU lacks."""
    if device.type != "cuda":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    return gpu_dtype(config, capability=torch.cuda.get_device_capability(device))


def gpu_dtype(config: EngineConfig, *, capability: tuple[int, int]) -> torch.dtype:
    """Do so for a GPU of that compute capability."""
    for name in ("quantization", "kv_cache_dtype"):
        if getattr(config, name) == "fp8":
            _need(_FP8_SINCE, what=f"{name} fp8", found=capability)
    if config.dtype == "auto" and capability < _BFLOAT16_SINCE:
        logger.warning("this GPU computes no bfloat16: float32 takes twice the memory")
        return torch.float32
    if config.dtype == "float32":
        return torch.float32
    _need(_BFLOAT16_SINCE, what="dtype bfloat16", found=capability)
    return torch.bfloat16


def _need(least: tuple[int, int], *, what: str, found: tuple[int, int]) -> None:
    if found < least:
        raise ModelError(
            f"{what} needs a GPU of compute capability {_dotted(least)} or more; this one has "
            f"{_dotted(found)}"
        )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))

"""What this machine computes well."""

from pathlib import Path

import torch

from engine_service.config import DTypeName

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def resolve_dtype(name: DTypeName, *, cpu_info: Path = _CPU_INFO) -> torch.dtype:
    """Return the dtype to compute in; ``auto`` takes bfloat16 only where it is native."""
    if name == "auto":
        name = "bfloat16" if _cpu_flags(cpu_info) & _BFLOAT16_FLAGS else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _cpu_flags(cpu_info: Path) -> frozenset[str]:
    if not cpu_info.is_file():
        return frozenset()
    for line in cpu_info.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()

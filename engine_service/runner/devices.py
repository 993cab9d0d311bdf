"""What this machine computes well."""

from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def multiplies_bfloat16(*, cpu_info: Path = _CPU_INFO) -> bool:
    """Say whether the processor has instructions for that."""
    return bool(_cpu_flags(cpu_info) & _BFLOAT16_FLAGS)


def _cpu_flags(cpu_info: Path) -> frozenset[str]:
    if not cpu_info.is_file():
        return frozenset()
    for line in cpu_info.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()

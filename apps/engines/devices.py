"""What this machine can run engines on: its processor and its GPUs, with their memory now, and the
disk that they may use. Reads the kernel's files and asks ``nvidia-smi``; knows no database and
imports no tensor library."""

import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from apps.engines.types import DeviceReport, NodeReport

logger = logging.getLogger(__name__)

_ROOT: Final = Path("/")
_NVIDIA_SMI: Final = "nvidia-smi"
_NVIDIA_DEADLINE_S: Final = 10.0
_NVIDIA_QUERY: Final = "index,uuid,name,memory.total,memory.free"
_MIB: Final = 2**20
# As the engine chooses: with its compiled kernels, and where the processor multiplies it.
_COMPILED_KERNELS: Final = "engine_service/kernels/cpu/_build"
_BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
# Of the disk, for all that is not an engine's.
_DISK_LEFT_BYTES: Final = 256 * _MIB
_PROJECT: Final = Path(__file__).resolve().parents[2]


def node_report(disk_dir: Path) -> NodeReport:
    """Look at this machine. disk_dir: where engines keep what they write, there or not yet. Waits
    for other programs: call it off the event loop."""
    return NodeReport(
        name=platform.node()[:120] or "localhost",
        n_cores=cores_usable(),
        devices=(processor(), *gpus(), disk(disk_dir)),
    )


def cores_usable(*, root: Path = _ROOT) -> int:
    """Return how many cores this process may keep busy: its affinity, or less by its cgroup."""
    n_cores = len(os.sched_getaffinity(0))
    words = _words(root / "sys/fs/cgroup/cpu.max")
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        n_cores = min(n_cores, max(1, round(int(words[0]) / int(words[1]))))
    return n_cores


def processor(*, root: Path = _ROOT) -> DeviceReport:
    """Return the processor with the memory of the machine, or of the cgroup where that is less."""
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in (root / "proc/meminfo").read_text().splitlines()
        if line.startswith(("MemTotal:", "MemAvailable:"))
    }
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    for limit, used in _cgroup_memory(root / "sys/fs/cgroup"):
        if limit < sizes["MemTotal"]:
            total = min(total, limit)
            free = min(free, max(0, limit - used))
    return DeviceReport(
        kind="cpu",
        index=0,
        uid="cpu",
        name=_processor_name(root / "proc/cpuinfo"),
        total_bytes=total,
        free_bytes=free,
        auto_dtype=_processor_dtype(root / "proc/cpuinfo"),
    )


def disk(directory: Path) -> DeviceReport:
    """Return what there is of the file system where a directory is, or will be."""
    there = next(each for each in (directory, *directory.parents) if each.exists())
    usage = shutil.disk_usage(there)
    return DeviceReport(
        kind="disk",
        index=0,
        uid="disk",
        name="Disk",
        total_bytes=usage.total,
        free_bytes=max(0, usage.free - _DISK_LEFT_BYTES),
        auto_dtype="",
    )


def gpus() -> tuple[DeviceReport, ...]:
    """Return the GPUs that NVIDIA's driver shows; none where there is no driver, or it hangs."""
    if (program := shutil.which(_NVIDIA_SMI)) is None:
        return ()
    command = [program, f"--query-gpu={_NVIDIA_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_DEADLINE_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("The GPUs of this machine cannot be read: %s", error)
        return ()
    return gpus_read(answer.stdout)


def gpus_read(text: str) -> tuple[DeviceReport, ...]:
    """Read what ``nvidia-smi`` says of ``_NVIDIA_QUERY``, without header and units. A line that is
    not so, such as of a GPU that fell off the bus, is left out."""
    found = []
    for line in text.splitlines():
        match [part.strip() for part in line.split(",")]:
            case [index, uuid, *name, total, free] if (
                index.isdigit() and uuid and name and total.isdigit() and free.isdigit()
            ):
                found.append(
                    DeviceReport(
                        kind="cuda",
                        index=int(index),
                        uid=uuid,
                        name=", ".join(name),
                        total_bytes=int(total) * _MIB,
                        free_bytes=int(free) * _MIB,
                        auto_dtype="bfloat16",
                    )
                )
            case _ if line.strip():
                logger.warning("nvidia-smi says what nobody here understands: %.200s", line)
    return tuple(found)


def _cgroup_memory(directory: Path) -> list[tuple[int, int]]:
    """Return limit and use of the cgroup, of version 2 and 1 as far as they are there. Files that
    the kernel keeps only while there is room for them count as unused."""
    found = []
    for limit_file, used_file, stat_file in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        limit, used = _words(directory / limit_file), _words(directory / used_file)
        if limit and used and limit[0].isdigit() and used[0].isdigit():
            words = _words(directory / stat_file)
            stats = dict(zip(words[::2], words[1::2], strict=False))
            cached = int(stats.get("total_inactive_file") or stats.get("inactive_file") or 0)
            found.append((int(limit[0]), max(0, int(used[0]) - cached)))
    return found


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _processor_name(cpu_info: Path) -> str:
    return _cpu_field(cpu_info, "model name")[:120] or platform.machine()


def _processor_dtype(cpu_info: Path, *, project: Path = _PROJECT) -> str:
    is_built = any((project / _COMPILED_KERNELS).glob("*.so"))
    flags = _cpu_field(cpu_info, "flags").split()
    return "bfloat16" if is_built or _BFLOAT16_FLAGS.intersection(flags) else "float32"


def _cpu_field(cpu_info: Path, name: str) -> str:
    """Return what the first processor says of itself; empty where it does not."""
    try:
        text = cpu_info.read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""

"""Measures what this machine does at best: copying, reading, multiplying matrices.

python -m benchmarks.gpu.rates --device cuda --output FILE
"""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch

from benchmarks.gpu.child import Child, child_options

GIB: Final = 1 << 30
N_ROUNDS: Final = 15


def seconds_of(work: Callable[[], object], *, device: str, n_rounds: int = N_ROUNDS) -> float:
    """Return the median time of one call, by the device's own clock where it has one."""
    for _ in range(3):
        work()
    if device == "cpu":
        return statistics.median(_on_host(work) for _ in range(n_rounds))
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(n_rounds)
    ]
    for begin, end in marks:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1e3


def _on_host(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def measure(device: str) -> dict[str, Any]:
    is_small = device == "cpu"
    n_bytes = (GIB >> 6) if is_small else 4 * GIB
    side = 256 if is_small else 8192
    source = torch.rand(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy_s = seconds_of(lambda: target.copy_(source), device=device)
    read_s = seconds_of(lambda: source.sum(), device=device)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product_s = seconds_of(lambda: a @ b, device=device)
    return {
        "copy_bytes_per_s": 2 * n_bytes / copy_s,
        "read_bytes_per_s": n_bytes / read_s,
        "flop_per_s": 2 * side**3 / product_s,
    }


def about(device: str) -> dict[str, Any]:
    """Say which machine and which software this is."""
    known: dict[str, Any] = {
        "device": "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        known |= {
            "device": properties.name,
            "n_multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / GIB, 1),
            "cuda": torch.version.cuda,
        }
    return known


def main() -> None:
    options = child_options(__doc__)
    child = Child(options.output)
    child.put("machine", about(options.device))
    child.put("rates", measure(options.device))


if __name__ == "__main__":
    main()

"""Triton's kernels compiled for a GPU that need not be there: what would launch one has it compiled
instead, by Triton and NVIDIA's assembler, and nothing runs."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from engine_service.kernels.triton.compiling import launching_nothing
from engine_service.kernels.triton.gpu import Gpu, assuming

_KIB: Final = 1024
# As NVIDIA's documentation of CUDA gives them: capability, multiprocessors, shared memory that a
# block of threads may have.
GPUS: Final = {
    "T4": Gpu(capability=(7, 5), n_processors=40, shared_bytes=64 * _KIB),
    "A100": Gpu(capability=(8, 0), n_processors=108, shared_bytes=163 * _KIB),
    "A10": Gpu(capability=(8, 6), n_processors=72, shared_bytes=99 * _KIB),
    "L40S": Gpu(capability=(8, 9), n_processors=142, shared_bytes=99 * _KIB),
    "H200": Gpu(capability=(9, 0), n_processors=132, shared_bytes=227 * _KIB),
    "B200": Gpu(capability=(10, 0), n_processors=148, shared_bytes=227 * _KIB),
    "RTX 5090": Gpu(capability=(12, 0), n_processors=170, shared_bytes=99 * _KIB),
}
_DUMP: Final = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_USAGE: Final = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """n_registers: of a thread. n_stack_bytes: of a thread, where registers did not suffice.
    shared_bytes: of a program."""

    name: str
    n_warps: int
    n_registers: int
    n_stack_bytes: int
    shared_bytes: int


class _Driver:
    """What Triton asks its driver for when it compiles."""

    def __init__(self, gpu: Gpu) -> None:
        major, minor = gpu.capability
        self._target = GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        # What is compiled is kept by device.
        arch: int = self._target.arch
        return arch

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


class Compiler:
    """kernels: what was compiled, in order, each variant once."""

    def __init__(self) -> None:
        self.kernels: list[Compiled] = []
        self._seen: dict[int, Any] = {}

    def around(self, name: str, compiled: Callable[[], Any]) -> Any:
        kernel = compiled()
        if id(kernel) not in self._seen:
            self._seen[id(kernel)] = kernel
            self.kernels.append(_described(name, kernel))
        return kernel


@contextmanager
def compiling(gpu: Gpu) -> Iterator[Compiler]:
    """Compile in place of launching, for this GPU. Not where Triton interprets."""
    compiler = Compiler()
    with driving(gpu), launching_nothing(compiler.around):
        yield compiler


@contextmanager
def noting(gpu: Gpu) -> Iterator[set[tuple[str, str]]]:
    """Neither launch nor compile: note the name of each kernel, and the key by which Triton tells
    its variants apart."""
    noted: set[tuple[str, str]] = set()
    compile_one = JITFunction._do_compile

    def note(function: Any, key: str, *_: Any) -> None:
        noted.add((function.fn.__name__, key))

    JITFunction._do_compile = note
    try:
        with driving(gpu), launching_nothing():
            yield noted
    finally:
        JITFunction._do_compile = compile_one


@contextmanager
def driving(gpu: Gpu) -> Iterator[None]:
    """Have Triton compile for this GPU, and the kernels be shaped for it."""
    active = driver._active
    driver.set_active(_Driver(gpu))  # type: ignore[arg-type]
    try:
        with assuming(gpu):
            yield
    finally:
        driver._active = active


def _described(name: str, kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        dumped = subprocess.run(
            [_DUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    usage = _USAGE.search(dumped.stdout)
    if usage is None:
        raise ValueError(f"cuobjdump says nothing about {name}: {dumped.stdout}")
    n_registers, n_stack_bytes, _, n_local_bytes = map(int, usage.groups())
    return Compiled(
        name=name,
        n_warps=kernel.metadata.num_warps,
        n_registers=n_registers,
        n_stack_bytes=n_stack_bytes + n_local_bytes,
        shared_bytes=kernel.metadata.shared,
    )

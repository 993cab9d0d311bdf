"""The compiled kernels for tests: built on first use where there is a compiler."""

import pytest

from engine_service.config import KernelsName
from engine_service.kernels.cpu.build import build, library_path, obstacle
from engine_service.kernels.cpu.library import Library, load_library


def compiled_library() -> Library:
    """The library, or a skipped test on a machine that cannot have one."""
    if not library_path().exists() and (reason := obstacle()):
        pytest.skip(f"no compiled kernels: {reason}")
    build()
    library = load_library()
    assert library is not None
    if not library.instruction_sets:
        pytest.skip("no compiled kernels for this processor")
    return library


def best_kernels() -> KernelsName:
    """The compiled ones, or the reference on a machine that cannot have those."""
    try:
        compiled_library()
    except pytest.skip.Exception:
        return "reference"
    return "compiled"

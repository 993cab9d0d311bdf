"""A rank of a test, which fails as the file that RANK_IN_NEED names says, while that is there."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from engine_service.runner import rank
from engine_service.runner.device_memory import DeviceMemory

VARIABLE = "RANK_IN_NEED"
MODULE = "tests.integration.engine.rank_in_need"
FAILURES: dict[str, Exception] = {
    "no host memory": MemoryError(),
    "no device memory": torch.OutOfMemoryError("another engine has it"),
    "boom": ValueError("boom"),
}


def failing(method: Any, *kinds: str) -> Any:
    file = Path(os.environ[VARIABLE])

    def call(self: DeviceMemory, *arguments: Any) -> Any:
        if file.exists() and (kind := file.read_text()) in kinds:
            raise FAILURES[kind]
        return method(self, *arguments)

    return call


if __name__ == "__main__":
    DeviceMemory.save_next = failing(  # type: ignore[method-assign]
        DeviceMemory.save_next, "no host memory"
    )
    DeviceMemory._bytes = failing(  # type: ignore[method-assign]
        DeviceMemory._bytes, "no device memory", "boom"
    )
    code = rank.main(sys.argv[1:])
    os._exit(code)

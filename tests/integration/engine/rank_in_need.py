"""A rank of a test, which fails as the file that RANK_IN_NEED names says, while that is there."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from engine_service.errors import ModelError
from engine_service.runner import rank
from engine_service.runner.device_memory import DeviceMemory
from engine_service.runner.kv_tiers import KVTiers

VARIABLE = "RANK_IN_NEED"
MODULE = "tests.integration.engine.rank_in_need"
FAILURES: dict[str, Exception] = {
    "no host memory": MemoryError(),
    "no device memory": torch.OutOfMemoryError("another engine has it"),
    "no memory for tiers": ModelError("1.0 GiB of host memory cannot be had"),
    "boom": ValueError("boom"),
}


def failing(method: Any, *kinds: str) -> Any:
    file = Path(os.environ[VARIABLE])

    def call(*arguments: Any, **options: Any) -> Any:
        if file.exists() and (kind := file.read_text()) in kinds:
            raise FAILURES[kind]
        return method(*arguments, **options)

    return call


if __name__ == "__main__":
    DeviceMemory.save_next = failing(  # type: ignore[method-assign]
        DeviceMemory.save_next, "no host memory"
    )
    DeviceMemory._bytes = failing(  # type: ignore[method-assign]
        DeviceMemory._bytes, "no device memory", "boom"
    )
    KVTiers.__init__ = failing(  # type: ignore[method-assign]
        KVTiers.__init__, "no memory for tiers"
    )
    code = rank.main(sys.argv[1:])
    os._exit(code)

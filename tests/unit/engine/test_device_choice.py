"""Numbers that a GPU lacks are refused by name, before a weight is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine_service.config import EngineConfig
from engine_service.errors import ModelError
from engine_service.runner.device_choice import gpu_dtype

TURING, AMPERE, ADA, HOPPER = (7, 5), (8, 0), (8, 9), (9, 0)


def dtype(capability: tuple[int, int], **settings: Any) -> torch.dtype:
    config = EngineConfig(model_dir=Path("m"), device="cuda", **settings)
    return gpu_dtype(config, capability=capability)


def test_bfloat16_where_there_is_any() -> None:
    for capability in (AMPERE, ADA, HOPPER, (10, 0), (12, 0)):
        assert dtype(capability) == dtype(capability, dtype="bfloat16") == torch.bfloat16
        assert dtype(capability, dtype="float32") == torch.float32
    assert dtype(ADA, quantization="fp8", kv_cache_dtype="fp8") == torch.bfloat16
    assert dtype(AMPERE, quantization="int8") == torch.bfloat16


def test_float32_where_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    assert dtype(TURING) == torch.float32
    assert "this GPU computes no bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("capability", "settings", "words"),
    [
        (TURING, {"dtype": "bfloat16"}, "dtype bfloat16 needs a GPU of compute capability 8.0 or"),
        (AMPERE, {"quantization": "fp8"}, "quantization fp8 needs a GPU of compute capability 8.9"),
        (AMPERE, {"kv_cache_dtype": "fp8"}, "kv_cache_dtype fp8 needs a GPU of compute capab"),
        ((8, 6), {"kv_cache_dtype": "fp8"}, "or more; this one has 8.6"),
    ],
)
def test_what_a_gpu_lacks_is_refused(
    capability: tuple[int, int], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        dtype(capability, **settings)

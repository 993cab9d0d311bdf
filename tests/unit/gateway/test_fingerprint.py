"""What ``system_fingerprint`` tells apart: all that decides which tokens a seed gives."""

from dataclasses import replace
from typing import Any

import pytest

from apps.engines.types import EngineInfo
from apps.gateway.attempt import fingerprint

INFO = EngineInfo(
    epoch=1, pid=2, model="m", architecture="LlamaForCausalLM", dtype="bfloat16", device="cuda",
    kernels="triton with flash-attn 3 decode", backend="native", vocab_size=3, max_model_len=4,
    block_size=16, n_blocks=5, max_sequences=6, task="generate", embedding_size=None,
    quantization="none",
)  # fmt: skip


def test_it_names_the_model_and_what_computes_it() -> None:
    found = fingerprint(7, INFO)
    assert found == "fp_7_native_bfloat16_none_triton-with-flash-attn-3-decode"
    assert fingerprint(7, replace(INFO, kv_cache_dtype="fp8")) == f"{found}_kv-fp8"


@pytest.mark.parametrize(
    "changed",
    [
        {"backend": "nanovllm"},
        {"dtype": "float32"},
        {"quantization": "fp8"},
        {"kernels": "triton"},
        {"kv_cache_dtype": "fp8"},
    ],
    ids=str,
)
def test_each_of_them_makes_another_one(changed: dict[str, Any]) -> None:
    assert fingerprint(7, replace(INFO, **changed)) != fingerprint(7, INFO)
    assert fingerprint(8, INFO) != fingerprint(7, INFO)

"""What the nanovllm backend needs is asked for before anything is loaded, and named where it lacks;
and what of nano-vllm is replaced while it loads."""

import json
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors.torch import save_file

from engine_service.__main__ import load_backend, parse_options
from engine_service.backends.base import EngineRequest
from engine_service.backends.nanovllm import loading
from engine_service.backends.nanovllm.loading import load_package
from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.protocol import SamplingParams
from tests.models import random_model_dir
from tests.nano_vllm import FakeRunner, answer, require_nano_vllm

MIB = 2**20
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500_000,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


def make_config(tmp_path: Path, settings: dict[str, Any] | None = None, **model: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps({**QWEN3, **model}))
    return EngineConfig(model_dir=tmp_path, backend="nanovllm", **(settings or {}))


@pytest.fixture
def is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if both packages could be imported; nothing of them is used."""
    for name in ("flash_attn", "nanovllm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


@pytest.mark.parametrize(
    ("settings", "model", "said"),
    [
        ({"quantization": "int8"}, {}, "quantization=int8 is not supported by the nanovllm"),
        ({"kv_cache_dtype": "fp8"}, {}, "kv_cache_dtype=fp8 is not supported by the nanovllm"),
        ({"kernels": "reference"}, {}, "kernels=reference is not supported by the nanovllm"),
        ({"tensor_parallel": 2}, {}, "tensor_parallel=2 is not supported by the nanovllm"),
        ({"host_kv_cache_bytes": 9}, {}, "host_kv_cache_bytes=9 is not supported by the nanovllm"),
        ({"target_itl_s": 0.1}, {}, "target_itl_s=0.1 is not supported by the nanovllm"),
        ({"device": "cpu"}, {}, "device=cpu is not supported by the nanovllm backend"),
        ({"dtype": "float32"}, {}, "dtype=float32 is not supported by the nanovllm backend"),
        ({"kv_cache_tokens": 255}, {}, "must hold at least one block of 256 tokens"),
        ({"max_model_len": 513}, {}, "beyond the model's context of 512 tokens"),
        ({}, {"architectures": ["LlamaForCausalLM"]}, "runs Qwen3ForCausalLM only, not Llama"),
        ({}, {"head_dim": 512}, "a head_dim of up to 256, not 512"),
        ({}, {"head_dim": 24}, "to be a power of two, not 48"),
        ({}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "no scaled rotary"),
    ],
)
def test_settings_and_models_that_it_does_not_know_are_refused_first(
    tmp_path: Path, settings: dict[str, Any], model: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load_package(make_config(tmp_path, settings, **model))


@pytest.mark.parametrize("missing", ["flash_attn", "nanovllm"])
def test_a_missing_package_is_named(
    tmp_path: Path, missing: str, is_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModelError, match=f"the nanovllm backend needs the package {missing},"):
        load_backend(make_config(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(tmp_path: Path, is_installed: None) -> None:
    with pytest.raises(ModelError, match="needs a GPU, and CUDA shows none"):
        load_backend(make_config(tmp_path))


def test_the_command_line_chooses_it() -> None:
    line = ["--model", "m", "--socket", "s", "--epoch", "1"]
    assert parse_options(line).engine.backend == "native"
    assert parse_options([*line, "--backend", "nanovllm"]).engine.backend == "nanovllm"
    with pytest.raises(ModelError, match="--backend"):
        parse_options([*line, "--backend", "vllm"])


def test_blocks_have_what_flash_attn_takes(tmp_path: Path) -> None:
    sizes = {16: 256, 512: 512}
    for asked, used in sizes.items():
        assert loading._settled(make_config(tmp_path, {"block_size": asked})).block_size == used


@pytest.mark.parametrize("is_tied", [True, False])
def test_tensors_that_lack_or_are_misshapen_are_named(tmp_path: Path, is_tied: bool) -> None:
    """nano-vllm itself would leave the first as it was allocated."""
    make_config(tmp_path, tie_word_embeddings=is_tied)
    model = ModelConfig.from_dir(tmp_path)
    whole = {name: torch.zeros(shape) for name, shape in loading._tensor_shapes(model)}
    assert ("lm_head.weight" in whole) is not is_tied
    assert len(whole) == 2 + 11 * 2 + (not is_tied)

    def check(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / "model.safetensors")
        loading._check_tensors(tmp_path, model)

    check(whole)
    check({**whole, "lm_head.weight": torch.zeros(32, 16)})
    name = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(ModelError, match=f"lacks the tensor {name}"):
        check({key: value for key, value in whole.items() if key != name})
    with pytest.raises(ModelError, match=rf"{name} has the shape \(1, 16\), .* says \(16, 16\)"):
        check({**whole, name: torch.zeros(1, 16)})
    with pytest.raises(ModelError, match=r"unknown tensor, or one twice: model\.extra"):
        check({**whole, "model.extra": torch.zeros(1)})


def test_what_nano_vllm_is_told(tmp_path: Path) -> None:
    package = require_nano_vllm()
    make_config(tmp_path)
    sizes = package.Sizes(
        block_size=256, max_sequences=20, max_batched_tokens=64, max_model_len=400
    )
    told = package.make_config(
        str(tmp_path), sizes=sizes, dtype=torch.bfloat16, rope_theta=500_000.0
    )
    assert told.hf_config.dtype is torch.bfloat16
    # A batch of 20 must find a CUDA graph: there are some for each 16.
    assert (told.max_num_seqs, told.max_num_batched_tokens, told.max_model_len) == (32, 64, 400)
    # Of several ranks it would share memory of a fixed name.
    assert told.tensor_parallel_size == 1
    assert told.gpu_memory_utilization == 0.9
    told.num_kvcache_blocks = 5  # as its runner does
    scheduler = package.make_scheduler(told, max_sequences=20)
    assert (scheduler.max_num_seqs, len(scheduler.block_manager.blocks)) == (20, 5)
    with pytest.raises(ModelError, match="for the model's rope_theta, which is 1000000"):
        package.make_config(
            str(tmp_path), sizes=sizes, dtype=torch.bfloat16, rope_theta=1_000_000.0
        )


@pytest.mark.parametrize(("n_asked", "n_given"), [(7, 7), (None, 28)])
def test_the_pool_gets_its_number_of_blocks_or_its_share_of_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_asked: int | None, n_given: int
) -> None:
    """By nano-vllm's own formula, on a GPU of which only the memory's figures are made up: 20 MiB,
    of which 3 are used, and 1 more was while it warmed up. A block has half a MiB."""
    package = require_nano_vllm()
    make_config(tmp_path, num_key_value_heads=4, head_dim=64)
    sizes = package.Sizes(block_size=256, max_sequences=4, max_batched_tokens=64, max_model_len=400)
    told = package.make_config(
        str(tmp_path), sizes=sizes, dtype=torch.bfloat16, rope_theta=500_000.0
    )
    figures = {"allocated_bytes.all.peak": 2 * MIB, "allocated_bytes.all.current": MIB}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (17 * MIB, 20 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: figures)
    runner = package.PooledRunner.__new__(package.PooledRunner)
    runner.config, runner.block_size, runner.world_size = told, 256, 1
    runner._n_blocks, runner.model = n_asked, torch.nn.Module()
    runner.allocate_kv_cache()
    assert told.num_kvcache_blocks == n_given
    assert tuple(runner.kv_cache.shape) == (2, 2, n_given, 256, 4, 64)
    runner.kv_cache.fill_(1.0)
    runner.clear([0, 5])
    blank = (runner.kv_cache == 0.0).flatten(3).all(dim=-1)
    assert {tuple(layer.nonzero()[:, 0].tolist()) for layer in blank.flatten(0, 1)} == {(0, 5)}


@pytest.mark.parametrize("kv_cache_tokens", [1100, None])
def test_a_model_is_loaded_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_cache_tokens: int | None
) -> None:
    """All of it but the model runner, in whose place is the fake one."""
    package = require_nano_vllm()
    # First, since transformers asks whether there is a flash_attn.
    model_dir = random_model_dir(
        tmp_path, "qwen3", head_dim=16, max_position_embeddings=4096, num_hidden_layers=1
    )
    for name in ("flash_attn", "nanovllm"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, ModuleType(name)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[int | None] = []

    def make_runner(config: Any, *, n_blocks: int | None) -> FakeRunner:
        asked.append(n_blocks)
        config.num_kvcache_blocks = 4
        return FakeRunner(n_blocks=4)

    monkeypatch.setattr(package, "PooledRunner", make_runner)
    backend = load_backend(
        EngineConfig(
            model_dir=model_dir,
            backend="nanovllm",
            kv_cache_tokens=kv_cache_tokens,
            max_sequences=3,
            max_batched_tokens=100,
        )
    )
    assert asked == [None if kv_cache_tokens is None else 4]
    info = backend.info
    assert (info.backend, info.architecture) == ("nanovllm", "Qwen3ForCausalLM")
    assert (info.n_blocks, info.block_size, info.max_model_len) == (4, 256, 1024)
    assert (info.max_sequences, info.eos_token_ids) == (3, {257})
    prompt = tuple(range(250))
    backend.add(
        EngineRequest(key=1, prompt_token_ids=prompt, sampling=SamplingParams(), max_new_tokens=9)
    )
    found: list[int] = []
    while backend.has_work():
        found += [token for output in backend.step() for token in output.token_ids]
    assert found == answer(prompt, n_tokens=9)


def test_its_process_group_takes_no_port() -> None:
    package = require_nano_vllm()
    taken = socket.socket()
    with taken, package.private_rendezvous():
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 2333))  # as a second engine on this machine would hold it
        taken.listen()
        dist = package.model_runner.dist
        dist.init_process_group("gloo", "tcp://localhost:2333", world_size=1, rank=0)
        try:
            assert (dist.get_world_size(), dist.get_rank()) == (1, 0)
            with pytest.raises(ValueError, match="twice"):
                torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore())
        finally:
            dist.destroy_process_group()
    assert package.model_runner.dist is torch.distributed

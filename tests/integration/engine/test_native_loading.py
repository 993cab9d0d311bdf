"""What the native backend refuses to load: weights that do not fit, files that were altered."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine_service.errors import ModelError
from tests.integration.engine.backend import altered, make_backend


def set_tensor(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks the tensor model.norm.weight"),
        (
            set_tensor("model.norm.weight", torch.zeros(63)),
            r"model.norm.weight has the shape \(63,\), the configuration says \(64,\)",
        ),
        (
            set_tensor("model.norm.weight", torch.zeros(64, dtype=torch.int32)),
            "model.norm.weight is of type I32",
        ),
        (
            set_tensor("model.layers.0.self_attn.q_proj.bias", torch.zeros(64)),
            "1 unknown tensors, such as model.layers.0.self_attn.q_proj.bias",
        ),
    ],
)
def test_refuses_weights_that_do_not_fit(
    model_dir: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
    kernels: str,
) -> None:
    with pytest.raises(ModelError, match=message):
        make_backend(altered(model_dir, tmp_path, change), kernels=kernels)


def test_refuses_an_altered_file(model_dir: Path, tmp_path: Path, kernels: str) -> None:
    copy = altered(model_dir, tmp_path, lambda tensors: None)
    make_backend(copy, kernels=kernels)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="was altered"):
        make_backend(copy, kernels=kernels)


@pytest.mark.parametrize("name", ["more.safetensors", "weights.bin", "special_tokens.json"])
def test_refuses_a_file_beside_the_manifest(
    model_dir: Path, tmp_path: Path, name: str, kernels: str
) -> None:
    copy = altered(model_dir, tmp_path, lambda tensors: None)
    (copy / name).write_bytes(b"x")
    with pytest.raises(ModelError, match="not listed"):
        make_backend(copy, kernels=kernels)


def test_refuses_an_architecture_by_name(model_dir: Path, tmp_path: Path, kernels: str) -> None:
    copy = altered(model_dir, tmp_path, lambda tensors: None)
    config = copy / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MambaForCausalLM"))
    with pytest.raises(ModelError, match=r"MambaForCausalLM'\] is not supported"):
        make_backend(copy, kernels=kernels)

"""Makes the model that is measured, with random weights, as a verified model directory.

    python -m benchmarks.gpu.model --shape qwen3-0.6b --device cuda MODEL_DIR

Speed depends on shapes alone, so that random weights of the exact configuration do; what the model
says is noise, and answers are of given lengths.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gpu.shape import SHAPES, Shape
from engine_service.models.manifest import ManifestSource, ModelFacts, write_manifest

SPREAD = 0.02
SPECIAL = ("<|im_start|>", "<|im_end|>")


def make_model(directory: Path, *, shape: Shape, device: str) -> Path:
    """Write configuration, weights, tokenizer and manifest into a new directory."""
    directory.mkdir(parents=True)
    config = shape.as_config()
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (directory / "generation_config.json").write_text(json.dumps(special))
    weights = random_weights(shape, device=device)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(directory, shape=shape)
    write_manifest(
        directory,
        ModelFacts(
            architecture="Qwen3ForCausalLM",
            n_parameters=sum(tensor.numel() for tensor in weights.values()),
            context_length=shape.context_length,
            vocab_size=shape.vocab_size,
            dtype="bfloat16",
            license="",
            source=ManifestSource(name="random", sha256="0" * 64),
        ),
    )
    return directory


def random_weights(shape: Shape, *, device: str) -> dict[str, Tensor]:
    """Return every tensor by the name that a checkpoint gives it."""
    generator = torch.Generator(device).manual_seed(0)

    def matrix(n_out: int, n_in: int) -> Tensor:
        values = torch.empty(n_out, n_in, dtype=torch.bfloat16, device=device)
        return values.normal_(0.0, SPREAD, generator=generator).cpu()

    def ones(n: int) -> Tensor:
        return torch.ones(n, dtype=torch.bfloat16)

    hidden, head_dim = shape.hidden_size, shape.head_dim
    n_q, n_kv = shape.n_heads * head_dim, shape.n_kv_heads * head_dim
    weights = {
        "model.embed_tokens.weight": matrix(shape.vocab_size, hidden),
        "model.norm.weight": ones(hidden),
    }
    for layer in range(shape.n_layers):
        tensors = {
            "input_layernorm": ones(hidden),
            "post_attention_layernorm": ones(hidden),
            "self_attn.q_proj": matrix(n_q, hidden),
            "self_attn.k_proj": matrix(n_kv, hidden),
            "self_attn.v_proj": matrix(n_kv, hidden),
            "self_attn.o_proj": matrix(hidden, n_q),
            "self_attn.q_norm": ones(head_dim),
            "self_attn.k_norm": ones(head_dim),
            "mlp.gate_proj": matrix(shape.intermediate_size, hidden),
            "mlp.up_proj": matrix(shape.intermediate_size, hidden),
            "mlp.down_proj": matrix(hidden, shape.intermediate_size),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": t for name, t in tensors.items()}
    return weights


def _write_tokenizer(directory: Path, *, shape: Shape) -> None:
    """Bytes, two special tokens and, for every other id of the model, a word that no text becomes:
    each token has text, as those of real models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*alphabet, *SPECIAL))}
    vocab |= {f"\u0120w{i:x}": i for i in range(len(vocab), shape.vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "model_max_length": shape.context_length,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    make_model(options.model_dir, shape=SHAPES[options.shape], device=options.device)


if __name__ == "__main__":
    main()

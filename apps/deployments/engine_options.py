"""What an engine refuses of how it stores keys and values, guesses and attends, of several devices,
sleep and memory tiers, and what nano-vllm refuses at all, said by field before it is started. The
rules are those of ``engine_service``: ``models/shard.py``, ``config.py``,
``kernels/libraries/flash_attention.py``, and what the processor's kernels, embedding models and the
other backend do not have."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from django.template.defaultfilters import filesizeformat

from apps.engines.types import NANOVLLM_ARCHITECTURES, NANOVLLM_DEVICE
from apps.registry.selectors import model_shape

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.registry.types import ModelShape

# As our engine has it: tokens in a block, and inputs that share a scale.
_BLOCK_TOKENS: Final = 16
_INT8_GROUP: Final = 32
_SEAL_BYTES: Final = 16  # of each part of a block on disk
_FLASH_ATTN_HEADS: Final = 8  # in two bytes a number, it reads 16 at once
# What an engine has on any device.
_ANYWHERE: Final = frozenset({"tensor_parallel", "speculation"})
_WORDS: Final = ("kv_cache_dtype", "speculation", "attention")
_SPECULATION_SAID: Final = {"off": "guesses nothing", "ngram": "guesses by prompt lookup"}
_ATTENTION_SAID: Final = {"triton": "our kernels", "flashinfer": "FlashInfer"}
_NOBODY_KNOWS: Final = "Nobody knows the sizes of this version's parts: import it again."


def wrong_options(deployment: "Deployment") -> dict[str, str]:
    """Return what is wrong, by field; nothing of options that are left as they are."""
    chosen = _chosen(deployment)
    if not chosen:
        return {}
    if deployment.remote is not None:
        return dict.fromkeys(chosen, "A remote server sees to that itself.")
    if deployment.backend != "native":
        return dict.fromkeys(chosen, "nano-vllm does not have this: let our own engine run it.")
    if deployment.task == "embed":
        return dict.fromkeys(chosen, "An embedding model does not have this.")
    shape = None if deployment.model_version is None else model_shape(deployment.model_version)
    errors: dict[str, str] = {}
    if "tensor_parallel" in chosen:
        errors |= _wrong_parts(deployment, shape)
    if deployment.device_class != "cuda":
        others = chosen.keys() - _ANYWHERE
        errors |= dict.fromkeys(others, "This needs a GPU: let it run on one.")
    else:
        if "host_kv_cache_bytes" in chosen:
            errors |= _wrong_tiers(deployment, shape)
        if text := _unfit_attention(deployment):
            errors["attention"] = text
    if "speculation" in chosen and deployment.draft_version is not None:
        errors["speculation"] = (
            "The draft model guesses: leave this as it was, or take the draft model away."
        )
    if deployment.disk_kv_cache_bytes and not deployment.host_kv_cache_bytes:
        errors["disk_kv_cache_bytes"] = (
            "What goes to disk goes through host memory: give it some of that, too."
        )
    return errors


def wrong_nanovllm(deployment: "Deployment") -> dict[str, str]:
    """Return what nano-vllm would refuse of a version and how it is to run, by field."""
    version = deployment.model_version
    errors: dict[str, str] = {}
    if version is not None and version.architecture not in NANOVLLM_ARCHITECTURES:
        errors["backend"] = f"nano-vllm runs Qwen3 only; {version} is a {version.architecture}."
    if deployment.device_class != NANOVLLM_DEVICE:
        errors["device_class"] = "nano-vllm runs on a GPU only: say so."
    if deployment.dtype == "float32":
        errors["dtype"] = "nano-vllm computes in bfloat16."
    if deployment.quantization != "none":
        errors["quantization"] = "nano-vllm runs a model with its weights as they are."
    return errors


def wrong_sizes(deployment: "Deployment") -> dict[str, str]:
    """Return what of its steps and contexts does not go together, by field."""
    errors: dict[str, str] = {}
    version, most = deployment.model_version, deployment.max_model_len
    if deployment.max_batched_tokens < deployment.max_sequences:
        errors["max_batched_tokens"] = (
            f"At least {deployment.max_sequences}, so that every request of a step gets a token."
        )
    if most is not None and most > deployment.kv_cache_tokens:
        errors["max_model_len"] = (
            f"At most the {deployment.kv_cache_tokens} tokens that may be held in all."
        )
    elif most is not None and version is not None and most > version.context_length:
        errors["max_model_len"] = (
            f"At most the {version.context_length} tokens that the model allows."
        )
    return errors


def options_said(deployment: "Deployment") -> str:
    """Say to a person which of them are chosen, and who guesses."""
    said: dict[str, Callable[[Any], str]] = {
        "kv_cache_dtype": lambda name: f"keys and values in {name}",
        "speculation": lambda name: _SPECULATION_SAID[name],
        "attention": lambda name: f"attention by {_ATTENTION_SAID.get(name, name)}",
        "tensor_parallel": lambda n: f"{n} processes hold the model together",
        "sleep_after_s": lambda n: f"sleeps after {n} s without work",
        "host_kv_cache_bytes": lambda n: f"{filesizeformat(n)} of host memory for its cache",
        "disk_kv_cache_bytes": lambda n: f"{filesizeformat(n)} of disk for its cache",
    }
    words = [said[name](value) for name, value in _chosen(deployment).items()]
    if deployment.draft_version is not None:
        words.append(f"{deployment.draft_version} guesses for it")
    return ", ".join(words)


def _block_bytes(shape: "ModelShape", deployment: "Deployment") -> int:
    """Return what one block of the KV cache takes, all its parts on their GPUs together: each has a
    K/V head at least."""
    n_parts = deployment.tensor_parallel
    width = 4 if deployment.dtype == "float32" else 2
    if deployment.kv_cache_dtype == "fp8":
        width = 1
    n_heads = n_parts * max(1, shape.n_kv_heads // n_parts)
    n_values = 2 * shape.n_layers * n_heads * shape.head_dim
    return n_values * _BLOCK_TOKENS * width


def _chosen(deployment: "Deployment") -> Mapping[str, int | str]:
    words = {name: getattr(deployment, name) for name in _WORDS}
    n = deployment.tensor_parallel
    given: dict[str, int | str | None] = {
        **{name: None if word == "auto" else word for name, word in words.items()},
        "tensor_parallel": n if n and n > 1 else None,
        "sleep_after_s": deployment.sleep_after_s,
        "host_kv_cache_bytes": deployment.host_kv_cache_bytes,
        "disk_kv_cache_bytes": deployment.disk_kv_cache_bytes,
    }
    return {name: value for name, value in given.items() if value is not None}


def _wrong_parts(deployment: "Deployment", shape: "ModelShape | None") -> dict[str, str]:
    n = deployment.tensor_parallel
    if deployment.device_class == "auto":
        return {"tensor_parallel": "Several devices are GPUs: say that it runs on one."}
    text = _NOBODY_KNOWS if shape is None else _uncut(shape, n, deployment.quantization)
    return {"tensor_parallel": text} if text else {}


def _uncut(shape: "ModelShape", n: int, quantization: str) -> str:
    """Say why the model cannot be cut into so many parts; empty where it can."""
    for name, size in (
        ("attention heads", shape.n_heads),
        ("inner values of a layer", shape.intermediate_size),
    ):
        if size % n:
            return f"The model's {size} {name} cannot be divided by {n}."
    if shape.n_kv_heads % n and n % shape.n_kv_heads:
        return (
            f"{n} must divide the model's {shape.n_kv_heads} K/V heads, or be a multiple of them."
        )
    for name, size in (
        ("values of all heads", shape.n_heads * shape.head_dim),
        ("inner values of a layer", shape.intermediate_size),
    ):
        if quantization == "int8" and size // n % _INT8_GROUP:
            return (
                f"int8 has a scale for {_INT8_GROUP} values, and the model's {size} {name} would "
                f"be cut into parts of {size // n}."
            )
    return ""


def _wrong_tiers(deployment: "Deployment", shape: "ModelShape | None") -> dict[str, str]:
    if shape is None:
        return {"host_kv_cache_bytes": _NOBODY_KNOWS}
    least = _block_bytes(shape, deployment)
    on_disk = least + deployment.tensor_parallel * _SEAL_BYTES
    least_of = {"host_kv_cache_bytes": least, "disk_kv_cache_bytes": on_disk}
    return {
        name: f"At least {n_bytes:,}: one block of the cache takes so much."
        for name, n_bytes in least_of.items()
        if (given := getattr(deployment, name)) is not None and given < n_bytes
    }


def _unfit_attention(deployment: "Deployment") -> str:
    """Say why none of a library's versions takes the model; empty where one may. What depends on
    the GPU and on what is installed only its engine knows."""
    if deployment.attention != "flash-attn":
        return ""
    if deployment.dtype == "float32":
        return "flash-attn computes in numbers of 16 bits, not in float32."
    if deployment.kv_cache_dtype == "fp8":
        return "flash-attn does not read keys and values in fp8: leave them as they are computed."
    for version in (deployment.model_version, deployment.draft_version):
        shape = None if version is None else model_shape(version)
        if shape is not None and shape.head_dim % _FLASH_ATTN_HEADS:
            return (
                f"flash-attn takes heads of a multiple of {_FLASH_ATTN_HEADS} values, and those of "
                f"{version} have {shape.head_dim}."
            )
    return ""

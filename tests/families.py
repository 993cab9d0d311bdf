"""Configurations of tiny random models that between them use all that the families know."""

from typing import Any

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 128}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: tied, grouped heads": ("llama", {}),
    "llama: untied, one head group": (
        "llama",
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
    ),
    "llama: untied, one kv head, wide heads": (
        "llama",
        {
            "tie_word_embeddings": False,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rope_theta": 500_000.0,
            "rms_norm_eps": 1e-5,
        },
    ),
    "llama: llama3 rotary": ("llama", {"rope_parameters": LLAMA3}),
    "mistral: no window": ("mistral", {"sliding_window": None, "tie_word_embeddings": False}),
    "mistral: a window as wide as the pool": ("mistral", {"sliding_window": 176}),
    "qwen2: tied": ("qwen2", {}),
    "qwen2: untied, yarn rotary": (
        "qwen2",
        {"tie_word_embeddings": False, "rope_parameters": YARN, "num_key_value_heads": 1},
    ),
    "qwen3: tied, wide heads": ("qwen3", {"head_dim": 32}),
    "qwen3: untied, narrow heads, linear rotary": (
        "qwen3",
        {
            "tie_word_embeddings": False,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
        },
    ),
}

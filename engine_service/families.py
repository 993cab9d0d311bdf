"""The model families that this engine runs, and what each one's configuration may ask for.

An option that is not implemented is refused by name here, never passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engine_service.json_fields import JsonFields


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the name of an architecture says without its configuration repeating it.

    qkv_bias: the projections of q, k and v have biases. qk_norm: each head of q and k is
    normalised. default_head_dim: None is hidden_size / heads. kv_heads_may_be_absent: then each
    head has its own; the other families' default fits one size only. window: whether layers attend
    to a sliding window of the newest tokens never, by ``sliding_window`` alone, or with a switch.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    default_head_dim: int | None = None
    kv_heads_may_be_absent: bool = False
    window: Literal["never", "stated", "switched"] = "never"


FAMILIES: Final[Mapping[str, Family]] = {
    "LlamaForCausalLM": Family(kv_heads_may_be_absent=True),
    "MistralForCausalLM": Family(window="stated"),
    "Qwen2ForCausalLM": Family(qkv_bias=True, window="switched"),
    "Qwen3ForCausalLM": Family(qk_norm=True, default_head_dim=128, window="switched"),
}
# What the format means by a field that is absent.
_DEFAULT_WINDOW: Final = 4096
_DEFAULT_FIRST_WINDOW_LAYER: Final = 28


def read_architecture(fields: JsonFields) -> str:
    """Return the one architecture of a configuration; raises ModelError unless it is ours."""
    value = fields.get("architectures")
    if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)):
        raise fields.wrong("architectures", expected="a list of one name")
    if value[0] not in FAMILIES:
        raise fields.unsupported("architectures", why=f"these are: {', '.join(FAMILIES)}")
    return value[0]


def refuse_unimplemented(fields: JsonFields, *, family: Family) -> None:
    fields.refuse_others(
        {
            "hidden_act": ("silu",),
            "attention_bias": (None, family.qkv_bias),
            "mlp_bias": (None, False),
            "rope_interleaved": (None, False),
            "quantization_config": (None,),
            "auto_map": (None,),
        }
    )


def read_sliding_window(fields: JsonFields, *, family: Family, n_layers: int) -> int | None:
    """Return how many tokens the layers with a window see; None where no layer has one."""
    if family.window == "never":
        fields.refuse_others({"sliding_window": (None,)})
    is_on = family.window == "stated" or (
        family.window == "switched" and fields.flag("use_sliding_window", default=False)
    )
    window = _stated_window(fields) if is_on else None
    kinds = _layer_kinds(fields, n_layers=n_layers)
    if window is None:
        if "sliding_attention" in kinds:
            raise fields.unsupported("layer_types", why="no sliding_window is on")
        return None
    if family.window == "stated":
        return window
    if kinds:
        return window if "sliding_attention" in kinds else None
    return window if _first_window_layer(fields) < n_layers else None


def _stated_window(fields: JsonFields) -> int | None:
    if "sliding_window" not in fields.values:
        return _DEFAULT_WINDOW
    return None if fields.get("sliding_window") is None else fields.positive_int("sliding_window")


def _first_window_layer(fields: JsonFields) -> int:
    value = fields.get("max_window_layers")
    if value is None:
        return _DEFAULT_FIRST_WINDOW_LAYER
    return 0 if value == 0 else fields.positive_int("max_window_layers")


def _layer_kinds(fields: JsonFields, *, n_layers: int) -> list[object]:
    """Return what each layer attends to, or nothing where the configuration does not say."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return []
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise fields.wrong("layer_types", expected=f"a list of {n_layers} names")
    if any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise fields.unsupported("layer_types")
    return kinds

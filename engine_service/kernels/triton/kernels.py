"""Triton's kernels as the device's: what ``DeviceKernels`` names, each in a file of its own."""

from engine_service.kernels.triton.activation import swiglu
from engine_service.kernels.triton.adjustments import adjust
from engine_service.kernels.triton.attention import decode_attention, prefill_attention
from engine_service.kernels.triton.few_rows_attention import (
    MAX_GROUP,
    MAX_HEAD_DIM,
    rotate_store_attend,
)
from engine_service.kernels.triton.linear import linear_add, norm_gate_up_swiglu, norm_linear
from engine_service.kernels.triton.norms import add_rms_norm, rms_norm
from engine_service.kernels.triton.quantized_linear import quantized_linear
from engine_service.kernels.triton.rotary import rotate_and_store
from engine_service.kernels.triton.sampling import sample

_MAX_FEW_ROWS = 4


class TritonKernels:
    name = "triton"

    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    rotate_and_store = staticmethod(rotate_and_store)
    decode_attention = staticmethod(decode_attention)
    prefill_attention = staticmethod(prefill_attention)
    quantized_linear = staticmethod(quantized_linear)
    swiglu = staticmethod(swiglu)
    norm_linear = staticmethod(norm_linear)
    linear_add = staticmethod(linear_add)
    norm_gate_up_swiglu = staticmethod(norm_gate_up_swiglu)
    rotate_store_attend = staticmethod(rotate_store_attend)
    adjust = staticmethod(adjust)
    sample = staticmethod(sample)

    def max_few_rows(self, *, group: int, head_dim: int) -> int:
        return _MAX_FEW_ROWS if group <= MAX_GROUP and head_dim <= MAX_HEAD_DIM else 0

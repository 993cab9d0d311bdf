"""Triton's kernels as the device's: what ``DeviceKernels`` names, each in a file of its own."""

from engine_service.kernels.triton.activation import swiglu
from engine_service.kernels.triton.adjustments import adjust
from engine_service.kernels.triton.attention import decode_attention, prefill_attention
from engine_service.kernels.triton.norms import add_rms_norm, rms_norm
from engine_service.kernels.triton.rotary import rotate_and_store
from engine_service.kernels.triton.sampling import sample


class TritonKernels:
    name = "triton"

    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    rotate_and_store = staticmethod(rotate_and_store)
    decode_attention = staticmethod(decode_attention)
    prefill_attention = staticmethod(prefill_attention)
    swiglu = staticmethod(swiglu)
    adjust = staticmethod(adjust)
    sample = staticmethod(sample)

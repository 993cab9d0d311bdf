"""What an engine on this GPU would attend with, and what each candidate takes.

    python -m benchmarks.gpu.attention --device cuda --output FILE

For the model that is measured, as ``--attention auto`` chooses when it is loaded. A process of its
own: a library's kernels may be compiled first, and one that fails may take the device with it.
"""

from typing import Any, Final

import torch

from benchmarks.gpu.child import Child, child_options
from benchmarks.gpu.shape import QWEN3_0_6B
from engine_service.kernels.paged_attention import Attention, AttentionShape
from engine_service.kernels.triton.kernels import TritonKernels
from engine_service.runner.attention_choice import choose_attention
from engine_service.runner.attention_trials import DeviceStopwatch, StepLimits

# As the engine that is measured has them.
LIMITS: Final = StepLimits(max_len=16_384, max_rows=512, max_tokens=16_384)
BLOCK_SIZE: Final = 16


@torch.inference_mode()
def choose() -> Attention:
    device = torch.device("cuda")
    return choose_attention(
        TritonKernels(),
        wanted="auto",
        shape=AttentionShape(
            n_heads=QWEN3_0_6B.n_heads,
            n_kv_heads=QWEN3_0_6B.n_kv_heads,
            head_dim=QWEN3_0_6B.head_dim,
            block_size=BLOCK_SIZE,
            dtype=torch.bfloat16,
            kv_dtype=torch.bfloat16,
            device=device,
        ),
        limits=LIMITS,
        stopwatch=DeviceStopwatch(device),
    )


def figures(chosen: Attention) -> dict[str, Any]:
    return {
        "decode": chosen.decode.name,
        "prefill": chosen.prefill.name,
        "times_us": {
            phase: {name: round(time_us, 1) for name, time_us in times.items()}
            for phase, times in chosen.times_us.items()
        },
        "refused": dict(chosen.refused),
    }


def main() -> None:
    options = child_options(__doc__)
    child = Child(options.output)
    if options.device == "cpu":
        child.put("left_out", "attention is chosen on a GPU")
        return
    child.put("chosen", figures(choose()))


if __name__ == "__main__":
    main()

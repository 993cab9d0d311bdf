"""What libraries are compared with when an engine starts, our kernels in Triton, agrees with plain
arithmetic on the very cases that decide."""

import pytest
import torch

from engine_service.kernels.device import TorchKernels
from engine_service.kernels.paged_attention import AttentionShape
from engine_service.kernels.triton.kernels import TritonKernels
from engine_service.runner.attention_trials import PHASES, StepLimits, Trials, difference

HAS_GPU = torch.cuda.is_available()
# Triton's interpreter computes bfloat16 products wrongly.
HALF = torch.bfloat16 if HAS_GPU else torch.float16


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "kv_dtype"),
    [(4, 2, 64, HALF), (6, 1, 80, torch.float8_e4m3fn)],
)
def test_ours_agrees_with_the_oracle_on_what_decides(
    n_heads: int, n_kv_heads: int, head_dim: int, kv_dtype: torch.dtype
) -> None:
    shape = AttentionShape(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        block_size=16,
        dtype=HALF,
        kv_dtype=kv_dtype,
        device=torch.device("cuda" if HAS_GPU else "cpu"),
    )
    trials = Trials(shape, limits=StepLimits(max_len=144, max_rows=4, max_tokens=32))
    timed = [case for phase in PHASES for case in trials.timed(phase)]
    for case in (*trials.checked, *timed):
        found = case.run(TritonKernels())
        assert difference(found, case.run(TorchKernels()), rows=case.rows) <= 1.0

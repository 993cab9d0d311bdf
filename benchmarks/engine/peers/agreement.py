"""Whether two engines give the same tokens, and where not, how near a tie it was.

In bfloat16 two right engines round differently, and an answer that once took another token goes its
own way from there. So only the first difference of an answer is judged: by how far apart a float32
model holds the two tokens.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.workload import Job

TokenIds = tuple[int, ...]


class Judge:
    """The model in float32, as ``transformers`` computes it."""

    def __init__(self, model_dir: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def gap(self, prefix: TokenIds, a: int, b: int) -> float:
        """Return how far the logits of two tokens after ``prefix`` lie apart."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([prefix]), logits_to_keep=1).logits[0, -1]
        return float((logits[a] - logits[b]).abs())


def compare(
    judge: Judge, jobs: Sequence[Job], *, ours: Sequence[TokenIds], theirs: Sequence[TokenIds]
) -> dict[str, Any]:
    """Return counts of equal answers and tokens, and the gaps at the first differences."""
    gaps: list[float] = []
    n_before = 0
    for job, a, b in zip(jobs, ours, theirs, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        n_before += same
        if same < len(a):
            gaps.append(judge.gap(job.prompt + a[:same], a[same], b[same]))
    return {
        "answers": len(jobs),
        "identical": len(jobs) - len(gaps),
        "tokens_before_first_difference": n_before,
        "tokens": sum(len(a) for a in ours),
        "logit_gap_median": round(statistics.median(gaps), 4) if gaps else None,
        "logit_gap_worst": round(max(gaps), 4) if gaps else None,
    }

"""Log-probabilities as the model gives them: before temperature, penalties, bias and masks."""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from engine_service.protocol import MAX_TOP_LOGPROBS, TokenLogprob

# Bounds the memory for a long prompt: rows of the whole vocabulary held at once.
_ROWS_AT_ONCE = 64


def token_logprobs(
    logprobs: Tensor, *, token_ids: SequenceOf[int], n_top: SequenceOf[int]
) -> list[TokenLogprob]:
    """Return each row's token and its ``n_top`` best, best first and the lower id of equals."""
    chosen = logprobs.gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()
    if not any(n_top):
        return [
            TokenLogprob(token_id=token_id, logprob=value)
            for token_id, value in zip(token_ids, chosen, strict=True)
        ]
    # Always as many, so that ties fall the same way whatever the others ask for.
    values, ids = logprobs.topk(min(MAX_TOP_LOGPROBS, logprobs.shape[-1]), dim=-1)
    return [
        TokenLogprob(
            token_id=token_id,
            logprob=value,
            top=tuple(sorted(zip(best, best_values, strict=True), key=_by_value)[:n]),
        )
        for token_id, value, best, best_values, n in zip(
            token_ids, chosen, ids.tolist(), values.tolist(), n_top, strict=True
        )
    ]


def score_prompt(
    logits: Tensor, *, token_ids: SequenceOf[int], n_top: int
) -> tuple[TokenLogprob, ...]:
    """Return what each row of logits said of the prompt's token that follows."""
    scored: list[TokenLogprob] = []
    for start in range(0, len(token_ids), _ROWS_AT_ONCE):
        part = token_ids[start : start + _ROWS_AT_ONCE]
        logprobs = logits[start : start + len(part)].log_softmax(dim=-1)
        scored += token_logprobs(logprobs, token_ids=part, n_top=[n_top] * len(part))
    return tuple(scored)


def _by_value(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]

"""Runs a batch through the model: tensors in, one token per sampled sequence out."""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from engine_service.protocol import TokenLogprob
from engine_service.runner.executors import Executor
from engine_service.runner.logprobs import score_prompt
from engine_service.runner.sampler import SampleRow, Samples, sample
from engine_service.scheduling.batch import Batch
from engine_service.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """samples: in the order of ``batch.sampled``. scored: parts of prompts, where asked for."""

    samples: Samples
    scored: tuple[tuple[Sequence, tuple[TokenLogprob, ...]], ...] = ()


class ModelRunner:
    """Has a batch computed, then samples and scores from its logits."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        if batch.copies:
            self._executor.copy(batch.copies)
        logits = self._executor.forward(batch)
        sampled, scored = _split(logits, batch=batch)
        rows = [
            SampleRow(
                params=seq.sampling,
                seed=seq.seed,
                n_generated=seq.n_generated,
                state=seq.sampling_state,
                token_ids=seq.token_ids,
            )
            for seq in batch.sampled
        ]
        samples = sample(sampled, rows=rows) if rows else Samples(token_ids=[])
        return StepResult(samples=samples, scored=tuple(_score(scored, batch=batch)))

    @torch.inference_mode()
    def clear(self, blocks: SequenceOf[int]) -> None:
        """Make blocks that may hold infinities fit for another sequence."""
        self._executor.clear(blocks)


def _split(logits: Tensor, *, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of each of ``batch.sampled``, and those of the rows' ``scored`` places."""
    n_answers = [len(row.members) for row in batch.rows if row.is_sampled]
    sampled, scored = logits[: len(n_answers)], logits[len(n_answers) :]
    if sum(n_answers) > len(n_answers):
        sampled = sampled.repeat_interleave(torch.tensor(n_answers), dim=0)
    return sampled, scored


def _score(logits: Tensor, *, batch: Batch) -> Iterator[tuple[Sequence, tuple[TokenLogprob, ...]]]:
    start = 0
    for row in batch.rows:
        if places := row.scored:
            end = start + len(places)
            yield (
                row.sequence,
                score_prompt(
                    logits[start:end],
                    token_ids=row.sequence.token_ids[places.start + 1 : places.stop + 1],
                    n_top=row.sequence.sampling.prompt_logprobs or 0,
                ),
            )
            start = end

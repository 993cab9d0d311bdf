"""Runs a batch through the model: tensors in, one token per sampled sequence out."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from msgspec import Struct
from torch import Tensor

from engine_service.errors import EngineError
from engine_service.protocol import TokenLogprob
from engine_service.runner.executors import Executor
from engine_service.runner.kv_tiers import TierStore, move_blocks
from engine_service.runner.logprobs import score_prompt
from engine_service.runner.sample_row import SampleRow, mask_comes_first
from engine_service.runner.sampler import Samples, sample
from engine_service.scheduling.batch import Batch, Row
from engine_service.scheduling.sequence import Sequence


class Answer(Struct, frozen=True, kw_only=True):
    """What a step gave to one of ``batch.sampled``.

    token_ids: the drafted ones that are right and the one behind them; none where there is none to
    choose: ``error`` says why, and is None where the logits were not finite. logprobs: one for each
    token, only where asked for.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    error: EngineError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """answers: in the order of ``batch.sampled``. scored: parts of prompts, where asked for.
    computed_s: when a device was seen to be done, on ``time.perf_counter``. drafting_s: how long a
    draft model took for its guesses."""

    answers: tuple[Answer, ...]
    scored: tuple[tuple[Sequence, tuple[TokenLogprob, ...]], ...] = ()
    computed_s: float = 0.0
    drafting_s: float = 0.0


class Flight(Protocol):
    """A batch that was launched. is_assumable: the next one may be launched before this one's
    tokens are known."""

    @property
    def batch(self) -> Batch: ...

    @property
    def is_assumable(self) -> bool: ...


class Runner(Protocol):
    """Driven by the step thread alone. Batches are collected in the order of their launches, one
    before the next but one is launched."""

    def launch(self, batch: Batch, *, after: Flight | None) -> Flight:
        """Have a batch computed. after: the flight whose tokens the batch's sequences assume."""

    def collect(self, flight: Any) -> StepResult:
        """Wait for what a flight gives."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Make blocks that may hold infinities fit for another sequence."""


@dataclass(frozen=True, slots=True)
class ComputedFlight:
    """One that was over when it was launched."""

    batch: Batch
    logits: Tensor
    is_assumable: bool = False


class ModelRunner:
    """Has a batch computed by the processor, then samples and scores from its logits.

    tiers: move what a batch spills and loads; None where no batch does.
    """

    def __init__(self, executor: Executor, *, tiers: TierStore | None = None) -> None:
        self._executor = executor
        self._tiers = tiers
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def launch(self, batch: Batch, *, after: Flight | None) -> ComputedFlight:
        return ComputedFlight(batch, self.forward(batch))

    def collect(self, flight: ComputedFlight) -> StepResult:
        return self.choose(flight.batch, logits=flight.logits)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Compute a batch; return the float32 logits of ``batch.logit_places()``.

        Meanwhile the masks that sampling will ask for are made, on a thread of their own.
        """
        masked = [row for row in batch.rows if row.is_sampled and _needs_mask(row.sequence)]
        masks = self._masks.submit(_make_masks, masked) if masked else None
        move_blocks(batch, copy=self._executor.copy, tiers=self._tiers)
        logits = self._executor.forward(batch)
        if masks is not None:
            masks.result()
        return logits

    @torch.inference_mode()
    def choose(self, batch: Batch, *, logits: Tensor) -> StepResult:
        """Sample and score what ``forward`` returned, which may be changed."""
        sampled, scored = _split(logits, batch=batch)
        rows = sample_rows(batch)
        samples = sample(sampled, rows=rows) if rows else Samples(token_ids=[])
        return StepResult(
            answers=answers_of(samples, batch=batch),
            scored=tuple(_score(scored, batch=batch)),
        )

    @torch.inference_mode()
    def clear(self, blocks: SequenceOf[int]) -> None:
        """Make blocks that may hold infinities fit for another sequence."""
        self._executor.clear(blocks)


def sample_rows(batch: Batch) -> list[SampleRow]:
    """Return the draws of a batch that has not been taken as computed, in the order of its logits:
    one for each member of a row, or for each of its guesses and the token behind them."""
    return [
        SampleRow(
            params=seq.sampling,
            seed=seq.seed,
            n_generated=seq.n_generated + n_ahead,
            state=seq.sampling_state,
            token_ids=seq.token_ids,
            draft=row.draft,
            n_ahead=n_ahead,
        )
        for row in batch.rows
        if row.is_sampled
        for seq in row.members
        for n_ahead in range(1 + len(row.draft))
    ]


def _needs_mask(sequence: Sequence) -> bool:
    state = sequence.sampling_state
    return state is not None and state.mask is not None and mask_comes_first(sequence.sampling)


def _make_masks(rows: SequenceOf[Row]) -> None:
    for row in rows:
        for sequence in row.members:
            state = sequence.sampling_state
            # What goes wrong here goes wrong again in sampling, which fails that one request.
            with contextlib.suppress(Exception):
                if state is not None and state.mask is not None:
                    state.catch_up(sequence.token_ids)
                    for n_ahead in range(1 + len(row.draft)):
                        state.mask.allowed(row.draft[:n_ahead])


def _split(logits: Tensor, *, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits to sample from, a row for each draw, and those of the ``scored`` places."""
    sampled = [row for row in batch.rows if row.is_sampled]
    n_places = sum(1 + len(row.draft) for row in sampled)
    if not any(row.forks for row in sampled):
        return logits[:n_places], logits[n_places:]
    # A row with forks has no draft: its one place is drawn from once for each member.
    n_draws = [n for row in sampled for n in [len(row.members)] * (1 + len(row.draft))]
    return (
        logits[:n_places].repeat_interleave(torch.tensor(n_draws), dim=0),
        logits[n_places:],
    )


def answers_of(samples: Samples, *, batch: Batch) -> tuple[Answer, ...]:
    """Return what each of ``batch.sampled`` gets of the draws that ``sample_rows`` describes."""
    if not samples.logprobs and not any(row.draft for row in batch.rows):
        return tuple(
            Answer(error=samples.errors.get(i))
            if token_id is None
            else Answer(token_ids=(token_id,))
            for i, token_id in enumerate(samples.token_ids)
        )
    return tuple(_answers(samples, batch=batch))


def _answers(samples: Samples, *, batch: Batch) -> Iterator[Answer]:
    start = 0
    for row in batch.rows:
        for _ in row.members if row.is_sampled else ():
            end = start + 1 + len(row.draft)
            yield _answer(samples, places=range(start, end), draft=row.draft)
            start = end


def _answer(samples: Samples, *, places: range, draft: tuple[int, ...]) -> Answer:
    """Return the tokens up to the first that is not the drafted one. What is wrong behind one that
    is, the next step meets again."""
    found: list[int] = []
    for place, drafted in zip(places, (*draft, None), strict=True):
        token_id = samples.token_ids[place]
        if token_id is None:
            if found:
                break
            return Answer(error=samples.errors.get(place))
        found.append(token_id)
        if token_id != drafted:
            break
    logprobs = (samples.logprobs.get(place) for place in places[: len(found)])
    return Answer(
        token_ids=tuple(found), logprobs=tuple(entry for entry in logprobs if entry is not None)
    )


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

"""Runs batches on a device: packs, launches and draws without waiting, and collects tokens later.

Only what the next step does not need to be launched is waited for: the tokens that a step draws
stay on the device for it. The device computes steps in the order of their launches.
"""

import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine_service.protocol import TokenLogprob
from engine_service.runner.decode_graphs import DecodeGraphs
from engine_service.runner.device_model import DeviceModel
from engine_service.runner.device_sampler import DeviceSampler, Drawn
from engine_service.runner.device_steps import Steps
from engine_service.runner.kv_tiers import TierStore, move_blocks
from engine_service.runner.logprobs import score_prompt
from engine_service.runner.model_runner import Flight, StepResult, answers_of, sample_rows
from engine_service.runner.sample_row import SampleRow
from engine_service.runner.sampler import Samples, sample
from engine_service.runner.step_packing import PackedStep, TableMirror, is_decode, pack
from engine_service.scheduling.batch import Batch
from engine_service.scheduling.sequence import Sequence

# A step's draws on the host are written again so many steps later: two may be in flight.
_N_BUFFERS = 3
# Rows of the whole vocabulary that a prompt's scores may take at once.
_SCORED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFlight:
    """A batch on the device.

    drawn: its tokens, on the host once ``event`` has happened; draws: how each was drawn, where not
    plainly. places: of those that give one token, by ``id`` of the sequence, which draw it is.
    careful: draws that the processor has to make, from their ``logits``. scored: normed states of
    the places in prompts whose logits are wanted.
    """

    batch: Batch
    is_assumable: bool
    drawn: Tensor
    event: torch.cuda.Event | None
    places: Mapping[int, int]
    draws: SequenceOf[SampleRow] = ()
    careful: SequenceOf[int] = ()
    logits: Tensor | None = None
    scored: Tensor | None = None


class DeviceRunner:
    """Draws tokens from what ``steps`` computes with ``model``. graphs: those of the sizes that
    batches are padded to. tiers: move what a batch spills and loads; None where no batch does."""

    def __init__(
        self,
        model: DeviceModel,
        *,
        steps: Steps,
        sampler: DeviceSampler,
        graphs: DecodeGraphs | None,
        mirror: TableMirror,
        block_size: int,
        tiers: TierStore | None = None,
    ) -> None:
        self._model = model
        self._steps = steps
        self._sampler = sampler
        self._graphs = graphs
        self._mirror = mirror
        self._block_size = block_size
        self._tiers = tiers
        is_cuda = model.device.type == "cuda"
        n_draws = len(model.last_draws)
        # Written by the device, by turns, so that none is written while in use.
        self._drawn = [
            torch.empty(n_draws, dtype=torch.int32, pin_memory=is_cuda) for _ in range(_N_BUFFERS)
        ]
        self._turn = 0

    @torch.inference_mode()
    def launch(self, batch: Batch, *, after: Flight | None) -> DeviceFlight:
        """Queue a batch on the device; nothing here waits for it."""
        assert after is None or isinstance(after, DeviceFlight)
        move_blocks(batch, copy=self._steps.copy, tiers=self._tiers)
        host = self._drawn[self._turn]
        self._turn = (self._turn + 1) % _N_BUFFERS
        step = self._pack(batch, sources={} if after is None else after.places)
        computed = self._steps.compute(step)
        if step.draws_plainly:
            n_draws = batch.n_tokens
            is_assumable = n_draws == len(batch.rows)  # without guesses
            return self._in_flight(batch, host=host, n_draws=n_draws, is_assumable=is_assumable)
        logits, scored = self._split(batch, step=step, computed=computed)
        draws = sample_rows(batch)
        drawn = Drawn()
        if draws:
            drawn = self._sampler.draw(logits, rows=draws)
            assert drawn.token_ids is not None
            self._model.last_draws[: len(draws)].copy_(drawn.token_ids)
        return self._in_flight(
            batch,
            host=host,
            n_draws=len(draws),
            is_assumable=not drawn.careful and _are_free(batch),
            draws=draws,
            careful=drawn.careful,
            logits=drawn.logits,
            scored=scored,
        )

    def _pack(self, batch: Batch, *, sources: Mapping[int, int]) -> PackedStep:
        decodes = is_decode(batch, max_tokens=self._model.max_rows)
        least = len(batch.rows)
        if decodes and batch.n_tokens > least:  # with guesses, which need what is before them
            least = max(batch.n_tokens, self._model.max_few_rows + 1)
        size = None if self._graphs is None else self._graphs.size_for(least)
        return pack(
            batch,
            mirror=self._mirror,
            block_size=self._block_size,
            sources=sources,
            decodes=decodes and least <= self._model.max_rows,
            pad_to=size or least,
        )

    def _in_flight(
        self, batch: Batch, *, host: Tensor, n_draws: int, is_assumable: bool, **fields: Any
    ) -> DeviceFlight:
        """Have the tokens of ``last_draws`` copied to the host, behind all that was launched."""
        drawn = host[:n_draws]
        drawn.copy_(self._model.last_draws[:n_draws], non_blocking=True)
        event = None
        if self._model.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return DeviceFlight(
            batch=batch,
            is_assumable=is_assumable,
            drawn=drawn,
            event=event,
            places=_places(batch),
            **fields,
        )

    @torch.inference_mode()
    def collect(self, flight: DeviceFlight) -> StepResult:
        if flight.event is not None:
            flight.event.synchronize()
        computed_s = time.perf_counter()
        token_ids: list[int | None] = [
            token_id if token_id >= 0 else None for token_id in flight.drawn.tolist()
        ]
        samples = Samples(token_ids=token_ids)
        if flight.logits is not None:
            self._draw_again(samples, flight=flight, logits=flight.logits.cpu())
        return StepResult(
            answers=answers_of(samples, batch=flight.batch),
            scored=self._score(flight),
            computed_s=computed_s,
        )

    def clear(self, blocks: SequenceOf[int]) -> None:
        self._steps.clear(blocks)

    def _split(
        self, batch: Batch, *, step: PackedStep, computed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of every draw, and the normed states of the scored places."""
        if step.is_decode:
            return computed[: batch.n_tokens], None
        n_sampled = sum(1 + len(row.draft) for row in batch.rows if row.is_sampled)
        places = [place for place, n in enumerate(_draws_per_place(batch)) for _ in range(n)]
        sampled = computed[:n_sampled]
        if len(places) != n_sampled:
            where = torch.tensor(places, device=self._model.device)
            sampled = sampled.index_select(0, where)
        scored = computed[n_sampled:] if len(computed) > n_sampled else None
        return self._model.logits(sampled), scored

    def _draw_again(self, samples: Samples, *, flight: DeviceFlight, logits: Tensor) -> None:
        """Have the processor make the draws that are for it."""
        rows = [flight.draws[i] for i in flight.careful]
        found = sample(logits, rows=rows)
        for place, i in enumerate(flight.careful):
            samples.token_ids[i] = found.token_ids[place]
            if place in found.errors:
                samples.errors[i] = found.errors[place]
            if place in found.logprobs:
                samples.logprobs[i] = found.logprobs[place]

    def _score(self, flight: DeviceFlight) -> tuple[tuple[Sequence, tuple[TokenLogprob, ...]], ...]:
        if flight.scored is None:
            return ()
        scores, start = [], 0
        for row in flight.batch.rows:
            places = row.scored
            found: list[TokenLogprob] = []
            for first in range(places.start, places.stop, _SCORED_AT_ONCE):
                last = min(first + _SCORED_AT_ONCE, places.stop)
                states = flight.scored[start : start + last - first]
                found += score_prompt(
                    self._model.logits(states).float().cpu(),
                    token_ids=row.sequence.token_ids[first + 1 : last + 1],
                    n_top=row.sequence.sampling.prompt_logprobs or 0,
                )
                start += last - first
            if places:
                scores.append((row.sequence, tuple(found)))
        return tuple(scores)


def _are_free(batch: Batch) -> bool:
    """Return whether the next step can be launched without knowing what this one gives."""
    return all(
        sequence.sampling_state is None and sequence.sampling.prompt_logprobs is None
        for row in batch.rows
        for sequence in row.members
    ) and not any(row.draft for row in batch.rows)


def _places(batch: Batch) -> dict[int, int]:
    places, place = {}, 0
    for row in batch.rows:
        if row.is_sampled:
            for sequence in row.members:
                places[id(sequence)] = place
                place += 1 + len(row.draft)
    return places


def _draws_per_place(batch: Batch) -> list[int]:
    """Return how many draws each of the sampled places gets: one with forks one for each member."""
    return [
        n for row in batch.rows if row.is_sampled for n in [len(row.members)] * (1 + len(row.draft))
    ]

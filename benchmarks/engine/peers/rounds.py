"""The measuring itself: systems take turns at the same jobs, and one that fails drops out."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.engine.peers.child import Unavailable
from benchmarks.engine.peers.system import Answer, System
from benchmarks.workload import Job, Measure, jobs, measure_of

N_NEW = 128
# At one job at a time, so many after one another: a single answer says little.
N_LONE = 3
TURN_TIMEOUT_S = 240.0


@dataclass(slots=True)
class Outcome:
    """measures: by system and level, one a round. answers: of the first round. failed: why a
    system has no figures, or no more of them."""

    measures: dict[str, dict[int, list[Measure]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    answers: dict[str, dict[int, list[Answer]]] = field(default_factory=lambda: defaultdict(dict))
    failed: dict[str, str] = field(default_factory=dict)


def jobs_of(level: int, *, turn: int, vocab_size: int) -> list[Job]:
    """The jobs of one round: other ids each time, so that no prefix cache helps anyone."""
    return jobs(
        n=level if level > 1 else N_LONE,
        vocab_size=vocab_size,
        n_new=N_NEW,
        seed=1000 * level + turn,
    )


async def start(systems: Sequence[System], outcome: Outcome) -> list[System]:
    """Start the systems one after another, warm each up and pause it; return those that live."""
    living: list[System] = []
    for system in systems:
        print(f"starting {system.name}", flush=True)
        with dropping_out(system.name, outcome):
            await system.start()
            warm_up = jobs(n=8, vocab_size=1000, n_new=16, seed=0)
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await system.run(warm_up, concurrency=8)
            system.pause()
            living.append(system)
        if system.name in outcome.failed:
            await system.stop()
    return living


async def play(
    living: list[System], outcome: Outcome, *, levels: Sequence[int], n_rounds: int, vocab_size: int
) -> None:
    """Play the rounds; who goes first changes from round to round."""
    for turn in range(n_rounds):
        for level in levels:
            work = jobs_of(level, turn=turn, vocab_size=vocab_size)
            first = turn % len(living)
            for system in living[first:] + living[:first]:
                if level in system.levels and system.name not in outcome.failed:
                    await _take_turn(system, outcome, level=level, work=work)


async def _take_turn(system: System, outcome: Outcome, *, level: int, work: list[Job]) -> None:
    with dropping_out(system.name, outcome):
        system.resume()
        async with asyncio.timeout(TURN_TIMEOUT_S):
            answers = await system.run(work, concurrency=level)
        system.pause()
        measure = measure_of(work, [answer.timeline for answer in answers])
        outcome.measures[system.name][level].append(measure)
        outcome.answers[system.name].setdefault(level, answers)
        print(
            f"  {level:>2} at once, {system.name}: {measure.tokens_per_s:.0f} tokens/s, "
            f"TTFT {measure.ttft_ms:.0f} ms, ITL {measure.itl_ms:.1f} ms",
            flush=True,
        )
    if system.name in outcome.failed:
        await system.stop()


@contextlib.contextmanager
def dropping_out(name: str, outcome: Outcome) -> Iterator[None]:
    """Note and say what fails; the others go on."""
    try:
        yield
    except TimeoutError:
        outcome.failed[name] = f"took longer than {TURN_TIMEOUT_S:.0f} s"
    except (Unavailable, RuntimeError, OSError, ExceptionGroup) as error:
        outcome.failed[name] = f"{error}"
        if isinstance(error, ExceptionGroup):
            outcome.failed[name] = "; ".join({str(each): None for each in error.exceptions})
    if name in outcome.failed:
        print(f"  {name} drops out: {outcome.failed[name]}", flush=True)

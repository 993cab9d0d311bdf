"""What the engines are asked on a GPU: the same token ids and lengths for every one of them.

``nano-vllm`` is the workload of that package's own bench.py: the same seed and the same order of
draws, hence the same ids and lengths.
"""

import random
from dataclasses import dataclass
from typing import Final

from benchmarks.workload import Job

TEMPERATURE: Final = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Jobs that all arrive at once. name: as in the results."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def n_prompt_tokens(self) -> int:
        return sum(len(job.prompt) for job in self.jobs)

    @property
    def n_new_tokens(self) -> int:
        return sum(job.n_new for job in self.jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large workloads are. shrink: divides all lengths and, twice, how many sequences there
    are. max_token_id: the largest that a prompt has."""

    shrink: int
    max_token_id: int


FULL: Final = Scale(shrink=1, max_token_id=10_000)
# For a run without a GPU, which shows that everything fits together.
SMALL: Final = Scale(shrink=16, max_token_id=300)


def workloads(scale: Scale = FULL) -> dict[str, Workload]:
    """Return all by name."""
    found = [
        nano_vllm(scale),
        equal("1 stream", n=1, n_prompt=256, n_new=512, scale=scale, seed=1),
        equal("8 streams", n=8, n_prompt=256, n_new=128, scale=scale, seed=8),
        equal("64 streams", n=64, n_prompt=256, n_new=128, scale=scale, seed=64),
        equal("512 streams", n=512, n_prompt=256, n_new=128, scale=scale, seed=512),
        equal("8k prompt", n=1, n_prompt=8192, n_new=64, scale=scale, seed=8192),
        equal("shared prefix", n=64, n_prompt=128, n_new=128, scale=scale, seed=2, n_shared=1024),
    ]
    return {workload.name: workload for workload in found}


def warm_up(scale: Scale = FULL) -> Workload:
    """Short jobs of other ids, enough of them for an engine to compile and to capture what it
    meets later: many sequences, which end one after the other, and one that is alone."""
    n = max(2, 256 // scale.shrink)
    rng = random.Random(99)
    jobs = [
        Job(prompt=_ids(rng, 64 // scale.shrink + 1, scale=scale), n_new=4 + index % 32, seed=index)
        for index in range(n)
    ]
    return Workload(name="warm-up", jobs=tuple(jobs))


def nano_vllm(scale: Scale = FULL) -> Workload:
    """256 sequences, prompts and answers of 100 to 1,024 tokens."""
    rng = random.Random(0)
    shortest, longest = max(1, 100 // scale.shrink), 1024 // scale.shrink
    n = _shrunk(256, scale=scale)
    prompts = [
        tuple(rng.randint(0, scale.max_token_id) for _ in range(rng.randint(shortest, longest)))
        for _ in range(n)
    ]
    lengths = [rng.randint(shortest, longest) for _ in range(n)]
    return Workload(
        name="nano-vllm",
        jobs=tuple(
            Job(prompt=prompt, n_new=n_new, seed=index)
            for index, (prompt, n_new) in enumerate(zip(prompts, lengths, strict=True))
        ),
    )


def equal(
    name: str, *, n: int, n_prompt: int, n_new: int, scale: Scale, seed: int, n_shared: int = 0
) -> Workload:
    """``n`` jobs of the same lengths; their prompts begin with the same ``n_shared`` ids."""
    rng = random.Random(seed)
    shared = _ids(rng, n_shared // scale.shrink, scale=scale)
    jobs = [
        Job(
            prompt=shared + _ids(rng, max(1, n_prompt // scale.shrink), scale=scale),
            n_new=max(2, n_new // scale.shrink),
            seed=index,
        )
        for index in range(_shrunk(n, scale=scale))
    ]
    return Workload(name=name, jobs=tuple(jobs))


def _ids(rng: random.Random, n: int, *, scale: Scale) -> tuple[int, ...]:
    return tuple(rng.randint(0, scale.max_token_id) for _ in range(n))


def _shrunk(n: int, *, scale: Scale) -> int:
    return max(1, n // scale.shrink)

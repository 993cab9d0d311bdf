"""What a way of balancing makes of prompts that begin alike: how much the prefix caches of three
replicas spare, beside one replica that gets everything, and how even the load is.

    python -m benchmarks.gateway.balancer [--rounds 2] [--requests 240]

The same requests, in the same order, by each policy in turn, over the sockets of real engines with
a tiny random model. They come in bursts, each after the end of the one before: so it is the policy
that says who gets the next, and not how busy this machine is. It counts tokens, and no time. Twice:
``roomy`` replicas each keep every prefix; ``tight`` ones keep a third, and the one beside them all.
Load is the tokens that a replica computes: those of prompts that it had not kept, and of answers.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Final, Protocol

from apps.deployments.types import ReplicaEndpoint
from apps.engines.client import EngineClient, SamplingParams, Standing, TokenPrompt
from apps.engines.types import GenerationResult
from apps.routing.balancer import Balancer, Demand, counted_new_tokens
from apps.routing.prefixes import prompt_prefix
from benchmarks.plot import bars
from tests.models import random_llama_dir
from tests.processes import running_engine

RESULT = Path(__file__).parents[1] / "results" / "balancer.json"
N_REPLICAS: Final = 3
N_PREFIXES: Final = 36
PREFIX_TOKENS: Final = 512
BURST: Final = 12
VOCABULARY: Final = 256
ROOMY_TOKENS: Final = 2 * N_PREFIXES * PREFIX_TOKENS
TIGHT_TOKENS: Final = ROOMY_TOKENS // N_REPLICAS
LEAST_CACHED: Final = 0.9  # of what one replica spares
MOST_SPREAD: Final = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    prompt: tuple[int, ...]
    n_new: int


def workload(*, n_requests: int, seed: int) -> list[Job]:
    """Questions about documents; the k-th most popular has 1/k as many as the first."""
    chosen = random.Random(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(chosen.randrange(VOCABULARY) for _ in range(n))

    documents = [tokens(PREFIX_TOKENS) for _ in range(N_PREFIXES)]
    weights = [1 / (rank + 1) for rank in range(N_PREFIXES)]
    return [
        Job(prompt=document + tokens(chosen.randint(8, 56)), n_new=chosen.randint(16, 48))
        for document in chosen.choices(documents, weights, k=n_requests)
    ]


class Policy(Protocol):
    def take(
        self, endpoints: Sequence[ReplicaEndpoint], demand: Demand
    ) -> tuple[ReplicaEndpoint, Callable[[], None]]:
        """Return where a request goes, and what to call at its end."""


class Balanced:
    """The product's own."""

    def __init__(self) -> None:
        self._balancer = Balancer()

    def take(
        self, endpoints: Sequence[ReplicaEndpoint], demand: Demand
    ) -> tuple[ReplicaEndpoint, Callable[[], None]]:
        endpoint = self._balancer.choose(endpoints, demand=demand)
        assert endpoint is not None
        return endpoint, self._balancer.hold(endpoint, demand=demand).release


class LeastRequests:
    def __init__(self) -> None:
        self._n_open: Counter[str] = Counter()

    def take(
        self, endpoints: Sequence[ReplicaEndpoint], demand: Demand
    ) -> tuple[ReplicaEndpoint, Callable[[], None]]:
        endpoint = min(endpoints, key=lambda each: self._n_open[each.engine_name])
        self._n_open[endpoint.engine_name] += 1

        def end() -> None:
            self._n_open[endpoint.engine_name] -= 1

        return endpoint, end


class RoundRobin:
    def __init__(self) -> None:
        self._count = itertools.count()

    def take(
        self, endpoints: Sequence[ReplicaEndpoint], demand: Demand
    ) -> tuple[ReplicaEndpoint, Callable[[], None]]:
        return endpoints[next(self._count) % len(endpoints)], lambda: None


POLICIES: Final[dict[str, Callable[[], Policy]]] = {
    "balancer": Balanced,
    "least requests": LeastRequests,
    "round robin": RoundRobin,
}


@dataclass(slots=True)
class Tally:
    """What a run cost, and what of it each replica did."""

    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_requests: Counter[str] = field(default_factory=Counter)
    n_tokens_done: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, result: GenerationResult) -> None:
        self.n_prompt_tokens += result.n_prompt_tokens
        self.n_cached_tokens += result.n_cached_tokens
        self.n_requests[name] += 1
        n_read = result.n_prompt_tokens - result.n_cached_tokens
        self.n_tokens_done[name] += n_read + result.n_completion_tokens


def spread(values: Sequence[int]) -> float:
    """Return how far apart the most and the least loaded are, in parts of the mean."""
    return (max(values) - min(values)) / mean(values)


@dataclass(frozen=True, slots=True)
class Replica:
    endpoint: ReplicaEndpoint
    client: EngineClient


async def run(
    jobs: Sequence[Job], replicas: Sequence[Replica], policy: Policy, *, salt: str
) -> Tally:
    """salt: never one that was used before, so that the caches begin empty."""
    tally = Tally()
    endpoints = [each.endpoint for each in replicas]
    clients = {each.endpoint.engine_name: each.client for each in replicas}

    async def work(number: int, job: Job) -> None:
        demand = Demand(
            n_prompt_tokens=len(job.prompt),
            n_new_tokens=counted_new_tokens(job.n_new, n_answers=1),
            prefix=prompt_prefix(job.prompt, salt=salt),
        )
        endpoint, end = policy.take(endpoints, demand)
        client, request_id = clients[endpoint.engine_name], f"{salt}-{number}"
        await client.prepare(
            request_id=request_id,
            prompt=TokenPrompt(token_ids=job.prompt),
            sampling=SamplingParams(seed=number, ignore_eos=True),
            max_tokens=job.n_new,
            cache_salt=salt,
            timeout_s=120,
            standing=Standing(deadline_s=600.0),
        )
        stream = await client.start(request_id, job.n_new)
        async for _ in stream:
            pass
        end()
        assert stream.result is not None
        tally.add(endpoint.engine_name, stream.result)

    for start in range(0, len(jobs), BURST):
        burst = enumerate(jobs[start : start + BURST], start=start)
        await asyncio.gather(*(work(number, job) for number, job in burst))
    return tally


async def rounds_of(
    case: str, replicas: Sequence[Replica], alone: Replica, *, n_rounds: int, n_requests: int
) -> list[dict[str, Any]]:
    found = []
    for seed in range(n_rounds):
        jobs = workload(n_requests=n_requests, seed=seed)
        one = await run(jobs, [alone], RoundRobin(), salt=f"{case}-{seed}-one")
        figures: dict[str, Any] = {"seed": seed, "n_prompt_tokens": one.n_prompt_tokens}
        figures["one replica"] = {"cached_tokens": one.n_cached_tokens}
        for name, policy in POLICIES.items():
            salt = f"{case}-{seed}-{name}"
            tally = await run(jobs, replicas, policy(), salt=salt)
            figures[name] = {
                "cached_tokens": tally.n_cached_tokens,
                "cached_of_one_replica": round(tally.n_cached_tokens / one.n_cached_tokens, 3),
                "requests": [tally.n_requests[each.endpoint.engine_name] for each in replicas],
                "tokens_done": [
                    tally.n_tokens_done[each.endpoint.engine_name] for each in replicas
                ],
            }
            figures[name]["spread_of_requests"] = round(spread(figures[name]["requests"]), 3)
            figures[name]["spread_of_tokens"] = round(spread(figures[name]["tokens_done"]), 3)
            print(f"{case}, round {seed + 1}, {name}: {figures[name]}", file=sys.stderr)
        found.append(figures)
    return found


async def compared(
    model_dir: Path, directory: Path, *, n_rounds: int, n_requests: int
) -> dict[str, list[dict[str, Any]]]:
    cases = {"roomy": ROOMY_TOKENS, "tight": TIGHT_TOKENS}
    found = {}
    with contextlib.ExitStack() as engines:

        async def replica(index: int, n_tokens: int) -> Replica:
            options = ("--kv-cache-tokens", str(n_tokens), "--dtype", "float32")
            engine = engines.enter_context(
                running_engine(model_dir, directory, *options, epoch=index + 1)
            )
            client = EngineClient(str(engine.socket_path), name="benchmark")
            await client.connect()
            return Replica(endpoint=endpoint(index, str(engine.socket_path)), client=client)

        alone = await replica(9, ROOMY_TOKENS)
        for number, (case, n_tokens) in enumerate(cases.items()):
            replicas = [await replica(3 * number + index, n_tokens) for index in range(N_REPLICAS)]
            found[case] = await rounds_of(
                case, replicas, alone, n_rounds=n_rounds, n_requests=n_requests
            )
            for each in replicas:
                await each.client.close()
        await alone.client.close()
    return found


def endpoint(index: int, socket_path: str) -> ReplicaEndpoint:
    return ReplicaEndpoint(
        deployment_id=1,
        deployment_name="benchmark",
        model_version_id=1,
        replica_index=index,
        engine_name=f"benchmark-{index}",
        epoch=index + 1,
        socket_path=socket_path,
    )


def misses(cases: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return where the balancer is outside its bounds, one line each."""
    found = []
    for case, rounds in cases.items():
        for figures in rounds:
            ours, where = figures["balancer"], f"{case}, round {figures['seed'] + 1}"
            if ours["cached_of_one_replica"] < LEAST_CACHED:
                found.append(f"{where}: cached {ours['cached_of_one_replica']} of one replica's")
            if ours["spread_of_tokens"] > MOST_SPREAD:
                found.append(f"{where}: spread of tokens {ours['spread_of_tokens']}")
    return found


def picture(cases: dict[str, list[dict[str, Any]]]) -> str:
    def percent(case: str, figure: str) -> dict[str, float]:
        return {
            name: 100 * mean(figures[name][figure] for figures in cases[case]) for name in POLICIES
        }

    wanted = {
        "cached": "cached_of_one_replica",
        "tokens": "spread_of_tokens",
        "requests": "spread_of_requests",
    }
    return bars(
        title="Three replicas: cached, % of one replica's; spread of tokens and of requests, %",
        groups={
            f"{case}: {label}": percent(case, figure)
            for case in cases
            for label, figure in wanted.items()
        },
        digits=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=240)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="balancer-") as name:
        directory = Path(name)
        model_dir = random_llama_dir(directory, max_position_embeddings=1024)
        cases = asyncio.run(
            compared(model_dir, directory, n_rounds=options.rounds, n_requests=options.requests)
        )
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "replicas": N_REPLICAS,
        "prefixes": N_PREFIXES,
        "prefix_tokens": PREFIX_TOKENS,
        "requests": options.requests,
        "burst": BURST,
        "missed": misses(cases),
        "cases": cases,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    RESULT.with_suffix(".svg").write_text(picture(cases))
    print("\n".join(result["missed"]) or "Within the bounds, every round")


if __name__ == "__main__":
    main()

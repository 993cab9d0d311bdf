"""What a prompt as long as the context does to 16 running streams, and to a short one behind it.

    python -m benchmarks.engine.long_prompt [--rounds 3]

The engine runs on its step thread as it does in the process. The bound on how much longer a step
may take for the prompts in it is off, or one of several. What the streams' tokens take alone is
measured with the same streams in an engine of their own, over the same places of their answers: a
step takes longer as they grow. On a virtual machine the host may take a core away for tens of
milliseconds, alone as beside prompts; tokens that came when it did (``steal`` of /proc/stat) are
set aside and counted.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from engine_service.backends.base import EngineRequest, SequenceOutput
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.engine import Engine
from engine_service.protocol import SamplingParams

RESULT = Path(__file__).parents[1] / "results" / "long_prompt.json"
N_STREAMS = 16
N_STREAM_PROMPT = 64
N_STREAM_TOKENS = 1400
N_SHORT_PROMPT = 32
N_QUIET = 60
N_SHORT = 9
LIMIT_S = 300.0
KV_CACHE_TOKENS = 40_960


def stolen_ticks() -> int:
    """Return for how long the host has kept the cores from this machine, in its clock ticks."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8])


@dataclass(frozen=True, slots=True)
class Gaps:
    seconds: list[float]
    n_set_aside: int


@dataclass(slots=True)
class Recorder:
    """When the tokens of each request came; fed by the step thread."""

    arrivals: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    stolen_at: list[float] = field(default_factory=list)
    n_stolen: int = field(default_factory=lambda: stolen_ticks())
    changed: threading.Condition = field(default_factory=threading.Condition)

    def saw(self, outputs: Sequence[SequenceOutput]) -> None:
        now_s = time.perf_counter()
        n_stolen = stolen_ticks()
        with self.changed:
            if n_stolen > self.n_stolen:
                self.stolen_at.append(now_s)
                self.n_stolen = n_stolen
            for output in outputs:
                if output.error is not None:
                    raise output.error
                self.arrivals[output.key] += [now_s] * len(output.token_ids)
            self.changed.notify_all()

    def wait_for(self, key: int, *, n_tokens: int) -> float:
        """Return when the request's ``n_tokens``-th token came."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.arrivals[key]) >= n_tokens, LIMIT_S):
                raise TimeoutError(f"request {key} has no {n_tokens} tokens after {LIMIT_S} s")
            return self.arrivals[key][n_tokens - 1]

    def gaps(self, places: range) -> "Gaps":
        """Return how long the streams' tokens at ``places`` came after the ones before."""
        with self.changed:
            times = [self.arrivals[key] for key in range(N_STREAMS)]
            pairs = [(a[place - 1], a[place]) for a in times for place in places]
            kept = [
                after - before for before, after in pairs if not self._was_stolen(before, after)
            ]
            return Gaps(seconds=kept, n_set_aside=len(pairs) - len(kept))

    def _was_stolen(self, start_s: float, end_s: float) -> bool:
        # What was stolen may be counted a step late.
        first = bisect_right(self.stolen_at, start_s)
        last = bisect_right(self.stolen_at, end_s + (end_s - start_s))
        return first < last

    def n_until(self, end_s: float) -> int:
        """Return how many tokens the first stream had at a time."""
        with self.changed:
            return bisect_right(self.arrivals[0], end_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Seconds. alone: the streams without the long prompt; busy: beside it. set_aside: the part of
    the busy tokens that came while the host had taken a core."""

    prefill_slowdown: float | None
    alone_median_itl_s: float
    alone_worst_itl_s: float
    busy_median_itl_s: float
    busy_worst_itl_s: float
    set_aside: float
    short_ttft_s: float
    short_behind_ttft_s: float
    long_ttft_s: float

    @property
    def worst_by_median(self) -> float:
        return self.busy_worst_itl_s / self.alone_median_itl_s

    @property
    def short_ratio(self) -> float:
        return self.short_behind_ttft_s / self.short_ttft_s

    def __str__(self) -> str:
        bound = "off" if self.prefill_slowdown is None else f"{self.prefill_slowdown:g} x"
        return (
            f"slowdown {bound}: ITL {self.alone_median_itl_s * 1e3:.1f} ms alone, "
            f"{self.busy_median_itl_s * 1e3:.1f} beside the long prompt, worst "
            f"{self.busy_worst_itl_s * 1e3:.1f} = {self.worst_by_median:.2f} x the median alone "
            f"({self.set_aside:.1%} set aside); "
            f"short TTFT {self.short_ttft_s * 1e3:.0f} ms, behind it "
            f"{self.short_behind_ttft_s * 1e3:.0f} = {self.short_ratio:.2f} x; "
            f"long TTFT {self.long_ttft_s:.1f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a long prompt did: ``gaps`` before the streams' tokens at ``places``, and seconds."""

    places: range
    gaps: Gaps
    short_ttft_s: float
    short_behind_ttft_s: float
    long_ttft_s: float


class Streams:
    """One engine with 16 streams that decode until the end."""

    def __init__(self, config: EngineConfig) -> None:
        self._recorder = Recorder()
        self._rng = random.Random(3)
        self._backend = NativeBackend(config, rng=random.Random(1))
        self._engine = Engine(self._backend, on_outputs=self._recorder.saw, max_inbox=64)
        self._n_keys = 0

    def __enter__(self) -> Self:
        gc.collect()  # as the engine process does
        gc.freeze()
        self._engine.start()
        for _ in range(N_STREAMS):
            n_most = self._backend.info.max_model_len - N_STREAM_PROMPT
            self._submit(N_STREAM_PROMPT, n_new=min(N_STREAM_TOKENS, n_most))
        for key in range(N_STREAMS):
            self._recorder.wait_for(key, n_tokens=N_QUIET)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop(timeout_s=60.0)

    def alone(self, places: range) -> Gaps:
        """Return the gaps before the streams' tokens at ``places``."""
        for key in range(N_STREAMS):
            self._recorder.wait_for(key, n_tokens=places.stop)
        return self._recorder.gaps(places)

    def beside_prompts(self) -> Beside:
        short_s = self._short_ttft()
        started_s = time.perf_counter()
        long_key = self._submit(self._backend.info.max_model_len - 1, n_new=1)
        short_behind_s = self._short_ttft()
        ended_s = self._recorder.wait_for(long_key, n_tokens=1)
        places = range(self._recorder.n_until(started_s), self._recorder.n_until(ended_s))
        return Beside(
            places=places,
            gaps=self.alone(places),
            short_ttft_s=short_s,
            short_behind_ttft_s=short_behind_s,
            long_ttft_s=ended_s - started_s,
        )

    def _submit(self, n_prompt: int, *, n_new: int) -> int:
        key = self._n_keys
        self._n_keys += 1
        ids = self._rng.choices(range(self._backend.info.vocab_size), k=n_prompt)
        self._engine.submit(
            EngineRequest(
                key=key,
                prompt_token_ids=tuple(ids),
                sampling=SamplingParams(temperature=0.0, ignore_eos=True),
                max_new_tokens=n_new,
            )
        )
        return key

    def _short_ttft(self) -> float:
        """Return the median of some short prompts, one after the other."""
        ttfts = []
        for _ in range(N_SHORT):
            submitted_s = time.perf_counter()
            key = self._submit(N_SHORT_PROMPT, n_new=1)
            ttfts.append(self._recorder.wait_for(key, n_tokens=1) - submitted_s)
        return statistics.median(ttfts)


def measure(config: EngineConfig) -> Figures:
    with Streams(config) as streams:
        beside = streams.beside_prompts()
    with Streams(config) as streams:
        alone = streams.alone(beside.places)
    return Figures(
        prefill_slowdown=config.prefill_slowdown,
        alone_median_itl_s=statistics.median(alone.seconds),
        alone_worst_itl_s=max(alone.seconds),
        busy_median_itl_s=statistics.median(beside.gaps.seconds),
        busy_worst_itl_s=max(beside.gaps.seconds),
        set_aside=beside.gaps.n_set_aside / (N_STREAMS * len(beside.places)),
        short_ttft_s=beside.short_ttft_s,
        short_behind_ttft_s=beside.short_behind_ttft_s,
        long_ttft_s=beside.long_ttft_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a converted model directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, help="default: what the model can take")
    parser.add_argument("--slowdowns", type=float, nargs="*", default=[1.4, 1.7, 2.0])
    options = parser.parse_args()

    config = EngineConfig(
        model_dir=options.model,
        max_model_len=options.context,
        kv_cache_tokens=KV_CACHE_TOKENS,
        speculation="off",  # a step is a token
    )
    found: list[Figures] = []
    for _ in range(options.rounds):
        for slowdown in (None, *options.slowdowns):
            found.append(measure(replace(config, prefill_slowdown=slowdown)))
            print(found[-1], flush=True)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "n_streams": N_STREAMS,
        "runs": [asdict(figures) for figures in found],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

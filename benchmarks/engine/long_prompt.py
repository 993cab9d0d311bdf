"""What a prompt as long as the context does to 16 running streams, and to a short one behind it.

    python -m benchmarks.engine.long_prompt [--rounds 3]

The engine runs on its step thread as it does in the process. The bound on how much longer a step
may take for the prompts in it is off, or one of several.
"""

import argparse
import gc
import itertools
import json
import os
import platform
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
N_QUIET_STEPS = 60
N_BASELINES = 9
LIMIT_S = 300.0
KV_CACHE_TOKENS = 40_960


@dataclass(slots=True)
class Recorder:
    """When the tokens of each request came; fed by the step thread."""

    arrivals: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    changed: threading.Condition = field(default_factory=threading.Condition)

    def saw(self, outputs: Sequence[SequenceOutput]) -> None:
        now_s = time.perf_counter()
        with self.changed:
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

    def gaps(self, *, start_s: float, end_s: float) -> list[float]:
        """Return the streams' gaps between tokens that end in an interval."""
        with self.changed:
            times = [self.arrivals[key] for key in range(N_STREAMS)]
            return [
                after - before
                for arrivals in times
                for before, after in itertools.pairwise(arrivals)
                if start_s < after <= end_s
            ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Seconds. quiet: the streams alone, before and after; busy: beside the long prompt."""

    prefill_slowdown: float | None
    quiet_median_itl_s: float
    quiet_worst_itl_s: float
    busy_median_itl_s: float
    busy_worst_itl_s: float
    short_ttft_s: float
    short_behind_ttft_s: float
    long_ttft_s: float

    @property
    def worst_by_median(self) -> float:
        return self.busy_worst_itl_s / self.quiet_median_itl_s

    @property
    def short_ratio(self) -> float:
        return self.short_behind_ttft_s / self.short_ttft_s

    def __str__(self) -> str:
        bound = "off" if self.prefill_slowdown is None else f"{self.prefill_slowdown:g} x"
        return (
            f"slowdown {bound}: ITL {self.quiet_median_itl_s * 1e3:.1f} ms alone, "
            f"{self.busy_median_itl_s * 1e3:.1f} beside the long prompt, worst "
            f"{self.busy_worst_itl_s * 1e3:.1f} = {self.worst_by_median:.2f} x the median alone; "
            f"short TTFT {self.short_ttft_s * 1e3:.0f} ms, behind it "
            f"{self.short_behind_ttft_s * 1e3:.0f} = {self.short_ratio:.2f} x; "
            f"long TTFT {self.long_ttft_s:.1f} s"
        )


class Measurement:
    """One engine with 16 streams that decode until the end."""

    def __init__(self, config: EngineConfig) -> None:
        self._recorder = Recorder()
        self._rng = random.Random(3)
        self._backend = NativeBackend(config, rng=random.Random(1))
        self._engine = Engine(self._backend, on_outputs=self._recorder.saw, max_inbox=64)
        self._prefill_slowdown = config.prefill_slowdown
        self._n_keys = 0

    def run(self) -> Figures:
        gc.collect()  # as the engine process does
        gc.freeze()
        self._engine.start()
        for _ in range(N_STREAMS):
            n_most = self._backend.info.max_model_len - N_STREAM_PROMPT
            self._submit(N_STREAM_PROMPT, n_new=min(N_STREAM_TOKENS, n_most))
        for key in range(N_STREAMS):
            started_s = self._recorder.wait_for(key, n_tokens=8)
        quiet_end_s = self._recorder.wait_for(N_STREAMS - 1, n_tokens=8 + N_QUIET_STEPS)
        quiet = self._recorder.gaps(start_s=started_s, end_s=quiet_end_s)
        short_s = statistics.median(self._ttft(N_SHORT_PROMPT) for _ in range(N_BASELINES))
        long_at_s = time.perf_counter()
        long_key = self._submit(self._backend.info.max_model_len - 1, n_new=1)
        behind_s = self._ttft(N_SHORT_PROMPT)
        long_end_s = self._recorder.wait_for(long_key, n_tokens=1)
        busy = self._recorder.gaps(start_s=long_at_s, end_s=long_end_s)
        # The streams grow meanwhile, and with them what a step takes without the long prompt.
        n_tokens = len(self._recorder.arrivals[0])
        after_end_s = self._recorder.wait_for(0, n_tokens=n_tokens + N_QUIET_STEPS)
        quiet += self._recorder.gaps(start_s=long_end_s, end_s=after_end_s)
        self._engine.stop(timeout_s=60.0)
        return Figures(
            prefill_slowdown=self._prefill_slowdown,
            quiet_median_itl_s=statistics.median(quiet),
            quiet_worst_itl_s=max(quiet),
            busy_median_itl_s=statistics.median(busy),
            busy_worst_itl_s=max(busy),
            short_ttft_s=short_s,
            short_behind_ttft_s=behind_s,
            long_ttft_s=long_end_s - long_at_s,
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

    def _ttft(self, n_prompt: int) -> float:
        submitted_s = time.perf_counter()
        key = self._submit(n_prompt, n_new=1)
        return self._recorder.wait_for(key, n_tokens=1) - submitted_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a converted model directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, help="default: what the model can take")
    parser.add_argument("--slowdowns", type=float, nargs="*", default=[1.5, 2.0, 2.5])
    options = parser.parse_args()

    def measure(prefill_slowdown: float | None) -> Figures:
        config = EngineConfig(
            model_dir=options.model,
            max_model_len=options.context,
            kv_cache_tokens=KV_CACHE_TOKENS,
            prefill_slowdown=prefill_slowdown,
            speculation="off",  # a step is a token
        )
        return Measurement(config).run()

    found: list[Figures] = []
    for _ in range(options.rounds):
        for slowdown in (None, *options.slowdowns):
            found.append(measure(slowdown))
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

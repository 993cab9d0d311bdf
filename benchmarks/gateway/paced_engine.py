"""An engine that computes nothing: the engine's own server, protocol and text, over a backend that
gives each running request a token every so many seconds. What is measured behind it is not its
arithmetic.

    python -m benchmarks.gateway.paced_engine --model DIR --socket PATH --epoch 1 --step-s 0.007
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine_service.__main__ import parse_options, serve
from engine_service.backends.base import (
    EmbeddingRequest,
    EngineRequest,
    ModelInfo,
    SequenceOutput,
)
from engine_service.errors import EngineError, EngineLost
from engine_service.frontend import Frontend
from engine_service.protocol import EngineStats
from engine_service.tokenizer import load_tokenizer

MAX_MODEL_LEN = 8192
MAX_SEQUENCES = 512
# Text as it may come: words, and characters of several tokens.
TEXT = "The quick brown fox jumps over the lazy dog, while 你好 and 👍🏽 take more than one token. "


class PacedBackend:
    """All requests run at once. A step ends when its time has come, or late where it was kept."""

    def __init__(self, *, model_dir: Path, vocab_size: int, token_ids: list[int], step_s: float):
        self.info = ModelInfo(
            name=model_dir.name,
            architecture="PacedForCausalLM",
            dtype="float32",
            device="cpu",
            kernels="none",
            backend="paced",
            vocab_size=vocab_size,
            max_model_len=MAX_MODEL_LEN,
            block_size=16,
            n_blocks=MAX_SEQUENCES * MAX_MODEL_LEN // 16,
            max_sequences=MAX_SEQUENCES,
            eos_token_ids=frozenset(),
        )
        self._token_ids = token_ids
        self._step_s = step_s
        self._due_s = 0.0
        self._running: dict[int, tuple[EngineRequest, int]] = {}
        self._aborted: set[int] = set()
        self._n_steps = 0

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        """It is never lost."""

    def add(self, request: EngineRequest | EmbeddingRequest) -> None:
        assert isinstance(request, EngineRequest)
        self._running[request.key] = (request, 0)

    def abort(self, key: int, *, choice: int | None = None) -> None:
        if key in self._running:
            self._aborted.add(key)

    def has_work(self) -> bool:
        return bool(self._running)

    def step(self) -> Sequence[SequenceOutput]:
        now = time.perf_counter()
        self._due_s = max(self._due_s + self._step_s, now)
        time.sleep(self._due_s - now)
        self._n_steps += 1
        outputs = []
        for key, (request, n_before) in list(self._running.items()):
            n, is_aborted = n_before + 1, key in self._aborted
            is_last = is_aborted or n == request.max_new_tokens
            outputs.append(
                SequenceOutput(
                    key=key,
                    token_ids=(self._token_ids[(n + 17 * key) % len(self._token_ids)],),
                    finish_reason=("abort" if is_aborted else "length") if is_last else None,
                    n_completion_tokens=n,
                    step=self._n_steps,
                )
            )
            if is_last:
                del self._running[key]
            else:
                self._running[key] = (request, n)
        self._aborted.clear()
        return outputs

    def fail_running(self, error: EngineError) -> Sequence[SequenceOutput]:
        keys = list(self._running)
        self._running.clear()
        return [SequenceOutput(key=key, error=error) for key in keys]

    def purge(self, tag: str) -> int:
        return 0

    def stats(self) -> EngineStats:
        return EngineStats(
            n_waiting=0,
            n_running=len(self._running),
            n_blocks_total=self.info.n_blocks,
            n_blocks_free=self.info.n_blocks,
            n_steps=self._n_steps,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-s", type=float, required=True)
    found, rest = parser.parse_known_args()
    options = parse_options(rest)
    tokenizer = load_tokenizer(options.engine.model_dir)
    words = TEXT.split(" ")
    random.Random(1).shuffle(words)
    backend = PacedBackend(
        model_dir=options.engine.model_dir,
        vocab_size=tokenizer.backend_tokenizer.get_vocab_size(),
        token_ids=tokenizer.backend_tokenizer.encode(TEXT + " ".join(words)).ids,
        step_s=found.step_s,
    )
    frontend = Frontend(tokenizer, backend.info)
    return asyncio.run(serve(options, backend=backend, frontend=frontend))


if __name__ == "__main__":
    sys.exit(main())

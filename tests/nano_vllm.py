"""The nano-vllm package for tests that need no GPU: its own scheduler, block manager and sequences,
and in place of its model runner one of ours that computes nothing and checks everything."""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine_service.backends.base import ModelInfo
from engine_service.backends.nanovllm.adapter import NanoVllmBackend
from engine_service.backends.nanovllm.admission import UNSUPPORTED
from engine_service.backends.nanovllm.loading import Package
from engine_service.config import EngineConfig

PEER = Path(__file__).resolve().parents[1] / ".whl" / "nano-vllm"
BLOCK = 256
EOS = 257
VOCAB = 320


def skip_without_nano_vllm() -> None:
    """Skip unless nano-vllm can be imported, or lies where ``make gpu-peers`` puts it."""
    if PEER.is_dir() and str(PEER) not in sys.path:
        sys.path.append(str(PEER))
    if importlib.util.find_spec("nanovllm") is None:
        pytest.skip("nano-vllm is not there: `make gpu-peers`, or PYTHONPATH")


def require_nano_vllm() -> Any:
    """Return our ``nanovllm.package``; skip where nano-vllm is not there.

    Importing nano-vllm imports flash-attn, which cannot be installed without a GPU: a module that
    has only the names stands in for it.
    """
    skip_without_nano_vllm()
    if "flash_attn" not in sys.modules and importlib.util.find_spec("flash_attn") is None:
        stand_in = ModuleType("flash_attn")
        for name in ("flash_attn_varlen_func", "flash_attn_with_kvcache"):
            setattr(stand_in, name, None)
        sys.modules["flash_attn"] = stand_in
        try:
            importlib.import_module("nanovllm")
        finally:
            del sys.modules["flash_attn"]
    return importlib.import_module("engine_service.backends.nanovllm.package")


class FakeRunner:
    """In place of nano-vllm's model runner: keeps in a pool of plain lists what K and V would be of
    (the salt and all tokens up to there), checks before it reads that each place holds just that,
    and draws a token from the text alone, so that each request has one right answer."""

    def __init__(self, *, n_blocks: int, pick: Callable[[list[int]], int] | None = None) -> None:
        self.pool: list[dict[int, Any]] = [{} for _ in range(n_blocks)]
        self.n_calls = 0
        self.fails_at: int | None = None
        self.is_broken = False
        self._pick = pick or next_token

    def run(self, seqs: list[Any], is_prefill: bool) -> list[int]:
        self.n_calls += 1
        contents = [_contents(sequence) for sequence in seqs]
        for sequence, content in zip(seqs, contents, strict=True):
            start = sequence.num_cached_tokens if is_prefill else len(sequence) - 1
            for place in range(start, start + sequence.num_scheduled_tokens):
                block = sequence.block_table[place // BLOCK]
                self.pool[block][place % BLOCK] = content[place]
        if self.n_calls == self.fails_at:
            raise RuntimeError("the fake runner was told to fail")
        for sequence, content in zip(seqs, contents, strict=True):
            for place in range(sequence.num_cached_tokens + sequence.num_scheduled_tokens):
                held = self.pool[sequence.block_table[place // BLOCK]].get(place % BLOCK)
                assert held == content[place], f"place {place} holds another's K and V"
        return [self._pick(sequence.token_ids) for sequence in seqs]

    def is_lost(self) -> bool:
        return self.is_broken

    def clear(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.pool[block].clear()

    def n_blocks_with_content(self) -> int:
        return sum(bool(block) for block in self.pool)


def next_token(token_ids: list[int]) -> int:
    """Some token that depends on all before it, never an end of sequence."""
    return hash(tuple(token_ids)) % EOS


def answer(prompt: Iterable[int], *, n_tokens: int) -> list[int]:
    """What ``FakeRunner`` answers."""
    token_ids = list(prompt)
    n_prompt = len(token_ids)
    for _ in range(n_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids[n_prompt:]


def make_backend(
    *,
    n_blocks: int = 8,
    max_model_len: int = 1024,
    runner: FakeRunner | None = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> tuple[NanoVllmBackend, FakeRunner]:
    """A backend over nano-vllm's own scheduler and the fake runner."""
    package = require_nano_vllm()
    config = EngineConfig(
        model_dir=Path("tiny"),
        **{
            "backend": "nanovllm",
            "block_size": BLOCK,
            "kv_cache_tokens": n_blocks * BLOCK,
            "max_sequences": 8,
            **settings,
        },
    )
    runner = runner or FakeRunner(n_blocks=n_blocks)
    nano_config = _NanoConfig(config)
    loaded = Package(
        info=nano_info(
            max_model_len=min(max_model_len, n_blocks * BLOCK),
            n_blocks=n_blocks,
            max_sequences=config.max_sequences,
        ),
        scheduler=package.make_scheduler(nano_config, max_sequences=config.max_sequences),
        runner=runner,
        make_sequence=package.TenantSequence,
    )
    options = {} if clock is None else {"clock": clock}
    return NanoVllmBackend(config, package=loaded, **options), runner


def nano_info(*, max_model_len: int = 1024, n_blocks: int = 8, max_sequences: int = 8) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        architecture="Qwen3ForCausalLM",
        dtype="bfloat16",
        device="cuda",
        kernels="none",
        backend="nanovllm",
        vocab_size=VOCAB,
        max_model_len=max_model_len,
        block_size=BLOCK,
        n_blocks=n_blocks,
        max_sequences=max_sequences,
        eos_token_ids=frozenset({EOS, EOS + 1}),
        unsupported=UNSUPPORTED,
        takes_masks=False,
    )


class _NanoConfig:
    """What of nano-vllm's configuration its scheduler reads; making the real one reads a model."""

    def __init__(self, config: EngineConfig) -> None:
        self.max_num_seqs = config.max_sequences
        self.max_num_batched_tokens = config.max_batched_tokens
        self.eos = -1
        self.kvcache_block_size = config.block_size
        self.num_kvcache_blocks = config.n_blocks


def _contents(sequence: Any) -> list[int]:
    """What K and V of each place are of: a hash of the salt and all tokens up to it."""
    chain = accumulate(
        sequence.token_ids,
        lambda parent, token: hash((parent, token)),
        initial=sequence.salt_digest,
    )
    return list(chain)[1:]

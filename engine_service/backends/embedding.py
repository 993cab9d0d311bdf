"""Embedding models behind the backend interface: one step reads one batch of texts of like length.

Computes in float32 unless told otherwise: vectors are compared with others that were stored long
ago, on another machine. A text's vector is the same to about 1e-6 alone and in any batch, not the
same bits, because a product over more rows may add up in another order.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine_service.backends.base import (
    EmbeddingRequest,
    EngineRequest,
    ModelInfo,
    SequenceOutput,
)
from engine_service.config import EngineConfig
from engine_service.encoder_config import EncoderConfig
from engine_service.errors import EngineError, EngineLost, ModelError, WrongTask
from engine_service.models.registry import load_encoder
from engine_service.protocol import EngineStats
from engine_service.scheduling.embedding_queue import EmbeddingQueue, PendingInput


@dataclass(slots=True)
class _Job:
    """One request; ``vectors`` is None where a text was not read yet."""

    request: EmbeddingRequest
    vectors: list[bytes | None]
    n_left: int
    arrived_at_s: float


@dataclass(slots=True)
class _Counters:
    n_steps: int = 0
    n_prompt_tokens: int = 0
    n_finished: int = 0
    n_aborted: int = 0
    n_failed: int = 0
    last_step_ms: float = 0.0


class EmbeddingBackend:
    """Loads the model when made; raises ModelError if that fails.

    Of the configuration, ``max_batched_tokens`` bounds a step's tokens with its padding,
    ``max_sequences`` its texts and ``max_waiting`` the requests; there is no KV pool.
    """

    def __init__(self, config: EngineConfig) -> None:
        if config.kernels == "compiled":
            raise ModelError("kernels=compiled is not supported for an embedding model")
        if config.quantization != "none":
            raise ModelError(
                f"quantization={config.quantization} is not supported for an embedding model"
            )
        if config.kv_cache_dtype != "auto":
            raise ModelError("kv_cache_dtype is not supported for an embedding model: it has none")
        if config.attention != "auto":
            raise ModelError("attention is not supported for an embedding model")
        if config.trace is not None:
            raise ModelError("trace is not supported for an embedding model")
        if config.tensor_parallel > 1:
            raise ModelError("tensor_parallel is not supported for an embedding model")
        if config.sleep_after_s is not None:
            raise ModelError("sleep_after_s is not supported for an embedding model")
        if config.draft_model_dir is not None:
            raise ModelError("draft_model_dir is not supported for an embedding model")
        if config.n_threads is not None:
            torch.set_num_threads(config.n_threads)
        self._config = EncoderConfig.from_dir(config.model_dir)
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self._encoder = load_encoder(config.model_dir, config=self._config, dtype=dtype)
        self._encoder.pack()
        self.info = ModelInfo(
            name=config.model_dir.name,
            architecture=self._config.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device="cpu",
            kernels="reference",
            backend="embedding",
            vocab_size=self._config.vocab_size,
            max_model_len=self._config.served_input_tokens(config.max_model_len),
            block_size=0,
            n_blocks=0,
            max_sequences=config.max_sequences,
            eos_token_ids=frozenset(),
            task="embed",
            embedding_size=self._config.hidden_size,
        )
        self._queue = EmbeddingQueue(
            max_tokens=config.max_batched_tokens,
            max_inputs=config.max_sequences,
            max_requests=config.max_waiting,
        )
        self._jobs: dict[int, _Job] = {}
        self._outputs: list[SequenceOutput] = []
        self._batch: list[PendingInput] = []
        self._counters = _Counters()

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        """All of it is in this process."""

    def add(self, request: EngineRequest | EmbeddingRequest) -> None:
        if not isinstance(request, EmbeddingRequest):
            raise WrongTask(param="prompt")
        if request.key in self._jobs:
            raise EngineError(f"the key {request.key} belongs to a live request")
        n_inputs = len(request.inputs)
        self._queue.add(request.key, [len(token_ids) for token_ids in request.inputs])
        self._jobs[request.key] = _Job(
            request, vectors=[None] * n_inputs, n_left=n_inputs, arrived_at_s=time.perf_counter()
        )

    def abort(self, key: int, *, choice: int | None = None) -> None:
        if self._drop(key):
            self._counters.n_aborted += 1
            self._outputs.append(SequenceOutput(key=key, finish_reason="abort"))

    def has_work(self) -> bool:
        return bool(self._jobs or self._outputs)

    def step(self) -> SequenceOf[SequenceOutput]:
        started = time.perf_counter()
        self._batch = []
        batch = self._batch = self._queue.next_batch()
        if batch:
            for pending, vector in zip(batch, self._embed(batch), strict=True):
                self._keep(pending, vector=vector)
            self._counters.n_steps += 1
            self._counters.n_prompt_tokens += sum(pending.n_tokens for pending in batch)
            self._counters.last_step_ms = (time.perf_counter() - started) * 1000.0
        return self._take_outputs()

    def fail_running(self, error: EngineError) -> SequenceOf[SequenceOutput]:
        for key in {pending.key for pending in self._batch}:
            self._fail(key, error=error)
        self._batch = []
        return self._take_outputs()

    def purge(self, tag: str) -> int:
        return 0  # nothing of a text is kept once it is read

    def lend(self, *, may_hold: bool) -> None:
        """Its memory is the processor's, and nobody's turn."""

    def rest(self) -> bool:
        """Its memory is the processor's, and stays."""
        return False

    def stats(self) -> EngineStats:
        counters = self._counters
        waits_s = [time.perf_counter() - job.arrived_at_s for job in self._jobs.values()]
        return EngineStats(
            n_waiting=len(self._queue),
            oldest_wait_ms=max(waits_s, default=0.0) * 1000.0,
            n_steps=counters.n_steps,
            n_prompt_tokens=counters.n_prompt_tokens,
            n_finished=counters.n_finished,
            n_aborted=counters.n_aborted,
            n_failed=counters.n_failed,
            last_step_ms=counters.last_step_ms,
        )

    @torch.inference_mode()
    def _embed(self, batch: SequenceOf[PendingInput]) -> Tensor:
        """Return (n_texts, hidden_size) in float32."""
        shape = (len(batch), max(pending.n_tokens for pending in batch))
        token_ids = torch.zeros(shape, dtype=torch.int64)
        is_token = torch.zeros(shape, dtype=torch.bool)
        for row, pending in enumerate(batch):
            ids = self._jobs[pending.key].request.inputs[pending.position]
            token_ids[row, : pending.n_tokens] = torch.tensor(ids)
            is_token[row, : pending.n_tokens] = True
        states = self._encoder.forward(token_ids, is_token=is_token).float()
        if self._config.pooling == "cls":
            pooled = states[:, 0]
        else:
            lengths = is_token.sum(dim=1, keepdim=True)
            pooled = (states * is_token[:, :, None]).sum(dim=1) / lengths
        return functional.normalize(pooled) if self._config.is_normalized else pooled

    def _keep(self, pending: PendingInput, *, vector: Tensor) -> None:
        job = self._jobs.get(pending.key)
        if job is None:
            return  # failed by another of its texts in this batch
        if not bool(torch.isfinite(vector).all()):
            error = EngineError(f"the model's output for input[{pending.position}] is not finite")
            self._fail(pending.key, error=error)
            return
        job.vectors[pending.position] = vector.numpy().astype("<f4").tobytes()
        job.n_left -= 1
        if job.n_left == 0:
            del self._jobs[pending.key]
            self._counters.n_finished += 1
            vectors = tuple(vector for vector in job.vectors if vector is not None)
            self._outputs.append(
                SequenceOutput(
                    key=pending.key,
                    finish_reason="stop",
                    step=self._counters.n_steps + 1,
                    vectors=vectors,
                )
            )

    def _fail(self, key: int, *, error: EngineError) -> None:
        if self._drop(key):
            self._counters.n_failed += 1
            self._outputs.append(SequenceOutput(key=key, error=error))

    def _drop(self, key: int) -> bool:
        self._queue.remove(key)
        return self._jobs.pop(key, None) is not None

    def _take_outputs(self) -> list[SequenceOutput]:
        outputs, self._outputs = self._outputs, []
        return outputs

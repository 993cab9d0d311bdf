"""What admission needs of a replica, whether its engine is ours or a server elsewhere."""

from collections.abc import Sequence
from typing import Protocol

from apps.engines.client import (
    ChatPrompt,
    EmbedInput,
    EngineStream,
    MeasuredInputs,
    OutputFormat,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
)
from apps.engines.types import EmbeddingResult, EngineInfo, PreparedRequest, TokenizedPrompt


class ReplicaClient(Protocol):
    """As ``EngineClient``, which says what each does and raises. Of a remote replica the counts of
    ``prepare`` and ``measure_inputs`` are upper bounds, and results say what was used."""

    @property
    def is_closed(self) -> bool: ...

    @property
    def info(self) -> EngineInfo: ...

    async def prepare(
        self,
        *,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParams,
        max_tokens: int | None,
        cache_salt: str,
        timeout_s: float,
        standing: Standing,
        cache_tags: tuple[str, ...],
        output_format: OutputFormat | None,
        is_streamed: bool,
    ) -> PreparedRequest: ...

    async def start(self, request_id: str, max_new_tokens: int) -> EngineStream: ...

    def discard(self, request_id: str) -> None: ...

    async def measure_inputs(
        self, *, request_id: str, inputs: Sequence[EmbedInput], timeout_s: float
    ) -> MeasuredInputs: ...

    async def embed(
        self, *, request_id: str, inputs: Sequence[EmbedInput], timeout_s: float
    ) -> EmbeddingResult: ...

    async def tokenize(
        self,
        *,
        request_id: str,
        prompt: ChatPrompt | TextPrompt,
        add_special_tokens: bool | None,
        with_strings: bool,
        timeout_s: float,
    ) -> TokenizedPrompt: ...

    async def detokenize(
        self, *, request_id: str, token_ids: Sequence[int], timeout_s: float
    ) -> str: ...

    async def purge(self, tag: str, *, timeout_s: float) -> int: ...

    async def close(self) -> None: ...

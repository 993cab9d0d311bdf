"""A backend that answers with its own prompt, over and over; steps can be held and made to fail.

The second of several answers begins with the prompt's second token, and so on.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine_service.backends.base import EngineRequest, ModelInfo, SequenceOutput
from engine_service.errors import EngineError, EngineLost, RequestError
from engine_service.protocol import EngineStats, FinishReason

REFUSED_SALT = "refused by the backend"


@dataclass
class _Running:
    request: EngineRequest
    choice: int
    n_tokens: int = 0
    aborted: bool = False


@dataclass
class EchoBackend:
    """``steps`` is set while steps may run; ``failures`` are raised by the next steps. ``lose``
    says that none can succeed any more."""

    info: ModelInfo
    steps: threading.Event = field(default_factory=threading.Event)
    failures: list[Exception] = field(default_factory=list)
    running: dict[tuple[int, int], _Running] = field(default_factory=dict)
    n_steps: int = 0
    n_aborted: int = 0

    def __post_init__(self) -> None:
        self.steps.set()

    def watch(self, on_lost: Callable[[EngineLost], None]) -> None:
        self.lose = on_lost

    def add(self, request: EngineRequest) -> None:
        if request.cache_salt == REFUSED_SALT:
            raise RequestError("refused", code="refused", param="prompt")
        for choice in range(request.sampling.n):
            self.running[request.key, choice] = _Running(request, choice)

    def abort(self, key: int, *, choice: int | None = None) -> None:
        for running in self.running.values():
            if running.request.key == key and choice in (None, running.choice):
                running.aborted = True

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> Sequence[SequenceOutput]:
        self.steps.wait(timeout=30)
        if self.failures:
            raise self.failures.pop(0)
        self.n_steps += 1
        outputs = [self._advance(running) for running in self.running.values()]
        for output in outputs:
            if output.finish_reason is not None:
                del self.running[output.key, output.choice]
        return outputs

    def fail_running(self, error: EngineError) -> Sequence[SequenceOutput]:
        outputs = [
            SequenceOutput(
                key=key, choice=choice, error=error, n_completion_tokens=running.n_tokens
            )
            for (key, choice), running in self.running.items()
        ]
        self.running.clear()
        return outputs

    def purge(self, tag: str) -> int:
        return len(tag)

    def stats(self) -> EngineStats:
        return EngineStats(
            n_running=len(self.running), n_steps=self.n_steps, n_aborted=self.n_aborted
        )

    def _advance(self, running: _Running) -> SequenceOutput:
        if running.aborted:
            self.n_aborted += 1
            return SequenceOutput(
                key=running.request.key,
                choice=running.choice,
                finish_reason="abort",
                n_completion_tokens=running.n_tokens,
            )
        prompt = running.request.prompt_token_ids
        token_id = prompt[(running.n_tokens + running.choice) % len(prompt)]
        running.n_tokens += 1
        reason: FinishReason | None = None
        if token_id in self.info.eos_token_ids and not running.request.sampling.ignore_eos:
            reason = "stop"
        elif running.n_tokens == running.request.max_new_tokens:
            reason = "length"
        return SequenceOutput(
            key=running.request.key,
            choice=running.choice,
            token_ids=(token_id,),
            finish_reason=reason,
            n_completion_tokens=running.n_tokens,
        )

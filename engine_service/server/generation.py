"""One running request: turns what a step changed for it into what its client gets to read."""

from dataclasses import dataclass, field

from engine_service.backends.base import SequenceOutput
from engine_service.detokenizer import Detokenizer
from engine_service.errors import EngineError
from engine_service.frontend import Frontend, PreparedPrompt
from engine_service.protocol import (
    Delta,
    FailedRequest,
    Finished,
    FinishReason,
    StepOutputs,
    TokenLogprob,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What to send for one request after a step; ``finished`` or ``failed`` is its last."""

    delta: Delta | None = None
    finished: Finished | None = None
    failed: FailedRequest | None = None

    @property
    def is_last(self) -> bool:
        return self.finished is not None or self.failed is not None


@dataclass(slots=True)
class Outbox:
    """What one step has for one connection."""

    deltas: list[Delta] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    failed: list[FailedRequest] = field(default_factory=list)

    def add(self, update: Update) -> None:
        if update.delta is not None:
            self.deltas.append(update.delta)
        if update.finished is not None:
            self.finished.append(update.finished)
        if update.failed is not None:
            self.failed.append(update.failed)

    def message(self, epoch: int) -> StepOutputs | None:
        if not (self.deltas or self.finished or self.failed):
            return None
        return StepOutputs(
            epoch=epoch,
            deltas=tuple(self.deltas),
            finished=tuple(self.finished),
            failed=tuple(self.failed),
        )


class Generation:
    """Follows one sequence from its start to its one terminal."""

    def __init__(self, frontend: Frontend, *, request_id: str, prompt: PreparedPrompt) -> None:
        self.request_id = request_id
        self._frontend = frontend
        self._prompt = prompt
        self._detokenizer: Detokenizer = frontend.detokenizer(prompt.sampling)
        self._n_cached_tokens = 0
        self._n_completion_tokens = 0

    def update(self, output: SequenceOutput) -> Update:
        """Account for one step. After an update that is the last, the object is done with."""
        self._n_cached_tokens = output.n_cached_tokens
        self._n_completion_tokens = output.n_completion_tokens
        if output.error is not None:
            return self.fail(output.error)
        shown = output.token_ids
        if output.finish_reason == "stop" and shown and self._is_end_token(shown[-1]):
            shown = shown[:-1]
        text = self._detokenizer.push(shown)
        if output.finish_reason is not None:
            text += self._detokenizer.finish()
        if self._detokenizer.stopped:
            n_before = output.n_completion_tokens - len(output.token_ids)
            self._n_completion_tokens = self._detokenizer.n_tokens
            counted = output.logprobs[: self._n_completion_tokens - n_before]
            return self._finish("stop", text, logprobs=counted)
        if output.finish_reason is not None:
            return self._finish(output.finish_reason, text, logprobs=output.logprobs)
        if not (output.token_ids or output.prompt_logprobs):
            return Update()
        return Update(
            delta=Delta(
                request_id=self.request_id,
                text=text,
                n_tokens=len(output.token_ids),
                logprobs=output.logprobs,
                prompt_logprobs=output.prompt_logprobs,
            )
        )

    def fail(self, error: EngineError) -> Update:
        """End with an error, saying how many tokens there were."""
        return Update(
            failed=FailedRequest(
                request_id=self.request_id,
                error=error.to_wire(),
                n_completion_tokens=self._n_completion_tokens,
            )
        )

    def _is_end_token(self, token_id: int) -> bool:
        is_stop = token_id in self._prompt.sampling.stop_token_ids
        return is_stop or self._frontend.is_end_token(token_id)

    def _finish(
        self, reason: FinishReason, text: str, *, logprobs: tuple[TokenLogprob, ...]
    ) -> Update:
        return Update(
            finished=Finished(
                request_id=self.request_id,
                finish_reason=reason,
                n_prompt_tokens=len(self._prompt.token_ids),
                n_cached_tokens=self._n_cached_tokens,
                n_completion_tokens=self._n_completion_tokens,
                text=text,
                logprobs=logprobs,
            )
        )

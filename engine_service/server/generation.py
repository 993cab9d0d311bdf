"""One running request: turns what a step changed for it into what its client gets to read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine_service.backends.base import SequenceOutput
from engine_service.conversation.answer_parser import AnswerParser, Piece
from engine_service.detokenizer import Detokenizer
from engine_service.errors import EngineError
from engine_service.frontend import Frontend, PreparedPrompt
from engine_service.protocol import (
    Delta,
    Embedded,
    Failed,
    FailedRequest,
    Finished,
    FinishReason,
    StepOutputs,
    TokenLogprob,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What to send for one request after a step; any of its fields but ``delta`` is its last.

    answer: goes in a frame of its own; of an embedding request.
    """

    delta: Delta | None = None
    finished: Finished | None = None
    failed: FailedRequest | None = None
    answer: Embedded | Failed | None = None

    @property
    def is_last(self) -> bool:
        return not (self.finished is None and self.failed is None and self.answer is None)

    @property
    def finish_reason(self) -> str:
        """Of the last; empty where the request failed."""
        if isinstance(self.answer, Embedded):
            return "stop"
        return self.finished.finish_reason if self.finished is not None else ""

    @property
    def error_code(self) -> str:
        """Of the last; empty where it did not fail."""
        if isinstance(self.answer, Failed):
            return self.answer.error.code
        return self.failed.error.code if self.failed is not None else ""

    @property
    def ends_choice(self) -> bool:
        """True where an answer ends with it."""
        return self.is_last or (self.delta is not None and self.delta.finish_reason is not None)


@dataclass(slots=True)
class Outbox:
    """What one step has for one connection. answers: of embedding requests, each a frame."""

    deltas: list[Delta] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    failed: list[FailedRequest] = field(default_factory=list)
    answers: list[Embedded | Failed] = field(default_factory=list)

    def add(self, update: Update) -> None:
        if update.delta is not None:
            self.deltas.append(update.delta)
        if update.finished is not None:
            self.finished.append(update.finished)
        if update.failed is not None:
            self.failed.append(update.failed)
        if update.answer is not None:
            self.answers.append(update.answer)

    @property
    def has_generations(self) -> bool:
        return bool(self.deltas or self.finished or self.failed)

    def generations(self, epoch: int) -> StepOutputs:
        """Return what is to be sent of all generations, in one frame."""
        return StepOutputs(
            epoch=epoch,
            deltas=tuple(self.deltas),
            finished=tuple(self.finished),
            failed=tuple(self.failed),
        )


class _Choice:
    """One answer of a request: its own detokenizer, parser and count."""

    def __init__(self, detokenizer: Detokenizer, parser: AnswerParser) -> None:
        self.detokenizer = detokenizer
        self._parser = parser
        self.n_tokens = 0
        self.has_ended = False

    def read(self, token_ids: Sequence[int], *, is_last: bool) -> Piece:
        """Return what new tokens mean, and all that was held back if they are the last."""
        text = self.detokenizer.push(token_ids)
        if is_last:
            text += self.detokenizer.finish()
        piece = self._parser.push(text)
        if is_last or self.detokenizer.stopped:
            rest = self._parser.finish()
            piece.text += rest.text
            piece.reasoning += rest.reasoning
        return piece


class Generation:
    """Follows the answers of one request from its start to its one terminal."""

    def __init__(self, frontend: Frontend, *, request_id: str, prompt: PreparedPrompt) -> None:
        self.request_id = request_id
        self.n_prompt_tokens = len(prompt.token_ids)
        self.n_cached_tokens = 0
        self._frontend = frontend
        self._prompt = prompt
        self._choices = [
            _Choice(frontend.detokenizer(prompt.sampling), frontend.answer_parser(prompt))
            for _ in range(prompt.sampling.n)
        ]

    def update(self, output: SequenceOutput) -> Update:
        """Account for one step. After an update that is the last, the object is done with."""
        choice = self._choices[output.choice]
        if choice.has_ended and output.error is None:
            return Update()  # by a stop string; the abort is on its way
        self.n_cached_tokens = output.n_cached_tokens
        if output.error is not None:
            return self.fail(output.error)
        n_before, choice.n_tokens = choice.n_tokens, output.n_completion_tokens
        shown = output.token_ids
        if output.finish_reason == "stop" and shown and self._is_end_token(shown[-1]):
            shown = shown[:-1]
        piece = choice.read(shown, is_last=output.finish_reason is not None)
        reason = output.finish_reason
        if choice.detokenizer.stopped:
            reason = "stop"
            choice.n_tokens = choice.detokenizer.n_tokens
        choice.has_ended = reason is not None
        n_new = choice.n_tokens - n_before
        if reason is not None and all(other.has_ended for other in self._choices):
            return self._finish(reason, output, piece=piece, n_new=n_new)
        if not (output.token_ids or output.prompt_logprobs or reason):
            return Update()
        return Update(
            delta=Delta(
                request_id=self.request_id,
                index=output.choice,
                text=piece.text,
                n_tokens=n_new,
                finish_reason=reason,
                stop=choice.detokenizer.stop,
                reasoning=piece.reasoning,
                tool_calls=tuple(piece.tool_calls),
                logprobs=self._named(output.logprobs[:n_new]),
                prompt_logprobs=self._named(output.prompt_logprobs),
            )
        )

    def fail(self, error: EngineError) -> Update:
        """End with an error, saying how many tokens there were."""
        return Update(
            failed=FailedRequest(
                request_id=self.request_id,
                error=error.to_wire(),
                n_completion_tokens=self.n_completion_tokens,
            )
        )

    @property
    def n_completion_tokens(self) -> int:
        """Of all answers so far."""
        if len(self._choices) == 1:
            return self._choices[0].n_tokens
        return sum(choice.n_tokens for choice in self._choices)

    def _is_end_token(self, token_id: int) -> bool:
        is_stop = token_id in self._prompt.sampling.stop_token_ids
        return is_stop or self._frontend.is_end_token(token_id)

    def _named(self, logprobs: Sequence[TokenLogprob]) -> tuple[TokenLogprob, ...]:
        """Say what text the ids stand for."""
        if not logprobs:
            return ()
        name = self._frontend.token_bytes
        return tuple(
            TokenLogprob(
                token_id=each.token_id,
                logprob=each.logprob,
                top=each.top,
                token=name(each.token_id),
                top_tokens=tuple(name(token_id) for token_id, _ in each.top),
            )
            for each in logprobs
        )

    def _finish(
        self, reason: FinishReason, output: SequenceOutput, *, piece: Piece, n_new: int
    ) -> Update:
        return Update(
            finished=Finished(
                request_id=self.request_id,
                index=output.choice,
                finish_reason=reason,
                stop=self._choices[output.choice].detokenizer.stop,
                n_prompt_tokens=self.n_prompt_tokens,
                n_cached_tokens=self.n_cached_tokens,
                n_completion_tokens=self.n_completion_tokens,
                text=piece.text,
                reasoning=piece.reasoning,
                tool_calls=tuple(piece.tool_calls),
                logprobs=self._named(output.logprobs[:n_new]),
            )
        )

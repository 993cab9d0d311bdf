"""What the wire protocol says, in the types that may cross rooms."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from apps.engines.exceptions import EngineClientError, EngineRequestError, engine_client_error
from apps.engines.health import EngineHealth, StepStats, TierStats
from apps.engines.types import (
    AnswerDelta,
    EngineInfo,
    GenerationResult,
    TokenLogprob,
    ToolCallDelta,
)
from engine_service import protocol

Question = protocol.Prepare | protocol.Embed | protocol.TextQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredInputs:
    """Inputs as ``embed`` takes them, and of each how many tokens it has at most."""

    inputs: tuple[protocol.EmbedInput, ...]
    n_tokens: tuple[int, ...]


def measured_inputs(message: protocol.TokenizedInputs) -> MeasuredInputs:
    """Return inputs that need not be tokenized again; their counts are exact."""
    return MeasuredInputs(
        inputs=tuple(protocol.TokenPrompt(token_ids=ids) for ids in message.inputs),
        n_tokens=tuple(map(len, message.inputs)),
    )


def encoded_question(message: Question) -> bytes:
    """Encode what came from outside; the engine closes a connection over a bad frame, so no
    request may make one.

    Raises:
        EngineRequestError: it cannot be put in a frame of this protocol.
    """
    try:
        frame = protocol.encode_frame(message)
        protocol.decode_to_engine(frame[protocol.HEADER.size :])
    except (protocol.FrameError, OverflowError, UnicodeEncodeError, TypeError) as error:
        raise EngineRequestError(
            f"The request cannot be passed on: {error}", code="invalid_value", param=None
        ) from error
    return frame


def engine_info(message: protocol.Welcome) -> EngineInfo:
    fields = msgspec.structs.asdict(message)
    del fields["protocol_version"]
    return EngineInfo(**fields)


def engine_health(pong: protocol.Pong, *, round_trip_s: float) -> EngineHealth:
    stats = msgspec.structs.asdict(pong.stats)
    steps, tiers = stats.pop("steps"), stats.pop("tiers")
    return EngineHealth(
        epoch=pong.epoch,
        draining=pong.draining,
        round_trip_s=round_trip_s,
        steps=steps and msgspec.convert(steps, StepStats, from_attributes=True),
        tiers=tiers and msgspec.convert(tiers, TierStats, from_attributes=True),
        **stats,
    )


def generation_result(finished: protocol.Finished) -> GenerationResult:
    return GenerationResult(
        finish_reason=finished.finish_reason,
        n_prompt_tokens=finished.n_prompt_tokens,
        n_cached_tokens=finished.n_cached_tokens,
        n_completion_tokens=finished.n_completion_tokens,
    )


def answer_delta(message: protocol.Delta | protocol.Finished) -> AnswerDelta:
    """Return what is new; a ``Finished`` has the count of all answers, so its delta has none."""
    return AnswerDelta(
        index=message.index,
        text=message.text,
        n_tokens=message.n_tokens if isinstance(message, protocol.Delta) else 0,
        reasoning=message.reasoning,
        tool_calls=_tool_calls(message.tool_calls),
        logprobs=_logprobs(message.logprobs),
        prompt_logprobs=(
            _logprobs(message.prompt_logprobs) if isinstance(message, protocol.Delta) else ()
        ),
        finish_reason=message.finish_reason,
        stop=message.stop,
    )


def to_exception(error: protocol.WireError, *, n_completion_tokens: int = 0) -> EngineClientError:
    return engine_client_error(
        **msgspec.structs.asdict(error), n_completion_tokens=n_completion_tokens
    )


def _tool_calls(entries: Sequence[protocol.ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    if not entries:
        return ()
    return tuple(
        ToolCallDelta(index=each.index, name=each.name, arguments=each.arguments)
        for each in entries
    )


def _logprobs(entries: Sequence[protocol.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    if not entries:
        return ()
    return tuple(
        TokenLogprob(
            token_id=each.token_id,
            token=each.token,
            logprob=each.logprob,
            top=tuple(
                (token, logprob)
                for token, (_, logprob) in zip(each.top_tokens, each.top, strict=True)
            ),
        )
        for each in entries
    )

"""What a remote server answers, whole or as server-sent events, in our own words. It is a
stranger's text: read leniently where servers differ, bounded, and refused where it makes no sense.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from apps.engines.exceptions import EngineFault
from apps.engines.types import (
    AnswerDelta,
    FinishReason,
    GenerationResult,
    TokenLogprob,
    ToolCallDelta,
)

MAX_LINE_BYTES: Final = 1024 * 1024
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_BYTES: Final = re.compile(r"bytes:(\\x[0-9a-fA-F]{2})+")
_MAX_CALLS: Final = 128
_NO_ID: Final = -1  # servers do not tell tokens' ids
_BYTES_A_TOKEN: Final = 3  # fewer than texts have: where a server counts nothing, too many are told


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    function: _Function | None = None


class _Piece(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    """``content``: of a chat. The others: of a completion."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Piece | None = None
    message: _Piece | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: Any = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Cached | None = None


class Chunk(msgspec.Struct):
    """A whole answer, or a piece of one."""

    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float]


class Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: Usage | None = None


_decode_chunk: Final = msgspec.json.Decoder(Chunk).decode
_decode_models: Final = msgspec.json.Decoder(_Models).decode
_decode_vectors: Final = msgspec.json.Decoder(Vectors).decode


class EventLines:
    """Takes bytes as they come, gives the data of whole events. Only the field ``data`` counts."""

    def __init__(self) -> None:
        self._rest = b""
        self._n_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what is whole by now; raises EngineFault where it is more than an answer can be."""
        self._n_bytes += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES or self._n_bytes > MAX_ANSWER_BYTES:
            raise EngineFault("the remote server sends more than an answer can be")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


@dataclass(slots=True)
class _Answer:
    n_calls: int = 0
    is_ended: bool = False


@dataclass(slots=True)
class Reading:
    """Follows the answers of one request. The last piece of the one that ends last is held back for
    the end of all, which ``result`` and ``last`` are then for.

    n_prompt_tokens, n_granted_tokens: at most, as reserved; the latter of prompt and answers.
    """

    n_answers: int
    n_prompt_tokens: int
    n_granted_tokens: int
    stops: tuple[str, ...] = ()
    last: AnswerDelta = field(default_factory=AnswerDelta)
    _answers: list[_Answer] = field(init=False)
    _usage: Usage | None = None
    _n_pieces: int = 0
    _n_bytes: int = 0
    _n_told: int = 0
    _finish_reason: FinishReason = "stop"

    def __post_init__(self) -> None:
        self._answers = [_Answer() for _ in range(self.n_answers)]

    @property
    def is_whole(self) -> bool:
        return all(answer.is_ended for answer in self._answers)

    def read(self, data: bytes) -> list[AnswerDelta]:
        """Return what is new.

        Raises:
            EngineFault: it makes no sense, or says that the server failed.
        """
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineFault("the remote server's answer makes no sense") from error
        if chunk.error is not None:
            raise EngineFault("the remote server failed at this request")
        self._usage = chunk.usage or self._usage
        choices = [each for each in chunk.choices or () if not self._is_afterword(each)]
        deltas = [self._delta(choice) for choice in choices]
        if self.is_whole and deltas:
            self.last = deltas.pop()
        return deltas

    def result(self) -> GenerationResult:
        """Return what was used: as the server says, and never more than was reserved."""
        usage = self._usage
        if usage is None:
            n_prompt, n_cached, n_completion = self.n_prompt_tokens, 0, self._n_told
        else:
            n_prompt = _within(usage.prompt_tokens, self.n_prompt_tokens)
            details = usage.prompt_tokens_details
            n_cached = _within(details.cached_tokens if details else 0, n_prompt)
            n_completion = usage.completion_tokens or 0
        return GenerationResult(
            finish_reason=self._finish_reason,
            n_prompt_tokens=n_prompt,
            n_cached_tokens=n_cached,
            n_completion_tokens=_within(n_completion, self.n_granted_tokens - n_prompt),
        )

    def aborted(self) -> GenerationResult:
        """Return what was used by an answer that is cut here."""
        self._finish_reason = "abort"
        return self.result()

    def _is_afterword(self, choice: _Choice) -> bool:
        """Whether it says nothing of an answer that has ended, as some servers do at the end."""
        piece = choice.delta or choice.message or _Piece()
        said = (choice.text, piece.content, piece.reasoning, piece.reasoning_content)
        is_ended = 0 <= choice.index < self.n_answers and self._answers[choice.index].is_ended
        return is_ended and not any((*said, piece.tool_calls))

    def _delta(self, choice: _Choice) -> AnswerDelta:
        if not 0 <= choice.index < self.n_answers or self._answers[choice.index].is_ended:
            raise EngineFault("the remote server speaks of an answer that there is not")
        answer = self._answers[choice.index]
        piece = choice.delta or choice.message or _Piece()
        text = choice.text or piece.content or ""
        reasoning = piece.reasoning_content or piece.reasoning or ""
        calls = tuple(
            self._call(answer, call, place=place)
            for place, call in enumerate(piece.tool_calls or ())
        )
        logprobs = _logprobs(choice.logprobs)
        finish_reason = _finish_reason(choice.finish_reason)
        if finish_reason is not None:
            answer.is_ended, self._finish_reason = True, finish_reason
        told = text, reasoning, *(call.name or "" for call in calls)
        n_bytes = sum(map(_size, told)) + sum(_size(call.arguments) for call in calls)
        return AnswerDelta(
            index=choice.index,
            text=text,
            n_tokens=self._counted(n_bytes, n_known=len(logprobs)),
            reasoning=reasoning,
            tool_calls=calls,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop=choice.stop_reason if choice.stop_reason in self.stops else None,
        )

    def _call(self, answer: _Answer, call: _Call, *, place: int) -> ToolCallDelta:
        index = place if call.index is None else call.index
        function = call.function or _Function()
        if index == answer.n_calls < _MAX_CALLS and function.name:
            answer.n_calls += 1
        elif not 0 <= index < answer.n_calls:
            raise EngineFault("the remote server calls no tool that it has named")
        else:
            function.name = None
        return ToolCallDelta(index=index, name=function.name, arguments=function.arguments or "")

    def _counted(self, n_bytes: int, *, n_known: int) -> int:
        """Return by how many tokens the answers have grown: as many as there are log probabilities,
        else one a piece, or more where pieces are large."""
        if not n_bytes and not n_known:
            return 0
        self._n_pieces += max(1, n_known)
        self._n_bytes += n_bytes
        n_told = self._n_pieces
        if not n_known:
            n_told = max(n_told, math.ceil(self._n_bytes / _BYTES_A_TOKEN))
        n_new = max(0, min(n_told, self.n_granted_tokens - self.n_prompt_tokens) - self._n_told)
        self._n_told += n_new
        return n_new


def vectors_of(data: bytes, *, n_inputs: int) -> tuple[list[list[float]], Usage | None]:
    """Return the vectors in the order of the inputs; raises EngineFault where it makes no sense."""
    try:
        found = _decode_vectors(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFault("the remote server's answer makes no sense") from error
    by_index = {each.index: each.embedding for each in found.data}
    sizes = {len(vector) for vector in by_index.values()}
    is_of_inputs = len(found.data) == n_inputs and sorted(by_index) == list(range(n_inputs))
    if not is_of_inputs or len(sizes) != 1 or sizes == {0}:
        raise EngineFault("the remote server's vectors are not those of the inputs")
    return [by_index[index] for index in range(n_inputs)], found.usage


def models_of(data: bytes) -> set[str]:
    """Return the names of a server's models; raises EngineFault where it makes no sense."""
    try:
        return {model.id for model in _decode_models(data).data}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFault("the remote server does not list its models as OpenAI does") from error


def _finish_reason(said: str | None) -> FinishReason | None:
    """What ended an answer, but for its length, is to us its own end."""
    if said is None:
        return None
    return "length" if said == "length" else "stop"


def _logprobs(said: _Logprobs | None) -> tuple[TokenLogprob, ...]:
    if said is None:
        return ()
    if said.content is not None:
        return tuple(
            TokenLogprob(
                token_id=_NO_ID,
                token=_bytes_of(each),
                logprob=each.logprob,
                top=tuple((_bytes_of(top), top.logprob) for top in each.top_logprobs or ()),
            )
            for each in said.content
        )
    tops = said.top_logprobs or []
    return tuple(
        TokenLogprob(
            token_id=_NO_ID,
            token=_named(token),
            logprob=logprob or 0.0,
            top=tuple(
                (_named(text), value)
                for text, value in ((tops[place] if place < len(tops) else None) or {}).items()
            ),
        )
        for place, (token, logprob) in enumerate(
            zip(said.tokens or (), said.token_logprobs or (), strict=False)
        )
    )


def _bytes_of(token: _Top) -> bytes:
    if token.bytes is not None and all(0 <= each < 256 for each in token.bytes):
        return bytes(token.bytes)
    return token.token.encode(errors="replace")


def _named(token: str) -> bytes:
    """Return the bytes of a completion's token, where parts of characters are named by theirs."""
    if _BYTES.fullmatch(token):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode(errors="replace")


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _within(value: int | None, most: int) -> int:
    return max(0, min(value or 0, most))

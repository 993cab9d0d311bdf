"""What every door hands to admission: a parsed request, whatever wire it came over."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, ClassVar, Final, Literal, Self

from apps.engines.client import ChatPrompt, OutputFormat, SamplingParams, TextPrompt, TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRequest:
    """The ``Idempotency-Key`` that a request came with, and until when its answer is kept."""

    key: str
    state: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to continue.

    max_tokens: None means as much as the context leaves. max_tokens_param: the name under which
    the client gave it, for errors about it. unsaid: the fields that a route may have a default for
    and of which the client said nothing. length_cap: how long an answer may be at most where the
    client named no length. end_user: whom the client serves, as it calls them; conversation: as
    it names that.
    """

    endpoint: ClassVar[str] = "chat.completions"
    id_prefix: ClassVar[str] = "chatcmpl"

    model: str
    prompt: ChatPrompt
    sampling: SamplingParams
    max_tokens: int | None
    max_tokens_param: str = "max_tokens"
    unsaid: frozenset[str] = frozenset()
    length_cap: int | None = None
    output_format: OutputFormat | None = None
    end_user: str | None = None
    conversation: str | None = None
    stream: bool = False
    include_usage: bool = False

    @classmethod
    def made_of(cls, chat: "ChatRequest", **changes: Any) -> Self:
        """Return a request of this kind with another's fields, but for the changes."""
        return cls(**{each.name: getattr(chat, each.name) for each in fields(chat)} | changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest(ChatRequest):
    """A conversation that came as input items."""

    endpoint: ClassVar[str] = "responses"
    id_prefix: ClassVar[str] = "resp"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRequest(ChatRequest):
    """A conversation that came as messages of content blocks."""

    endpoint: ClassVar[str] = "messages"
    id_prefix: ClassVar[str] = "msg"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A text to continue, as a string or as token ids. unsaid, length_cap: as of a conversation.

    echo: the answer begins with the prompt. is_echo_only: and is nothing else; the one token that
    an engine makes at least is not shown.
    """

    endpoint: ClassVar[str] = "completions"
    id_prefix: ClassVar[str] = "cmpl"
    output_format: ClassVar[None] = None

    model: str
    prompt: TextPrompt | TokenPrompt
    sampling: SamplingParams
    max_tokens: int | None
    max_tokens_param: str = "max_tokens"
    unsaid: frozenset[str] = frozenset()
    length_cap: int | None = None
    echo: bool = False
    is_echo_only: bool = False
    end_user: str | None = None
    conversation: str | None = None
    stream: bool = False
    include_usage: bool = False


GenerationRequest = ChatRequest | CompletionRequest
WEBSOCKET: Final = "websocket"  # the door whose requests are read as they come, all of them
JUDGE: Final = "judge"  # the door of those that score an answer; no experiment sees them

# What a client says of kept answers, and what it is told.
ReuseWish = Literal["use", "no-store"]
Reuse = Literal["hit", "miss", "coalesced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer, as the body of an endpoint words it; an error's body when ``status`` is one.

    request_id: that of the ledger where there is one. retry_after_s: of an error, when the same may
    succeed, where that is known.
    """

    status: int
    body: bytes
    request_id: str
    retry_after_s: float | None = None

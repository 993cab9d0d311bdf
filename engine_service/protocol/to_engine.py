"""Messages from the platform to the engine."""

from engine_service.protocol.base import Message
from engine_service.protocol.parameters import (
    NO_STANDING,
    ChatPrompt,
    EmbedInput,
    OutputFormat,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
)


class Hello(Message, frozen=True):
    """First frame of a connection."""

    protocol_version: int
    client: str


class Prepare(Message, frozen=True):
    """Render, tokenize and validate; the answer is ``Prepared`` or ``Failed``.

    max_tokens: what the client asked for; None means as much as the context leaves.
    cache_salt: seeds the prefix-cache hash chain; the server derives it from the tenant.
    cache_tags: opaque names of the tenant and the person whose text it is, for ``Purge``.
    output_format: None leaves the text free.
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    max_tokens: int | None = None
    cache_salt: str = ""
    cache_tags: tuple[str, ...] = ()
    standing: Standing = NO_STANDING
    output_format: OutputFormat | None = None


class Start(Message, frozen=True):
    """Run a prepared request for at most ``max_new_tokens`` of each answer, as was reserved."""

    request_id: str
    max_new_tokens: int


class Embed(Message, frozen=True):
    """Make a vector of each input; the answer is ``Embedded`` or ``Failed``, for all of them.

    inputs: 1 to ``MAX_EMBED_INPUTS``; one that is too long is refused, never cut.
    """

    request_id: str
    inputs: tuple[EmbedInput, ...]


class Tokenize(Message, frozen=True):
    """Give the token ids of a prompt, which may be longer than the context; the answer is
    ``Tokenized`` or ``Failed``.

    add_special_tokens: those that the tokenizer adds by itself; None as ``Prepare`` has it, which
    is to text and not to a chat. with_strings: name each id as the vocabulary does.
    """

    request_id: str
    prompt: ChatPrompt | TextPrompt
    add_special_tokens: bool | None = None
    with_strings: bool = False


class TokenizeInputs(Message, frozen=True):
    """Give the token ids of what an ``Embed`` would read, checked as there; the answer is
    ``TokenizedInputs`` or ``Failed``. inputs: 1 to ``MAX_TOKENIZE_INPUTS``."""

    request_id: str
    inputs: tuple[EmbedInput, ...]


class Detokenize(Message, frozen=True):
    """Give the text of token ids, special ones included; the answer is ``Detokenized`` or
    ``Failed``. token_ids: at most ``MAX_DETOKENIZE_TOKENS``."""

    request_id: str
    token_ids: tuple[int, ...]


class Abort(Message, frozen=True):
    """Stop a request in whatever state it is; idempotent, unknown ids are ignored."""

    request_id: str


class Ping(Message, frozen=True):
    """Answered by the step thread, so that a ``Pong`` proves that the step loop turns.

    may_hold_memory: whose turn it is on a device that several engines share, told by the agent and
    nobody else. False: what has begun is finished, nothing new begins, and then the memory is given
    back. True: it may be taken. None says nothing. What was told holds until something else is, or
    for 30 s.
    """

    nonce: int
    may_hold_memory: bool | None = None


class Purge(Message, frozen=True):
    """Forget all that the prefix cache keeps of requests with this tag; answered by ``Purged``.

    Requests with the tag that still run go on, and what they compute later is cached as before.
    """

    nonce: int
    tag: str


# Questions of the frontend alone: the step thread never hears of them.
TextQuestion = Tokenize | TokenizeInputs | Detokenize

ToEngine = Hello | Prepare | Start | Embed | TextQuestion | Abort | Ping | Purge

"""What a request asks for: its prompt, how to sample, how it stands among others."""

from typing import Final, Literal

from engine_service.protocol.base import Message, Value

MAX_TOP_LOGPROBS: Final = 20
MAX_EMBED_INPUTS: Final = 512
MAX_TOKENIZE_INPUTS: Final = 2048
MAX_DETOKENIZE_TOKENS: Final = 262_144
MAX_CACHE_TAGS: Final = 4
MAX_CACHE_TAG_CHARS: Final = 256


ToolChoice = Literal["auto", "none", "required"]


class ToolCall(Value, frozen=True):
    """A call that the model made in an earlier turn; ``arguments`` is a JSON text."""

    id: str
    name: str
    arguments: str


class ChatMessage(Value, frozen=True):
    """One turn of a conversation; ``content`` is plain text (the door joins text parts).

    tool_calls, reasoning: of an assistant's turn. tool_call_id: the call that a tool's turn
    answers.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


class Tool(Value, frozen=True):
    """A function that the model may call.

    parameters: JSON text of the schema of its arguments, empty for any object. strict: refuse a
    schema that cannot be held to whole; else such a tool's arguments are any object.
    """

    name: str
    description: str | None = None
    parameters: str = ""
    strict: bool = False


class ToolUse(Value, frozen=True):
    """choice: ``auto`` leaves it to the model, ``required`` makes it call at least one tool,
    ``none`` none. only: the one tool that it must call. parallel: more than one call an answer."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = "auto"
    only: str | None = None
    parallel: bool = True


class ChatPrompt(Message, frozen=True):
    """Rendered with the model's own chat template, generation prompt added.

    thinking: whether a model that can do both reasons before it answers; None leaves it to the
    template.
    """

    messages: tuple[ChatMessage, ...]
    tool_use: ToolUse | None = None
    thinking: bool | None = None


class TextPrompt(Message, frozen=True):
    """Tokenized as it stands, with the special tokens the tokenizer adds by itself."""

    text: str


class TokenPrompt(Message, frozen=True):
    """Token ids taken as they are."""

    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt
EmbedInput = TextPrompt | TokenPrompt


class OutputFormat(Value, frozen=True):
    """What the answer must be, by a mask over each next token.

    json_schema: JSON text of the schema that it obeys; empty for any object. param: the client's
    name of it, for errors.
    """

    json_schema: str = ""
    param: str = "response_format"


class SamplingParams(Value, frozen=True):
    """How the next token is chosen. The engine validates; it never clamps.

    temperature: 0 (greedy) to 2. top_p: (0, 1]. top_k: 0 turns it off. seed: the same seed gives
    the same tokens whatever else is in the batch. stop: strings that end the text, themselves
    left out of it. ignore_eos: for benchmarks. n: answers to the prompt, which is computed once;
    all of them run at once, and the first is the one that n = 1 gives with that seed.

    min_p: [0, 1], drops tokens less likely than this part of the best; applied with top_k and
    top_p, after the temperature. presence_penalty, frequency_penalty: -2 to 2, subtracted for
    tokens of the answer, once or each time. repetition_penalty: 0.01 to 100, divides or multiplies
    the logits of tokens of prompt and answer; 1 is off. logit_bias: pairs of token id and -100 to
    100. stop_token_ids: end the answer like an end of sequence. min_tokens: no end token and no
    stop string before so many. logprobs, prompt_logprobs: None, or how many of the best tokens to
    report, 0 to 20, beside each token of the answer or of the prompt.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class Standing(Value, frozen=True):
    """How a request stands among the others that wait; all of it is the server's word.

    tenant: opaque; service is shared evenly between tenants. weight: a request of weight 2 costs
    its tenant half as much. priority: the higher goes first, whatever tenants have had.
    deadline_s: seconds from its start after which it is failed if it waits; None never.
    """

    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline_s: float | None = None


NO_STANDING: Final = Standing()

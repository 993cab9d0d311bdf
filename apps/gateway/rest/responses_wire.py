"""Answers and events of ``POST /v1/responses``. Names and order are those that clients know."""

from typing import Any

import msgspec

from apps.core.exceptions import AppError
from apps.engines.types import GenerationResult
from apps.gateway.answer_parts import AnswerParts, Part
from apps.gateway.chat_schemas import TextFormat
from apps.gateway.merging import Stream
from apps.gateway.responses_schemas import ReasoningOptions, ResponsesBody, TextOptions

Unset = msgspec.UnsetType
UNSET = msgspec.UNSET
# The one code of the API's list that fits whatever went wrong here.
FAILED_CODE = "server_error"


class TextContent(msgspec.Struct, kw_only=True):
    """``annotations`` of the answer's text only."""

    type: str
    text: str = ""
    annotations: tuple[()] | Unset = UNSET


class Output(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An item of any kind."""

    type: str
    id: str
    status: str
    role: str | Unset = UNSET
    summary: tuple[()] | Unset = UNSET
    content: tuple[TextContent, ...] | Unset = UNSET
    call_id: str | Unset = UNSET
    name: str | Unset = UNSET
    arguments: str | Unset = UNSET


class CachedDetails(msgspec.Struct):
    """cache_write_tokens: nothing is charged for filling the cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class ReasoningDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class Failure(msgspec.Struct, kw_only=True):
    code: str
    message: str


class Incomplete(msgspec.Struct, kw_only=True):
    reason: str


class Response(msgspec.Struct, kw_only=True):
    id: str
    object: str = "response"
    created_at: int
    status: str
    background: bool = False
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: tuple[Output, ...] = ()
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: ReasoningOptions
    store: bool = False
    temperature: float
    text: TextOptions
    tool_choice: Any
    tools: tuple[Any, ...]
    top_p: float
    truncation: str = "disabled"
    usage: Usage | None = None
    user: str | None


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Any event; which fields it has goes by its type."""

    type: str
    sequence_number: int
    response: Response | Unset = UNSET
    output_index: int | Unset = UNSET
    item_id: str | Unset = UNSET
    content_index: int | Unset = UNSET
    item: Output | Unset = UNSET
    part: TextContent | Unset = UNSET
    delta: str | Unset = UNSET
    text: str | Unset = UNSET
    logprobs: tuple[()] | Unset = UNSET
    arguments: str | Unset = UNSET


def begun(stream: Stream, body: ResponsesBody) -> Response:
    """Return an answer as it begins, with what was asked for as it was taken."""
    text = body.text or TextOptions()
    reasoning = body.reasoning or ReasoningOptions()
    return Response(
        id=stream.request_id,
        created_at=stream.created,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=stream.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=ReasoningOptions(effort=reasoning.effort),
        temperature=1.0 if body.temperature is None else body.temperature,
        text=TextOptions(format=text.format or TextFormat()),
        tool_choice=body.tool_choice or "auto",
        tools=tuple(body.tools or ()),
        top_p=1.0 if body.top_p is None else body.top_p,
        user=body.user,
    )


def ended(begun: Response, *, parts: AnswerParts, result: GenerationResult) -> Response:
    """Return an answer whose generation ended well."""
    status, details = "completed", None
    if parts.finish_reason == "length":
        status, details = "incomplete", Incomplete(reason="max_output_tokens")
    elif parts.finish_reason == "abort":
        status = "cancelled"
    n_reasoning = parts.n_reasoning_tokens
    if parts.all and parts.all[-1].kind == "reasoning":
        n_reasoning = result.n_completion_tokens
    return msgspec.structs.replace(
        begun,
        status=status,
        incomplete_details=details,
        output=tuple(output_of(part, begun.id) for part in parts.all),
        usage=Usage(
            input_tokens=result.n_prompt_tokens,
            input_tokens_details=CachedDetails(result.n_cached_tokens),
            output_tokens=result.n_completion_tokens,
            output_tokens_details=ReasoningDetails(n_reasoning),
            total_tokens=result.n_prompt_tokens + result.n_completion_tokens,
        ),
    )


def failed(begun: Response, error: AppError, *, parts: AnswerParts) -> Response:
    """Return an answer whose generation ended badly, with what there was of it."""
    return msgspec.structs.replace(
        begun,
        status="failed",
        error=Failure(code=FAILED_CODE, message=error.message),
        output=tuple(output_of(part, begun.id, status="incomplete") for part in parts.all),
    )


def output_of(part: Part, response_id: str, *, status: str | None = None) -> Output:
    """Return a part as an item; one that has just begun is still empty."""
    status = status or ("incomplete" if part.is_cut else "completed")
    is_new = status == "in_progress"
    item = Output(type="message", id=item_id(part, response_id), status=status)
    if part.kind == "call":
        item.type = "function_call"
        item.call_id, item.name = part.call_id, part.name
        item.arguments = "" if is_new else part.text
        return item
    item.content = () if is_new else (content_of(part, part.text),)
    if part.kind == "reasoning":
        item.type = "reasoning"
        item.summary = ()
    else:
        item.role = "assistant"
    return item


def content_of(part: Part, text: str) -> TextContent:
    if part.kind == "reasoning":
        return TextContent(type="reasoning_text", text=text)
    return TextContent(type="output_text", text=text, annotations=())


def item_id(part: Part, response_id: str) -> str:
    """Return the id of a part's item: the same however often it is asked for."""
    prefix = {"reasoning": "rs", "text": "msg", "call": "fc"}[part.kind]
    return f"{prefix}-{response_id.partition('-')[2]}{part.index:02x}"

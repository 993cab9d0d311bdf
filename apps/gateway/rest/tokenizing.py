"""``POST /tokenize`` and ``POST /detokenize``, in the form that model servers have in common."""

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest
from apps.engines.client import TextPrompt
from apps.gateway.chat_schemas import ChatFields, Message, chat_request
from apps.gateway.rest.base import InferenceView, body_of
from apps.gateway.rest.operations import Operation
from apps.gateway.tokenizing import TokenizeRequest, detokenize, tokenize

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Either ``prompt`` or ``messages``, which are rendered as a chat completion would."""

    model: str
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str
    tokens: list[TokenId]


class Tokens(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None


class Text(msgspec.Struct, kw_only=True):
    prompt: str


class TokenizeView(InferenceView):
    takes_idempotency_key = False
    decoder: ClassVar = msgspec.json.Decoder(TokenizeBody)
    operations: ClassVar = {
        "post": Operation(
            id="tokenize",
            summary="Turn text into token ids",
            tag="Tokens",
            answer=Tokens,
        ),
    }

    async def post(self, request: Request) -> Response:
        body = body_of(request, TokenizeBody)
        found = await tokenize(tokenize_request(body), principal=self.principal)
        return Response(
            Tokens(
                count=len(found.token_ids),
                max_model_len=found.max_model_len,
                tokens=found.token_ids,
                token_strs=found.strings if body.return_token_strs else None,
            )
        )


class DetokenizeView(InferenceView):
    takes_idempotency_key = False
    decoder: ClassVar = msgspec.json.Decoder(DetokenizeBody)
    operations: ClassVar = {
        "post": Operation(
            id="detokenize",
            summary="Turn token ids into text",
            tag="Tokens",
            answer=Text,
        ),
    }

    async def post(self, request: Request) -> Response:
        body = body_of(request, DetokenizeBody)
        text = await detokenize(
            model=body.model, token_ids=tuple(body.tokens), principal=self.principal
        )
        return Response(Text(prompt=text))


def tokenize_request(body: TokenizeBody) -> TokenizeRequest:
    """Return the request that a decoded body asks for; raises InvalidRequest naming the field."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest(
            "Give either 'prompt' or 'messages'.",
            code="missing_required_parameter" if body.prompt is None else "invalid_value",
            param="prompt",
        )
    if body.add_generation_prompt is False or (
        body.add_generation_prompt is not None and body.messages is None
    ):
        raise InvalidRequest(
            "Unsupported parameter: 'add_generation_prompt' can only be true, and belongs to "
            "'messages'.",
            code="unsupported_parameter",
            param="add_generation_prompt",
        )
    prompt: Any
    if body.messages is not None:
        prompt = chat_request(ChatFields(model=body.model, messages=body.messages)).prompt
    else:
        prompt = TextPrompt(text=body.prompt or "")
    return TokenizeRequest(
        model=body.model,
        prompt=prompt,
        add_special_tokens=body.add_special_tokens,
        with_strings=bool(body.return_token_strs),
    )

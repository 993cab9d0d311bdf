"""``POST /v1/embeddings``: the body that clients send, and the answer that they expect."""

import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from msgspec import Meta

from apps.core.exceptions import InvalidRequest
from apps.engines.client import MAX_TOKENIZE_INPUTS, EmbedInput, TextPrompt, TokenPrompt
from apps.gateway.embedding import EmbeddingAnswer, EmbeddingRequest, embed
from apps.gateway.limits import rate_headers
from apps.gateway.rest.base import AnsweringView
from apps.gateway.rest.generation import FALLBACK
from apps.gateway.rest.operations import Operation
from apps.gateway.schemas import EndUser

MAX_INPUTS: Final = MAX_TOKENIZE_INPUTS
# One part of a large answer; numbers in it take up to some twenty characters each.
_PART_VECTORS: Final = 32
_WHOLE_NUMBERS: Final = 16_384

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class EmbeddingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is right about ``input`` beyond its type, ``embedding_request`` says."""

    model: str
    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    user: EndUser | None = None


class Embedding(msgspec.Struct, kw_only=True):
    object: str = "embedding"
    index: int
    embedding: tuple[float, ...] | str


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The answer; ``answer_parts`` writes it piece by piece."""

    object: str = "list"
    data: tuple[Embedding, ...]
    model: str
    usage: EmbeddingUsage


class EmbeddingView(AnsweringView):
    decoder: ClassVar = msgspec.json.Decoder(EmbeddingBody)
    operations: ClassVar = {
        "post": Operation(
            id="createEmbedding",
            summary="Make vectors of texts",
            tag="Embeddings",
            answer=EmbeddingList,
        ),
    }

    async def answer(self, body: EmbeddingBody) -> HttpResponseBase:
        answer = await embed(
            principal=self.principal, request=embedding_request(body), door=self.door
        )
        response = _response(
            answer_parts(answer, is_base64=body.encoding_format == "base64"), answer
        )
        response["X-Request-Id"] = answer.request_id
        if answer.fallback is not None:
            response[FALLBACK] = answer.fallback
        for name, value in rate_headers(requests=answer.requests, tokens=answer.tokens).items():
            response[name] = value
        return response


def embedding_request(body: EmbeddingBody) -> EmbeddingRequest:
    """Return the request that a decoded body asks for; raises InvalidRequest naming the field."""
    found = body.input
    inputs: tuple[EmbedInput, ...]
    is_single = True
    if isinstance(found, str):
        inputs = (_text(found, param="input"),)
    elif not found:
        raise InvalidRequest("'input' is empty.", code="empty_array", param="input")
    elif isinstance(found[0], int):
        inputs = (_token_ids(found, param="input"),)
    else:
        inputs, is_single = _many(found), False
    return EmbeddingRequest(
        model=body.model,
        inputs=inputs,
        is_single=is_single,
        dimensions=body.dimensions,
        end_user=body.user or None,
    )


def answer_parts(answer: EmbeddingAnswer, *, is_base64: bool) -> Iterator[bytes]:
    """Yield an ``EmbeddingList`` as JSON. Two thousand vectors are many megabytes of it: they are
    written as fast as they are read."""
    encode = msgspec.json.Encoder().encode
    unpack = struct.Struct(f"<{answer.size}f").unpack
    yield b'{"object":"list","data":['
    for start in range(0, len(answer.vectors), _PART_VECTORS):
        part = answer.vectors[start : start + _PART_VECTORS]
        cards = [
            encode(
                Embedding(
                    index=start + offset,
                    embedding=b64encode(packed).decode() if is_base64 else unpack(packed),
                )
            )
            for offset, packed in enumerate(part)
        ]
        yield (b"," if start else b"") + b",".join(cards)
    usage = EmbeddingUsage(
        prompt_tokens=answer.n_prompt_tokens, total_tokens=answer.n_prompt_tokens
    )
    yield b'],"model":' + encode(answer.model) + b',"usage":' + encode(usage) + b"}"


def _response(
    parts: Iterator[bytes], answer: EmbeddingAnswer
) -> HttpResponse | StreamingHttpResponse:
    content_type = "application/json"
    if len(answer.vectors) * answer.size <= _WHOLE_NUMBERS:
        return HttpResponse(b"".join(parts), content_type=content_type)
    return StreamingHttpResponse(_asynchronously(parts), content_type=content_type)


async def _asynchronously(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def _many(found: list[str | int | list[int]]) -> tuple[EmbedInput, ...]:
    if len(found) > MAX_INPUTS:
        raise InvalidRequest(
            f"'input' has {len(found)} items; at most {MAX_INPUTS} are taken at once.",
            code="invalid_value",
            param="input",
        )
    kind = type(found[0])
    inputs: list[EmbedInput] = []
    for index, item in enumerate(found):
        param = f"input[{index}]"
        if not isinstance(item, kind):
            raise InvalidRequest(
                f"'{param}' is of another kind than 'input[0]': 'input' is a list of strings, of "
                "token ids, or of lists of token ids.",
                code="invalid_type",
                param=param,
            )
        if isinstance(item, str):
            inputs.append(_text(item, param=param))
        elif isinstance(item, list):
            inputs.append(_token_ids(item, param=param))
    return tuple(inputs)


def _text(text: str, *, param: str) -> TextPrompt:
    if not text:
        raise InvalidRequest(f"'{param}' is an empty string.", code="invalid_value", param=param)
    return TextPrompt(text=text)


def _token_ids(found: Sequence[str | int | list[int]], *, param: str) -> TokenPrompt:
    ids = tuple(item for item in found if isinstance(item, int))
    if len(ids) < len(found):
        index = next(i for i, item in enumerate(found) if not isinstance(item, int))
        raise InvalidRequest(
            f"'{param}[{index}]' is not a token id, as '{param}[0]' is.",
            code="invalid_type",
            param=f"{param}[{index}]",
        )
    if not ids:
        raise InvalidRequest(f"'{param}' has no token ids.", code="empty_array", param=param)
    return TokenPrompt(token_ids=ids)

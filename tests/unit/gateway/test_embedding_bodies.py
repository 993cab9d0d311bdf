"""Bodies for embeddings: what is accepted, which field a refusal names, how answers are written."""

import base64
import json
import struct
from typing import Any

import msgspec
import pytest

from apps.core.exceptions import InvalidRequest
from apps.engines.client import TextPrompt, TokenPrompt
from apps.gateway.decoding import decode
from apps.gateway.embedding import EmbeddingAnswer, EmbeddingRequest
from apps.gateway.rest.embeddings import (
    MAX_INPUTS,
    EmbeddingBody,
    EmbeddingList,
    answer_parts,
    embedding_request,
)

_decoder = msgspec.json.Decoder(EmbeddingBody)


def request(**fields: Any) -> EmbeddingRequest:
    return embedding_request(decode(_decoder, json.dumps({"model": "m", **fields})))


@pytest.mark.parametrize(
    ("sent", "inputs", "is_single"),
    [
        ("a", (TextPrompt(text="a"),), True),
        (["a"], (TextPrompt(text="a"),), False),
        (["b", "a"], (TextPrompt(text="b"), TextPrompt(text="a")), False),
        ([3, 1], (TokenPrompt(token_ids=(3, 1)),), True),
        ([[3, 1], [2]], (TokenPrompt(token_ids=(3, 1)), TokenPrompt(token_ids=(2,))), False),
    ],
)
def test_every_form_of_input(sent: Any, inputs: tuple[Any, ...], is_single: bool) -> None:
    found = request(input=sent)
    assert (found.inputs, found.is_single, found.dimensions) == (inputs, is_single, None)


def test_as_many_inputs_as_are_allowed() -> None:
    assert MAX_INPUTS == 2048
    assert len(request(input=["a"] * MAX_INPUTS).inputs) == MAX_INPUTS


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": None}, "invalid_type", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "empty_array", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": [[1], []]}, "empty_array", "input[1]"),
        ({"input": ["a", 1]}, "invalid_type", "input[1]"),
        ({"input": ["a", [1]]}, "invalid_type", "input[1]"),
        ({"input": [1, "a"]}, "invalid_type", "input[1]"),
        ({"input": [[1], 2]}, "invalid_type", "input[1]"),
        ({"input": [True]}, "invalid_type", "input[0]"),
        ({"input": [1.5]}, "invalid_type", "input[0]"),
        ({"input": [-1]}, "invalid_value", "input[0]"),
        ({"input": [[1, 2**40]]}, "invalid_value", "input[0][1]"),
        ({"input": [["a"]]}, "invalid_type", "input[0][0]"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": "384"}, "invalid_type", "dimensions"),
        ({"input": "a", "user": 7}, "invalid_type", "user"),
        ({"input": "a", "prompt": "b"}, "unknown_parameter", "prompt"),
    ],
)
def test_refusals_name_their_field(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request(**fields)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize("n_vectors", [1, 2, 31, 32, 33, 100])
@pytest.mark.parametrize("is_base64", [False, True])
def test_answers_in_parts_are_one_list(n_vectors: int, is_base64: bool) -> None:
    rows = [(float(row), -0.125, 1e-7) for row in range(n_vectors)]
    answer = EmbeddingAnswer(
        request_id="embd-1",
        model='a "b"',
        vectors=tuple(struct.pack("<3f", *row) for row in rows),
        size=3,
        n_prompt_tokens=77,
    )
    text = b"".join(answer_parts(answer, is_base64=is_base64))
    found = msgspec.json.decode(text, type=EmbeddingList)
    assert msgspec.json.encode(found) == text
    assert (found.object, found.model) == ("list", 'a "b"')
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (77, 77)
    assert [(each.object, each.index) for each in found.data] == [
        ("embedding", index) for index in range(n_vectors)
    ]
    for packed, each in zip(answer.vectors, found.data, strict=True):
        if isinstance(each.embedding, str):
            assert base64.b64decode(each.embedding) == packed
        else:
            assert struct.pack("<3f", *each.embedding) == packed
    assert {type(each.embedding) for each in found.data} == {str if is_base64 else tuple}

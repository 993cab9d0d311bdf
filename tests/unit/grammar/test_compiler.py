"""From what a request asks of its answer to a mask, or to a refusal that names the field."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine_service.conversation.answer_parser import Reasoning
from engine_service.conversation.tool_format import HERMES, LLAMA3, ToolFormat
from engine_service.errors import EngineError, RequestError
from engine_service.grammar.checker import TokenizerSpec
from engine_service.grammar.compiler import GrammarCompiler, GrammarMask
from engine_service.grammar.lark import MAX_SCHEMA_CHARS, MAX_SCHEMA_DEPTH
from engine_service.protocol import OutputFormat, Tool, ToolUse
from engine_service.scheduling.token_mask import n_mask_bytes
from tests.unit.frontend.tokenizers import END, byte_level

PARAM = "response_format.json_schema.schema"
TOKENIZER = byte_level()
END_ID = TOKENIZER.token_to_id(END)
VOCAB_SIZE = TOKENIZER.get_vocab_size()
ARGUMENTS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL = Tool(name="f", parameters=json.dumps(ARGUMENTS))
OTHER = Tool(name="g")


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(
        TokenizerSpec(tokenizer=TOKENIZER.to_str(), vocab_size=VOCAB_SIZE, eos_token_ids=(END_ID,))
    )
    yield compiler
    compiler.close()


def mask_of(
    compiler: GrammarCompiler,
    *,
    schema: dict[str, Any] | str | None = None,
    tool_use: ToolUse | None = None,
    tool_format: ToolFormat = HERMES,
    reasoning: Reasoning = "off",
) -> GrammarMask:
    text = schema if isinstance(schema, str) or schema is None else json.dumps(schema)
    constraint = compiler.constraint(
        output_format=None if text is None else OutputFormat(json_schema=text, param=PARAM),
        tool_use=tool_use,
        tool_format=tool_format,
        reasoning=reasoning,
    )
    assert constraint is not None
    return constraint.mask()


def is_allowed(mask: GrammarMask, token_id: int) -> bool:
    allowed = mask.allowed()
    assert len(allowed) == n_mask_bytes(VOCAB_SIZE)
    return bool(allowed[token_id // 8] >> token_id % 8 & 1)


def takes(mask: GrammarMask, text: str) -> bool:
    """Say whether the text is a whole answer, token by token as sampling would choose them."""
    mask = mask.fork()
    for token_id in TOKENIZER.encode(text).ids:
        if not is_allowed(mask, token_id):
            return False
        mask.accept(token_id)
    return is_allowed(mask, END_ID)


def test_nothing_asked_is_nothing_held_to(compiler: GrammarCompiler) -> None:
    nothing: dict[str, Any] = {"output_format": None, "tool_format": HERMES, "reasoning": "off"}
    assert compiler.constraint(tool_use=None, **nothing) is None
    none = ToolUse(tools=(TOOL,), choice="none")
    assert compiler.constraint(tool_use=none, **nothing) is None


def test_a_schema(compiler: GrammarCompiler) -> None:
    mask = mask_of(compiler, schema=ARGUMENTS)
    assert takes(mask, '{"a": 5}')
    for wrong in ('{"a": "5"}', '{"a": 5', "{}", '{"a": 5, "b": 1}', '{ "a": 5}', "5", ""):
        assert not takes(mask, wrong), wrong


def test_a_mask_has_the_size_that_sampling_expects_whatever_the_vocabulary() -> None:
    for vocab_size in (n_mask_bytes(VOCAB_SIZE) * 8, n_mask_bytes(VOCAB_SIZE) * 8 + 1):
        compiler = GrammarCompiler(
            TokenizerSpec(
                tokenizer=TOKENIZER.to_str(), vocab_size=vocab_size, eos_token_ids=(END_ID,)
            )
        )
        try:
            mask = mask_of(compiler, schema=ARGUMENTS)
            assert len(mask.allowed()) == n_mask_bytes(vocab_size)
        finally:
            compiler.close()


def test_any_object(compiler: GrammarCompiler) -> None:
    mask = mask_of(compiler, schema="")
    assert takes(mask, '{"x": [1, {"y": null}]}')
    assert not takes(mask, "[1]")


def test_tools_if_the_model_wants(compiler: GrammarCompiler) -> None:
    mask = mask_of(compiler, tool_use=ToolUse(tools=(TOOL, OTHER)))
    call = HERMES.write(name="f", arguments='{"a": 5}')
    assert takes(mask, "no call")
    assert takes(mask, "")
    assert takes(mask, call)
    assert takes(mask, f"Let me see. {call}\n{HERMES.write(name='g', arguments='{}')}")
    assert not takes(mask, HERMES.write(name="f", arguments="{}"))
    assert not takes(mask, HERMES.write(name="h", arguments="{}"))
    assert not takes(mask, call[:-3])


def test_tools_that_must_be_called(compiler: GrammarCompiler) -> None:
    call = HERMES.write(name="f", arguments='{"a": 5}')
    must = mask_of(compiler, tool_use=ToolUse(tools=(TOOL, OTHER), choice="required"))
    assert takes(must, call)
    assert takes(must, f"{call}\n{call}")
    assert not takes(must, "text")
    one = ToolUse(tools=(TOOL, OTHER), choice="required", parallel=False)
    assert takes(mask_of(compiler, tool_use=one), call)
    assert not takes(mask_of(compiler, tool_use=one), f"{call}\n{call}")
    only = ToolUse(tools=(TOOL, OTHER), choice="required", only="g")
    assert takes(mask_of(compiler, tool_use=only), HERMES.write(name="g", arguments="{}"))
    assert not takes(mask_of(compiler, tool_use=only), call)


def test_bare_calls(compiler: GrammarCompiler) -> None:
    mask = mask_of(compiler, tool_use=ToolUse(tools=(TOOL,)), tool_format=LLAMA3)
    assert takes(mask, "text")
    assert takes(mask, '{"name": "f", "parameters": {"a": 5}}')
    assert not takes(mask, '{"name": "f", "parameters": {}}')


def test_a_schema_beside_tools(compiler: GrammarCompiler) -> None:
    mask = mask_of(compiler, schema=ARGUMENTS, tool_use=ToolUse(tools=(OTHER,)))
    assert takes(mask, '{"a": 1}')
    assert takes(mask, HERMES.write(name="g", arguments="{}"))
    assert not takes(mask, "text")


@pytest.mark.parametrize(
    ("reasoning", "taken", "refused"),
    [
        ("optional", ["<think>hm</think>\n\n{}", "{}"], ["hm</think>{}", "<think>hm"]),
        ("open", ["hm\n</think>\n{}"], ["{}"]),
        ("off", ["{}"], ["<think>hm</think>{}"]),
    ],
)
def test_reasoning_before_it(
    compiler: GrammarCompiler, reasoning: Reasoning, taken: list[str], refused: list[str]
) -> None:
    mask = mask_of(compiler, schema={"type": "object", "maxProperties": 0}, reasoning=reasoning)
    assert [text for text in taken if not takes(mask, text)] == []
    assert [text for text in refused if takes(mask, text)] == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {}}, '"not"'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"if": {}, "then": {}}, '"if"'),
        ({"type": "string", "format": "color"}, "color"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"type": "thing"}, "thing"),
        ("[1]", "must be a JSON object"),
        ("{", "is not JSON"),
        (json.dumps({"enum": ["x" * MAX_SCHEMA_CHARS]}), "characters"),
        ('{"items":' * (MAX_SCHEMA_DEPTH + 1) + "{}" + "}" * (MAX_SCHEMA_DEPTH + 1), "deeper"),
        ('{"items":' * 10_000 + "{}" + "}" * 10_000, ""),
    ],
)
def test_what_cannot_be_held_to_is_named(
    compiler: GrammarCompiler, schema: dict[str, Any] | str, said: str
) -> None:
    with pytest.raises(RequestError, match=PARAM) as refused:
        mask_of(compiler, schema=schema)
    assert refused.value.param == PARAM
    assert said in str(refused.value)


def test_a_strict_tool_is_refused_and_another_takes_any_object(compiler: GrammarCompiler) -> None:
    schema = json.dumps({"type": "object", "not": {}})
    loose = Tool(name="f", parameters=schema)
    must = ToolUse(tools=(OTHER, loose), choice="required")
    assert takes(mask_of(compiler, tool_use=must), HERMES.write(name="f", arguments='{"z": 1}'))
    strict = Tool(name="f", parameters=schema, strict=True)
    with pytest.raises(RequestError, match="not") as refused:
        mask_of(compiler, tool_use=ToolUse(tools=(OTHER, strict)))
    assert refused.value.param == "tools[1].function.parameters"


def test_a_schema_that_explodes_costs_seconds_and_only_its_own_request(
    compiler: GrammarCompiler,
) -> None:
    bomb = {"allOf": [{"type": "string", "pattern": "a" * n + ".*b"} for n in range(1, 40)]}
    before_s = time.monotonic()
    with pytest.raises(RequestError, match="too much time or memory"):
        mask_of(compiler, schema=bomb)
    assert time.monotonic() - before_s < 10
    assert takes(mask_of(compiler, schema={"const": 1}), "1")
    before_s = time.monotonic()
    with pytest.raises(RequestError, match="too much time or memory"):
        mask_of(compiler, schema=bomb)
    assert time.monotonic() - before_s < 0.5  # known by now


def test_a_token_that_is_not_allowed_is_an_error(compiler: GrammarCompiler) -> None:
    mask = mask_of(compiler, schema={"const": 1})
    (wrong,) = TOKENIZER.encode("x").ids
    with pytest.raises(EngineError, match="not in the grammar"):
        mask.accept(wrong)


def test_masks_behind_a_draft_are_those_of_step_by_step(compiler: GrammarCompiler) -> None:
    mask = mask_of(compiler, schema=ARGUMENTS)
    draft = TOKENIZER.encode('{"a": 5').ids
    ahead, expected = mask.fork(), [mask.fork().allowed()]
    for token_id in draft:
        ahead.accept(token_id)
        expected.append(ahead.allowed())
    assert [mask.allowed(draft[:n]) for n in range(len(draft) + 1)] == expected
    assert mask.allowed() == expected[0]
    with pytest.raises(EngineError, match="drafted token"):
        mask.allowed([END_ID, *draft])


def test_what_must_come_is_forced_and_a_draft_ends_where_it_is_wrong(
    compiler: GrammarCompiler,
) -> None:
    mask = mask_of(compiler, schema=ARGUMENTS)
    whole = TOKENIZER.encode('{"a": 5}').ids
    forced = list(mask.forced())
    assert forced and forced == whole[: len(forced)]
    assert mask.n_allowed([*whole[:3], END_ID]) == 3
    for token_id in whole[:-1]:
        mask.accept(token_id)
    assert list(mask.forced()) == []


@pytest.mark.parametrize(
    "schema",
    [
        ARGUMENTS,
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "pattern": "[a-z]{2,12}( [a-z]{2,12}){0,5}"},
        {"anyOf": [{"type": "boolean"}, {"type": "string", "format": "date"}]},
    ],
)
def test_a_token_is_allowed_on_its_own_where_the_mask_allows_it(
    compiler: GrammarCompiler, schema: dict[str, Any]
) -> None:
    picker = random.Random(3)
    for _ in range(8):
        mask = mask_of(compiler, schema=schema)
        for _ in range(30):
            bits = int.from_bytes(mask.allowed(), "little")
            allowed = [token_id for token_id in range(VOCAB_SIZE) if bits >> token_id & 1]
            found = [token_id for token_id in range(VOCAB_SIZE) if mask.n_allowed([token_id])]
            assert found == allowed
            token_id = picker.choice(allowed)
            if token_id == END_ID:
                break
            mask.accept(token_id)

"""Turns what a request says of its answer into a mask over tokens, or into a refusal by name."""

import threading
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from typing import Any, Final, Protocol

from llguidance import LLMatcher, LLTokenizer

from engine_service.conversation.answer_parser import Reasoning
from engine_service.conversation.tool_format import ToolFormat
from engine_service.errors import EngineError, RequestError
from engine_service.grammar.checker import GrammarChecker, TokenizerSpec, compile_grammar
from engine_service.grammar.lark import Calls, answer_grammar, schema_grammar, schema_object
from engine_service.protocol import OutputFormat, ToolUse
from engine_service.scheduling.token_mask import n_mask_bytes

_N_KEPT: Final = 64
_MAX_REASON_CHARS: Final = 300
_ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}


class GrammarMask:
    """A ``TokenMask`` that follows one answer through a grammar."""

    def __init__(self, matcher: LLMatcher, *, param: str, spec: TokenizerSpec) -> None:
        self.param = param
        self._matcher = matcher
        self._spec = spec
        self._made: dict[tuple[int, ...], bytes] = {}

    def accept(self, token_id: int) -> None:
        self._made.clear()
        if not self._matcher.consume_token(token_id):
            raise EngineError(f"token {token_id} is not in the grammar")

    def fork(self) -> "GrammarMask":
        return GrammarMask(self._matcher.deep_copy(), param=self.param, spec=self._spec)

    def allowed(self, behind: SequenceOf[int] = ()) -> bytes:
        behind = tuple(behind)
        if behind not in self._made:
            self._made[behind] = self._mask(behind)
        return self._made[behind]

    def forced(self) -> list[int]:
        return self._matcher.compute_ff_tokens()

    def n_allowed(self, token_ids: SequenceOf[int]) -> int:
        n_valid: int = self._matcher.validate_tokens(list(token_ids))
        # The library says of no token that ends an answer that it may come.
        if n_valid < len(token_ids) and token_ids[n_valid] in self._spec.eos_token_ids:
            return n_valid + self._may_end(token_ids[:n_valid])
        return n_valid

    def _may_end(self, behind: SequenceOf[int]) -> bool:
        return self._matcher_behind(behind).is_accepting()

    def _mask(self, behind: SequenceOf[int]) -> bytes:
        matcher = self._matcher_behind(behind)
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            # It held at the first token: what the answer has become is too much for it.
            raise RequestError(
                f"{self.param} became too complex to follow.",
                code="grammar_too_complex",
                param=self.param,
            )
        # The library's may have a word more than there are tokens.
        return mask[: n_mask_bytes(self._spec.vocab_size)]

    def _matcher_behind(self, token_ids: SequenceOf[int]) -> LLMatcher:
        if not token_ids:
            return self._matcher
        # A copy, because one that has taken a wrong guess is of no use any more.
        matcher = self._matcher.deep_copy()
        if matcher.try_consume_tokens(list(token_ids)) < len(token_ids):
            raise EngineError("a drafted token is not in the grammar")
        return matcher


class Constraint(Protocol):
    def mask(self) -> GrammarMask:
        """Return the mask of a new answer."""


class _Compiled:
    def __init__(self, matcher: LLMatcher, *, param: str, spec: TokenizerSpec) -> None:
        self._matcher = matcher
        self._param = param
        self._spec = spec

    def mask(self) -> GrammarMask:
        return GrammarMask(self._matcher.deep_copy(), param=self._param, spec=self._spec)


class GrammarCompiler:
    """Of one model. Any thread may call it; a request takes seconds at most, most take none."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._checker = GrammarChecker(spec)
        self._lock = threading.Lock()
        self._built: LLTokenizer | None = None
        # By grammar: a matcher to copy, or what is wrong.
        self._known: OrderedDict[str, LLMatcher | str] = OrderedDict()

    def constraint(
        self,
        *,
        output_format: OutputFormat | None,
        tool_use: ToolUse | None,
        tool_format: ToolFormat | None,
        reasoning: Reasoning,
    ) -> Constraint | None:
        """Return what an answer is held to; None where any text will do.

        Raises:
            RequestError: names the schema that cannot be held to, and why.
        """
        schema = None
        if output_format is not None:
            schema = self._checked_schema(output_format.json_schema, param=output_format.param)
        calls = None
        if tool_use is not None and tool_format is not None:
            calls = self._calls(tool_use, tool_format=tool_format)
        if schema is None and calls is None:
            return None
        grammar = answer_grammar(schema=schema, calls=calls, reasoning=reasoning)
        param = output_format.param if output_format is not None else "tools"
        return _Compiled(self._matcher(grammar, param=param), param=param, spec=self._spec)

    def tokenizer(self) -> LLTokenizer:
        """Return what knows the bytes of each token; the first call takes 0.2 s."""
        with self._lock:
            if self._built is None:
                self._built = self._spec.build()
            return self._built

    def close(self) -> None:
        self._checker.close()

    def _calls(self, use: ToolUse, *, tool_format: ToolFormat) -> Calls | None:
        functions = {}
        for index, tool in enumerate(use.tools):
            if use.only not in (None, tool.name):
                continue
            param = f"tools[{index}].function.parameters"
            try:
                functions[tool.name] = self._checked_schema(tool.parameters, param=param)
            except RequestError:
                if tool.strict:
                    raise
                functions[tool.name] = _ANY_OBJECT
        if use.choice == "none" or not functions:
            return None
        return Calls(
            functions=functions,
            tool_format=tool_format,
            is_must=use.choice == "required" or use.only is not None,
            several=use.parallel and use.only is None,
        )

    def _checked_schema(self, text: str, *, param: str) -> dict[str, Any]:
        schema = schema_object(text, param=param)
        self._matcher(schema_grammar(schema), param=param)
        return schema

    def _matcher(self, grammar: str, *, param: str) -> LLMatcher:
        with self._lock:
            known = self._known.get(grammar)
            if known is not None:
                self._known.move_to_end(grammar)
        if known is None:
            known = self._compile(grammar)
            with self._lock:
                self._known[grammar] = known
                while len(self._known) > _N_KEPT:
                    self._known.popitem(last=False)
        if isinstance(known, str):
            raise RequestError(
                f"{param} cannot be held to: {known[:_MAX_REASON_CHARS]}",
                code="unsupported_schema",
                param=param,
            )
        return known

    def _compile(self, grammar: str) -> LLMatcher | str:
        if error := self._checker.error_of(grammar):
            return error
        matcher = compile_grammar(self.tokenizer(), grammar)
        return matcher.get_error() or matcher

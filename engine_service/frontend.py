"""From a client's prompt to validated token ids, and back to text, on a small pool of threads.

Knows nothing of sockets or of how tokens are made; nothing here runs on the step thread.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine_service.byte_level import TokenTexts
from engine_service.conversation.answer_parser import AnswerParser, Reasoning
from engine_service.conversation.prompt_reader import PromptReader, param_of
from engine_service.conversation.tool_format import ToolFormat
from engine_service.detokenizer import Detokenizer
from engine_service.errors import RequestError, WrongTask
from engine_service.grammar.checker import TokenizerSpec
from engine_service.grammar.compiler import Constraint, GrammarCompiler
from engine_service.protocol import (
    MAX_EMBED_INPUTS,
    MAX_TOKENIZE_INPUTS,
    NO_STANDING,
    ChatPrompt,
    Detokenize,
    Detokenized,
    Embed,
    Prepare,
    SamplingParams,
    Standing,
    TextAnswer,
    TextPrompt,
    TextQuestion,
    Tokenize,
    Tokenized,
    TokenizedInputs,
    TokenizeInputs,
)
from engine_service.validation import (
    unsupported_parameter,
    validate_cache_tags,
    validate_inputs,
    validate_request,
    validate_tokens,
)

if TYPE_CHECKING:
    from engine_service.backends.base import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """A request that the engine can run as it stands.

    constraint: what its answers are held to. reasoning, tools: what its answers' texts are
    searched for.
    """

    token_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    cache_salt: str
    cache_tags: tuple[str, ...] = ()
    standing: Standing = NO_STANDING
    constraint: Constraint | None = None
    reasoning: Reasoning = "off"
    tools: ToolFormat | None = None


class Frontend:
    """Prepares prompts and makes detokenizers for one loaded model."""

    def __init__(self, tokenizer: Any, info: "ModelInfo", *, n_threads: int = 2) -> None:
        self._reader = PromptReader(tokenizer, max_model_len=info.max_model_len)
        self._decoder = tokenizer.backend_tokenizer
        self._info = info
        added: Mapping[int, Any] = self._decoder.get_added_tokens_decoder()
        self._special_ids = frozenset(key for key, token in added.items() if token.special)
        self._texts = TokenTexts.of(self._decoder, special_ids=self._special_ids)
        self._grammars = GrammarCompiler(
            TokenizerSpec(
                tokenizer=self._decoder.to_str(),
                vocab_size=info.vocab_size,
                eos_token_ids=tuple(sorted(info.eos_token_ids)),
            )
        )
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="frontend")

    async def prepare(self, request: Prepare) -> PreparedPrompt:
        """Render, tokenize and validate on the pool.

        Raises:
            RequestError: the request cannot be honoured; ``param`` says which field is wrong.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self.prepare_now, request)

    def prepare_now(self, request: Prepare) -> PreparedPrompt:
        """Do what ``prepare`` does on the calling thread."""
        if self._info.task != "generate":
            raise WrongTask(param=param_of(request.prompt))
        validate_cache_tags(request.cache_tags)
        token_ids, reasoning, tools = self._reader.read(request.prompt)
        max_new_tokens = validate_request(
            prompt_token_ids=token_ids,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            info=self._info,
            prompt_param=param_of(request.prompt),
        )
        constraint = self._constraint(request, reasoning=reasoning, tools=tools)
        if request.sampling.logprobs is not None or request.sampling.prompt_logprobs is not None:
            self._grammars.tokenizer()  # here, not where the first token waits for it
        return PreparedPrompt(
            token_ids=token_ids,
            sampling=request.sampling,
            max_new_tokens=max_new_tokens,
            cache_salt=request.cache_salt,
            cache_tags=request.cache_tags,
            standing=request.standing,
            constraint=constraint,
            reasoning=reasoning,
            tools=tools,
        )

    def _constraint(
        self, request: Prepare, *, reasoning: Reasoning, tools: ToolFormat | None
    ) -> Constraint | None:
        use = request.prompt.tool_use if isinstance(request.prompt, ChatPrompt) else None
        constraint = self._grammars.constraint(
            output_format=request.output_format,
            tool_use=use,
            tool_format=tools,
            reasoning=reasoning,
        )
        if constraint is not None and not self._info.takes_masks:
            output_format = request.output_format
            raise unsupported_parameter(
                "tools" if output_format is None else output_format.param,
                backend=self._info.backend,
            )
        if constraint is not None and request.sampling.ignore_eos:
            raise RequestError(
                "ignore_eos cannot be combined with tools or a response format.",
                code="invalid_value",
                param="ignore_eos",
            )
        return constraint

    async def prepare_inputs(self, request: Embed) -> tuple[tuple[int, ...], ...]:
        """Tokenize and validate the texts of an embedding request on the pool.

        Raises:
            RequestError: they cannot be honoured; ``param`` says which of them is wrong.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self.prepare_inputs_now, request)

    def prepare_inputs_now(self, request: Embed | TokenizeInputs) -> tuple[tuple[int, ...], ...]:
        """Do what ``prepare_inputs`` does on the calling thread."""
        if self._info.task != "embed":
            raise WrongTask(param="input")
        most = MAX_EMBED_INPUTS if isinstance(request, Embed) else MAX_TOKENIZE_INPUTS
        if not 1 <= len(request.inputs) <= most:
            raise RequestError(
                f"input must be 1 to {most} texts, not {len(request.inputs)}.",
                code="invalid_value",
                param="input",
            )
        inputs = tuple(
            self._reader.encode(each.text, special_tokens=True, param=f"input[{index}]")
            if isinstance(each, TextPrompt)
            else each.token_ids
            for index, each in enumerate(request.inputs)
        )
        validate_inputs(inputs, info=self._info)
        return inputs

    async def answer(self, question: TextQuestion) -> TextAnswer:
        """Answer a question about text on the pool.

        Raises:
            RequestError: it cannot be answered; ``param`` says which field is wrong.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self.answer_now, question)

    def answer_now(self, question: TextQuestion) -> TextAnswer:
        """Do what ``answer`` does on the calling thread."""
        match question:
            case Tokenize():
                return self._tokenize(question)
            case TokenizeInputs():
                inputs = self.prepare_inputs_now(question)
                return TokenizedInputs(request_id=question.request_id, inputs=inputs)
            case Detokenize():
                validate_tokens(question.token_ids, info=self._info)
                # A batch of one, as where a text is encoded.
                (text,) = self._decoder.decode_batch(
                    [list(question.token_ids)], skip_special_tokens=False
                )
                return Detokenized(request_id=question.request_id, text=text)

    def _tokenize(self, question: Tokenize) -> Tokenized:
        prompt, special_tokens = question.prompt, question.add_special_tokens
        if special_tokens is None:
            token_ids, _, _ = self._reader.read(prompt)
        else:
            text = self._reader.render(prompt) if isinstance(prompt, ChatPrompt) else prompt.text
            token_ids = self._reader.encode(
                text, special_tokens=special_tokens, param=param_of(prompt)
            )
        strings: tuple[str, ...] = ()
        if question.with_strings:
            strings = tuple(self._decoder.id_to_token(each) for each in token_ids)
        return Tokenized(request_id=question.request_id, token_ids=token_ids, strings=strings)

    def detokenizer(self, sampling: SamplingParams) -> Detokenizer:
        """Return the detokenizer of one generation."""
        return Detokenizer(
            self._decoder,
            special_ids=self._special_ids,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            texts=self._texts,
        )

    def answer_parser(self, prompt: PreparedPrompt) -> AnswerParser:
        """Return what splits the text of one of a request's answers."""
        return AnswerParser(reasoning=prompt.reasoning, tools=prompt.tools)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that an id stands for, of a special token its name."""
        return self._grammars.tokenizer().decode_bytes([token_id])

    def is_end_token(self, token_id: int) -> bool:
        """Return whether the model ends its answer with this id."""
        return token_id in self._info.eos_token_ids

    def close(self) -> None:
        """Stop the pool; what has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._grammars.close()

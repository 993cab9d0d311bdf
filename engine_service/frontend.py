"""From a client's prompt to validated token ids, and back to text, on a small pool of threads.

Knows nothing of sockets or of how tokens are made; nothing here runs on the step thread.
"""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jinja2 import TemplateError

from engine_service.detokenizer import Detokenizer
from engine_service.errors import ModelError, RequestError, WrongTask
from engine_service.protocol import (
    MAX_EMBED_INPUTS,
    NO_STANDING,
    ChatPrompt,
    Embed,
    Prepare,
    Prompt,
    SamplingParams,
    Standing,
    TextPrompt,
)
from engine_service.validation import validate_cache_tags, validate_inputs, validate_request

if TYPE_CHECKING:
    from engine_service.backends.base import ModelInfo

# Rules of a template are broken by what the messages hold; Jinja reports them in these ways.
_TEMPLATE_ERRORS: Final = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
_MAX_REASON_CHARS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """A request that the engine can run as it stands."""

    token_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    cache_salt: str
    cache_tags: tuple[str, ...] = ()
    standing: Standing = NO_STANDING


def load_tokenizer(model_dir: Path) -> Any:
    """Load the tokenizer and chat template of a model directory: local files, no code from it.

    Raises:
        ModelError: the directory has no tokenizer that can be read.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
        # Its file may ask for either; what is too long is refused here, never cut.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return tokenizer
    except Exception as error:  # the Rust reader raises nothing narrower
        raise ModelError(f"cannot read the tokenizer in {model_dir}: {error}") from error


class Frontend:
    """Prepares prompts and makes detokenizers for one loaded model."""

    def __init__(self, tokenizer: Any, info: "ModelInfo", *, n_threads: int = 2) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.backend_tokenizer
        self._info = info
        added: Mapping[int, Any] = self._decoder.get_added_tokens_decoder()
        self._special_ids = frozenset(key for key, token in added.items() if token.special)
        self._max_text_chars = info.max_model_len * max(map(len, tokenizer.get_vocab()))
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
            raise WrongTask(param=_param_of(request.prompt))
        validate_cache_tags(request.cache_tags)
        token_ids = self._token_ids(request.prompt)
        max_new_tokens = validate_request(
            prompt_token_ids=token_ids,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            info=self._info,
            prompt_param=_param_of(request.prompt),
        )
        return PreparedPrompt(
            token_ids=token_ids,
            sampling=request.sampling,
            max_new_tokens=max_new_tokens,
            cache_salt=request.cache_salt,
            cache_tags=request.cache_tags,
            standing=request.standing,
        )

    async def prepare_inputs(self, request: Embed) -> tuple[tuple[int, ...], ...]:
        """Tokenize and validate the texts of an embedding request on the pool.

        Raises:
            RequestError: they cannot be honoured; ``param`` says which of them is wrong.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self.prepare_inputs_now, request)

    def prepare_inputs_now(self, request: Embed) -> tuple[tuple[int, ...], ...]:
        """Do what ``prepare_inputs`` does on the calling thread."""
        if self._info.task != "embed":
            raise WrongTask(param="input")
        if not 1 <= len(request.inputs) <= MAX_EMBED_INPUTS:
            raise RequestError(
                f"input must be 1 to {MAX_EMBED_INPUTS} texts, not {len(request.inputs)}.",
                code="invalid_value",
                param="input",
            )
        inputs = tuple(
            self._encode(each.text, special_tokens=True, param=f"input[{index}]")
            if isinstance(each, TextPrompt)
            else each.token_ids
            for index, each in enumerate(request.inputs)
        )
        validate_inputs(inputs, info=self._info)
        return inputs

    def detokenizer(self, sampling: SamplingParams) -> Detokenizer:
        """Return the detokenizer of one generation."""
        return Detokenizer(
            self._decoder,
            special_ids=self._special_ids,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
        )

    def is_end_token(self, token_id: int) -> bool:
        """Return whether the model ends its answer with this id."""
        return token_id in self._info.eos_token_ids

    def close(self) -> None:
        """Stop the pool; what has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, ChatPrompt):
            # The template writes the special tokens itself.
            return self._encode(self._render(prompt), special_tokens=False, param="messages")
        if isinstance(prompt, TextPrompt):
            return self._encode(prompt.text, special_tokens=True, param="prompt")
        return prompt.token_ids

    def _render(self, prompt: ChatPrompt) -> str:
        if not prompt.messages:
            raise RequestError("messages is empty.", code="invalid_value", param="messages")
        if not self._tokenizer.chat_template:
            raise RequestError(
                "This model has no chat template: send a prompt instead of messages.",
                code="unsupported_value",
                param="messages",
            )
        # A turn takes at least a token. Rendering many thousands holds up all other threads.
        if len(prompt.messages) > self._info.max_model_len:
            raise RequestError(
                f"The model's context is {self._info.max_model_len} tokens; there are "
                f"{len(prompt.messages)} messages.",
                code="context_length_exceeded",
                param="messages",
            )
        # It renders to at least its text and one character of frame.
        n_chars = sum(len(turn.content) + 1 for turn in prompt.messages)
        self._check_length(n_chars, param="messages")
        messages = [
            {"role": turn.role, "content": turn.content}
            | ({} if turn.name is None else {"name": turn.name})
            for turn in prompt.messages
        ]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except _TEMPLATE_ERRORS as error:
            reason = str(error)[:_MAX_REASON_CHARS]
            raise RequestError(
                f"The model's chat template refuses these messages: {reason}",
                code="invalid_value",
                param="messages",
            ) from error

    def _encode(self, text: str, *, special_tokens: bool, param: str) -> tuple[int, ...]:
        self._check_length(len(text), param=param)
        # A batch of one: it alone lets other threads run meanwhile, and a long text takes 0.3 s.
        (encoding,) = self._decoder.encode_batch([text], add_special_tokens=special_tokens)
        return tuple(encoding.ids)

    def _check_length(self, n_chars: int, *, param: str) -> None:
        """Refuse, before tokenizing it, text that even the longest tokens cannot make fit."""
        if n_chars > self._max_text_chars:
            raise RequestError(
                f"The model's context is {self._info.max_model_len} tokens; {param} has {n_chars} "
                "characters, which is more however it is tokenized.",
                code="context_length_exceeded",
                param=param,
            )


def _param_of(prompt: Prompt) -> str:
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"

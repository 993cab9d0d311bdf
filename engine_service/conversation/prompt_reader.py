"""Token ids of a prompt, by a model's tokenizer and chat template; what cannot be is refused before
time is spent on it. Knows nothing of sampling, nor of other threads."""

from typing import Any, Final

from jinja2 import TemplateError

from engine_service.conversation.answer_parser import THINK, THINK_END, Reasoning
from engine_service.conversation.rendering import n_chars, offered_tools, template_arguments
from engine_service.conversation.tool_format import ToolFormat, tool_format
from engine_service.errors import RequestError
from engine_service.protocol import ChatPrompt, Prompt, TextPrompt

# Rules of a template are broken by what the messages hold; Jinja reports them in these ways.
_TEMPLATE_ERRORS: Final = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
_MAX_REASON_CHARS: Final = 500


class PromptReader:
    """Every method may raise RequestError; ``param`` says which field is wrong."""

    def __init__(self, tokenizer: Any, *, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._encoder = tokenizer.backend_tokenizer
        self._template = str(tokenizer.chat_template or "")
        self._tool_format = tool_format(self._template)
        self._max_model_len = max_model_len
        self._max_text_chars = max_model_len * max(map(len, tokenizer.get_vocab()))

    def read(self, prompt: Prompt) -> tuple[tuple[int, ...], Reasoning, ToolFormat | None]:
        """Return the ids of a prompt, and what the text after it is to be searched for."""
        if isinstance(prompt, TextPrompt):
            return self.encode(prompt.text, special_tokens=True, param="prompt"), "off", None
        if not isinstance(prompt, ChatPrompt):
            return prompt.token_ids, "off", None
        tools = None
        if offered_tools(prompt):
            tools = self._tool_format
            if tools is None:
                raise RequestError(
                    "This model's chat template calls tools in a way that is not known here.",
                    code="unsupported_value",
                    param="tools",
                )
        text = self.render(prompt)
        # The template writes the special tokens itself.
        token_ids = self.encode(text, special_tokens=False, param="messages")
        return token_ids, self._reasoning_after(text), tools

    def _reasoning_after(self, text: str) -> Reasoning:
        if THINK_END not in self._template and THINK not in self._template:
            return "off"
        end = text.rstrip()
        if end.endswith(THINK):
            return "open"
        return "off" if end.endswith(THINK_END) else "optional"

    def render(self, prompt: ChatPrompt) -> str:
        """Return the text that the chat template makes of the turns."""
        if not prompt.messages:
            raise RequestError("messages is empty.", code="invalid_value", param="messages")
        if not self._template:
            raise RequestError(
                "This model has no chat template: send a prompt instead of messages.",
                code="unsupported_value",
                param="messages",
            )
        # A turn takes at least a token. Rendering many thousands holds up all other threads.
        if len(prompt.messages) > self._max_model_len:
            raise RequestError(
                f"The model's context is {self._max_model_len} tokens; there are "
                f"{len(prompt.messages)} messages.",
                code="context_length_exceeded",
                param="messages",
            )
        # It renders to at least its text and one character of frame.
        self._check_length(n_chars(prompt), param="messages")
        try:
            messages, arguments = template_arguments(
                prompt, template=self._template, tool_format=self._tool_format
            )
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **arguments
                )
            )
        except _TEMPLATE_ERRORS as error:
            reason = str(error)[:_MAX_REASON_CHARS]
            raise RequestError(
                f"The model's chat template refuses these messages: {reason}",
                code="invalid_value",
                param="messages",
            ) from error

    def encode(self, text: str, *, special_tokens: bool, param: str) -> tuple[int, ...]:
        """Return the ids of a text; ``param`` names it in an error."""
        self._check_length(len(text), param=param)
        # A batch of one: it alone lets other threads run meanwhile, and a long text takes 0.3 s.
        (encoding,) = self._encoder.encode_batch([text], add_special_tokens=special_tokens)
        return tuple(encoding.ids)

    def _check_length(self, n_chars: int, *, param: str) -> None:
        """Refuse, before tokenizing it, text that even the longest tokens cannot make fit."""
        if n_chars > self._max_text_chars:
            raise RequestError(
                f"The model's context is {self._max_model_len} tokens; {param} has {n_chars} "
                "characters, which is more however it is tokenized.",
                code="context_length_exceeded",
                param=param,
            )


def param_of(prompt: Prompt) -> str:
    """Return the name of the field that a client sent the prompt in."""
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"

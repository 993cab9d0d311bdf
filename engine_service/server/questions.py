"""Answers to questions about text, as frames of a bounded size."""

import contextlib

from engine_service.errors import RequestError
from engine_service.protocol import (
    ChatPrompt,
    Detokenize,
    FrameError,
    TextAnswer,
    TextQuestion,
    Tokenize,
    TokenizeInputs,
    encode_frame,
)


def answer_frame(question: TextQuestion, answer: TextAnswer, *, most_bytes: int) -> bytes:
    """Encode an answer; raises RequestError for one that would take too long to send."""
    with contextlib.suppress(FrameError):
        frame = encode_frame(answer)
        if len(frame) <= most_bytes:
            return frame
    match question:
        case TokenizeInputs():
            param = "input"
        case Detokenize():
            param = "tokens"
        case Tokenize():
            param = "messages" if isinstance(question.prompt, ChatPrompt) else "prompt"
    raise RequestError(
        f"{param} is too much for one request: the answer would be larger than {most_bytes} bytes.",
        code="invalid_value",
        param=param,
    )

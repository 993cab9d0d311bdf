"""Which answers are taken for a judge, and what is kept of them."""

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from apps.core.sealing import seal, unseal
from apps.judging.types import (
    MAX_ANSWER_CHARS,
    MAX_ASKED_CHARS,
    TURN_CHARS,
    JudgedText,
    Turn,
)

_PURPOSE: Final = "judging: answers that wait"
_decoder = msgspec.json.Decoder(JudgedText)


def is_sampled(request_id: str, *, judge_id: int, percent: float) -> bool:
    """Return whether a judge takes this answer: the same at every process and every time."""
    if percent >= 100.0:
        return True
    digest = hashlib.blake2b(f"{judge_id}:{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < percent / 100.0 * 2**64


def judged_text(
    turns: Iterable[Turn],
    answer: str,
    *,
    max_asked: int = MAX_ASKED_CHARS,
    max_answer: int = MAX_ANSWER_CHARS,
) -> JudgedText:
    """Return what is kept: of a long conversation its end, of a long answer its beginning."""
    left, kept, is_cut = max_asked, [], len(answer) > max_answer
    for turn in reversed(tuple(turns)):
        if left <= 0:
            is_cut = True
            break
        is_cut = is_cut or len(turn.content) > left
        content = turn.content[-left:]
        left -= len(content) + TURN_CHARS
        kept.append(Turn(role=turn.role, content=content))
    return JudgedText(asked=tuple(reversed(kept)), answer=answer[:max_answer], is_cut=is_cut)


def text_shortened(text: JudgedText, *, share: float) -> JudgedText:
    """Return about so much of it, for a judge that reads no more. The answer is what is judged: it
    may take half of the room, and all that the conversation leaves."""
    n_asked = sum(len(turn.content) + TURN_CHARS for turn in text.asked)
    room = int((n_asked + len(text.answer)) * share)
    max_answer = max(room // 2, room - n_asked)
    found = judged_text(
        text.asked,
        text.answer,
        max_asked=room - min(max_answer, len(text.answer)),
        max_answer=max_answer,
    )
    return msgspec.structs.replace(found, is_cut=found.is_cut or text.is_cut)


def text_sealed(text: JudgedText) -> str:
    return seal(msgspec.json.encode(text), purpose=_PURPOSE)


def text_unsealed(sealed: str) -> JudgedText:
    """Raises SealBroken."""
    return _decoder.decode(unseal(sealed, purpose=_PURPOSE))

"""Which answers are taken for a judge, and what is kept of them."""

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from apps.core.sealing import seal, unseal
from apps.judging.types import MAX_ANSWER_CHARS, MAX_ASKED_CHARS, JudgedText, Turn

_PURPOSE: Final = "judging: answers that wait"
_decoder = msgspec.json.Decoder(JudgedText)


def is_sampled(request_id: str, *, judge_id: int, percent: float) -> bool:
    """Return whether a judge takes this answer: the same at every process and every time."""
    if percent >= 100.0:
        return True
    digest = hashlib.blake2b(f"{judge_id}:{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < percent / 100.0 * 2**64


def judged_text(turns: Iterable[Turn], answer: str) -> JudgedText:
    """Return what is kept: of a long conversation its end, of a long answer its beginning."""
    left, kept, is_cut = MAX_ASKED_CHARS, [], len(answer) > MAX_ANSWER_CHARS
    for turn in reversed(tuple(turns)):
        if not left:
            is_cut = True
            break
        is_cut = is_cut or len(turn.content) > left
        content = turn.content[-left:]
        left -= len(content)
        kept.append(Turn(role=turn.role, content=content))
    return JudgedText(asked=tuple(reversed(kept)), answer=answer[:MAX_ANSWER_CHARS], is_cut=is_cut)


def text_sealed(text: JudgedText) -> str:
    return seal(msgspec.json.encode(text), purpose=_PURPOSE)


def text_unsealed(sealed: str) -> JudgedText:
    """Raises SealBroken."""
    return _decoder.decode(unseal(sealed, purpose=_PURPOSE))

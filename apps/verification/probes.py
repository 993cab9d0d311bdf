"""What a version is asked, and what is measured of it. The prompts are fixed, so that figures of
two versions compare; everything is asked at temperature 0."""

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from apps.core.ids import new_id
from apps.engines.client import (
    ChatMessage,
    ChatPrompt,
    EngineClient,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from apps.engines.types import TokenLogprob
from apps.registry.types import VerificationCheck
from apps.verification.texts import DISSIMILAR, PROBE_TEXT, QUESTIONS, SIMILAR

TIMEOUT_S: Final = 120.0
_ANSWER_TOKENS: Final = 24
_LATENCY_PROMPT_TOKENS: Final = 64
_LATENCY_NEW_TOKENS: Final = 32
_ROUNDS: Final = 5
_TEXTS_AT_ONCE: Final = 16
_NORM_WITHIN: Final = 1e-3
# A model that guesses has a perplexity of its vocabulary's size. One that is much worse is broken:
# weights in another order, another tokenizer.
_WORST_GUESSES: Final = 2.0

OnPart = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One answer, and when its tokens came."""

    text: str
    finish_reason: str
    n_tokens: int
    ttft_s: float
    total_s: float
    prompt_logprobs: tuple[TokenLogprob, ...]


async def answers_check(
    client: EngineClient, *, is_chat: bool, on_part: OnPart
) -> list[VerificationCheck]:
    """Ask each question twice."""
    checks: list[VerificationCheck] = []
    for index, question in enumerate(QUESTIONS):
        prompt = _question(question, is_chat=is_chat)
        first, second = [
            await _generate(client, prompt, max_tokens=_ANSWER_TOKENS) for _ in range(2)
        ]
        checks += _judged(question, first, second)
        on_part(index + 1, len(QUESTIONS))
    return checks


def _judged(question: str, first: Generated, second: Generated) -> Sequence[VerificationCheck]:
    is_ended = first.finish_reason in ("stop", "length")
    return (
        VerificationCheck(
            name=f"{question} is answered",
            is_passed=bool(first.text.strip()) and is_ended,
            said=f"{first.text.strip()[:200]!r}, ended by {first.finish_reason}",
        ),
        VerificationCheck(
            name=f"{question} is answered the same again",
            is_passed=(first.text, first.n_tokens) == (second.text, second.n_tokens),
            said="the same" if first.text == second.text else f"{second.text.strip()[:200]!r}",
        ),
    )


async def perplexity_measure(
    client: EngineClient, *, figures: dict[str, float]
) -> list[VerificationCheck]:
    """Ask how likely the model finds a text that it was not trained on."""
    ids = await _token_ids(client, PROBE_TEXT)
    prompt = TokenPrompt(token_ids=ids[: client.info.max_model_len - 1])
    generated = await _generate(client, prompt, max_tokens=1, prompt_logprobs=0)
    scores = [each.logprob for each in generated.prompt_logprobs]
    if not scores:
        return [VerificationCheck(name="Perplexity", is_passed=False, said="no token was scored")]
    mean = -sum(scores) / len(scores)
    perplexity = math.exp(mean) if mean < 700 else math.inf
    is_finite = math.isfinite(perplexity)
    if is_finite:  # JSON holds no other
        figures |= {"perplexity": perplexity, "n_perplexity_tokens": len(scores)}
    most = _WORST_GUESSES * client.info.vocab_size
    return [
        VerificationCheck(
            name="Perplexity is better than a guess",
            is_passed=is_finite and perplexity < most,
            said=f"{perplexity:,.3f} over {len(scores)} tokens; at most {most:,.0f}",
        )
    ]


async def latency_measure(
    client: EngineClient, *, figures: dict[str, float], on_part: OnPart
) -> None:
    """Take the medians of some rounds, after one that warms up; no round reuses another's
    prefix."""
    ids = await _token_ids(client, PROBE_TEXT)
    longest = client.info.max_model_len // 2
    prompt = TokenPrompt(token_ids=ids[: min(_LATENCY_PROMPT_TOKENS, longest)])
    n_new = min(_LATENCY_NEW_TOKENS, longest)
    rounds = []
    for index in range(_ROUNDS + 1):
        rounds.append(
            await _generate(
                client, prompt, max_tokens=n_new, ignore_eos=True, salt=f"round-{index}"
            )
        )
        on_part(index + 1, _ROUNDS + 1)
    counted = rounds[1:]
    figures |= {
        "ttft_ms": 1000 * median(each.ttft_s for each in counted),
        "itl_ms": 1000
        * median((each.total_s - each.ttft_s) / max(1, each.n_tokens - 1) for each in counted),
        "tokens_per_s": median(each.n_tokens / each.total_s for each in counted),
    }


async def vectors_check(
    client: EngineClient, *, is_normalised: bool, figures: dict[str, float]
) -> list[VerificationCheck]:
    """Embed texts of which two are alike."""
    first, again, similar, dissimilar = await _vectors(
        client, [SIMILAR[0], SIMILAR[0], SIMILAR[1], DISSIMILAR]
    )
    size = client.info.embedding_size
    norms = [math.hypot(*vector) for vector in (first, similar, dissimilar)]
    near, far = _cosine(first, similar), _cosine(first, dissimilar)
    figures |= {"embedding_size": len(first), "similar": near, "dissimilar": far}
    checks = [
        VerificationCheck(
            name="A vector has the model's size",
            is_passed=len(first) == size,
            said=f"{len(first)}; the engine says {size}",
        ),
        VerificationCheck(
            name="A text has the same vector again",
            is_passed=first == again,
            said="the same" if first == again else "another",
        ),
        VerificationCheck(
            name="Similar texts are nearer than others",
            is_passed=near > far,
            said=f"cosine {near:.4f}, of others {far:.4f}",
        ),
    ]
    if is_normalised:
        checks.append(
            VerificationCheck(
                name="Vectors have length 1",
                is_passed=all(abs(norm - 1) <= _NORM_WITHIN for norm in norms),
                said=", ".join(f"{norm:.6f}" for norm in norms),
            )
        )
    return checks


async def embedding_speed_measure(
    client: EngineClient, *, figures: dict[str, float], on_part: OnPart
) -> None:
    """Take the medians of some rounds of one text, and of many at once."""
    ones, manies = [], []
    for index in range(_ROUNDS):
        ones.append(await _timed(client, [SIMILAR[0]]))
        manies.append(await _timed(client, [SIMILAR[0]] * _TEXTS_AT_ONCE))
        on_part(index + 1, _ROUNDS)
    figures |= {
        "embed_ms": 1000 * median(ones),
        "texts_per_s": _TEXTS_AT_ONCE / median(manies),
    }


def _question(text: str, *, is_chat: bool) -> Prompt:
    if is_chat:
        return ChatPrompt(messages=(ChatMessage(role="user", content=text),))
    return TextPrompt(text=text)


async def _generate(
    client: EngineClient,
    prompt: Prompt,
    *,
    max_tokens: int,
    prompt_logprobs: int | None = None,
    ignore_eos: bool = False,
    salt: str = "verification",
) -> Generated:
    request_id = new_id("verification")
    started_s = time.monotonic()
    prepared = await client.prepare(
        request_id=request_id,
        prompt=prompt,
        sampling=SamplingParams(
            temperature=0.0, ignore_eos=ignore_eos, prompt_logprobs=prompt_logprobs
        ),
        max_tokens=max_tokens,
        cache_salt=salt,
        timeout_s=TIMEOUT_S,
    )
    stream = await client.start(request_id, prepared.max_new_tokens)
    parts: list[str] = []
    scores: list[TokenLogprob] = []
    first_s: float | None = None
    try:
        async for delta in stream:
            if first_s is None and (delta.n_tokens or delta.text):
                first_s = time.monotonic()
            parts.append(delta.reasoning + delta.text)
            scores += delta.prompt_logprobs
    finally:
        await stream.abort()
    ended_s = time.monotonic()
    return Generated(
        text="".join(parts),
        finish_reason=stream.result.finish_reason if stream.result is not None else "",
        n_tokens=stream.n_completion_tokens,
        ttft_s=(first_s or ended_s) - started_s,
        total_s=ended_s - started_s,
        prompt_logprobs=tuple(scores),
    )


async def _token_ids(client: EngineClient, text: str) -> tuple[int, ...]:
    tokenized = await client.tokenize(
        request_id=new_id("verification"),
        prompt=TextPrompt(text=text),
        add_special_tokens=None,
        with_strings=False,
        timeout_s=TIMEOUT_S,
    )
    return tokenized.token_ids


async def _vectors(client: EngineClient, texts: Sequence[str]) -> list[tuple[float, ...]]:
    result = await client.embed(
        request_id=new_id("verification"),
        inputs=[TextPrompt(text=text) for text in texts],
        timeout_s=TIMEOUT_S,
    )
    return [struct.unpack(f"<{len(raw) // 4}f", raw) for raw in result.vectors]


async def _timed(client: EngineClient, texts: Sequence[str]) -> float:
    started_s = time.monotonic()
    await _vectors(client, texts)
    return time.monotonic() - started_s


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    length = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0

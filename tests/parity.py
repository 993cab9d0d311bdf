"""Greedy parity: are an engine's token ids those of transformers on the same weights?

A difference where the reference's own two best logits lie within ``NEAR_TIE``, or within what
another dtype needs, is a near-tie: it is counted, the reference's token is forced, and the
comparison goes on behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from engine_service.backends.base import Backend, EngineRequest
from engine_service.protocol import SamplingParams

NEAR_TIE = 1e-4

Prompt = tuple[int, ...]
# Prompts and how many tokens each shall get, to the tokens, end-of-sequence ignored.
Generate = Callable[[Sequence[Prompt], Sequence[int]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """gaps: by how much the best logit exceeded the second, for each token."""

    prompt: Prompt
    token_ids: list[int]
    gaps: list[float]


@dataclass(slots=True)
class ParityReport:
    n_prompts: int = 0
    n_tokens: int = 0
    n_near_ties: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.n_prompts} prompts, {self.n_tokens} tokens, {self.n_near_ties} near-ties, "
            f"{len(self.differences)} differences {self.differences[:3]}"
        )


def reference_answers(
    model_dir: Path,
    *,
    prompts: Sequence[Prompt],
    n_tokens: int,
    drafts: Sequence[Sequence[int]] = (),
    weights_dtype: torch.dtype = torch.float32,
) -> list[ReferenceAnswer]:
    """Answer each prompt alone, greedily, in float32, with transformers.

    weights_dtype: what the weights are rounded to first.

    drafts: guesses of the answers. They only save time: one forward pass checks a whole guess, and
    every token returned is the best of the reference's own logits behind its own tokens.
    """
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=weights_dtype, local_files_only=True
    ).float()
    padded = [*drafts, *([()] * (len(prompts) - len(drafts)))]
    return [
        _reference_answer(model, prompt=prompt, n_tokens=n_tokens, draft=list(draft))
        for prompt, draft in zip(prompts, padded, strict=True)
    ]


@torch.inference_mode()
def _reference_answer(
    model: Any, *, prompt: Prompt, n_tokens: int, draft: list[int]
) -> ReferenceAnswer:
    token_ids: list[int] = []
    gaps: list[float] = []
    cache = DynamicCache()
    while len(token_ids) < n_tokens:
        n_known = len(token_ids)
        guess = draft[n_known : n_tokens - 1] if draft[:n_known] == token_ids else []
        inputs = [*prompt, *token_ids, *guess][cache.get_seq_length() :]
        output = model(
            input_ids=torch.tensor([inputs]),
            cache=cache,
            use_cache=True,
            logits_to_keep=len(guess) + 1,
        )
        best = output.logits[0].topk(2)
        for place, (first, second) in enumerate(best.values.tolist()):
            token_ids.append(int(best.indices[place, 0]))
            gaps.append(first - second)
            if place < len(guess) and guess[place] != token_ids[-1]:
                break
        # What was guessed wrongly leaves the cache; the newest token is yet to enter it.
        if n_wrong := cache.get_seq_length() - (len(prompt) + len(token_ids) - 1):
            cache.crop(-n_wrong)
    return ReferenceAnswer(prompt, token_ids, gaps)


def compare(
    answers: Sequence[ReferenceAnswer],
    generate: Generate,
    *,
    outputs: list[list[int]] | None = None,
    near_tie: float = NEAR_TIE,
) -> ParityReport:
    """Run all prompts through ``generate`` together and compare every token.

    outputs: what ``generate`` gave for them, where that is known already.
    """
    report = ParityReport(
        n_prompts=len(answers), n_tokens=sum(len(answer.token_ids) for answer in answers)
    )
    pending = [(answer, 0) for answer in answers]
    while pending:
        if outputs is None:
            outputs = generate(
                [(*answer.prompt, *answer.token_ids[:start]) for answer, start in pending],
                [len(answer.token_ids) - start for answer, start in pending],
            )
        remaining = []
        for (answer, start), output in zip(pending, outputs, strict=True):
            expected = answer.token_ids[start:]
            assert len(output) == len(expected), "the engine ended early"
            if output == expected:
                continue
            at = next(i for i, token_id in enumerate(output) if token_id != expected[i])
            if answer.gaps[start + at] >= near_tie:
                report.differences.append(
                    f"prompt {answers.index(answer)}, token {start + at}: {output[at]} for "
                    f"{expected[at]}, the reference's gap is {answer.gaps[start + at]:.2e}"
                )
                continue
            report.n_near_ties += 1
            if start + at + 1 < len(answer.token_ids):
                remaining.append((answer, start + at + 1))
        pending, outputs = remaining, None
    return report


def run_backend(backend: Backend, *, n: int = 1) -> Generate:
    """Return a ``Generate`` that puts all prompts into the backend's queue at once.

    n: answers to each, which must all be the same, since none is drawn.
    """

    def generate(prompts: Sequence[Prompt], n_tokens: Sequence[int]) -> list[list[int]]:
        for key, (prompt, n_new) in enumerate(zip(prompts, n_tokens, strict=True)):
            backend.add(
                EngineRequest(
                    key=key,
                    prompt_token_ids=prompt,
                    sampling=SamplingParams(temperature=0.0, ignore_eos=True, n=n),
                    max_new_tokens=n_new,
                )
            )
        outputs: list[list[list[int]]] = [[[] for _ in range(n)] for _ in prompts]
        while backend.has_work():
            for output in backend.step():
                assert output.error is None, output.error
                outputs[output.key][output.choice] += output.token_ids
        assert all(choice == choices[0] for choices in outputs for choice in choices)
        return [choices[0] for choices in outputs]

    return generate


def run_alone(generate: Generate) -> Generate:
    """Return a ``Generate`` that gives one prompt at a time to another."""

    def generate_each(prompts: Sequence[Prompt], n_tokens: Sequence[int]) -> list[list[int]]:
        return [generate([prompt], [n])[0] for prompt, n in zip(prompts, n_tokens, strict=True)]

    return generate_each

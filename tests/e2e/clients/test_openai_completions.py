"""The older endpoint through the official client: texts, token ids, echo, logprobs."""

from typing import Any

import openai
import pytest
from openai.types import Completion

from tests.e2e.clients.asking import Asker

pytestmark = pytest.mark.e2e

PROMPT = "The capital of France is"
PROMPTS = [PROMPT, "One, two, three,", "The opposite of hot is"]


def complete(asker: Asker, prompt: Any, **more: Any) -> Completion:
    given = {"max_tokens": 4, "temperature": 0, **more}
    answer = asker.client.completions.create(model=asker.model, prompt=prompt, **given)
    assert isinstance(answer, Completion)
    assert answer.object == "text_completion"
    return answer


def texts(answer: Completion) -> list[str]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.text for choice in answer.choices]


def test_a_text(asker: Asker) -> None:
    answer = complete(asker, PROMPT)
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(asker.token_ids(PROMPT))
    assert answer.usage.completion_tokens == 4
    chunks = list(
        asker.client.completions.create(
            model=asker.model,
            prompt=PROMPT,
            max_tokens=4,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == answer.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


def test_the_default_length_is_sixteen(asker: Asker) -> None:
    answer = asker.client.completions.create(model=asker.model, prompt="One, two,")
    assert answer.usage is not None and answer.usage.completion_tokens <= 16


def test_each_kind_of_prompt_gives_the_same(asker: Asker) -> None:
    alone = [complete(asker, prompt).choices[0].text for prompt in PROMPTS]
    ids = [asker.token_ids(prompt) for prompt in PROMPTS]
    together = complete(asker, PROMPTS)
    assert texts(together) == alone
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(map(len, ids))
    assert together.usage.completion_tokens == 12
    assert texts(complete(asker, ids[0])) == alone[:1]
    assert texts(complete(asker, ids)) == alone
    assert texts(complete(asker, [PROMPT])) == alone[:1]


def test_several_answers_to_several_prompts(asker: Asker) -> None:
    answer = complete(asker, PROMPTS[:2], n=2, temperature=1.2, seed=5)
    assert len(set(texts(answer))) == 4
    assert texts(complete(asker, PROMPTS[:2], n=2, temperature=1.2, seed=5)) == texts(answer)
    stream = asker.client.completions.create(
        model=asker.model,
        prompt=PROMPTS[:2],
        n=2,
        temperature=1.2,
        seed=5,
        max_tokens=4,
        stream=True,
    )
    streamed = [""] * 4
    for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts(answer)


def test_echo(asker: Asker) -> None:
    plain = texts(complete(asker, PROMPTS))
    echoed = complete(asker, PROMPTS, echo=True)
    assert texts(echoed) == [a + b for a, b in zip(PROMPTS, plain, strict=True)]
    assert texts(complete(asker, asker.token_ids(PROMPT), echo=True)) == [PROMPT + plain[0]]


def test_logprobs(asker: Asker) -> None:
    answer = complete(asker, PROMPT, logprobs=3)
    (choice,) = answer.choices
    said = choice.logprobs
    assert said is not None
    assert said.tokens is not None and said.token_logprobs is not None
    assert said.top_logprobs is not None and said.text_offset is not None
    assert "".join(said.tokens) == choice.text
    assert len(said.tokens) == len(said.token_logprobs) == len(said.top_logprobs) == 4
    for index, top in enumerate(said.top_logprobs):
        assert len(top) == 3 and max(top.values()) <= 0
        # Greedy: the token is the best of them.
        assert top[said.tokens[index]] == max(top.values()) == said.token_logprobs[index]
    starts = [len("".join(said.tokens[:index])) for index in range(4)]
    assert said.text_offset == starts


@pytest.mark.parametrize("prompt_as", [str, list])
def test_a_prompt_is_scored_without_an_answer(asker: Asker, prompt_as: type) -> None:
    ids = asker.token_ids(PROMPT)
    prompt = PROMPT if prompt_as is str else ids
    answer = complete(asker, prompt, max_tokens=0, echo=True, logprobs=2)
    (choice,) = answer.choices
    assert choice.text == PROMPT
    said = choice.logprobs
    assert said is not None
    assert said.tokens is not None and said.token_logprobs is not None
    assert said.text_offset is not None and said.top_logprobs is not None
    assert "".join(said.tokens) == PROMPT and len(said.tokens) == len(ids)
    assert said.token_logprobs[0] is None and said.top_logprobs[0] is None
    assert all(value is not None and value < 0 for value in said.token_logprobs[1:])
    assert said.text_offset[0] == 0 and said.text_offset[1] == len(said.tokens[0])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 4}, "best_of"),
    ],
)
def test_what_is_refused(asker: Asker, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(asker, **{"prompt": PROMPT, **more})
    assert refused.value.param == param

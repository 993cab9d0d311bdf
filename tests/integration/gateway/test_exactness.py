"""What the doors say of numbers is what transformers computes, with the real model in float32."""

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from apps.core.hop import database_hop
from apps.engines.models import EngineProcess
from tests.integration.gateway.conftest import MODEL
from tests.models import smollm2_dir
from tests.processes import running_engine

ASK = [{"role": "user", "content": "Why is the sky blue? Zürich, 東京 and 👩‍👩‍👧."}]


@pytest.fixture
async def real_client(
    client: openai.AsyncOpenAI, tmp_path: Path
) -> AsyncIterator[openai.AsyncOpenAI]:
    """The route leads to the real model."""
    with running_engine(smollm2_dir(), tmp_path, "--dtype", "float32", epoch=5) as engine:
        socket_path = str(engine.socket_path)
        await database_hop(lambda: EngineProcess.objects.update(socket_path=socket_path, epoch=5))
        yield client


async def test_logprobs_are_those_of_transformers(real_client: openai.AsyncOpenAI) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir(), local_files_only=True)
    reference = AutoModelForCausalLM.from_pretrained(smollm2_dir(), dtype=torch.float32)
    chat = await real_client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=24, temperature=0, logprobs=True, top_logprobs=5
    )  # type: ignore[call-overload]
    prompt = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=False)
    entries = chat.choices[0].logprobs.content
    found = await real_client.completions.create(
        model=MODEL,
        prompt=prompt + chat.choices[0].message.content,
        max_tokens=1,
        echo=True,
        logprobs=5,
        temperature=0,
    )
    token_ids = tokenizer.encode(prompt + chat.choices[0].message.content, add_special_tokens=False)
    with torch.inference_mode():
        logprobs = reference(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1)

    told = found.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert told.token_logprobs[0] is None
    for at, token_id in enumerate(token_ids[1:], start=1):
        assert told.token_logprobs[at] == pytest.approx(logprobs[at - 1, token_id].item(), abs=1e-3)
        best = sorted(told.top_logprobs[at].values(), reverse=True)
        assert len(best) == 5
        assert best == pytest.approx(logprobs[at - 1].topk(5).values.tolist(), abs=1e-3)

    # The chat's own, which were computed while it was decoded, token by token.
    n_prompt = len(tokenizer.encode(prompt, add_special_tokens=False))
    assert [entry.token for entry in entries] == [
        tokenizer.decode([token_id]) for token_id in token_ids[n_prompt:]
    ]
    for at, entry in enumerate(entries, start=n_prompt):
        assert entry.logprob == pytest.approx(logprobs[at - 1, token_ids[at]].item(), abs=1e-3)
        best = [each.logprob for each in entry.top_logprobs]
        assert best == pytest.approx(logprobs[at - 1].topk(5).values.tolist(), abs=1e-3)

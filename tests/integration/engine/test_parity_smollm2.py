"""The real small model, float32: 20 prompts of 64 tokens each are those of transformers."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig, KernelsName
from engine_service.protocol import EngineStats
from tests.compiled import best_kernels, compiled_library
from tests.models import smollm2_dir
from tests.parity import Prompt, ReferenceAnswer, compare, reference_answers, run_alone, run_backend

N_TOKENS = 64
SYSTEM = "You are a patient teacher. Answer in plain words and give one example from daily life."
QUESTIONS = (
    "What is the capital of France?",
    "Write a poem about the sea in autumn.",
    "Explain why the sky is blue.",
    "List five uses of a paper clip.",
    "How do I make bread at home?",
    "What is 17 plus 25?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
)
TEXTS = (
    "Once upon a time",
    "def fibonacci(n):\n",
    "The three laws of motion are",
    "1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, the first",
    "Zürich, 東京 and Kraków are",
    "<html>\n<body>\n",
    "Q: How many legs has a spider?\nA:",
    "Water boils at",
    "It was a dark and stormy night. " * 12,
    "The quick brown fox jumps over the lazy dog. " * 20,
)


@pytest.fixture(scope="module")
def model_dir() -> Path:
    return smollm2_dir()


@pytest.fixture(scope="module")
def prompts(model_dir: Path) -> list[Prompt]:
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    prompts: list[Prompt] = []
    for question in QUESTIONS:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts.append(tuple(tokenizer.encode(text, add_special_tokens=False)))
    return prompts + [tuple(tokenizer.encode(text)) for text in TEXTS]


@dataclass(frozen=True, slots=True)
class MixedRun:
    """All prompts at once, in a pool that they outgrow and steps that cut them into chunks."""

    engine: NativeBackend
    outputs: list[list[int]]
    stats: EngineStats
    answers: list[ReferenceAnswer]


@pytest.fixture(scope="module")
def mixed_run(model_dir: Path, prompts: list[Prompt]) -> MixedRun:
    engine = NativeBackend(
        EngineConfig(
            model_dir=model_dir,
            dtype="float32",
            kernels=best_kernels(),
            kv_cache_tokens=640,
            max_sequences=16,
            max_batched_tokens=48,
        )
    )
    outputs = run_backend(engine)(prompts, [N_TOKENS] * len(prompts))
    answers = reference_answers(model_dir, prompts=prompts, n_tokens=N_TOKENS, drafts=outputs)
    return MixedRun(engine, outputs, engine.stats(), answers)


def test_mixed_batch_with_chunks_preemption_and_prefix_hits(mixed_run: MixedRun) -> None:
    generate = run_backend(mixed_run.engine)
    report = compare(mixed_run.answers, generate, outputs=mixed_run.outputs)
    print("mixed:", report, mixed_run.stats)
    assert report.n_tokens == 20 * N_TOKENS
    assert report.differences == []
    assert mixed_run.stats.n_preemptions > 0
    assert mixed_run.stats.n_cached_tokens > 0
    assert mixed_run.stats.n_blocks_free == mixed_run.stats.n_blocks_total == 40


@pytest.mark.parametrize("kernels", ["compiled", "reference"])
def test_some_prompts_alone(model_dir: Path, mixed_run: MixedRun, kernels: KernelsName) -> None:
    if kernels == "compiled":
        compiled_library()
    engine = NativeBackend(EngineConfig(model_dir=model_dir, dtype="float32", kernels=kernels))
    some = [*mixed_run.answers[:2], *mixed_run.answers[-2:]]
    report = compare(some, run_alone(run_backend(engine)))
    print("alone:", report)
    assert report.differences == []
    # The second chat finds the one full block of the system prompt in the cache.
    assert engine.stats().n_cached_tokens == 16


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_every_prompt_alone(model_dir: Path, mixed_run: MixedRun) -> None:
    engine = NativeBackend(
        EngineConfig(model_dir=model_dir, dtype="float32", kernels=best_kernels())
    )
    report = compare(mixed_run.answers, run_alone(run_backend(engine)))
    print("alone:", report)
    assert report.n_tokens == 20 * N_TOKENS
    assert report.differences == []

"""Embeddings against ``transformers``, whatever shares the batch, and what goes wrong alone."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import BertModel

from engine_service.backends.base import EmbeddingRequest, EngineRequest, SequenceOutput
from engine_service.backends.embedding import EmbeddingBackend
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.errors import EngineError, ModelError, Overloaded, RequestError
from engine_service.protocol import SamplingParams
from tests.models import minilm_dir, random_bert_dir, random_llama_dir

Inputs = tuple[tuple[int, ...], ...]
Vectors = npt.NDArray[np.float32]


def reference(model_dir: Path, inputs: Inputs, *, pooling: str, normalize: bool) -> Vectors:
    """Each text alone, as sentence-transformers would have it."""
    model = BertModel.from_pretrained(model_dir, add_pooling_layer=False, dtype=torch.float32)
    model.eval()
    vectors = []
    for token_ids in inputs:
        with torch.inference_mode():
            states = model(torch.tensor([token_ids])).last_hidden_state[0]
        vector = states.mean(dim=0) if pooling == "mean" else states[0]
        vectors.append(vector / vector.norm() if normalize else vector)
    return torch.stack(vectors).numpy()


def run(backend: EmbeddingBackend) -> dict[int, SequenceOutput]:
    outputs = {}
    while backend.has_work():
        for output in backend.step():
            assert output.key not in outputs
            outputs[output.key] = output
    return outputs


def vectors_of(output: SequenceOutput) -> Vectors:
    assert output.error is None
    return np.stack([np.frombuffer(vector, dtype="<f4") for vector in output.vectors])


def random_inputs(lengths: Sequence[int], *, vocab_size: int) -> Inputs:
    rng = random.Random(5)
    return tuple(tuple(rng.randrange(vocab_size) for _ in range(n)) for n in lengths)


def make_backend(model_dir: Path, **settings: int) -> EmbeddingBackend:
    return EmbeddingBackend(EngineConfig(model_dir=model_dir, **settings))


def embed(backend: EmbeddingBackend, inputs: Inputs, *, key: int = 0) -> Vectors:
    backend.add(EmbeddingRequest(key=key, inputs=inputs))
    return vectors_of(run(backend)[key])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bert_dir(tmp_path_factory.mktemp("bert"))


def test_minilm_equals_transformers_alone_and_batched() -> None:
    model_dir = minilm_dir()
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 128, 200, 255, 256, 17, 17, 40, 100]
    inputs = random_inputs(lengths, vocab_size=30522)
    expected = reference(model_dir, inputs, pooling="mean", normalize=True)
    backend = make_backend(model_dir)
    batched = embed(backend, inputs)
    alone = np.concatenate([embed(backend, (each,)) for each in inputs])
    print("largest difference, batched:", abs(batched - expected).max())
    print("largest difference, alone:", abs(alone - expected).max())
    assert abs(batched - expected).max() < 1e-5
    assert abs(alone - expected).max() < 1e-5
    assert backend.stats().n_prompt_tokens == 2 * sum(lengths)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_pooling_equals_transformers(tmp_path: Path, pooling: str, normalize: bool) -> None:
    model_dir = random_bert_dir(tmp_path, pooling=pooling, normalize=normalize)
    inputs = random_inputs([1, 7, 6, 64, 33, 40], vocab_size=300)
    expected = reference(model_dir, inputs, pooling=pooling, normalize=normalize)
    assert abs(embed(make_backend(model_dir), inputs) - expected).max() < 1e-5


def test_requests_that_share_steps_get_their_own_vectors(tiny: Path) -> None:
    backend = make_backend(tiny, max_batched_tokens=64, max_sequences=4)
    requests = {
        key: random_inputs([1 + (key * 7 + i) % 60 for i in range(1 + key % 5)], vocab_size=300)
        for key in range(20)
    }
    for key, inputs in requests.items():
        backend.add(EmbeddingRequest(key=key, inputs=inputs))
    outputs = run(backend)
    every = tuple(token_ids for inputs in requests.values() for token_ids in inputs)
    expected = reference(tiny, every, pooling="mean", normalize=True)
    got = np.concatenate([vectors_of(outputs[key]) for key in requests])
    assert abs(got - expected).max() < 1e-5
    stats = backend.stats()
    n_tokens = sum(len(token_ids) for token_ids in every)
    assert (stats.n_finished, stats.n_prompt_tokens, stats.n_waiting) == (20, n_tokens, 0)


def test_an_aborted_request_ends_once_and_the_others_go_on(tiny: Path) -> None:
    backend = make_backend(tiny, max_batched_tokens=64, max_sequences=64)
    inputs = random_inputs([64] * 5, vocab_size=300)
    for key in (1, 2):
        backend.add(EmbeddingRequest(key=key, inputs=inputs))
    assert backend.step() == []
    backend.abort(1)
    backend.abort(1)
    outputs = run(backend)
    assert outputs[1] == SequenceOutput(key=1, finish_reason="abort")
    expected = reference(tiny, inputs, pooling="mean", normalize=True)
    assert abs(vectors_of(outputs[2]) - expected).max() < 1e-5
    assert (backend.stats().n_aborted, backend.stats().n_finished) == (1, 1)


def test_a_step_that_raises_fails_its_own_requests_only(tiny: Path) -> None:
    backend = make_backend(tiny, max_batched_tokens=64, max_sequences=64)
    outside = 10_000  # what validation would have refused
    backend.add(EmbeddingRequest(key=1, inputs=((outside,) * 64, (1,))))
    backend.add(EmbeddingRequest(key=2, inputs=random_inputs([20], vocab_size=300)))
    with pytest.raises(IndexError):
        backend.step()
    (failed,) = backend.fail_running(EngineError("the step failed"))
    assert (failed.key, str(failed.error)) == (1, "the step failed")
    assert run(backend)[2].finish_reason == "stop"
    assert backend.stats().n_failed == 1


def test_a_vector_that_is_not_finite_fails_its_request_only(tmp_path: Path) -> None:
    model_dir = random_bert_dir(tmp_path, spoiled_token_id=7)
    backend = make_backend(model_dir)
    backend.add(EmbeddingRequest(key=1, inputs=((3,), (7,), (4,))))
    backend.add(EmbeddingRequest(key=2, inputs=((5,),)))
    outputs = run(backend)
    assert str(outputs[1].error) == "the model's output for input[1] is not finite"
    expected = reference(model_dir, ((5,),), pooling="mean", normalize=True)
    assert abs(vectors_of(outputs[2]) - expected).max() < 1e-5


def test_each_kind_of_engine_refuses_what_is_asked_of_the_other(tiny: Path, tmp_path: Path) -> None:
    generation = EngineRequest(
        key=1, prompt_token_ids=(1,), sampling=SamplingParams(), max_new_tokens=1
    )
    backend = make_backend(tiny)
    with pytest.raises(RequestError, match="makes embeddings") as caught:
        backend.add(generation)
    assert (caught.value.code, caught.value.param) == ("unsupported_task", "prompt")
    llama = NativeBackend(EngineConfig(model_dir=random_llama_dir(tmp_path)))
    with pytest.raises(RequestError, match="generates text") as caught:
        llama.add(EmbeddingRequest(key=1, inputs=((1,),)))
    assert (caught.value.code, caught.value.param) == ("unsupported_task", "input")
    assert not (backend.has_work() or llama.has_work())


def test_a_full_queue_is_overloaded(tiny: Path) -> None:
    backend = make_backend(tiny, max_waiting=1)
    backend.add(EmbeddingRequest(key=1, inputs=((1,),)))
    with pytest.raises(Overloaded):
        backend.add(EmbeddingRequest(key=2, inputs=((1,),)))
    assert list(run(backend)) == [1]


def test_settings_that_the_model_cannot_have_are_refused(tiny: Path) -> None:
    assert make_backend(tiny).info.max_model_len == 64
    assert make_backend(tiny, max_model_len=10).info.max_model_len == 10
    with pytest.raises(ModelError, match=r"max_model_len \(65\)"):
        make_backend(tiny, max_model_len=65)
    with pytest.raises(ModelError, match="kernels=compiled"):
        EmbeddingBackend(EngineConfig(model_dir=tiny, kernels="compiled"))

"""Our adapter over nano-vllm's own scheduler and block manager, with a fake model runner that
checks that what is read is what was written: streaming, ends, aborts, faults, tenants, purges."""

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

from engine_service.backends.base import EmbeddingRequest, EngineRequest, SequenceOutput
from engine_service.backends.nanovllm.adapter import NanoVllmBackend
from engine_service.errors import (
    DeadlineExceeded,
    EngineError,
    EngineLost,
    ModelError,
    Overloaded,
    RequestError,
    WrongTask,
)
from engine_service.protocol import NO_STANDING, SamplingParams, Standing
from tests.nano_vllm import (
    EOS,
    FakeRunner,
    answer,
    make_backend,
    next_token,
    require_nano_vllm,
)

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@pytest.fixture(autouse=True)
def package() -> Any:
    return require_nano_vllm()


def make_request(
    key: int,
    *tags: str,
    prompt: Iterable[int] = range(300),
    n_tokens: int = 8,
    sampling: SamplingParams = GREEDY,
    salt: str = "",
    standing: Standing = NO_STANDING,
) -> EngineRequest:
    return EngineRequest(
        key=key,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        max_new_tokens=n_tokens,
        cache_salt=salt,
        cache_tags=tags,
        standing=standing,
    )


def run(backend: NanoVllmBackend, *requests: EngineRequest) -> dict[int, list[SequenceOutput]]:
    """Return the outputs by key; nothing runs, waits or is held after."""
    for request in requests:
        backend.add(request)
    outputs: dict[int, list[SequenceOutput]] = defaultdict(list)
    while backend.has_work():
        for output in backend.step():
            outputs[output.key].append(output)
    stats = backend.stats()
    assert (stats.n_running, stats.n_waiting) == (0, 0)
    assert stats.n_blocks_free == stats.n_blocks_total
    return outputs


def tokens(outputs: Iterable[SequenceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def test_tokens_stream_one_by_one_and_counts_are_totals() -> None:
    backend, _ = make_backend()
    first = run(backend, make_request(0))[0]
    assert [len(output.token_ids) for output in first] == [1] * 8
    assert [output.finish_reason for output in first] == [None] * 7 + ["length"]
    assert [output.n_completion_tokens for output in first] == list(range(1, 9))
    assert [output.step for output in first] == list(range(1, 9))
    assert tokens(first) == answer(range(300), n_tokens=8)
    again = run(backend, make_request(0))[0]
    assert tokens(again) == tokens(first)
    assert [output.n_cached_tokens for output in (first[-1], again[-1])] == [0, 256]
    stats = backend.stats()
    counts = (stats.n_prompt_tokens, stats.n_cached_tokens, stats.n_completion_tokens)
    assert counts == (600, 256, 16)
    assert (stats.n_steps, stats.n_finished, stats.n_aborted, stats.n_failed) == (16, 2, 0, 0)
    assert stats.last_step_ms > 0.0
    assert stats.steps is not None
    assert (stats.steps.mean_prefill_tokens, stats.steps.mean_decode_tokens) == (344 / 16, 14 / 16)


def test_a_prompt_in_parts_gives_no_token_before_its_end() -> None:
    backend, _ = make_backend(max_batched_tokens=100)
    backend.add(make_request(0))
    assert [len(backend.step()) for _ in range(3)] == [0, 0, 1]
    assert backend.stats().n_running == 1


def test_any_end_token_and_any_stop_token_ends_an_answer() -> None:
    def pick(token_ids: list[int]) -> int:
        return EOS + 1 if len(token_ids) == 303 else next_token(token_ids)

    backend, _ = make_backend(runner=FakeRunner(n_blocks=8, pick=pick))
    outputs = run(backend, make_request(0, sampling=SamplingParams()))[0]
    assert (len(outputs), outputs[-1].finish_reason) == (4, "stop")
    assert outputs[-1].token_ids == (EOS + 1,)
    ignored = run(backend, make_request(0))[0]
    assert (len(ignored), ignored[-1].finish_reason) == (8, "length")
    third = tokens(ignored)[2]
    stopping = SamplingParams(ignore_eos=True, stop_token_ids=(third,))
    stopped = run(backend, make_request(0, sampling=stopping))[0]
    assert (tokens(stopped), stopped[-1].finish_reason) == (tokens(ignored)[:3], "stop")
    last = run(backend, make_request(0, n_tokens=4, sampling=SamplingParams()))[0]
    assert last[-1].finish_reason == "stop"  # and not length, though it is its last token


def test_salts_do_not_share_the_prefix_cache() -> None:
    backend, _ = make_backend()
    salts = [("a", 0), ("b", 0), ("a", 256), ("b", 256), ("", 0)]
    for key, (salt, n_cached) in enumerate(salts):
        assert run(backend, make_request(key, salt=salt))[key][-1].n_cached_tokens == n_cached


def test_salts_do_not_share_while_both_run() -> None:
    backend, _ = make_backend()
    outputs = run(backend, *(make_request(i, salt=salt) for i, salt in enumerate("aab")))
    assert {tuple(tokens(each)) for each in outputs.values()} == {
        tuple(answer(range(300), n_tokens=8))
    }
    assert outputs[2][-1].n_cached_tokens == 0


def test_a_version_that_cannot_keep_tenants_apart_is_refused(
    package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = package.BlockManager
    monkeypatch.setattr(package.TenantBlockManager, "compute_hash", base.compute_hash)
    with pytest.raises(ModelError, match="kept apart by tenant"):
        make_backend()


@pytest.mark.parametrize("max_batched_tokens", [100, 512])
@pytest.mark.parametrize("n_steps", [0, 1, 4])
def test_abort_frees_at_once_and_reports_in_the_next_step(
    n_steps: int, max_batched_tokens: int
) -> None:
    backend, _ = make_backend(max_batched_tokens=max_batched_tokens)
    backend.add(make_request(0, n_tokens=100))
    n_tokens = len([output for _ in range(n_steps) for output in backend.step()])
    backend.abort(0, choice=1)
    assert backend.has_work() and not backend._outputs
    backend.abort(0)
    backend.abort(0)
    backend.abort(77)
    assert backend.stats().n_blocks_free == backend.stats().n_blocks_total
    assert backend.has_work()
    (output,) = backend.step()
    assert (output.key, output.finish_reason, output.token_ids) == (0, "abort", ())
    assert output.n_completion_tokens == n_tokens
    assert not backend.has_work()
    assert backend.stats().n_aborted == 1
    assert tokens(run(backend, make_request(0))[0]) == answer(range(300), n_tokens=8)


def test_a_refused_request_leaves_nothing_behind() -> None:
    backend, _ = make_backend(max_waiting=1)
    with pytest.raises(RequestError):
        backend.add(make_request(0, n_tokens=1000))
    with pytest.raises(RequestError, match="seed"):
        backend.add(make_request(0, sampling=SamplingParams(seed=1)))
    with pytest.raises(RequestError, match="weight"):
        backend.add(make_request(0, standing=Standing(weight=-1.0)))
    with pytest.raises(WrongTask):
        backend.add(EmbeddingRequest(key=0, inputs=((1,),)))
    assert not backend.has_work()
    backend.add(make_request(0))
    with pytest.raises(EngineError, match="belongs to a live request"):
        backend.add(make_request(0))
    with pytest.raises(Overloaded):
        backend.add(make_request(1))
    assert set(run(backend)) == {0}


def test_the_pool_is_full_and_every_answer_is_right() -> None:
    """Each needs three of the four blocks at last: they preempt each other, and all end."""
    backend, _ = make_backend(n_blocks=4)
    prompts = {key: range(key, key + 250 - key) for key in range(4)}
    requests = [make_request(key, prompt=prompts[key], n_tokens=300) for key in prompts]
    outputs = run(backend, *requests)
    assert backend.stats().n_preemptions > 0
    for key, prompt in prompts.items():
        assert tokens(outputs[key]) == answer(prompt, n_tokens=300)
        assert [output.finish_reason for output in outputs[key]] == [None] * 299 + ["length"]


def test_what_takes_the_whole_pool_to_its_last_token_runs() -> None:
    backend, _ = make_backend(n_blocks=2, max_model_len=512)
    for n_prompt in (1, 255, 256, 257, 511):
        request = make_request(0, prompt=range(n_prompt % 256, n_prompt % 256 + 1), n_tokens=511)
        assert len(run(backend, request)[0]) == 511


def test_a_step_that_raises_ends_its_own_only() -> None:
    backend, runner = make_backend(max_sequences=2)
    for key in (0, 1, 2):
        backend.add(make_request(key, prompt=range(key, 200)))
    backend.step()
    backend.abort(1)
    runner.fails_at = runner.n_calls + 1
    with pytest.raises(RuntimeError):
        backend.step()
    outputs = {o.key: o for o in backend.fail_running(EngineError("the step failed"))}
    # 2 was admitted into the step that raised, which was its prompt's; 0 waited for its turn.
    assert {key: str(o.error) for key, o in outputs.items() if o.error} == {2: "the step failed"}
    assert outputs[1].finish_reason == "abort"
    rest = run(backend)
    assert tokens(rest[0]) == answer(range(200), n_tokens=8)[1:]
    assert backend.stats().n_failed == 1
    assert tokens(run(backend, make_request(2, prompt=range(2, 200)))[2]) == answer(
        range(2, 200), n_tokens=8
    )


def test_a_step_after_which_the_gpu_is_lost_says_so() -> None:
    backend, runner = make_backend()
    backend.add(make_request(0))
    runner.fails_at, runner.is_broken = 1, True
    with pytest.raises(EngineLost, match="the GPU takes no more work"):
        backend.step()


def test_scheduling_that_raises_ends_what_was_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = make_backend(max_sequences=1)
    backend.add(make_request(0))
    backend.step()
    backend.add(make_request(1))
    with monkeypatch.context() as patch:
        patch.setattr(backend._scheduler.block_manager, "may_append", None)
        with pytest.raises(TypeError):
            backend.step()
    (failed,) = backend.fail_running(EngineError("the step failed"))
    assert (failed.key, str(failed.error), failed.n_completion_tokens) == (0, "the step failed", 1)
    assert tokens(run(backend)[1]) == answer(range(300), n_tokens=8)


def test_a_request_that_waits_beyond_its_deadline_is_failed_alone() -> None:
    now_s = 0.0
    backend, _ = make_backend(max_sequences=1, clock=lambda: now_s)
    backend.add(make_request(0))
    backend.add(make_request(1, standing=Standing(deadline_s=5.0)))
    backend.step()
    assert backend.stats().oldest_wait_ms == 0.0
    now_s = 5.0
    assert backend.stats().oldest_wait_ms == 5000.0
    (late,) = [output for output in backend.step() if output.key == 1]
    assert isinstance(late.error, DeadlineExceeded)
    assert run(backend)[0][-1].finish_reason == "length"
    assert backend.stats().n_failed == 1


def test_tenants_take_turns_and_the_higher_priority_goes_first() -> None:
    backend, _ = make_backend(max_sequences=1)
    standings = [Standing(tenant="loud")] * 3 + [Standing(tenant="calm"), Standing(priority=1)]
    for key, standing in enumerate(standings):
        backend.add(make_request(key, prompt=range(key, 100), n_tokens=1, standing=standing))
    order = [output.key for _ in standings for output in backend.step()]
    assert order == [4, 0, 3, 1, 2]


def test_a_persons_blocks_are_forgotten_and_overwritten_and_others_kept() -> None:
    backend, runner = make_backend()
    for key, tags in enumerate([("acme", "ann"), ("acme", "bob"), ("other",)]):
        run(backend, make_request(key, *tags, prompt=range(key, key + 300), n_tokens=2))
    n_blocks = runner.n_blocks_with_content()
    assert backend.stats().n_blocks_cached == 3
    assert backend.purge("ann") == 1
    assert runner.n_blocks_with_content() == n_blocks - 1
    assert backend.stats().n_blocks_cached == 2
    assert backend.purge("ann") == 0
    n_cached = {
        key: run(backend, make_request(key, prompt=range(key, key + 300)))[key][-1].n_cached_tokens
        for key in range(3)
    }
    assert n_cached == {0: 0, 1: 256, 2: 256}


def test_a_prefix_that_two_share_is_forgotten_with_either() -> None:
    backend, _ = make_backend()
    for tag in ("ann", "bob"):
        run(backend, make_request(1, "ann"))
        assert run(backend, make_request(2, "bob"))[2][-1].n_cached_tokens == 256
        assert backend.purge(tag) == 1
        assert backend.stats().n_blocks_cached == 0


def test_a_block_that_is_used_anew_is_no_longer_its_first_users() -> None:
    backend, _ = make_backend(n_blocks=2)
    run(backend, make_request(1, "ann"))
    run(backend, make_request(2, "bob", prompt=range(250), n_tokens=20))  # takes both
    assert (backend.purge("ann"), backend.purge("bob")) == (0, 1)


def test_a_request_that_runs_keeps_its_blocks_and_what_it_leaves_begins_no_prefix() -> None:
    """Its next block must not be found by a prompt that begins with what is in that block."""
    backend, _ = make_backend()
    prompt = [1] * 256 + [2] * 250
    backend.add(make_request(1, "ann", prompt=prompt, n_tokens=30))
    backend.step()
    assert backend.purge("ann") == 1
    rest = run(backend)[1]
    assert tokens(rest) == answer(prompt, n_tokens=30)[1:]
    for start in (prompt, (prompt + answer(prompt, n_tokens=30))[256:]):
        again = run(backend, make_request(2, prompt=start, n_tokens=1))[2]
        assert again[-1].n_cached_tokens == 0


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_every_answer_is_right(seed: int) -> None:
    """Tenants with like prompts come, leave, are purged and fail; the runner checks what it
    reads."""
    chance = random.Random(seed)
    backend, runner = make_backend(n_blocks=6, max_sequences=5, max_batched_tokens=300)
    prompts = [[1] * 256 + [i] * i * 40 for i in range(1, 6)] + [[1] * 200, [1] * 600]
    asked: dict[int, EngineRequest] = {}
    found: dict[int, list[SequenceOutput]] = defaultdict(list)
    n_steps = 0
    while len(asked) < 40 or backend.has_work():
        if len(asked) < 40 and chance.random() < 0.6:
            tenant = chance.choice("ab")
            request = make_request(
                len(asked), tenant, prompt=chance.choice(prompts), salt=tenant,
                n_tokens=chance.choice([1, 200, 300]), standing=Standing(tenant=tenant),
            )  # fmt: skip
            asked[request.key] = request
            backend.add(request)
        if asked and chance.random() < 0.02:
            backend.abort(chance.choice(list(asked)))
        if chance.random() < 0.03:
            backend.purge(chance.choice("ab"))
        if chance.random() < 0.01:
            runner.fails_at = runner.n_calls + 1
        try:
            outputs = backend.step()
        except RuntimeError:
            outputs = backend.fail_running(EngineError("failed"))
        for output in outputs:
            found[output.key].append(output)
        n_steps += 1
        assert n_steps < 20_000
    ends = defaultdict(int)
    for key, request in asked.items():
        last = found[key][-1]
        expected = answer(request.prompt_token_ids, n_tokens=request.max_new_tokens)
        assert tokens(found[key]) == expected[: last.n_completion_tokens]
        assert (last.finish_reason == "length") <= (last.n_completion_tokens == len(expected))
        ends[last.finish_reason] += 1
    assert set(ends) == {"length", "abort", None}, "each end should have been seen"
    stats = backend.stats()
    assert stats.n_blocks_free == stats.n_blocks_total == 6
    assert (stats.n_finished, stats.n_aborted) == (ends["length"], ends["abort"])
    assert stats.n_failed == ends[None]
    assert stats.n_cached_tokens > 0

import pytest

from engine_service.backends.base import SequenceOutput
from engine_service.errors import EngineError, RequestError
from engine_service.frontend import Frontend, PreparedPrompt
from engine_service.protocol import (
    Delta,
    FailedRequest,
    Finished,
    SamplingParams,
    TokenLogprob,
    WireError,
)
from engine_service.server.generation import Generation, Update
from tests.unit.frontend.tokenizers import END, byte_level, chat_tokenizer, model_info

END_ID = byte_level().token_to_id(END)


def ids(text: str) -> tuple[int, ...]:
    return tuple(byte_level().encode(text).ids)


@pytest.fixture
def frontend() -> Frontend:
    return Frontend(chat_tokenizer(), model_info())


def generation(frontend: Frontend, **sampling: object) -> Generation:
    prompt = PreparedPrompt(
        token_ids=(1, 2, 3),
        sampling=SamplingParams(**sampling),
        max_new_tokens=100,
        cache_salt="",
    )
    return Generation(frontend, request_id="r", prompt=prompt)


def finished(reason: str, n_tokens: int, text: str, stop: str | None = None) -> Update:
    return Update(
        finished=Finished(
            request_id="r",
            finish_reason=reason,
            n_prompt_tokens=3,
            n_cached_tokens=2,
            n_completion_tokens=n_tokens,
            stop=stop,
            text=text,
        )
    )


def output(*token_ids: int, n_tokens: int, **fields: object) -> SequenceOutput:
    return SequenceOutput(
        key=1, token_ids=token_ids, n_cached_tokens=2, n_completion_tokens=n_tokens, **fields
    )


def test_a_step_gives_a_delta(frontend: Frontend) -> None:
    running = generation(frontend)
    assert running.update(output(*ids("a"), n_tokens=1)) == Update(
        delta=Delta(request_id="r", text="a", n_tokens=1)
    )
    assert running.update(output(n_tokens=1)) == Update()


def test_the_end_token_is_counted_and_not_shown(frontend: Frontend) -> None:
    running = generation(frontend)
    running.update(output(*ids("a"), n_tokens=1))
    last = running.update(output(END_ID, n_tokens=2, finish_reason="stop"))
    assert last == finished("stop", 2, "")
    assert last.is_last


def test_what_was_held_back_comes_with_the_end(frontend: Frontend) -> None:
    running = generation(frontend, stop=("bc",))
    assert running.update(output(*ids("ab"), n_tokens=2)).delta == Delta(
        request_id="r", text="a", n_tokens=2
    )
    assert running.update(output(*ids("x"), n_tokens=3, finish_reason="length")) == finished(
        "length", 3, "bx"
    )


def test_a_stop_string_ends_it_with_the_count_of_the_token_that_completed_it(
    frontend: Frontend,
) -> None:
    running = generation(frontend, stop=("bc",))
    end = running.update(output(*ids("a"), *ids("b"), *ids("c"), *ids("d"), n_tokens=4))
    assert end == finished("stop", 3, "a", stop="bc")


def test_an_abort_keeps_its_reason_and_count(frontend: Frontend) -> None:
    running = generation(frontend)
    running.update(output(*ids("a"), n_tokens=1))
    assert running.update(output(n_tokens=1, finish_reason="abort")) == finished("abort", 1, "")


def test_an_error_says_how_many_tokens_there_were(frontend: Frontend) -> None:
    running = generation(frontend)
    running.update(output(*ids("a"), n_tokens=1))
    error = RequestError("no", code="bad", param="seed")
    assert running.update(output(n_tokens=1, error=error)) == Update(
        failed=FailedRequest(
            request_id="r",
            error=WireError(kind="request", code="bad", message="no", param="seed"),
            n_completion_tokens=1,
        )
    )


def test_failing_from_outside_keeps_the_count(frontend: Frontend) -> None:
    running = generation(frontend)
    running.update(output(*ids("a"), n_tokens=1))
    failed = running.fail(EngineError("gone")).failed
    assert failed is not None
    assert (failed.error.kind, failed.n_completion_tokens) == ("engine", 1)


def logprobs(*token_ids: int) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token_id=token_id, logprob=-1.0) for token_id in token_ids)


def named(*token_ids: int) -> tuple[TokenLogprob, ...]:
    """Return what a client gets of them: each with its bytes."""
    text = {token_id: token for token, token_id in byte_level().get_vocab().items()}
    return tuple(
        TokenLogprob(token_id=token_id, logprob=-1.0, token=text[token_id].encode())
        for token_id in token_ids
    )


def test_there_is_one_logprob_for_each_counted_token(frontend: Frontend) -> None:
    running = generation(frontend, stop=("bc",), logprobs=0)
    text = [*ids("a"), *ids("b"), *ids("c"), *ids("d")]
    first = running.update(output(text[0], n_tokens=1, logprobs=logprobs(text[0])))
    assert first.delta is not None
    assert first.delta.logprobs == named(text[0])
    last = running.update(output(*text[1:], n_tokens=4, logprobs=logprobs(*text[1:]))).finished
    assert last is not None
    assert (last.n_completion_tokens, last.logprobs) == (3, named(*text[1:3]))


def test_the_last_token_brings_its_logprob_with_the_end(frontend: Frontend) -> None:
    running = generation(frontend, logprobs=0)
    entry = logprobs(END_ID)
    last = running.update(output(END_ID, n_tokens=1, finish_reason="stop", logprobs=entry))
    assert last.finished is not None
    assert last.finished.logprobs == named(END_ID)


def test_parts_of_the_prompt_come_without_tokens(frontend: Frontend) -> None:
    running = generation(frontend, prompt_logprobs=0)
    assert running.update(output(n_tokens=0, prompt_logprobs=logprobs(2, 3))).delta == Delta(
        request_id="r", text="", n_tokens=0, prompt_logprobs=named(2, 3)
    )


def test_a_stop_token_is_counted_and_not_shown(frontend: Frontend) -> None:
    (stop_id,) = ids("b")
    running = generation(frontend, stop_token_ids=(stop_id,))
    running.update(output(*ids("a"), n_tokens=1))
    last = running.update(output(stop_id, n_tokens=2, finish_reason="stop"))
    assert last == finished("stop", 2, "")


def test_stop_strings_are_not_looked_for_before_min_tokens(frontend: Frontend) -> None:
    running = generation(frontend, stop=("ab",), min_tokens=3)
    text = "ababab"
    updates = [running.update(output(*ids(c), n_tokens=i + 1)) for i, c in enumerate(text)]
    shown = [update.delta.text for update in updates[:5] if update.delta is not None]
    assert shown == ["a", "b", "a", "b", ""]
    assert updates[5] == finished("stop", 6, "", stop="ab")


def test_answers_have_their_own_text_and_the_last_end_is_the_requests(frontend: Frontend) -> None:
    running = generation(frontend, n=3, stop=("bc",), logprobs=0)
    (b_id,) = ids("b")
    for index in (0, 1):
        first = running.update(output(b_id, n_tokens=1, choice=index, logprobs=logprobs(b_id)))
        assert first.delta == Delta(
            request_id="r", index=index, text="", n_tokens=1, logprobs=named(b_id)
        )
    text = (*ids("c"), *ids("d"))
    stopped = running.update(output(*text, n_tokens=3, choice=1, logprobs=logprobs(*text)))
    assert stopped.delta == Delta(
        request_id="r",
        index=1,
        text="",
        n_tokens=1,
        finish_reason="stop",
        stop="bc",
        logprobs=named(*text[:1]),
    )
    assert stopped.ends_choice
    assert not stopped.is_last
    assert running.update(output(b_id, n_tokens=4, choice=1)) == Update()
    assert running.update(output(n_tokens=4, choice=1, finish_reason="abort")) == Update()
    ended = running.update(output(*ids("x"), n_tokens=2, choice=0, finish_reason="length"))
    assert ended.delta == Delta(
        request_id="r", index=0, text="bx", n_tokens=1, finish_reason="length"
    )
    last = running.update(output(END_ID, n_tokens=1, choice=2, finish_reason="stop"))
    assert last.finished is not None
    assert (last.finished.index, last.finished.finish_reason) == (2, "stop")
    assert last.finished.n_completion_tokens == 2 + 2 + 1


def test_an_error_of_one_answer_ends_all_with_the_count_of_all(frontend: Frontend) -> None:
    running = generation(frontend, n=2)
    running.update(output(*ids("ab"), n_tokens=2, choice=0, finish_reason="length"))
    running.update(output(*ids("c"), n_tokens=1, choice=1))
    failed = running.update(output(n_tokens=1, choice=1, error=EngineError("gone"))).failed
    assert failed is not None
    assert failed.n_completion_tokens == 3

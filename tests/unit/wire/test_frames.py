import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.protocol import (
    HEADER,
    MAX_FRAME_BYTES,
    Abort,
    ChatMessage,
    ChatPrompt,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    EngineStats,
    FailedRequest,
    Finished,
    FrameError,
    Hello,
    Message,
    Ping,
    Pong,
    Prepare,
    Purge,
    Purged,
    SamplingParams,
    Start,
    StepOutputs,
    TextPrompt,
    Tokenize,
    Tokenized,
    TokenizedInputs,
    TokenizeInputs,
    TokenLogprob,
    TokenPrompt,
    WireError,
    decode_from_engine,
    decode_to_engine,
    encode_frame,
)
from engine_service.server.frame_buffer import FrameBuffer

# Surrogates cannot be encoded; the client refuses them before they get here.
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.integers(0, 2**53)
PROMPTS = st.one_of(
    st.builds(TextPrompt, text=TEXT),
    st.builds(TokenPrompt, token_ids=st.lists(INTEGERS, max_size=9).map(tuple)),
    st.lists(st.builds(ChatMessage, role=TEXT, content=TEXT), max_size=3).map(
        lambda turns: ChatPrompt(messages=tuple(turns))
    ),
)
IDS = st.lists(INTEGERS, max_size=9).map(tuple)
INPUTS = st.lists(
    st.builds(TextPrompt, text=TEXT) | st.builds(TokenPrompt, token_ids=IDS), max_size=4
).map(tuple)
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_k=COUNTS,
    seed=st.none() | INTEGERS,
    stop=st.lists(TEXT, max_size=4).map(tuple),
    ignore_eos=st.booleans(),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    logit_bias=st.lists(st.tuples(COUNTS, st.floats(-100, 100)), max_size=3).map(tuple),
    stop_token_ids=st.lists(COUNTS, max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
)
LOGPROB = st.floats(max_value=0.0)
LOGPROBS = st.lists(
    st.builds(
        TokenLogprob,
        token_id=COUNTS,
        logprob=LOGPROB,
        top=st.lists(st.tuples(COUNTS, LOGPROB), max_size=3).map(tuple),
    ),
    max_size=3,
).map(tuple)
TO_ENGINE = st.one_of(
    st.builds(Hello, protocol_version=COUNTS, client=TEXT),
    st.builds(Abort, request_id=TEXT),
    st.builds(Ping, nonce=COUNTS, may_hold_memory=st.none() | st.booleans()),
    st.builds(Purge, nonce=COUNTS, tag=TEXT),
    st.builds(Start, request_id=TEXT, max_new_tokens=COUNTS),
    st.builds(Prepare, request_id=TEXT, prompt=PROMPTS, sampling=SAMPLING),
    st.builds(Embed, request_id=TEXT, inputs=INPUTS),
    st.builds(TokenizeInputs, request_id=TEXT, inputs=INPUTS),
    st.builds(Detokenize, request_id=TEXT, token_ids=IDS),
    st.builds(
        Tokenize,
        request_id=TEXT,
        prompt=PROMPTS.filter(lambda prompt: not isinstance(prompt, TokenPrompt)),
        add_special_tokens=st.none() | st.booleans(),
        with_strings=st.booleans(),
    ),
)
ERRORS = st.builds(
    WireError,
    kind=st.sampled_from(["request", "overloaded", "engine"]),
    code=TEXT,
    message=TEXT,
    param=st.none() | TEXT,
    retry_after_s=st.none() | st.floats(0, 100),
)
FROM_ENGINE = st.one_of(
    st.builds(
        Tokenized,
        request_id=TEXT,
        token_ids=IDS,
        strings=st.lists(TEXT, max_size=4).map(tuple),
    ),
    st.builds(TokenizedInputs, request_id=TEXT, inputs=st.lists(IDS, max_size=4).map(tuple)),
    st.builds(Detokenized, request_id=TEXT, text=TEXT),
    st.builds(Pong, nonce=COUNTS, epoch=COUNTS, stats=st.builds(EngineStats, n_running=COUNTS)),
    st.builds(Purged, nonce=COUNTS, epoch=COUNTS, n_blocks=COUNTS),
    st.builds(
        Embedded,
        request_id=TEXT,
        vectors=st.lists(st.binary(max_size=20), max_size=4).map(tuple),
        n_prompt_tokens=COUNTS,
    ),
    st.builds(
        StepOutputs,
        epoch=COUNTS,
        deltas=st.lists(
            st.builds(
                Delta,
                request_id=TEXT,
                text=TEXT,
                n_tokens=COUNTS,
                logprobs=LOGPROBS,
                prompt_logprobs=LOGPROBS,
            ),
            max_size=4,
        ).map(tuple),
        finished=st.lists(
            st.builds(
                Finished,
                request_id=TEXT,
                finish_reason=st.sampled_from(["stop", "length", "abort"]),
                n_prompt_tokens=COUNTS,
                n_cached_tokens=COUNTS,
                n_completion_tokens=COUNTS,
                text=TEXT,
                logprobs=LOGPROBS,
            ),
            max_size=3,
        ).map(tuple),
        failed=st.lists(st.builds(FailedRequest, request_id=TEXT, error=ERRORS), max_size=3).map(
            tuple
        ),
    ),
)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]]


@given(st.lists(TO_ENGINE, max_size=6), st.lists(st.integers(1, 40), max_size=20))
def test_frames_survive_any_split_of_the_bytes(messages: list[Message], sizes: list[int]) -> None:
    data = b"".join(encode_frame(message) for message in messages)
    buffer = FrameBuffer()
    bodies = [body for piece in cut(data, sizes) for body in buffer.feed(piece)]
    assert [decode_to_engine(body) for body in bodies] == messages


@given(FROM_ENGINE)
def test_answers_survive_the_way(message: Message) -> None:
    assert decode_from_engine(encode_frame(message)[4:]) == message


@given(st.lists(TO_ENGINE, min_size=1, max_size=3), st.integers(1, 200))
def test_a_truncated_frame_yields_only_what_is_whole(messages: list[Message], cut_off: int) -> None:
    frames = [encode_frame(message) for message in messages]
    data = b"".join(frames)[:-cut_off]
    n_whole, end = 0, 0
    while n_whole < len(frames) and (end := end + len(frames[n_whole])) <= len(data):
        n_whole += 1
    assert len(list(FrameBuffer().feed(data))) == n_whole < len(messages)


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_a_header_out_of_bounds_is_refused_before_its_body(length: int) -> None:
    with pytest.raises(FrameError, match=f"frame of {length} bytes"):
        list(FrameBuffer().feed(struct.pack(">I", length)))


def test_a_frame_that_would_be_too_large_is_not_made() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        encode_frame(Hello(protocol_version=1, client="x" * MAX_FRAME_BYTES))


@given(st.binary(max_size=200))
def test_garbage_is_a_frame_error_or_a_message(body: bytes) -> None:
    try:
        message = decode_to_engine(body)
    except FrameError:
        return
    assert isinstance(message, Message)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(FrameError, match="unknown field"):
        decode_to_engine(b"\x83\xa4type\xa4ping\xa5nonce\x01\xa5extra\x01")


def test_messages_of_the_other_direction_are_refused() -> None:
    with pytest.raises(FrameError):
        decode_to_engine(encode_frame(Pong(nonce=1, epoch=1, stats=EngineStats()))[4:])


def test_who_shares_no_device_is_sent_what_an_older_peer_can_read() -> None:
    assert msgspec.msgpack.decode(encode_frame(Ping(nonce=1))[HEADER.size :]) == {
        "type": "ping",
        "nonce": 1,
    }
    pong = msgspec.msgpack.decode(
        encode_frame(Pong(nonce=1, epoch=1, stats=EngineStats()))[HEADER.size :]
    )
    assert pong["stats"] == {}


@pytest.mark.parametrize("told", [1, "yes", []])
def test_a_turn_is_yes_or_no(told: object) -> None:
    body = msgspec.msgpack.encode({"type": "ping", "nonce": 1, "may_hold_memory": told})
    with pytest.raises(FrameError):
        decode_to_engine(body)

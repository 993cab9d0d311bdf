"""The replay of limits, against a slow one that looks at every earlier request anew."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django_ratelimit.core import _get_window
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.core.limits import UNLIMITED, Limits
from apps.metering.replay import PastRequest, Refused, Replayed, minute_of, replay, replays_sum

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
KEY = "tenant:1"


def past(seconds: float = 0.0, *, lasts: float | None = 1.0, **fields: Any) -> PastRequest:
    at = NOON + timedelta(seconds=seconds)
    values = {
        "door": "rest",
        "route_name": "m",
        "n_prompt_tokens": 10,
        "n_reserved_tokens": 30,
        "n_charged_tokens": 20,
    }
    ended_at = None if lasts is None else at + timedelta(seconds=lasts)
    return PastRequest(at=at, ended_at=ended_at, **(values | fields))


def refused(requests: list[PastRequest], **limits: Any) -> dict[str, tuple[int, float]]:
    """Of each limit: how often it refuses, and how many seconds after noon first."""
    found = replay(requests, limits=Limits(**limits), key=KEY)
    return {each.limit: (each.n, (each.first_at - NOON).total_seconds()) for each in found.refused}


def test_no_limit_refuses_nobody() -> None:
    every = [past(0, lasts=None), past(0), past(0)]
    found = replay(every, limits=UNLIMITED, key=KEY)
    assert found == Replayed(n_requests=3, n_shortened=0, refused=())
    assert (found.n_refused, found.first_at) == (0, None)


def test_models_that_are_not_allowed() -> None:
    every = [past(0), past(1, route_name="x"), past(2, route_name="x")]
    assert refused(every, allowed_routes=frozenset({"m"})) == {"allowed_routes": (2, 1.0)}


def test_the_minute_is_the_keys_own_and_counts_what_it_refuses() -> None:
    starts = next(s for s in range(60) if minute_of(NOON + timedelta(seconds=s), key=KEY)
                  != minute_of(NOON + timedelta(seconds=s - 1), key=KEY))  # fmt: skip
    every = [past(starts + s) for s in (0, 20, 59, 60, 61)]
    assert refused(every, requests_per_minute=2) == {"requests_per_minute": (1, starts + 59.0)}
    # A model that is not allowed takes no place; one that is too long does.
    every[0] = past(starts, route_name="x")
    assert refused(every, requests_per_minute=2, allowed_routes=frozenset({"m"})) == {
        "allowed_routes": (1, float(starts))
    }
    every[0] = past(starts, n_prompt_tokens=100, n_reserved_tokens=101, n_charged_tokens=101)
    assert refused(every, requests_per_minute=2, max_context_tokens=50) == {
        "requests_per_minute": (1, starts + 59.0),
        "max_context_tokens": (1, float(starts)),
    }


def test_batches_take_no_place_but_tokens() -> None:
    every = [past(s, lasts=100, door="batch") for s in range(4)]
    assert refused(every, requests_per_minute=1, max_concurrent_requests=1) == {}
    assert refused(every, tokens_per_day=60) == {"tokens_per_day": (2, 2.0)}


def test_a_place_is_free_after_the_end_and_not_in_it() -> None:
    every = [past(0, lasts=5), past(5), past(5.1), past(20, lasts=None), past(99)]
    assert refused(every, max_concurrent_requests=1) == {"max_concurrent_requests": (2, 5.0)}


def test_the_context_refuses_what_has_no_room_for_an_answer_and_cuts_others() -> None:
    every = [past(0), past(9, n_prompt_tokens=15, n_reserved_tokens=16, n_charged_tokens=16)]
    found = replay(every, limits=Limits(max_context_tokens=15), key=KEY)
    first = NOON + timedelta(seconds=9)
    assert found == Replayed(
        n_requests=2,
        n_shortened=1,
        refused=(Refused(limit="max_context_tokens", n=1, first_at=first),),
    )
    # An embedding has no answer: a prompt as long as the context fits.
    every = [past(n_prompt_tokens=15, n_reserved_tokens=15, n_charged_tokens=15)]
    assert refused(every, max_context_tokens=15) == {}


def test_a_budget_is_charged_what_was_used_and_begins_anew_at_midnight() -> None:
    day = 12 * 3600.0
    every = [past(s) for s in (0, 10, 20, day, day + 10)]
    assert refused(every, tokens_per_day=40) == {"tokens_per_day": (1, 20.0)}
    # The next day is another month.
    assert refused(every, tokens_per_month=40) == {"tokens_per_month": (1, 20.0)}
    # What is held counts as long as it is, and is cut to what is left.
    every = [past(0, lasts=30), past(10), past(40)]
    assert refused(every, tokens_per_day=35) == {"tokens_per_day": (1, 10.0)}
    found = replay(every, limits=Limits(tokens_per_day=45), key=KEY)
    assert (found.n_refused, found.n_shortened) == (1, 1)


def test_what_was_used_before_is_gone() -> None:
    def n_refused(used_before: dict[str, int]) -> int:
        limits = Limits(tokens_per_month=100)
        return replay([past()], limits=limits, key=KEY, used_before=used_before).n_refused

    assert [n_refused({"2026-11": n}) for n in (0, 89, 90, 100)] == [0, 0, 1, 1]
    assert n_refused({"2026-10": 100, "2026-11-30": 100}) == 0


def test_of_two_limits_the_one_that_is_wanting_longest_is_named() -> None:
    mid = datetime(2026, 11, 15, 12, tzinfo=UTC)
    row = past()
    row = PastRequest(at=mid, ended_at=mid, door=row.door, route_name="m", n_prompt_tokens=10,
                      n_reserved_tokens=30, n_charged_tokens=20)  # fmt: skip
    found = replay([row], limits=Limits(tokens_per_day=5, tokens_per_month=5), key=KEY)
    assert [each.limit for each in found.refused] == ["tokens_per_month"]


def test_sums() -> None:
    one = replay([past(5)], limits=Limits(tokens_per_day=5), key=KEY)
    limits = Limits(tokens_per_day=5, allowed_routes=frozenset({"m"}))
    two = replay([past(3), past(4, route_name="x")], limits=limits, key=KEY)
    assert replays_sum([one, two]) == Replayed(
        n_requests=3,
        n_shortened=0,
        refused=(
            Refused(limit="tokens_per_day", n=2, first_at=NOON + timedelta(seconds=3)),
            Refused(limit="allowed_routes", n=1, first_at=NOON + timedelta(seconds=4)),
        ),
    )
    assert replays_sum([]) == Replayed(n_requests=0, n_shortened=0, refused=())


@pytest.mark.parametrize("key", ["tenant:1", "tenant:2", "tenant:77"])
def test_minutes_are_those_of_the_library(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = NOON.timestamp()
    windows, minutes = [], []
    for tenths in range(0, 1_500, 7):
        monkeypatch.setattr(time, "time", lambda now=starts + tenths / 10: now)
        windows.append(_get_window(key, 60))
        minutes.append(minute_of(datetime.fromtimestamp(time.time(), tz=UTC), key=key))
    assert [w - windows[0] for w in windows] == [60 * (m - minutes[0]) for m in minutes]


def slow(requests: list[PastRequest], *, limits: Limits, used: int) -> Counter[str]:
    """The obvious way: for each request, look at all before it; of those let in, what they hold."""
    counts: Counter[str] = Counter()
    inside: list[tuple[PastRequest, int]] = []
    counted: list[PastRequest] = []
    for one in sorted(requests, key=lambda each: each.at):
        if limits.allowed_routes is not None and one.route_name not in limits.allowed_routes:
            counts["allowed_routes"] += 1
            continue
        if one.door != "batch":
            counted.append(one)
            minute = minute_of(one.at, key=KEY)
            n = sum(minute_of(each.at, key=KEY) == minute for each in counted)
            if limits.requests_per_minute is not None and n > limits.requests_per_minute:
                counts["requests_per_minute"] += 1
                continue
        least = min(one.n_prompt_tokens + 1, one.n_reserved_tokens)
        if limits.max_context_tokens is not None and least > limits.max_context_tokens:
            counts["max_context_tokens"] += 1
            continue
        granted = min(one.n_reserved_tokens, limits.max_context_tokens or 10**9)
        short: list[str] = []
        for name, cap, form in (
            ("tokens_per_day", limits.tokens_per_day, "%Y-%m-%d"),
            ("tokens_per_month", limits.tokens_per_month, "%Y-%m"),
        ):
            if cap is None:
                continue
            same = [e for e in inside if f"{e[0].at:{form}}" == f"{one.at:{form}}"]
            over = [e for e in same if e[0].ended_at is not None and e[0].ended_at < one.at]
            n_used = used if form == "%Y-%m" else 0
            n_used += sum(min(e[0].n_charged_tokens, e[1]) for e in over)
            n_held = sum(e[1] for e in same if e not in over)
            granted = min(granted, cap - n_used - n_held)
            if cap - n_used < least:
                short.insert(0, name)  # a month or a day outlasts a second
            elif cap - n_used - n_held < least:
                short.append(name)
        n_open = sum(e[0].door != "batch" and (e[0].ended_at is None or e[0].ended_at >= one.at)
                     for e in inside)  # fmt: skip
        cap = limits.max_concurrent_requests
        if cap is not None and one.door != "batch" and n_open >= cap:
            short.append("max_concurrent_requests")
        if short:
            counts[short[0]] += 1
        else:
            inside.append((one, granted))
            counts["shortened"] += one.n_charged_tokens > granted
    return +counts


@st.composite
def some(draw: st.DrawFn) -> PastRequest:
    n_prompt = draw(st.integers(0, 9))
    n_reserved = n_prompt + draw(st.integers(0, 9))
    # Two days of a month, never its last: there a day and a month end at once.
    seconds = draw(st.integers(0, 200)) + 86_400 * draw(st.integers(-5, -4))
    return past(
        seconds,
        lasts=draw(st.none() | st.integers(0, 90)),
        door=draw(st.sampled_from(["rest", "websocket", "batch"])),
        route_name=draw(st.sampled_from(["m", "x"])),
        n_prompt_tokens=n_prompt,
        n_reserved_tokens=n_reserved,
        n_charged_tokens=draw(st.integers(0, n_reserved)),
    )


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(some(), max_size=20),
    limits=st.builds(
        Limits,
        requests_per_minute=st.none() | st.integers(1, 5),
        tokens_per_day=st.none() | st.integers(0, 60),
        tokens_per_month=st.none() | st.integers(0, 90),
        max_concurrent_requests=st.none() | st.integers(1, 3),
        max_context_tokens=st.none() | st.integers(1, 16),
        allowed_routes=st.none() | st.just(frozenset({"m"})),
    ),
    used=st.integers(0, 30),
)
def test_it_is_the_slow_one(requests: list[PastRequest], limits: Limits, used: int) -> None:
    found = replay(requests, limits=limits, key=KEY, used_before={"2026-11": used})
    counts = Counter({each.limit: each.n for each in found.refused})
    counts["shortened"] = found.n_shortened
    assert +counts == slow(requests, limits=limits, used=used)
    assert found.n_requests == len(requests)

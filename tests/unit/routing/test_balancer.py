"""The balancer by itself: no engine and no clock but its own."""

from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from apps.deployments.types import ReplicaEndpoint
from apps.routing.balancer import (
    MAX_COUNTED_NEW_TOKENS,
    OVER_MEAN,
    READING_WORTH,
    Balancer,
    Demand,
    Place,
    counted_new_tokens,
)
from apps.routing.breaker import CONSECUTIVE_FAILURES, FIRST_OPEN_S
from apps.routing.prefixes import PIECE_CHARS, prompt_prefix
from tests.unit.routing.replicas import Clock, endpoint

THREE = (endpoint(0), endpoint(1), endpoint(2))


def asks(n_prompt_tokens: int = 0, n_new_tokens: int = 100, *, text: str = "") -> Demand:
    return Demand(
        n_prompt_tokens=n_prompt_tokens,
        n_new_tokens=n_new_tokens,
        prefix=prompt_prefix(text, salt="s"),
    )


def take(
    balancer: Balancer,
    demand: Demand,
    endpoints: tuple[ReplicaEndpoint, ...] = THREE,
    excluded: tuple[str, ...] = (),
) -> Place:
    found = balancer.choose(endpoints, demand=demand, excluded=excluded)
    assert found is not None
    return balancer.hold(found, demand=demand)


def fail(balancer: Balancer, target: ReplicaEndpoint) -> None:
    place = balancer.hold(target)
    place.failed(is_gone=True)
    place.release()


def loads(balancer: Balancer) -> list[int]:
    return [balancer.n_outstanding(each) for each in THREE]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def balancer(clock: Clock) -> Balancer:
    return Balancer(clock=clock)


def test_the_fewest_outstanding_tokens_win_not_the_fewest_requests(balancer: Balancer) -> None:
    take(balancer, asks(n_new_tokens=500))
    small = [take(balancer, asks(n_new_tokens=100)).endpoint.replica_index for _ in range(6)]
    assert small == [1, 2, 1, 2, 1, 2]
    assert loads(balancer) == [500, 300, 300]


def test_equal_loads_go_to_whom_less_was_given(balancer: Balancer) -> None:
    places = [take(balancer, asks(n_new_tokens=n)) for n in (300, 200, 100)]
    for place in places:
        place.release()
    chosen = []
    for _ in range(5):
        place = take(balancer, asks(n_new_tokens=100))
        chosen.append(place.endpoint.replica_index)
        place.release()
    assert chosen == [2, 1, 2, 0, 1]


def test_what_was_given_is_forgotten_with_time(balancer: Balancer, clock: Clock) -> None:
    take(balancer, asks(n_new_tokens=1000), THREE[:1]).release()
    clock.now_s += 600
    take(balancer, asks(n_new_tokens=1), THREE[1:2]).release()
    assert take(balancer, asks(), THREE[:2]).endpoint == THREE[0]


def test_processes_do_not_all_begin_with_the_same_replica(clock: Clock) -> None:
    first = {
        take(Balancer(clock=clock, random=Random(seed)), asks()).endpoint.replica_index
        for seed in range(20)
    }
    assert first == {0, 1, 2}


def test_a_prompt_goes_where_its_beginning_was_read(balancer: Balancer) -> None:
    texts = [letter * (8 * PIECE_CHARS) for letter in "abc"]
    homes = []
    for text in texts:
        place = take(balancer, asks(500, text=text))
        homes.append(place.endpoint)
        place.release()
    assert homes == list(THREE)
    for _ in range(5):
        for text, home in zip(texts, homes, strict=True):
            place = take(balancer, asks(500, text=text + "and then?"))
            assert place.endpoint == home
            place.release()


def test_another_tenants_prompt_finds_nothing(balancer: Balancer) -> None:
    text = "a" * (8 * PIECE_CHARS)
    take(balancer, asks(500, text=text)).release()
    other = Demand(n_prompt_tokens=500, prefix=prompt_prefix(text, salt="other"))
    assert take(balancer, other).endpoint == THREE[1]


def test_first_words_that_all_prompts_share_bind_none(balancer: Balancer) -> None:
    system = "s" * PIECE_CHARS
    chosen = []
    for letter in "abc":
        place = take(balancer, asks(500, text=system + letter * (7 * PIECE_CHARS)))
        chosen.append(place.endpoint.replica_index)
        place.release()
    assert chosen == [0, 1, 2]


def test_a_prefix_does_not_outweigh_the_load(balancer: Balancer) -> None:
    demand = asks(1000, 100, text="a" * (16 * PIECE_CHARS))
    places = [take(balancer, demand) for _ in range(12)]
    n_of = [sum(place.endpoint == each for place in places) for each in THREE]
    assert n_of == [4, 4, 4]
    for place in places:
        place.release()
    assert loads(balancer) == [0, 0, 0]


def test_what_was_read_before_counts_no_more(balancer: Balancer) -> None:
    demand = asks(1000, 100, text="a" * (4 * PIECE_CHARS))
    first = take(balancer, demand)
    assert first.n_tokens == 1100
    second = balancer.hold(first.endpoint, demand=demand)
    assert second.n_tokens == 100
    second.resize(n_prompt_tokens=2000, n_new_tokens=50)
    assert second.n_tokens == 50
    first.resize(n_prompt_tokens=2000, n_new_tokens=50)
    assert loads(balancer) == [2100, 0, 0]


def test_a_slow_replica_gets_less(balancer: Balancer, clock: Clock) -> None:
    """Replica 2 takes five times as long for an answer. 24 requests run at any time; so many as a
    replica finishes, it is given."""
    seconds = {"d-0": 1.0, "d-1": 1.0, "d-2": 5.0}
    n_done = dict.fromkeys(seconds, 0)
    running: list[tuple[float, Place]] = []
    for _ in range(2000):
        while len(running) < 24:
            place = take(balancer, asks(n_new_tokens=100))
            n_ahead = sum(other.endpoint == place.endpoint for _, other in running)
            duration_s = seconds[place.endpoint.engine_name] * (1 + n_ahead / 8)
            running.append((clock.now_s + duration_s, place))
        running.sort(key=lambda each: each[0])
        clock.now_s, place = running.pop(0)
        place.release()
        n_done[place.endpoint.engine_name] += 1
    assert n_done["d-2"] / n_done["d-0"] == pytest.approx(1 / 5, abs=0.05)
    assert n_done["d-1"] / n_done["d-0"] == pytest.approx(1, abs=0.05)


def test_a_broken_replica_is_left_alone_until_one_may_try(balancer: Balancer, clock: Clock) -> None:
    two = THREE[:2]
    fail(balancer, THREE[0])
    assert balancer.breaker_state(THREE[0]) == "open"
    for _ in range(5):
        assert take(balancer, asks(), two).endpoint == THREE[1]
    clock.now_s += FIRST_OPEN_S
    probe = take(balancer, asks(), two)
    assert probe.endpoint == THREE[0]
    assert take(balancer, asks(), two).endpoint == THREE[1]  # one at a time
    probe.succeeded()
    assert balancer.breaker_state(THREE[0]) == "closed"
    assert [take(balancer, asks(), two).endpoint for _ in range(4)] == [THREE[0]] * 4


def test_a_prefix_does_not_lead_to_a_broken_replica(balancer: Balancer) -> None:
    demand = asks(500, text="a" * (8 * PIECE_CHARS))
    take(balancer, demand).release()
    fail(balancer, THREE[0])
    assert take(balancer, demand).endpoint == THREE[1]


def test_of_replicas_that_are_all_broken_the_least_bad_is_chosen(
    balancer: Balancer, clock: Clock
) -> None:
    for each in reversed(THREE):
        fail(balancer, each)
        clock.now_s += 0.1
    assert take(balancer, asks()).endpoint == THREE[2]
    assert take(balancer, asks(), excluded=("d-2",)).endpoint == THREE[1]
    alone = (THREE[0],)
    assert [take(balancer, asks(), alone).endpoint for _ in range(3)] == [THREE[0]] * 3


def test_a_forced_request_that_succeeds_closes_the_breaker(balancer: Balancer) -> None:
    alone = (THREE[0],)
    for _ in range(CONSECUTIVE_FAILURES):
        place = take(balancer, asks(), alone)
        place.failed()
        place.release()
    assert balancer.breaker_state(THREE[0]) == "open"
    take(balancer, asks(), alone).succeeded()
    assert balancer.breaker_state(THREE[0]) == "closed"


def test_a_new_start_of_an_engine_is_another_replica(balancer: Balancer) -> None:
    demand = asks(500, text="a" * (8 * PIECE_CHARS))
    old = take(balancer, demand)
    old.failed(is_gone=True)
    anew = endpoint(0, epoch=2)
    assert balancer.breaker_state(anew) == "closed"
    assert balancer.hold(anew, demand=demand).n_tokens == 600  # it has read nothing


def test_replicas_that_are_gone_are_forgotten_once_nothing_runs_there(balancer: Balancer) -> None:
    place = take(balancer, asks())
    fail(balancer, THREE[1])
    balancer.retain([])
    assert balancer.n_outstanding(THREE[0]) == 100
    assert balancer.breaker_state(THREE[1]) == "closed"
    place.release()
    balancer.retain([])
    assert balancer._replicas == {}


def test_nothing_to_choose_from(balancer: Balancer) -> None:
    assert balancer.choose(()) is None
    assert balancer.choose(THREE, excluded=["d-0", "d-1", "d-2"]) is None


@pytest.mark.parametrize(
    ("max_new_tokens", "n_answers", "counted"),
    [
        (8, 1, 8),
        (8, 3, 24),
        (100_000, 1, MAX_COUNTED_NEW_TOKENS),
        (None, 2, 2 * MAX_COUNTED_NEW_TOKENS),
    ],
)
def test_what_an_answer_counts(max_new_tokens: int | None, n_answers: int, counted: int) -> None:
    assert counted_new_tokens(max_new_tokens, n_answers=n_answers) == counted


EVENTS = st.tuples(
    st.sampled_from(["take", "take", "take", "resize", "release", "good", "bad", "gone", "wait"]),
    st.integers(0, 10_000),
    st.sets(st.sampled_from(["d-0", "d-1", "d-2"])),
)


@given(st.lists(EVENTS, max_size=60))
def test_counts_are_those_of_open_places(events: list[tuple[str, int, set[str]]]) -> None:
    """Whatever happens: nobody excluded is chosen, none is refused while one is left, no count is
    negative, each is what its open places hold, and all are nothing in the end."""
    clock = Clock()
    balancer = Balancer(clock=clock)
    places: list[Place] = []
    for event, amount, excluded in events:
        place = places[amount % len(places)] if places else None
        if event == "wait":
            clock.now_s += amount / 1000
        elif event == "take":
            demand = asks(amount, amount % 97, text="abc"[amount % 3] * (amount // 10))
            found = balancer.choose(THREE, demand=demand, excluded=excluded)
            assert (found is None) == (len(excluded) == 3)
            if found is not None:
                assert found.engine_name not in excluded
                places.append(balancer.hold(found, demand=demand))
        elif place is not None:
            match event:
                case "resize":
                    place.resize(n_prompt_tokens=amount, n_new_tokens=amount % 89)
                case "good":
                    place.succeeded()
                case "bad" | "gone":
                    place.failed(is_gone=event == "gone")
                case "release":
                    places.remove(place)
                    place.release()
                    place.release()
        for each in THREE:
            held = [other.n_tokens for other in places if other.endpoint == each]
            assert balancer.n_outstanding(each) == sum(held) >= 0
            assert min(held, default=0) >= 0
    for place in places:
        place.release()
    assert loads(balancer) == [0, 0, 0]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60), st.integers(1, 4))
def test_no_replica_is_over_the_bound_for_the_sake_of_a_prefix(
    sizes: list[int], n_texts: int
) -> None:
    """A request finds no more where it goes than the mean and a bound over it, and what it adds."""
    balancer = Balancer(clock=Clock())
    for number, size in enumerate(sizes):
        demand = asks(size, text="abcd"[number % n_texts] * (8 * PIECE_CHARS))
        before = loads(balancer)
        place = take(balancer, demand)
        found = before[place.endpoint.replica_index]
        bound = (1 + OVER_MEAN) * sum(before) / 3 + place.n_tokens + READING_WORTH * size
        assert found <= bound

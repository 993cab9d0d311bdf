"""The index of prefixes: whose they are, how long it remembers, and how much."""

import hypothesis.strategies as st
from hypothesis import given

from apps.routing.prefixes import (
    MAX_HOLDERS,
    MAX_PIECES,
    PIECE_CHARS,
    PIECE_TOKENS,
    Holder,
    Prefix,
    PrefixIndex,
    prompt_prefix,
)

A, B = ("a", 1), ("b", 1)
CHAINS = st.lists(st.integers(0, 3), max_size=5).map(tuple)


def chained(path: tuple[int, ...]) -> Prefix:
    """A prefix of which equal beginnings have equal hashes, and nothing else has."""
    return Prefix(chain=tuple(hash(path[: i + 1]) for i in range(len(path))), n_pieces=5)


def test_a_prefix_is_of_whole_pieces() -> None:
    text = "x" * (2 * PIECE_CHARS + 10)
    prefix = prompt_prefix(text, salt="s")
    assert len(prefix.chain) == 2
    assert prefix.n_pieces == 2 + 10 / PIECE_CHARS
    assert prompt_prefix(text[: PIECE_CHARS - 1], salt="s") == Prefix()
    assert prompt_prefix(list(range(3 * PIECE_TOKENS)), salt="s").n_pieces == 3


def test_equal_beginnings_have_equal_chains() -> None:
    common = "y" * PIECE_CHARS
    one = prompt_prefix(common + "1" * PIECE_CHARS, salt="s")
    two = prompt_prefix(common + "2" * PIECE_CHARS, salt="s")
    assert one.chain[0] == two.chain[0]
    assert one.chain[1] != two.chain[1]
    # The second piece alone is not a prefix: what was before it counts.
    assert prompt_prefix("1" * PIECE_CHARS, salt="s").chain[0] != one.chain[1]


def test_tenants_share_nothing() -> None:
    text = "z" * (20 * PIECE_CHARS)
    one, two = (prompt_prefix(text, salt=salt) for salt in ("one", "two"))
    assert not set(one.chain) & set(two.chain)
    index = PrefixIndex()
    index.add(one, A)
    assert index.matches(one) == {A: 20}
    assert index.matches(two) == {}


def test_a_long_prompt_costs_no_more_than_its_bound() -> None:
    prefix = prompt_prefix("w" * (MAX_PIECES * PIECE_CHARS), salt="s", length=10**9)
    assert len(prefix.chain) == MAX_PIECES
    assert prefix.n_pieces == 10**9 / PIECE_CHARS
    assert len(prompt_prefix([1] * 10**6, salt="s").chain) == MAX_PIECES


def test_the_share_of_a_prompt() -> None:
    prefix = Prefix(chain=(1, 2, 3), n_pieces=4)
    assert [prefix.share(n) for n in (0, 1, 3)] == [0, 0.25, 0.75]
    assert Prefix().share(0) == 0


def test_a_piece_remembers_a_bounded_number_of_replicas() -> None:
    index, prefix = PrefixIndex(), chained((1,))
    holders = [(f"r{i}", 1) for i in range(MAX_HOLDERS + 3)]
    for holder in holders:
        index.add(prefix, holder)
    assert set(index.matches(prefix)) == set(holders[3:])


def test_the_end_of_a_prefix_is_forgotten_first() -> None:
    index = PrefixIndex(max_pieces=3)
    index.add(chained((1, 2, 3)), A)
    index.add(chained((9,)), B)
    assert index.matches(chained((1, 2, 3))) == {A: 2}
    assert index.matches(chained((9,))) == {B: 1}


@given(st.lists(st.tuples(CHAINS, st.sampled_from([A, B])), max_size=20), CHAINS)
def test_what_matches_is_the_longest_beginning_that_was_read(
    read: list[tuple[tuple[int, ...], Holder]], path: tuple[int, ...]
) -> None:
    index = PrefixIndex()
    for other, holder in read:
        index.add(chained(other), holder)
    expected = {}
    for holder in (A, B):
        lengths = [_common(path, other) for other, by in read if by == holder]
        if n := max(lengths, default=0):
            expected[holder] = n
    assert index.matches(chained(path)) == expected


@given(st.lists(st.tuples(CHAINS, st.sampled_from([A, B])), max_size=30), st.integers(1, 8))
def test_no_more_pieces_are_kept_than_allowed(
    read: list[tuple[tuple[int, ...], Holder]], max_pieces: int
) -> None:
    index = PrefixIndex(max_pieces=max_pieces)
    for path, holder in read:
        index.add(chained(path), holder)
        assert len(index) <= max_pieces
        # What was read last is known as far as there is room.
        expected = min(len(path), max_pieces)
        assert index.matches(chained(path)).get(holder, 0) == expected


def _common(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    n = 0
    while n < min(len(one), len(two)) and one[n] == two[n]:
        n += 1
    return n

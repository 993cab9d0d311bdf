"""Who engines died of: whoever was at two deaths, if nobody else explains them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.engines.guilt import CERTAIN_DEATHS, Death, guilty

NAMES = "abcdefgh"


def presence(*deaths: str) -> list[tuple[str, Death]]:
    """Each death as the letters of those that were there."""
    return [(name, ("m-0", epoch)) for epoch, there in enumerate(deaths) for name in there]


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        ([], {}),
        (["a"], {}),
        (["a", "a"], {"a": 2}),
        (["ab", "ac"], {"a": 2}),
        (["ab", "ab"], {}),
        (["ab", "ab", "ac"], {"a": 3}),
        (["ab", "ab", "ab"], {}),
        (["ab", "ab", "ab", "ab"], {"a": 4, "b": 4}),
        (["a", "b", "a", "b"], {"a": 2, "b": 2}),
    ],
)
def test_guilty_is_whom_nobody_else_explains(deaths: list[str], expected: dict[str, int]) -> None:
    assert guilty(presence(*deaths)) == expected


def test_equal_requests_side_by_side_are_one() -> None:
    assert guilty(presence("aaa", "aa")) == {"a": 2}


companies = st.lists(
    st.sets(st.sampled_from(NAMES), max_size=len(NAMES)), min_size=2, max_size=CERTAIN_DEATHS - 1
)


@given(companies)
def test_the_one_that_kills_is_found_unless_someone_was_there_each_time(
    companies: list[set[str]],
) -> None:
    found = guilty(presence(*("".join(sorted(there)) + "x" for there in companies)))
    if set.intersection(*companies):
        assert "x" not in found
    else:
        assert found == {"x": len(companies)}


@given(st.lists(st.sets(st.sampled_from(NAMES)), max_size=6))
def test_nobody_is_guilty_of_one_death_and_everybody_of_four(deaths: list[set[str]]) -> None:
    found = guilty(presence(*("".join(sorted(there)) for there in deaths)))
    for name in NAMES:
        n_deaths = sum(name in there for there in deaths)
        assert found.get(name, n_deaths) == n_deaths
        if n_deaths < 2:
            assert name not in found
        if n_deaths >= CERTAIN_DEATHS:
            assert name in found

"""The memory of kept answers: its bounds, its time, its purges."""

from typing import Any

import pytest

from apps.core.caches import BytesSerializer
from apps.routing.response_cache import Generation, ResponseCache
from apps.routing.types import person_digest, person_stamp, tenant_stamp, version_stamp

MINE = Generation.of({}, tenant_id=1, model_version_id=5)
THEIRS = Generation.of({}, tenant_id=2, model_version_id=5)
N_END = 32  # each entry says in so many bytes when it ends, and for whom it was made


@pytest.fixture(autouse=True)
def bounds(settings: Any) -> None:
    settings.RESPONSE_CACHE_TTL_S = 10
    settings.RESPONSE_CACHE_MAX_ENTRIES = 3
    settings.RESPONSE_CACHE_MAX_BYTES = 3 * (N_END + 10)
    settings.RESPONSE_CACHE_MAX_ANSWER_BYTES = 20


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> ResponseCache:
    return ResponseCache(clock=clock)


async def test_the_least_recently_used_goes_first(cache: ResponseCache) -> None:
    for key in "abc":
        await cache.keep(key, key.encode(), generation=MINE)
    assert cache.look("a") == b"a"
    await cache.keep("d", b"d", generation=MINE)
    assert [cache.look(key) for key in "abcd"] == [b"a", None, b"c", b"d"]
    assert (len(cache), cache.n_bytes) == (3, 3 * (N_END + 1))


async def test_bytes_are_bounded_as_well(cache: ResponseCache) -> None:
    await cache.keep("a", b"x" * 10, generation=MINE)
    await cache.keep("b", b"x" * 10, generation=MINE)
    await cache.keep("c", b"x" * 15, generation=MINE)
    assert (cache.look("a"), len(cache), cache.n_bytes) == (None, 2, 2 * N_END + 25)
    await cache.keep("c", b"y", generation=MINE)
    assert (cache.look("c"), len(cache), cache.n_bytes) == (b"y", 2, 2 * N_END + 11)
    await cache.keep("d", b"x" * 21, generation=MINE)
    assert (cache.look("d"), len(cache)) == (None, 2)


async def test_none_are_kept_where_none_may_be(cache: ResponseCache, settings: Any) -> None:
    settings.RESPONSE_CACHE_MAX_ENTRIES = 0
    await cache.keep("a", b"a", generation=MINE)
    assert (cache.look("a"), len(cache), cache.n_bytes) == (None, 0, 0)


async def test_an_answer_is_kept_so_long_and_no_longer(cache: ResponseCache, clock: Clock) -> None:
    await cache.keep("a", b"a", generation=MINE)
    clock.now_s += 9.9
    assert cache.look("a") == b"a"
    clock.now_s += 0.1
    assert (cache.look("a"), len(cache), cache.n_bytes) == (None, 0, 0)


@pytest.mark.parametrize(
    ("stamp", "left"),
    [
        (tenant_stamp(1), ["b"]),
        (tenant_stamp(2), ["a"]),
        (tenant_stamp(3), ["a", "b"]),
        (version_stamp(5), []),
        (version_stamp(1), ["a", "b"]),
    ],
)
async def test_a_purge_drops_what_it_is_of(
    cache: ResponseCache, stamp: str, left: list[str]
) -> None:
    await cache.keep("a", b"a", generation=MINE)
    await cache.keep("b", b"b", generation=THEIRS)
    cache.purge({stamp: 1, "routes": 7})
    assert [key for key in "ab" if cache.look(key)] == left
    assert len(cache) == len(left)


async def test_a_purge_of_a_person_drops_what_was_made_for_them(cache: ResponseCache) -> None:
    ann, bob = (person_digest(name, cache_salt="salt") for name in ("ann", "bob"))
    for key, person in (("a", ann), ("b", bob), ("c", "")):
        generation = Generation.of({}, tenant_id=1, model_version_id=5, person=person)
        await cache.keep(key, key.encode(), generation=generation)
    cache.purge({person_stamp(2, ann): 1})
    assert [cache.look(key) for key in "abc"] == [b"a", b"b", b"c"]
    cache.purge({person_stamp(1, ann): 1})
    assert [cache.look(key) for key in "abc"] == [None, b"b", b"c"]


def test_equal_requests_of_two_persons_share_a_key() -> None:
    stamps = {person_stamp(1, "a" * 32): 7, tenant_stamp(1): 3}
    mine, yours = (
        Generation.of(stamps, tenant_id=1, model_version_id=5, person=person)
        for person in ("a" * 32, "b" * 32)
    )
    assert mine.shared == yours.shared == (1, 5, 3, 0)
    assert (mine.n_person, yours.n_person) == (7, 0)


def test_a_digest_tells_nobody_apart_from_another_tenants() -> None:
    assert person_digest("ann", cache_salt="a") != person_digest("ann", cache_salt="b")
    assert person_digest(None, cache_salt="a") == person_digest("", cache_salt="a") == ""


def test_redis_holds_bytes_and_nothing_else() -> None:
    assert BytesSerializer().loads(BytesSerializer().dumps(b"\x80x")) == b"\x80x"
    with pytest.raises(TypeError, match="not dict"):
        BytesSerializer().dumps({})  # type: ignore[arg-type]

"""What the query of /v1/stream may say, and the window of events that a session keeps."""

import pytest

from apps.core.exceptions import InvalidRequest
from apps.gateway.websocket.opening import Opening, opening_of
from apps.gateway.websocket.window import Bound, EventWindow


def test_a_window_forgets_the_oldest() -> None:
    window = EventWindow()
    for number in range(1, 6):
        window.append(b"%d" % number)
    window.trim(Bound(n_events=3, n_bytes=100), up_to=5)
    assert (window.newest, window[3], window[5]) == (5, b"3", b"5")
    assert [window.has_all_after(number) for number in (0, 1, 2, 5)] == [False, False, True, True]


def test_a_window_is_bounded_in_bytes_and_keeps_what_is_not_sent() -> None:
    window, bound = EventWindow(), Bound(n_events=100, n_bytes=10)
    window.append(b"x" * 10)
    assert not window.is_over(bound)
    window.append(b"x" * 4)
    window.append(b"x" * 7)
    assert window.is_over(bound)
    window.trim(bound, up_to=1)
    assert window.is_over(bound) and window.has_all_after(1)
    window.trim(bound, up_to=3)
    assert not window.is_over(bound) and not window.has_all_after(1)


@pytest.mark.parametrize(
    ("query", "opening"),
    [
        (b"", Opening()),
        (b"page=7", Opening()),
        (b"resume=1", Opening(resume=1)),
        (b"resume=60", Opening(resume=60)),
        (b"session=abc&last_event=0", Opening(session="abc", last_event=0)),
    ],
)
def test_openings(query: bytes, opening: Opening) -> None:
    assert opening_of(query) == opening


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        (b"resume=0", "invalid_value", "resume"),
        (b"resume=61", "invalid_value", "resume"),
        (b"resume=", "invalid_type", "resume"),
        (b"resume=1.5", "invalid_type", "resume"),
        (b"resume=null", "invalid_type", "resume"),
        (b"resume=yes", "invalid_type", "resume"),
        (b"session=&last_event=1", "invalid_value", "session"),
        (b"session=" + b"x" * 65 + b"&last_event=1", "invalid_value", "session"),
        (b"session=abc", "missing_required_parameter", "last_event"),
        (b"last_event=1", "missing_required_parameter", "session"),
        (b"session=abc&last_event=-1", "invalid_value", "last_event"),
        (b"session=abc&last_event=%ff", "invalid_type", "last_event"),
        (b"session=abc&last_event=1&resume=5", "invalid_value", "resume"),
    ],
)
def test_wrong_openings_are_refused_by_name(query: bytes, code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        opening_of(query)
    assert (refused.value.code, refused.value.param) == (code, param)

"""What the query of ``/v1/stream`` asks for: a new session, an earlier one, or none."""

from typing import Annotated, Final
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from apps.core.exceptions import InvalidRequest
from apps.gateway.decoding import decode


class Opening(msgspec.Struct, frozen=True):
    """The query's fields. Those that are left out have values that nobody can send.

    resume: seconds that a new session waits for its client. session, last_event: the session to
    go on with, and the number of the last event that was received.
    """

    resume: Annotated[int, Meta(ge=1, le=60)] = 0
    session: Annotated[str, Meta(min_length=1, max_length=64)] = ""
    last_event: Annotated[int, Meta(ge=0)] = -1


_decoder: Final = msgspec.json.Decoder(Opening, strict=False)


def opening_of(query_string: bytes) -> Opening:
    """Read a query; raises InvalidRequest, ``param`` naming the field that is wrong."""
    query = dict(parse_qsl(query_string.decode("latin1"), keep_blank_values=True))
    opening = decode(_decoder, msgspec.json.encode(query))
    has_session, has_last_event = bool(opening.session), opening.last_event >= 0
    if has_session != has_last_event:
        missing = "last_event" if has_session else "session"
        raise InvalidRequest(
            f"Missing required parameter: '{missing}'.",
            code="missing_required_parameter",
            param=missing,
        )
    if has_session and opening.resume:
        raise InvalidRequest(
            "Give either 'resume', for a new session, or 'session'.",
            code="invalid_value",
            param="resume",
        )
    return opening

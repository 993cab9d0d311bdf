"""How messages are framed: a 4-byte big-endian length, then one msgpack map."""

import struct
from typing import Final

import msgspec

from engine_service.protocol.base import Message
from engine_service.protocol.from_engine import FromEngine
from engine_service.protocol.to_engine import ToEngine

MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
HEADER: Final = struct.Struct(">I")


class FrameError(ValueError):
    """The bytes on a connection are not frames of this protocol; that connection is closed."""


_encoder = msgspec.msgpack.Encoder()
_to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: Message) -> bytes:
    """Return header and body of one message.

    Raises:
        FrameError: the body is larger than ``MAX_FRAME_BYTES``.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """Return the body length that a header announces.

    Raises:
        FrameError: it is zero or over ``MAX_FRAME_BYTES``.
    """
    (length,) = HEADER.unpack(header)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes is outside 1..{MAX_FRAME_BYTES}")
    return int(length)


def decode_to_engine(body: bytes) -> ToEngine:
    """Decode a frame body sent by the platform; raises FrameError if it is not a known message."""
    try:
        return _to_engine_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(str(error)) from error


def decode_from_engine(body: bytes) -> FromEngine:
    """Decode a frame body sent by the engine; raises FrameError if it is not a known message."""
    try:
        return _from_engine_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(str(error)) from error

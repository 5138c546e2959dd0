"""A batch of messages as bytes, and back. One frame carries one batch, so a burst costs one call each way."""

import msgspec

from raskid.model.errors import LocalProtocolError, RemoteProtocolError
from raskid.protocol.messages import AnyMessage

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[AnyMessage])


def encode_batch(messages: list[AnyMessage]) -> bytes:
    """The bytes of a batch.

    Raises:
        LocalProtocolError: A field holds what MessagePack cannot carry.
    """
    try:
        return _encoder.encode(messages)
    except (TypeError, OverflowError, ValueError) as error:
        kinds = ", ".join(sorted({type(message).__name__ for message in messages}))
        raise LocalProtocolError(f"a batch of {kinds} cannot be encoded: {error}") from error


def decode_batch(data: bytes | bytearray | memoryview) -> list[AnyMessage]:
    """The messages of a frame.

    Raises:
        RemoteProtocolError: The bytes are not MessagePack, or hold an unknown message or a wrong field; the text
            names the place as ``$[message][field]``.
    """
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"a frame of {len(data)} bytes holds a message that does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(
            f"a frame of {len(data)} bytes is not MessagePack: {error}; it begins with {bytes(data[:16])!r}"
        ) from error

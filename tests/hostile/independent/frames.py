"""QUIC frames, transport parameters and TLS handshake messages as bytes, well-formed or not."""

from __future__ import annotations

from enum import IntEnum

LARGEST = (1 << 62) - 1
"""The largest number of QUIC's variable-length encoding."""


class Message(IntEnum):
    """Types of TLS handshake messages (RFC 8446 section 4)."""

    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    NEW_SESSION_TICKET = 4
    END_OF_EARLY_DATA = 5
    ENCRYPTED_EXTENSIONS = 8
    CERTIFICATE = 11
    CERTIFICATE_REQUEST = 13
    CERTIFICATE_VERIFY = 15
    FINISHED = 20
    KEY_UPDATE = 24
    MESSAGE_HASH = 254


def number(value: int, size: int = 0) -> bytes:
    """A variable-length integer, in ``size`` bytes, or in as few as it takes (RFC 9000 section 16)."""
    for exponent, width in enumerate((1, 2, 4, 8)):
        if width >= size and value < 1 << (8 * width - 2):
            return (value | exponent << (8 * width - 2)).to_bytes(width, "big")
    raise ValueError(value)


def frame(kind: int, *fields: int | bytes) -> bytes:
    """A frame of a type, with numbers in their shortest encoding and bytes as they are."""
    return number(kind) + b"".join(field if isinstance(field, bytes) else number(field) for field in fields)


def crypto(data: bytes, offset: int = 0) -> bytes:
    """A CRYPTO frame."""
    return frame(0x06, offset, len(data), data)


def stream(identity: int, data: bytes, offset: int = 0, *, fin: bool = False) -> bytes:
    """A STREAM frame with offset and length."""
    return frame(0x0E | fin, identity, offset, len(data), data)


def new_connection_id(sequence: int, retire: int = 0, identity: bytes | None = None) -> bytes:
    """A NEW_CONNECTION_ID frame; without an identity, one that follows from the sequence number."""
    identity = (0xABCD << 46 | sequence & LARGEST >> 16).to_bytes(8, "big") if identity is None else identity
    return frame(0x18, sequence, retire, bytes([len(identity)]), identity, sequence.to_bytes(16, "big"))


def message(kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    """A TLS handshake message; ``length``, where it is not that of the body, is what the header claims."""
    return bytes([kind]) + (len(body) if length is None else length).to_bytes(3, "big") + body


KEY_UPDATE = message(Message.KEY_UPDATE, b"\0")
"""The five bytes."""

TICKET = message(Message.NEW_SESSION_TICKET, bytes.fromhex("00001c20 01020304 01 00 0004 74696b74 0000"))
"""A NewSessionTicket without extensions."""

CERTIFICATE_REQUEST = message(Message.CERTIFICATE_REQUEST, bytes.fromhex("00 0008 000d 0004 0002 0403"))
"""A CertificateRequest for ecdsa_secp256r1_sha256."""


def parameter(identity: int, value: bytes | int) -> bytes:
    """A transport parameter (RFC 9000 section 18)."""
    value = number(value) if isinstance(value, int) else value
    return number(identity) + number(len(value)) + value


def without(parameters: bytes, *identities: int) -> bytes:
    """Transport parameters without some of them."""
    rest = b""
    while parameters:
        start = parameters
        identity, parameters = _take(parameters)
        length, parameters = _take(parameters)
        parameters = parameters[length:]
        if identity not in identities:
            rest += start[: len(start) - len(parameters)]
    return rest


def changed(parameters: bytes, identity: int, value: bytes | int) -> bytes:
    """Transport parameters with one of them set."""
    return without(parameters, identity) + parameter(identity, value)


def _take(data: bytes) -> tuple[int, bytes]:
    width = 1 << (data[0] >> 6)
    return int.from_bytes(data[:width], "big") & ((1 << (8 * width - 2)) - 1), data[width:]

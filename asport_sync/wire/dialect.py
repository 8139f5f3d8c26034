"""The mode byte of ClientHello and its two dialects. No other part of the package knows that there are two.

The draft enumerates the combinations; later releases of the reference implementation use a bit mask in the same byte,
with the same version byte:

====  ======================  ================================
byte  draft                   flags (1 TCP, 2 UDP, 4 QUIC)
====  ======================  ================================
0     TCP                     no network
1     UDP native              TCP
2     UDP quic                UDP native
3     TCP and UDP native      TCP and UDP native
4     TCP and UDP quic        no network (QUIC without UDP)
5     malformed               TCP (QUIC without UDP)
6     malformed               UDP quic
7     malformed               TCP and UDP quic
====  ======================  ================================

A server can identify the dialect of most values (``Dialect.AUTO``). 1 and 2 have two ``meanings``; asport-sync clients
add a ``hint``. A client cannot learn the server's dialect from the wire.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire.commands import MAX_MODE


class Dialect(enum.Enum):
    """How the mode byte is interpreted. The values are words of the configuration."""

    DRAFT = "draft"
    FLAGS = "flags"
    AUTO = "auto"


class UdpMode(enum.Enum):
    """Carrier of Packet: QUIC DATAGRAM frames or unidirectional streams. The values are words of the configuration."""

    NATIVE = "native"
    QUIC = "quic"


@dataclass(frozen=True, slots=True)
class ForwardMode:
    """What a client wants forwarded, independent of the dialect.

    Attributes:
        tcp: Whether to forward TCP.
        udp: The carrier if UDP is to be forwarded, else None.

    With neither, a client asked for no network: the server answers NetworkDenied.
    """

    tcp: bool
    udp: UdpMode | None

    def __str__(self) -> str:
        networks = ["tcp"] if self.tcp else []
        if self.udp is not None:
            networks.append(f"udp {self.udp.value}")
        return " and ".join(networks) or "no network"


class Meaning(NamedTuple):
    """What a mode byte asks for, and the dialect it was read in; never AUTO."""

    mode: ForwardMode
    dialect: Dialect

    def __str__(self) -> str:
        return f"{self.mode} (dialect '{self.dialect.value}')"


_DRAFT = {
    0: ForwardMode(True, None),
    1: ForwardMode(False, UdpMode.NATIVE),
    2: ForwardMode(False, UdpMode.QUIC),
    3: ForwardMode(True, UdpMode.NATIVE),
    4: ForwardMode(True, UdpMode.QUIC),
}
_DRAFT_BYTES = {mode: byte for byte, mode in _DRAFT.items()}

_FLAG_TCP = 1
_FLAG_UDP = 2
_FLAG_QUIC = 4

# The bytes that identify their dialect. 3 means the same in both; the ambiguous ones do not.
_AUTO = {0: Dialect.DRAFT, 4: Dialect.DRAFT, 5: Dialect.FLAGS, 6: Dialect.FLAGS, 7: Dialect.FLAGS}
_AMBIGUOUS = (1, 2)

# The byte after a ClientHello whose mode is ambiguous. Receivers do not need it, and those unaware of it leave it
# unread.
_HINTS = {Dialect.DRAFT: b"\x01", Dialect.FLAGS: b"\x02"}


def encode_mode(mode: ForwardMode, dialect: Dialect) -> int:
    """Returns the mode byte that asks for ``mode``.

    Args:
        mode: What to ask for.
        dialect: The dialect of the server. AUTO encodes only a mode that has the same byte in both: TCP with UDP
            native.

    Raises:
        LocalProtocolError: ``mode`` names no network, or AUTO cannot express it.
    """
    if not mode.tcp and mode.udp is None:
        raise LocalProtocolError("a ClientHello requests no network, expected tcp, udp or both")
    if dialect is Dialect.DRAFT:
        return _DRAFT_BYTES[mode]
    if dialect is Dialect.FLAGS:
        udp = 0 if mode.udp is None else _FLAG_UDP
        quic = _FLAG_QUIC if mode.udp is UdpMode.QUIC else 0
        return (_FLAG_TCP if mode.tcp else 0) | udp | quic
    draft, flags = encode_mode(mode, Dialect.DRAFT), encode_mode(mode, Dialect.FLAGS)
    if draft != flags:
        raise LocalProtocolError(
            f"{mode} is byte {draft} in dialect 'draft', {flags} in 'flags': expected the server's dialect, not 'auto'"
        )
    return draft


def decode_mode(byte: int, dialect: Dialect, ambiguous: Dialect = Dialect.DRAFT) -> Meaning:
    """Returns what a mode byte asks for.

    Args:
        byte: The mode of a ClientHello.
        dialect: The dialect to interpret it in. AUTO uses the one that the byte identifies.
        ambiguous: DRAFT or FLAGS: what AUTO assumes for a byte that both dialects use (1, 2, 3).

    Returns:
        The mode and the dialect it was read in, never AUTO.

    Raises:
        RemoteProtocolError: The byte has no meaning in that dialect.
        LocalProtocolError: ``ambiguous`` is AUTO.
    """
    if ambiguous is Dialect.AUTO:
        raise LocalProtocolError("the dialect for ambiguous modes is 'auto', expected 'draft' or 'flags'")
    used = _AUTO.get(byte, ambiguous) if dialect is Dialect.AUTO else dialect
    if not 0 <= byte <= MAX_MODE:
        raise RemoteProtocolError(f"ClientHello mode is {byte}, expected 0 to {MAX_MODE}")
    if used is Dialect.FLAGS:
        return Meaning(_decode_flags(byte), used)
    if byte not in _DRAFT:
        raise RemoteProtocolError(f"ClientHello mode is {byte}, expected 0 to {max(_DRAFT)} in dialect 'draft'")
    return Meaning(_DRAFT[byte], used)


def hint(byte: int, dialect: Dialect) -> bytes:
    """Returns the bytes that a client appends to its ClientHello to name the dialect of the mode byte.

    For servers that read on. Empty if the byte identifies the dialect, or AUTO encoded it.
    """
    return _HINTS.get(dialect, b"") if byte in _AMBIGUOUS else b""


def dialect_of_hint(behind: bytes) -> Dialect | None:
    """Returns the dialect named by the bytes after a ClientHello; None if there are none, or others."""
    return next((dialect for dialect, byte in _HINTS.items() if behind[:1] == byte), None)


def meanings(byte: int, dialect: Dialect, ambiguous: Dialect | None = None) -> tuple[Meaning, ...]:
    """Returns all possible meanings of a mode byte: at most two, that of later releases first.

    Args:
        byte: The mode of a ClientHello.
        dialect: The dialect to interpret it in, as for ``decode_mode``.
        ambiguous: What AUTO assumes for a byte whose meaning depends on the dialect; None: both.

    Raises:
        RemoteProtocolError: The byte has no meaning in that dialect.
    """
    if dialect is Dialect.AUTO and ambiguous is None and byte in _AMBIGUOUS:
        return decode_mode(byte, Dialect.FLAGS), decode_mode(byte, Dialect.DRAFT)
    return (decode_mode(byte, dialect, ambiguous or Dialect.DRAFT),)


def _decode_flags(byte: int) -> ForwardMode:
    udp = None
    if byte & _FLAG_UDP:
        udp = UdpMode.QUIC if byte & _FLAG_QUIC else UdpMode.NATIVE
    return ForwardMode(bool(byte & _FLAG_TCP), udp)

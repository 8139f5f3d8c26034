"""What is sent to a server and to a client of ours, and what must come of it."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from typing import Final

from aioquic.quic.packet import (
    QuicHeader,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
)
from aioquic.tls import ClientHello, Epoch, Group

from tests.hostile.independent.frames import (
    CERTIFICATE_REQUEST,
    KEY_UPDATE,
    LARGEST,
    TICKET,
    Message,
    changed,
    crypto,
    frame,
    message,
    new_connection_id,
    number,
    parameter,
    stream,
    without,
)
from tests.hostile.independent.peer import PARAMETERS, Peer, Rewriting

LIVES: Final = "the connection lives on"
HALTED: Final = "nothing comes of it"
ANYTHING: Final = "whatever else comes of it"
GIVES_UP: Final = "aioquic closes the connection"
APPLICATION: Final = "closed by the tunnel"

# RFC 9000 section 20.1; 0x100 and an alert of RFC 8446 section 6 (RFC 9000 section 20.1, CRYPTO_ERROR).
FLOW_CONTROL: Final = 0x3
STREAM_LIMIT: Final = 0x4
STREAM_STATE: Final = 0x5
FINAL_SIZE: Final = 0x6
FRAME_ENCODING: Final = 0x7
PARAMETER: Final = 0x8
ID_LIMIT: Final = 0x9
VIOLATION: Final = 0xA
CRYPTO_BUFFER: Final = 0xD
VERSION: Final = 0x11
UNEXPECTED: Final = 0x10A
HANDSHAKE_FAILURE: Final = 0x128
ILLEGAL: Final = 0x12F
UNSUPPORTED: Final = 0x16E
DECRYPT: Final = 0x133
PROTOCOL_VERSION: Final = 0x146
MISSING: Final = 0x16D
NO_ALPN: Final = 0x178

Expected = int | str
Packets = tuple[bytes, ...]

AS_IT_IS = Rewriting()

BEFORE_FINISHED = Rewriting(flight=lambda epoch, data: [(epoch, data)] if epoch is Epoch.INITIAL else [])
"""For packets at Handshake level: the messages that would end it are held back."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that a hostile peer does.

    Attributes:
        name: What it is.
        server: What must come of it where it is done to a server: the code of the close, or one of the above, or
            several of these where it is left to the receiver; None: it is not done to a server.
        client: The same for a client.
        packets: Payloads of packets, or what sends them, once there are keys for them.
        epoch: At which level.
        rewriting: What is done to the handshake.
    """

    name: str
    server: Expected | tuple[Expected, ...] | None
    client: Expected | tuple[Expected, ...] | None
    packets: Packets | Callable[[Peer], None] = ()
    epoch: Epoch = Epoch.ONE_RTT
    rewriting: Rewriting = AS_IT_IS


# --- TLS messages behind the handshake --------------------------------------------------------------------------------


def _pieces(data: bytes, size: int) -> Packets:
    """CRYPTO frames of so many bytes, one in each packet."""
    return tuple(crypto(data[at : at + size], at) for at in range(0, len(data), size))


AFTER = (
    Case("KeyUpdate", UNEXPECTED, UNEXPECTED, (crypto(KEY_UPDATE),)),
    Case("KeyUpdate that asks for one", UNEXPECTED, UNEXPECTED, (crypto(message(Message.KEY_UPDATE, b"\1")),)),
    Case("KeyUpdate byte by byte", UNEXPECTED, UNEXPECTED, _pieces(KEY_UPDATE, 1)),
    Case("KeyUpdate in pieces, last first", UNEXPECTED, UNEXPECTED, tuple(reversed(_pieces(KEY_UPDATE, 2)))),
    Case("KeyUpdate in two frames of a packet", UNEXPECTED, UNEXPECTED, (b"".join(_pieces(KEY_UPDATE, 3)),)),
    Case("KeyUpdates in a frame", UNEXPECTED, UNEXPECTED, (crypto(KEY_UPDATE * 100),)),
    Case("KeyUpdate of an unknown kind", UNEXPECTED, UNEXPECTED, (crypto(message(Message.KEY_UPDATE, b"\2")),)),
    Case("KeyUpdate without a body", UNEXPECTED, UNEXPECTED, (crypto(message(Message.KEY_UPDATE)),)),
    Case("KeyUpdate behind a ticket", UNEXPECTED, UNEXPECTED, (crypto(TICKET + KEY_UPDATE),)),
    Case("NewSessionTicket", UNEXPECTED, LIVES, (crypto(TICKET),)),
    Case("NewSessionTickets byte by byte", UNEXPECTED, LIVES, _pieces(TICKET * 3, 1)),
    Case("NewSessionTicket of 16,000 bytes", UNEXPECTED, LIVES, _pieces(message(4, bytes(16000)), 1000)),
    Case("NewSessionTicket that is cut off", UNEXPECTED, LIVES, (crypto(TICKET[:-4]),)),
    Case("NewSessionTicket of 2^24 bytes", UNEXPECTED, LIVES, (crypto(message(4, bytes(900), 0xFFFFFF)),)),
    Case("CertificateRequest", UNEXPECTED, VIOLATION, (crypto(CERTIFICATE_REQUEST),)),
    *(
        Case(f"{kind.name} after the handshake", UNEXPECTED, UNEXPECTED, (crypto(message(kind, bytes(36))),))
        for kind in Message
        if kind not in (Message.KEY_UPDATE, Message.NEW_SESSION_TICKET, Message.CERTIFICATE_REQUEST)
    ),
    Case("message of type 0", UNEXPECTED, UNEXPECTED, (crypto(message(0)),)),
    Case("message of type 99", UNEXPECTED, UNEXPECTED, (crypto(message(99, bytes(3))),)),
    Case("message of 2^24 bytes", UNEXPECTED, UNEXPECTED, (crypto(message(99, b"", 0xFFFFFF)),)),
    Case("empty CRYPTO frame", LIVES, LIVES, (crypto(b""),)),
    Case("CRYPTO far ahead", CRYPTO_BUFFER, CRYPTO_BUFFER, (crypto(b"x", 1 << 20),)),
    Case("CRYPTO at the end of all numbers", FRAME_ENCODING, FRAME_ENCODING, (crypto(b"xx", LARGEST - 1),)),
)

# --- messages at the wrong time, or level, of the handshake -----------------------------------------------------------


def _behind(extra: bytes) -> Rewriting:
    """More messages in the CRYPTO data that ends with Finished."""
    return Rewriting(flight=lambda epoch, data: [(epoch, data + extra if epoch is Epoch.HANDSHAKE else data)])


def _before(extra: bytes, at: Epoch) -> Rewriting:
    """More messages at the beginning of a level."""
    return Rewriting(flight=lambda epoch, data: [(epoch, extra + data if epoch is at else data)])


def _moved(epoch: Epoch, data: bytes) -> list[tuple[Epoch, bytes]]:
    """What belongs into Handshake packets is in Initial ones."""
    return [(Epoch.INITIAL, data)]


def _twice(at: Epoch) -> Rewriting:
    return Rewriting(flight=lambda epoch, data: [(epoch, data * (1 + (epoch is at)))])


def _cut(at: Epoch, end: int) -> Rewriting:
    return Rewriting(flight=lambda epoch, data: [(epoch, data[:end] if epoch is at else data)])


def _flipped(at: Epoch, where: int) -> Rewriting:
    """The message has a bit turned around."""

    def flight(epoch: Epoch, data: bytes) -> list[tuple[Epoch, bytes]]:
        if epoch is at:
            changed = bytearray(data)
            changed[where] ^= 1
            data = bytes(changed)
        return [(epoch, data)]

    return Rewriting(flight=flight)


DURING = (
    Case("KeyUpdate behind Finished", UNEXPECTED, UNEXPECTED, rewriting=_behind(KEY_UPDATE)),
    Case("NewSessionTicket behind Finished", UNEXPECTED, UNEXPECTED, rewriting=_behind(TICKET)),
    Case("unknown message behind Finished", UNEXPECTED, UNEXPECTED, rewriting=_behind(message(99))),
    Case("Finished twice", UNEXPECTED, None, rewriting=_twice(Epoch.HANDSHAKE)),
    Case(
        "KeyUpdate before ClientHello or ServerHello",
        UNEXPECTED,
        UNEXPECTED,
        rewriting=_before(KEY_UPDATE, Epoch.INITIAL),
    ),
    Case("KeyUpdate before Finished", UNEXPECTED, UNEXPECTED, rewriting=_before(KEY_UPDATE, Epoch.HANDSHAKE)),
    Case("EndOfEarlyData before Finished", UNEXPECTED, UNEXPECTED, rewriting=_before(message(5), Epoch.HANDSHAKE)),
    Case("ClientHello or ServerHello twice", UNEXPECTED, UNEXPECTED, rewriting=_twice(Epoch.INITIAL)),
    Case(
        "KeyUpdate behind ClientHello or ServerHello",
        UNEXPECTED,
        UNEXPECTED,
        rewriting=Rewriting(
            flight=lambda epoch, data: [(epoch, data + KEY_UPDATE if epoch is Epoch.INITIAL else data)]
        ),
    ),
    Case("Handshake messages in Initial packets", UNEXPECTED, UNEXPECTED, rewriting=Rewriting(flight=_moved)),
    Case("hello cut off", HALTED, HALTED, rewriting=_cut(Epoch.INITIAL, 60)),
    Case(
        "hello of 2^24 bytes",
        HALTED,
        UNEXPECTED,
        (crypto(message(1, bytes(900), 0xFFFFFF)),),
        Epoch.INITIAL,
        Rewriting(flight=lambda epoch, data: []),
    ),
    Case("hello with another random", HALTED, HALTED, rewriting=_flipped(Epoch.INITIAL, 20)),
    Case("Finished that is wrong", DECRYPT, DECRYPT, rewriting=_flipped(Epoch.HANDSHAKE, -1)),
)

# --- HelloRetryRequest ------------------------------------------------------------------------------------------------

RETRIED = (
    Case("HelloRetryRequest, and all is well", LIVES, LIVES, rewriting=Rewriting(retry=Group.SECP384R1)),
    Case("HelloRetryRequest for what was shared", None, (ILLEGAL, LIVES), rewriting=Rewriting(retry=Group.X25519)),
    Case(
        "second ClientHello without parameters",
        (MISSING, GIVES_UP),
        None,
        rewriting=Rewriting(retry=Group.X25519, second_parameters=lambda data: None),
    ),
    Case(
        "first ClientHello without parameters",
        MISSING,
        None,
        rewriting=Rewriting(retry=Group.X25519, parameters=lambda data: None),
    ),
    Case(
        "second ClientHello with other parameters",
        (ILLEGAL, LIVES),
        None,
        rewriting=Rewriting(retry=Group.X25519, second_parameters=lambda data: changed(data, 4, 7)),
    ),
    Case(
        "parameters missing behind HelloRetryRequest",
        None,
        MISSING,
        rewriting=Rewriting(retry=Group.SECP384R1, parameters=lambda data: None),
    ),
)

# --- transport parameters ---------------------------------------------------------------------------------------------


def _set(identity: int, value: bytes | int) -> Rewriting:
    return Rewriting(parameters=lambda data: changed(data, identity, value))


def _raw(value: bytes) -> Rewriting:
    return Rewriting(parameters=lambda data: value)


def _more(value: bytes) -> Rewriting:
    return Rewriting(parameters=lambda data: data + value)


def _version_information(value: bytes) -> Rewriting:
    return _set(0x11, value)


V1 = bytes.fromhex("00000001")
V2 = bytes.fromhex("6b3343cf")

PARAMETERS_CASES = (
    Case("no transport parameters", MISSING, MISSING, rewriting=Rewriting(parameters=lambda data: None)),
    Case(
        "those of a draft",
        MISSING,
        MISSING,
        rewriting=Rewriting(parameters=lambda data: None, extensions=((0xFFA5, parameter(15, bytes(8))),)),
    ),
    Case("empty parameters", PARAMETER, PARAMETER, rewriting=_raw(b"")),
    Case(
        "parameters twice",
        (ILLEGAL, UNSUPPORTED),
        (ILLEGAL, UNSUPPORTED, LIVES),
        rewriting=Rewriting(extensions=((PARAMETERS, b""),)),
    ),
    Case("parameters cut off", PARAMETER, PARAMETER, rewriting=Rewriting(parameters=lambda data: data[:-1])),
    Case("parameter twice", (PARAMETER, LIVES), (PARAMETER, LIVES), rewriting=_more(parameter(4, 10))),
    Case("parameter that claims 2^62 bytes", PARAMETER, PARAMETER, rewriting=_more(number(99) + number(LARGEST))),
    Case("unknown parameter of 10,000 bytes", LIVES, LIVES, rewriting=_more(parameter(0x7F99, bytes(10000)))),
    Case("unknown parameter of 60,000 bytes", HALTED, LIVES, rewriting=_more(parameter(0x7F99, bytes(60000)))),
    Case(
        "1,000 unknown parameters",
        LIVES,
        LIVES,
        rewriting=_more(b"".join(parameter(0x7F00 + i, b"") for i in range(1000))),
    ),
    Case("id of another connection", PARAMETER, PARAMETER, rewriting=_set(0x0F, bytes(8))),
    Case("id of 21 bytes", PARAMETER, PARAMETER, rewriting=_set(0x0F, bytes(21))),
    Case("no initial id", PARAMETER, PARAMETER, rewriting=Rewriting(parameters=lambda data: without(data, 0x0F))),
    Case("original id", PARAMETER, PARAMETER, rewriting=_set(0x00, bytes(8))),
    Case("no original id", None, PARAMETER, rewriting=Rewriting(parameters=lambda data: without(data, 0x00))),
    Case("id of a Retry that was none", PARAMETER, PARAMETER, rewriting=_set(0x10, bytes(8))),
    Case("reset token", PARAMETER, LIVES, rewriting=_set(0x02, bytes(16))),
    Case("reset token of 15 bytes", PARAMETER, PARAMETER, rewriting=_set(0x02, bytes(15))),
    Case(
        "preferred address, whose id is given again",
        PARAMETER,
        VIOLATION,
        rewriting=_set(0x0D, bytes(24) + b"\x08" + bytes(24)),
    ),
    Case(
        "preferred address without an id", PARAMETER, PARAMETER, rewriting=_set(0x0D, bytes(24) + b"\x00" + bytes(16))
    ),
    Case("max_udp_payload_size 1199", PARAMETER, PARAMETER, rewriting=_set(0x03, 1199)),
    Case("max_udp_payload_size 2^62-1", LIVES, LIVES, rewriting=_set(0x03, LARGEST)),
    Case("ack_delay_exponent 21", PARAMETER, PARAMETER, rewriting=_set(0x0A, 21)),
    Case("ack_delay_exponent 20", LIVES, LIVES, rewriting=_set(0x0A, 20)),
    Case("max_ack_delay 2^14", PARAMETER, PARAMETER, rewriting=_set(0x0B, 1 << 14)),
    Case("max_ack_delay 2^14-1", LIVES, LIVES, rewriting=_set(0x0B, (1 << 14) - 1)),
    Case("active_connection_id_limit 1", PARAMETER, PARAMETER, rewriting=_set(0x0E, 1)),
    Case("active_connection_id_limit 2^62-1", LIVES, LIVES, rewriting=_set(0x0E, LARGEST)),
    Case("disable_active_migration with a value", PARAMETER, PARAMETER, rewriting=_set(0x0C, b"\0")),
    Case("more than 2^60 streams", PARAMETER, PARAMETER, rewriting=_set(0x08, (1 << 60) + 1)),
    Case(
        "2^60 streams, all windows 2^62-1",
        LIVES,
        LIVES,
        rewriting=Rewriting(
            parameters=lambda data: (
                without(data, 4, 5, 6, 7, 8, 9)
                + b"".join(parameter(i, LARGEST) for i in (4, 5, 6, 7))
                + parameter(8, 1 << 60)
                + parameter(9, 1 << 60)
            )
        ),
    ),
    Case(
        "no streams, no windows",
        LIVES,
        LIVES,
        rewriting=Rewriting(parameters=lambda data: without(data, 4, 5, 6, 7, 8, 9)),
    ),
    Case("idle timeout 2^62-1 ms", LIVES, LIVES, rewriting=_set(0x01, LARGEST)),
    Case("no DATAGRAM frames", LIVES, LIVES, rewriting=Rewriting(parameters=lambda data: without(data, 0x20))),
    Case("DATAGRAM frames of 1 byte", LIVES, LIVES, rewriting=_set(0x20, 1)),
    Case("number with a byte behind", PARAMETER, PARAMETER, rewriting=_set(0x04, number(5) + b"\0")),
    Case("number that is empty", PARAMETER, PARAMETER, rewriting=_set(0x04, b"")),
    Case("version information, empty", PARAMETER, PARAMETER, rewriting=_version_information(b"")),
    Case("version information of 3 bytes", PARAMETER, PARAMETER, rewriting=_version_information(bytes(3))),
    Case("version information of 5 bytes", PARAMETER, PARAMETER, rewriting=_version_information(V1 + b"\0")),
    Case("version 0 chosen", PARAMETER, PARAMETER, rewriting=_version_information(bytes(4))),
    Case("version 0 available", PARAMETER, PARAMETER, rewriting=_version_information(V1 + V1 + bytes(4))),
    Case("another version chosen", VERSION, VERSION, rewriting=_version_information(V2 + V2 + V1)),
    Case(
        "chosen version not available", (PARAMETER, VERSION), (LIVES, VERSION), rewriting=_version_information(V1 + V2)
    ),
    Case("another version first", LIVES, None, rewriting=_version_information(V1 + V2 + V1)),
    Case("2,000 versions", LIVES, LIVES, rewriting=_version_information(V1 + V1 + V2 * 2000)),
)

# --- frames -----------------------------------------------------------------------------------------------------------


def _key_updates(peer: Peer) -> None:
    """Each as soon as the one before is acknowledged."""
    for _ in range(5):
        peer.connection.request_key_update()
        peer.ping()


def _wrong_keys(peer: Peer) -> None:
    """Keys that nobody can have yet."""
    for steps in (2, 3, 4, 5):
        with peer.connection.wrong_keys(steps):
            peer.inject(Epoch.ONE_RTT, frame(1))


def _ids(*given: tuple[int, int, bytes]) -> Callable[[Peer], None]:
    """NEW_CONNECTION_ID frames, each with its number, the number below which ids are retired, and the id."""

    def send(peer: Peer) -> None:
        for sequence, retire, identity in given:
            peer.connection.issue(sequence, identity)
            peer.inject(Epoch.ONE_RTT, new_connection_id(sequence, retire, identity))

    return send


STREAMS_BEYOND = (LIVES, FRAME_ENCODING, STREAM_LIMIT)


def _from_many_ports(peer: Peer) -> None:
    """As from behind a NAT that forgets at once."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(peer.connection.sealed(Epoch.ONE_RTT, frame(1)), peer.remote)


def _ids_from_ports(peer: Peer) -> None:
    """From port to port, with an id for each that takes back those before; that they are given back is not heard."""
    for sequence in range(9, 60):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            payload = new_connection_id(sequence, sequence) + frame(1)
            other.sendto(peer.connection.sealed(Epoch.ONE_RTT, payload), peer.remote)


def _again(peer: Peer) -> None:
    """One packet, many times over."""
    packet = peer.connection.sealed(Epoch.ONE_RTT, stream(2, b"\0") if peer.connection._is_client else frame(1))
    for _ in range(200):
        peer.send(packet)


FRAMES = (
    Case("HANDSHAKE_DONE", VIOLATION, LIVES, (frame(0x1E), frame(0x1E))),
    Case("NEW_TOKEN", VIOLATION, LIVES, (frame(0x07, 1000, bytes(1000)),) * 5),
    Case("NEW_TOKEN without a token", VIOLATION, FRAME_ENCODING, (frame(0x07, 0),)),
    Case("unknown frame", FRAME_ENCODING, FRAME_ENCODING, (frame(0x21),)),
    Case(
        "frame type in two bytes",
        (VIOLATION, FRAME_ENCODING, LIVES),
        (VIOLATION, FRAME_ENCODING, LIVES),
        (b"\x40\x01",),
    ),
    Case("no frame", VIOLATION, VIOLATION, (b"",)),
    Case("frame type that is cut off", FRAME_ENCODING, FRAME_ENCODING, (b"\0\0\0\x40",)),
    Case("ACK of what was not sent", VIOLATION, VIOLATION, (frame(0x02, 100000, 0, 0, 0),)),
    Case("ACK of packet 2^62-1", VIOLATION, VIOLATION, (frame(0x02, LARGEST, 0, 0, LARGEST),)),
    Case("ACK below packet 0", FRAME_ENCODING, FRAME_ENCODING, (frame(0x02, 0, 0, 0, 1),)),
    Case("ACK ranges below packet 0", FRAME_ENCODING, FRAME_ENCODING, (frame(0x02, 1, 0, 1, 0, 0, 0),)),
    Case("ACK of 2^62-1 ranges", FRAME_ENCODING, FRAME_ENCODING, (frame(0x02, 0, 0, LARGEST, 0),)),
    Case("ACK with a delay of 2^62-1", LIVES, LIVES, (frame(0x02, 0, LARGEST, 0, 0),)),
    Case("ACK with ECN counts of 2^62-1", LIVES, LIVES, (frame(0x03, 0, 0, 0, 0, LARGEST, LARGEST, LARGEST),)),
    Case("PATH_CHALLENGE, 1,000 of them", LIVES, LIVES, (frame(0x1A, bytes(8)) * 100,) * 10),
    Case("PATH_RESPONSE to nothing", (LIVES, VIOLATION), (LIVES, VIOLATION), (frame(0x1B, bytes(8)),)),
    Case("MAX_DATA 2^62-1", LIVES, LIVES, (frame(0x10, LARGEST),)),
    Case("MAX_STREAMS 2^60", LIVES, LIVES, (frame(0x12, 1 << 60) + frame(0x13, 1 << 60),)),
    Case("MAX_STREAMS above 2^60", FRAME_ENCODING, FRAME_ENCODING, (frame(0x12, (1 << 60) + 1),)),
    Case("STREAMS_BLOCKED above 2^60", FRAME_ENCODING, FRAME_ENCODING, (frame(0x17, (1 << 60) + 1),)),
    Case("DATA_BLOCKED beyond the window", (LIVES, FLOW_CONTROL), (LIVES, FLOW_CONTROL), (frame(0x14, LARGEST),)),
    Case("STREAMS_BLOCKED beyond the limit", STREAMS_BEYOND, STREAMS_BEYOND, (frame(0x16, 1 << 60),)),
    Case("DATA_BLOCKED and STREAMS_BLOCKED", LIVES, LIVES, (frame(0x14, 0) + frame(0x16, 0) + frame(0x17, 0),)),
    Case("PADDING and PING, all mixed", LIVES, LIVES, (b"\0\1" * 500,)),
    Case("reserved bits", VIOLATION, VIOLATION, lambda peer: peer.inject(Epoch.ONE_RTT, frame(1), first=0x18)),
    Case("no fixed bit", LIVES, LIVES, lambda peer: peer.inject(Epoch.ONE_RTT, frame(0x21), first=0x40)),
    Case("key updates in order", LIVES, LIVES, _key_updates),
    Case("keys that are not in use yet", LIVES, LIVES, _wrong_keys),
    Case("from 50 ports", LIVES, None, _from_many_ports),
    Case("from port to port with new ids, and no ACK", ANYTHING, None, _ids_from_ports),
    Case("a packet 200 times", LIVES, LIVES, _again),
    Case("close with a reason that is cut off", FRAME_ENCODING, FRAME_ENCODING, (frame(0x1C, 0, 0, 1000, b"x"),)),
    # Connection ids.
    Case("NEW_CONNECTION_ID without an id", FRAME_ENCODING, FRAME_ENCODING, (new_connection_id(9, 0, b""),)),
    Case("NEW_CONNECTION_ID of 21 bytes", FRAME_ENCODING, FRAME_ENCODING, (new_connection_id(9, 0, bytes(21)),)),
    Case("NEW_CONNECTION_ID that retires itself", FRAME_ENCODING, FRAME_ENCODING, (new_connection_id(9, 10),)),
    Case(
        "NEW_CONNECTION_ID, 100 of them",
        ID_LIMIT,
        ID_LIMIT,
        tuple(new_connection_id(20 + i) for i in range(100)),
    ),
    Case("NEW_CONNECTION_ID, one number, two ids", VIOLATION, VIOLATION, _ids((9, 9, bytes(8)), (9, 9, b"12345678"))),
    Case("NEW_CONNECTION_ID, one id, two numbers", VIOLATION, VIOLATION, _ids((9, 9, bytes(8)), (10, 9, bytes(8)))),
    Case("NEW_CONNECTION_ID that retires all before", (LIVES, ID_LIMIT), LIVES, _ids((1 << 61, 1 << 61, bytes(8)))),
    Case(
        "NEW_CONNECTION_ID, 200 that retire the one before",
        (LIVES, ID_LIMIT),
        (LIVES, ID_LIMIT),
        _ids(*((20 + i, 20 + i, i.to_bytes(8, "big")) for i in range(200))),
    ),
    Case("RETIRE_CONNECTION_ID of none", VIOLATION, VIOLATION, (frame(0x19, 1000),)),
    Case("RETIRE_CONNECTION_ID of that in use", VIOLATION, VIOLATION, (frame(0x19, 0),)),
    # Datagrams.
    Case("DATAGRAM that is longer than its packet", FRAME_ENCODING, FRAME_ENCODING, (frame(0x31, 1000, b"x"),)),
    Case("DATAGRAM without data", APPLICATION, LIVES, (frame(0x31, 0),)),
    Case("DATAGRAM without data or length", APPLICATION, LIVES, (frame(0x30),)),
    Case("DATAGRAM of no command", APPLICATION, LIVES, (frame(0x30, b"\xff" * 100),)),
)


def _on_stream(
    name: str, expected: Expected | tuple[Expected, ...], identity: int, make: Callable[[int], bytes]
) -> Case:
    def send(peer: Peer) -> None:
        peer.inject(Epoch.ONE_RTT, make(identity if peer.connection._is_client else identity ^ 1))

    return Case(name, expected, expected, send)


OWN_BIDI, THEIR_BIDI, OWN_UNI, THEIR_UNI = 0, 1, 2, 3
FAR = 4 << 40
"""Far beyond what any limit of streams allows."""

STREAMS = (
    _on_stream("STREAM on a stream of the receiver's", STREAM_STATE, THEIR_BIDI, lambda s: stream(s, b"x")),
    _on_stream("STREAM on a one-way stream of the receiver's", STREAM_STATE, THEIR_UNI, lambda s: stream(s, b"x")),
    _on_stream("STREAM beyond the limit", STREAM_LIMIT, OWN_BIDI + FAR, lambda s: stream(s, b"x")),
    _on_stream("STREAM beyond the limit, one-way", STREAM_LIMIT, OWN_UNI + FAR, lambda s: stream(s, b"x")),
    _on_stream(
        "STREAM at the end of all numbers",
        (FRAME_ENCODING, FLOW_CONTROL),
        OWN_UNI,
        lambda s: stream(s, b"xx", LARGEST - 1),
    ),
    _on_stream("STREAM beyond the window", FLOW_CONTROL, OWN_UNI, lambda s: stream(s, b"x", LARGEST - 1)),
    _on_stream(
        "STREAM that ends beyond the window", FLOW_CONTROL, OWN_UNI, lambda s: stream(s, b"", LARGEST, fin=True)
    ),
    _on_stream(
        "STREAM behind its end", FINAL_SIZE, OWN_UNI, lambda s: stream(s, b"", 9, fin=True) + stream(s, b"x", 9)
    ),
    _on_stream(
        "STREAM with two ends", FINAL_SIZE, OWN_UNI, lambda s: stream(s, b"", 9, fin=True) + stream(s, b"", 8, fin=True)
    ),
    _on_stream("STREAM longer than its packet", FRAME_ENCODING, OWN_UNI, lambda s: frame(0x0A, s, 1000, b"x")),
    _on_stream("RESET_STREAM of the receiver's", STREAM_STATE, THEIR_BIDI, lambda s: frame(0x04, s, 0, 0)),
    _on_stream(
        "RESET_STREAM of the receiver's, one-way", (STREAM_STATE, VIOLATION), THEIR_UNI, lambda s: frame(0x04, s, 0, 0)
    ),
    _on_stream("RESET_STREAM beyond the limit", STREAM_LIMIT, OWN_UNI + FAR, lambda s: frame(0x04, s, 0, 0)),
    _on_stream("RESET_STREAM beyond the window", FLOW_CONTROL, OWN_UNI, lambda s: frame(0x04, s, 0, LARGEST)),
    _on_stream(
        "RESET_STREAM with another end", FINAL_SIZE, OWN_UNI, lambda s: stream(s, b"\0\0") + frame(0x04, s, 0, 1)
    ),
    _on_stream("RESET_STREAM of one not opened", LIVES, OWN_UNI, lambda s: frame(0x04, s, LARGEST, 0)),
    _on_stream("STOP_SENDING of the receiver's, not opened", STREAM_STATE, THEIR_BIDI, lambda s: frame(0x05, s, 0)),
    _on_stream(
        "STOP_SENDING of the receiver's, one-way, not opened",
        STREAM_STATE,
        THEIR_UNI + FAR,
        lambda s: frame(0x05, s, 0),
    ),
    _on_stream("STOP_SENDING of what only receives", STREAM_STATE, OWN_UNI, lambda s: frame(0x05, s, 0)),
    _on_stream("STOP_SENDING beyond the limit", STREAM_LIMIT, OWN_BIDI + FAR, lambda s: frame(0x05, s, 0)),
    _on_stream("MAX_STREAM_DATA of the receiver's, not opened", STREAM_STATE, THEIR_BIDI, lambda s: frame(0x11, s, 9)),
    _on_stream("MAX_STREAM_DATA of what only receives", STREAM_STATE, OWN_UNI, lambda s: frame(0x11, s, 9)),
    _on_stream("MAX_STREAM_DATA beyond the limit", STREAM_LIMIT, OWN_BIDI + FAR, lambda s: frame(0x11, s, LARGEST)),
    _on_stream("STREAM_DATA_BLOCKED of what only sends", STREAM_STATE, THEIR_UNI, lambda s: frame(0x15, s, 9)),
    _on_stream("STREAM_DATA_BLOCKED beyond the limit", STREAM_LIMIT, OWN_UNI + FAR, lambda s: frame(0x15, s, 9)),
    _on_stream("STREAM_DATA_BLOCKED of one not opened", LIVES, OWN_UNI, lambda s: frame(0x15, s, 0)),
    _on_stream(
        "STREAM_DATA_BLOCKED beyond the window", (LIVES, FLOW_CONTROL), OWN_UNI, lambda s: frame(0x15, s, LARGEST)
    ),
)

# --- frames at other levels -------------------------------------------------------------------------------------------

FORBIDDEN = {
    "RESET_STREAM": frame(0x04, 0, 0, 0),
    "STOP_SENDING": frame(0x05, 0, 0),
    "NEW_TOKEN": frame(0x07, 1, b"x"),
    "STREAM": stream(0, b"x"),
    "MAX_DATA": frame(0x10, 9),
    "MAX_STREAM_DATA": frame(0x11, 0, 9),
    "MAX_STREAMS": frame(0x12, 9),
    "DATA_BLOCKED": frame(0x14, 9),
    "STREAM_DATA_BLOCKED": frame(0x15, 0, 9),
    "STREAMS_BLOCKED": frame(0x16, 9),
    "NEW_CONNECTION_ID": new_connection_id(1),
    "RETIRE_CONNECTION_ID": frame(0x19, 0),
    "PATH_CHALLENGE": frame(0x1A, bytes(8)),
    "PATH_RESPONSE": frame(0x1B, bytes(8)),
    "close by an application": frame(0x1D, 0, 0),
    "HANDSHAKE_DONE": frame(0x1E),
    "DATAGRAM": frame(0x31, 1, b"x"),
    "ACK of what was not sent": frame(0x02, 100000, 0, 0, 0),
}


def _early_data(peer: Peer) -> None:
    """0-RTT packets under keys that nobody has."""
    pair = peer.connection._cryptos[Epoch.ZERO_RTT]
    pair.send = peer.connection._cryptos[Epoch.INITIAL].send
    for _ in range(20):
        peer.inject(Epoch.ZERO_RTT, stream(2, b"x"))


def _too_early(payload: bytes) -> Callable[[Peer], None]:
    """1-RTT packets, as soon as there are keys and before the other side is through."""

    def send(peer: Peer) -> None:
        peer.until(lambda: peer.connection.has_keys(Epoch.ONE_RTT), "there are keys")
        for _ in range(3):
            peer.inject(Epoch.ONE_RTT, payload)

    return send


LEVELS = (
    *(
        # Anybody on the way can make Initial packets, so nothing but TLS ends a connection by them.
        Case(f"{name} in Initial packets", LIVES, LIVES, (payload,), Epoch.INITIAL)
        for name, payload in FORBIDDEN.items()
    ),
    *(
        Case(f"{name} in Handshake packets", VIOLATION, VIOLATION, (payload,), Epoch.HANDSHAKE, BEFORE_FINISHED)
        for name, payload in FORBIDDEN.items()
    ),
    Case("CRYPTO far ahead in Initial packets", LIVES, LIVES, (crypto(b"x", 1 << 20),), Epoch.INITIAL),
    Case(
        "CRYPTO far ahead in Handshake packets",
        CRYPTO_BUFFER,
        CRYPTO_BUFFER,
        (crypto(b"x", 1 << 20),),
        Epoch.HANDSHAKE,
        BEFORE_FINISHED,
    ),
    Case(
        "KeyUpdate in Handshake packets",
        UNEXPECTED,
        UNEXPECTED,
        (crypto(KEY_UPDATE),),
        Epoch.HANDSHAKE,
        BEFORE_FINISHED,
    ),
    Case(
        "HANDSHAKE_DONE before Finished has come", HALTED, None, _too_early(frame(0x1E)), Epoch.INITIAL, BEFORE_FINISHED
    ),
    Case("1-RTT packets before Finished has come", HALTED, None, _too_early(frame(1)), Epoch.INITIAL, BEFORE_FINISHED),
    Case(
        "HANDSHAKE_DONE before Finished has left",
        None,
        (LIVES, VIOLATION),
        _too_early(frame(0x1E)),
        Epoch.INITIAL,
    ),
    Case("1-RTT packets before Finished has left", None, LIVES, _too_early(frame(1)), Epoch.INITIAL),
    Case("0-RTT packets", LIVES, None, _early_data, Epoch.INITIAL),
    Case(
        "QUIC version 2",
        LIVES,
        None,
        rewriting=Rewriting(versions=(QuicProtocolVersion.VERSION_2, QuicProtocolVersion.VERSION_1)),
    ),
    Case("early_data announced", (LIVES, ILLEGAL), None, rewriting=Rewriting(extensions=((42, b""),))),
)

# --- beginnings -------------------------------------------------------------------------------------------------------


def _session_id(hello: ClientHello) -> None:
    hello.legacy_session_id = bytes(32)


def _no_shares(hello: ClientHello) -> None:
    hello.key_share = []


def _old_versions(hello: ClientHello) -> None:
    hello.supported_versions = [0x0303, 0x0302]


def _unknown_suites(hello: ClientHello) -> None:
    hello.cipher_suites = [0x1399, 0x00FF]


def _resumed(peer: Peer) -> None:
    """0-RTT packets under the keys of the session that the ClientHello offers."""
    for _ in range(20):
        peer.inject(Epoch.ZERO_RTT, stream(2, b"x"))


def _negotiation(*versions: int) -> Rewriting:
    """Version Negotiation packets."""

    def greeting(header: QuicHeader) -> list[bytes]:
        return [encode_quic_version_negotiation(header.destination_cid, header.source_cid, list(versions))] * 3

    return Rewriting(greeting=greeting)


def _false_retry(header: QuicHeader) -> list[bytes]:
    """Retry packets of somebody who has not seen the client's packet."""
    version = QuicProtocolVersion.VERSION_1
    return [encode_quic_retry(version, b"retried!", header.source_cid, b"another!", b"token")] * 3


def _noise(header: QuicHeader) -> list[bytes]:
    """Packets that are cut off, and what looks like a stateless reset."""
    long = b"\xe0" + V1 + bytes([len(header.source_cid)]) + header.source_cid
    return [b"", b"\x40", *(long[:end] for end in range(len(long))), b"\x40" + header.source_cid + bytes(40)]


BEGINNINGS = (
    Case("no ALPN", NO_ALPN, NO_ALPN, rewriting=Rewriting(alpn=())),
    Case("another ALPN", NO_ALPN, None, rewriting=Rewriting(alpn=("h3", "h3-29"))),
    Case("a hundred protocols", LIVES, None, rewriting=Rewriting(alpn=("asport", *(f"x-{i}" for i in range(100))))),
    Case("session id of TLS 1.2", (LIVES, VIOLATION), None, rewriting=Rewriting(hello=_session_id)),
    Case("no key shares", (HANDSHAKE_FAILURE, GIVES_UP), None, rewriting=Rewriting(hello=_no_shares)),
    Case("no TLS 1.3", PROTOCOL_VERSION, None, rewriting=Rewriting(hello=_old_versions)),
    Case("no cipher suite in common", HANDSHAKE_FAILURE, None, rewriting=Rewriting(hello=_unknown_suites)),
    Case("a session that never was, and early data", LIVES, None, _resumed, Epoch.ZERO_RTT, Rewriting(ticket=True)),
    Case("CertificateRequest in the handshake", None, LIVES, rewriting=Rewriting(asks=True)),
    Case("Version Negotiation with version 1", None, LIVES, rewriting=_negotiation(1, 0x6B3343CF)),
    Case("Version Negotiation without version 1", None, ANYTHING, rewriting=_negotiation(0x6B3343CF, 0x0A0A0A0A)),
    Case("Version Negotiation without a version", None, ANYTHING, rewriting=_negotiation()),
    Case("Retry", None, LIVES, rewriting=Rewriting(token=b"x" * 300)),
    Case(
        "Retry that the parameters do not tell of",
        None,
        PARAMETER,
        rewriting=Rewriting(token=b"x", parameters=lambda data: without(data, 0x10)),
    ),
    Case(
        "Retry of another",
        None,
        PARAMETER,
        rewriting=Rewriting(token=b"x", parameters=lambda data: changed(data, 0x10, b"y")),
    ),
    Case("Retry packets that are false", None, LIVES, rewriting=Rewriting(greeting=_false_retry)),
    Case("noise before the handshake", None, LIVES, rewriting=Rewriting(greeting=_noise)),
)

CASES = (*AFTER, *DURING, *RETRIED, *PARAMETERS_CASES, *FRAMES, *STREAMS, *LEVELS, *BEGINNINGS)

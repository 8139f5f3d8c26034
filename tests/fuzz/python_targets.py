"""The targets in Python; ``python_main.py`` hands one of them to the fuzzer.

Each takes bytes and raises where a rule does not hold. Nothing but ``RemoteProtocolError`` may come out of bytes that a
peer sends, and what is accepted is canonical: encoded again it gives the same bytes.
"""

from __future__ import annotations

import ipaddress
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire import (
    Address,
    ClientHandshake,
    ClientHello,
    Command,
    Dialect,
    Packet,
    ServerHandshake,
    ServerHelloCode,
    ServerState,
    codec,
    dialect,
    proxy_header,
)
from tests.native import oracle as native_oracle
from tests.wire import fragments
from tests.wire.decoder import Decoder

LIFETIME = 1000


class Reader:
    """Values out of a fuzzer's bytes; zeros past their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        """The next bytes, or as many as there are."""
        self._at += length
        return self._data[self._at - length : self._at]

    def number(self, length: int = 1) -> int:
        """A big-endian number."""
        return int.from_bytes(self.take(length).ljust(length, b"\0"), "big")

    def address(self) -> Address:
        """An IPv4 or IPv6 address with a port."""
        if self.number() & 1:
            return Address(ipaddress.IPv6Address(self.take(16).ljust(16, b"\0")), self.number(2))
        return Address(ipaddress.IPv4Address(self.take(4).ljust(4, b"\0")), self.number(2))


# --- wire ------------------------------------------------------------------------------------------------------------


def _decoded(decoder: Decoder) -> Iterator[Command]:
    while (command := decoder.next_command()) is not None:
        yield command


def _outcome(chunks: list[bytes]) -> tuple[list[Command], bool, bytes]:
    """The commands of a stream, whether it was refused, and what is left."""
    decoder = Decoder()
    found: list[Command] = []
    refused = False
    for chunk in chunks:
        decoder.feed(chunk)
        try:
            found.extend(_decoded(decoder))
        except RemoteProtocolError:
            refused = True
    return found, refused, decoder.trailing


def wire(data: bytes) -> None:
    """Any bytes as a whole command, and as a stream of commands cut at any places."""
    try:
        command, consumed = codec.decode(data)
    except RemoteProtocolError:
        pass
    else:
        assert 0 < consumed <= len(data)
        assert codec.encode(command) == data[:consumed]
        assert codec.decode(data[:consumed]) == (command, consumed)  # nothing behind it was read
    if data:
        step = data[0] % 7 + 1
        stream = data[1:]
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        assert _outcome(pieces) == _outcome([stream])


# --- handshake -------------------------------------------------------------------------------------------------------


def _next_command(reader: Reader) -> Command | None:
    """A command of any type, from few bytes: the decoder is another target's."""
    kind = reader.number() % 6
    bodies = {
        0: b"\0\0" + bytes(48) + bytes([reader.number() % 9]) + reader.take(4).ljust(4, b"\0"),
        1: b"\0\1" + bytes([reader.number() % 6]) + b"\x04\x57",
        2: b"\0\2\xff",
        3: b"\0\3\0\1\0\1\1\0\0\0\xff",
        4: b"\0\4\0\1",
        5: b"\0\5",
    }
    try:
        return codec.decode(bodies[kind])[0]
    except RemoteProtocolError:
        return None


def handshake(data: bytes) -> None:
    """Commands in any order at either side, with what the side itself does in between."""
    reader = Reader(data)
    server, client = ServerHandshake(), ClientHandshake()
    authenticated = False
    while reader:
        what = reader.number()
        command = _next_command(reader) if what % 4 < 2 else None
        before = (server.state, client.state)
        try:
            if command is not None and what % 4 == 0:
                server.receive(command)
                if isinstance(command, ClientHello):
                    assert before[0] is ServerState.AWAITING_HELLO
                    for spoken in Dialect:
                        _meanings(command.mode, spoken)
                        for ambiguous in (Dialect.DRAFT, Dialect.FLAGS):
                            _mode(command.mode, spoken, ambiguous)
            elif command is not None:
                client.receive(command)
            elif what % 8 == 2:
                server.accept(reader.number(2))
                assert before[0] is ServerState.DECIDING
                authenticated = True
            elif what % 8 == 3:
                server.refuse(ServerHelloCode(reader.number() % 5))
            elif what % 8 == 6:
                client.send_hello()
            elif what > 250:
                server.close()
                client.close()
        except RemoteProtocolError:
            assert command is not None
            assert (server.state, client.state) == before
        except LocalProtocolError:
            assert command is None
            assert (server.state, client.state) == before
        assert authenticated or server.state is not ServerState.AUTHENTICATED


def _mode(byte: int, spoken: Dialect, ambiguous: Dialect) -> None:
    try:
        mode, used = dialect.decode_mode(byte, spoken, ambiguous)
    except RemoteProtocolError:
        return
    assert used is not Dialect.AUTO
    if mode.tcp or mode.udp is not None:
        again = dialect.encode_mode(mode, used)
        assert dialect.decode_mode(again, used) == (mode, used)


def _meanings(byte: int, spoken: Dialect) -> None:
    try:
        found = dialect.meanings(byte, spoken)
    except RemoteProtocolError:
        return
    for mode, used in found:
        assert dialect.decode_mode(byte, spoken, used) == (mode, used)


# --- fragments -------------------------------------------------------------------------------------------------------


def _fragment(reader: Reader) -> Packet:
    total = reader.number() % 6
    total = 255 if total == 5 else total
    index = reader.number() % (total + 2) if total < 255 else reader.number()
    size = (0, 1, 20, 1000, 30_000, 65_535)[reader.number() % 6]
    has_address = (index == 0) != (reader.number() == 1)
    return Packet(
        reader.number() % 3,
        reader.number() % 4,
        total,
        index,
        reader.address() if has_address else None,
        bytes([index]) * size,
    )


def fragments_(data: bytes) -> None:
    """Fragments of any kind in any order over any time; and what is cut comes together again."""
    reader = Reader(data)
    whole = Packet(1, 2, 1, 0, reader.address(), bytes(reader.number(2)))
    limit = reader.number(2) % 2000
    reassembler = fragments.Reassembler(1 + reader.number() % 4, 65_535 + reader.number(2), LIFETIME)
    try:
        pieces = fragments.fragment(whole, limit)
    except LocalProtocolError:
        pieces = []
    for piece in pieces:
        assert len(codec.encode(piece)) <= limit
    if pieces:
        answers = [reassembler.add(piece, 0.0) for piece in reversed(pieces)]
        assert answers[:-1] == [None] * (len(pieces) - 1)
        assert answers[-1] == whole
    now = 0.0
    while reader:
        now += reader.number() * 8
        packet = _fragment(reader)
        answer = reassembler.add(packet, now)
        if isinstance(answer, Packet):
            assert (answer.frag_total, answer.frag_id) == (1, 0)
            assert answer.address is not None
            assert answer.payload == bytes(sorted(answer.payload))  # in the order of the fragments
        assert reassembler.pending_packets <= reassembler.pending_fragments
        assert reassembler.pending_bytes <= 65_535 + 65_535
        if reader.number() == 7:
            reassembler.forget(reader.number() % 3)
    reassembler.expire(now + LIFETIME)
    assert (reassembler.pending_packets, reassembler.pending_bytes) == (0, 0)


# --- PROXY headers ---------------------------------------------------------------------------------------------------


def plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that is mapped, where one is."""
    return getattr(address, "ipv4_mapped", None) or address


def proxy_header_(data: bytes) -> None:
    """Any two addresses; the header is read back by the words of the specification."""
    reader = Reader(data)
    source, destination = reader.address(), reader.address()
    text = proxy_header.tcp_header(1, source, destination)
    assert text.startswith(b"PROXY ")
    assert text.endswith(b"\r\n")
    assert len(text) <= 107  # the longest that there is, by the specification
    words = text[:-2].split(b" ")
    assert len(words) == 6
    read = [ipaddress.ip_address(word.decode()) for word in words[2:4]]
    assert words[1] == (b"TCP4" if read[0].version == 4 else b"TCP6")
    assert read[0].version == read[1].version
    assert [plain(address) for address in read] == [plain(source.ip), plain(destination.ip)]
    assert [int(word) for word in words[4:]] == [source.port, destination.port]
    for header, transport in (
        (proxy_header.tcp_header(2, source, destination), 1),
        (proxy_header.udp_header(source, destination), 2),
    ):
        assert header[:12] == b"\r\n\r\n\x00\r\nQUIT\n"
        assert header[12] == 0x21
        assert header[13] & 0xF == transport
        length = int.from_bytes(header[14:16], "big")
        assert len(header) == 16 + length
        assert length == {1: 12, 2: 36}[header[13] >> 4]


# --- packet.c against Python -----------------------------------------------------------------------------------------

_native: native_oracle.Native | None = None


def native() -> native_oracle.Native:
    """packet.c, compiled when it is needed first."""
    global _native
    if _native is None:
        with tempfile.TemporaryDirectory() as folder:
            _native = native_oracle.load(Path(folder))
    return _native


def oracle(data: bytes) -> None:
    """Both codecs say the same about any bytes, about any plan, and about any fragments one after the other."""
    reader = Reader(data)
    what = reader.number()
    if what % 4 < 2:
        native_oracle.same_decision(native(), data[1:])
        native_oracle.same_packet(native(), data[1:])
    elif what % 4 == 2:
        address = Address(ipaddress.ip_address("192.0.2.1" if what & 4 else "2001:db8::1"), 53)
        native_oracle.same_plan(native(), reader.number(3) % 70_000, address, reader.number(3) % 70_000)
    else:
        _same_reassembly(reader)


def _same_reassembly(reader: Reader) -> None:
    packets, size = 1 + reader.number() % 4, 65_535 + reader.number(2)
    python = fragments.Reassembler(packets, size, native_oracle.LIFETIME)
    compiled = native_oracle.NativeAssembler(native(), packets, size)
    now = 0
    try:
        while reader:
            now += reader.number()
            packet = _fragment(reader)
            answer = python.add(packet, float(now))
            assert compiled.add(packet, now) == native_oracle.expected_answer(native(), answer)
    finally:
        compiled.close()


FUNCTIONS: dict[str, Callable[[bytes], None]] = {
    "wire": wire,
    "handshake": handshake,
    "fragments": fragments_,
    "proxy_header": proxy_header_,
    "oracle": oracle,
}

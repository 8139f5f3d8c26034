"""Commands to bytes and back, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asport_sync.errors import RemoteProtocolError
from asport_sync.wire import (
    Address,
    ClientHello,
    Command,
    Connect,
    Decoder,
    Packet,
    address_length,
    command_length,
    decode,
    encode,
    encode_packet_header,
    payload_length,
)

from .strategies import chunked, commands, optional_addresses, packets, wire_bytes
from .vectors import COMMANDS, PEER_IPV4, TOKEN, USER

every_command = pytest.mark.parametrize(
    ("command", "data"),
    [(command, bytes.fromhex(text)) for command, text in COMMANDS.values()],
    ids=list(COMMANDS),
)

MALFORMED = {
    "version": ("0100", "ASPORT version is 1, expected 0"),
    "version alone": ("ff", "ASPORT version is 255, expected 0"),
    "type": ("0006", "command type is 6, expected 0 to 5"),
    "code": ("000105", "ServerHello code is 5, expected 0 to 4"),
    "Connect family": ("000202", r"address family is 2, expected 1 \(IPv4\), 4 \(IPv6\) or 255 \(none\)"),
    "Packet family": ("0003000100000100000000", r"address family is 0, expected 1 \(IPv4\)"),
    "mode 8": (COMMANDS["V1 ClientHello mode 3"][1][:100] + "080001ffff", "ClientHello mode is 8, expected 0 to 7"),
    "mode 255": (COMMANDS["V1 ClientHello mode 3"][1][:100] + "ff0001ffff", "ClientHello mode is 255, expected 0 to 7"),
}
every_malformation = pytest.mark.parametrize(
    ("data", "text"), [(bytes.fromhex(data), text) for data, text in MALFORMED.values()], ids=list(MALFORMED)
)


def drain(decoder: Decoder) -> Iterator[Command]:
    """The commands that are complete, each as soon as it is taken out."""
    while (command := decoder.next_command()) is not None:
        yield command


# --- known bytes -----------------------------------------------------------------------------------------------------


@every_command
def test_encode_gives_the_known_bytes(command: Command, data: bytes) -> None:
    assert encode(command).hex() == data.hex()


@every_command
def test_decode_gives_the_known_command(command: Command, data: bytes) -> None:
    assert decode(data) == (command, len(data))


@every_command
def test_decode_leaves_what_follows(command: Command, data: bytes) -> None:
    assert decode(data + b"\xee" * 5) == (command, len(data))


@every_command
def test_decode_reads_any_buffer(command: Command, data: bytes) -> None:
    for buffer in (bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert decode(buffer) == (command, len(data))


@every_command
def test_decode_refuses_every_truncation(command: Command, data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(RemoteProtocolError, match=r"truncated: found \d+ bytes, expected"):
            decode(data[:length])


@every_command
def test_decoder_waits_at_every_truncation(command: Command, data: bytes) -> None:
    for length in range(len(data)):
        decoder = Decoder()
        decoder.feed(data[:length])
        assert decoder.next_command() is None
        assert decoder.trailing == data[:length]
        decoder.feed(data[length:])
        assert decoder.next_command() == command
        assert decoder.trailing == b""


@every_command
def test_lengths_are_known_as_soon_as_they_can_be(command: Command, data: bytes) -> None:
    payload = command.size if isinstance(command, Packet) else 0
    header = len(data) - payload
    # The byte that decides: the family of an address, the code of ServerHello, else the command type.
    header_known_at = {1: 3, 2: 3, 3: 11}.get(data[1], 2)
    payload_known_at = 10 if isinstance(command, Packet) else 2
    for length in range(len(data) + 1):
        assert command_length(data[:length]) == (header if length >= header_known_at else None)
        assert payload_length(data[:length]) == (payload if length >= payload_known_at else None)


def test_packet_header_and_payload_are_the_command() -> None:
    packet, text = COMMANDS["V5 Packet whole"]
    assert isinstance(packet, Packet)
    header = encode_packet_header(packet)
    assert (header + packet.payload).hex() == text
    assert command_length(header) == len(header)
    assert payload_length(header) == packet.size


# --- malformed bytes -------------------------------------------------------------------------------------------------


@every_malformation
def test_malformed_bytes_are_refused_with_what_was_found_and_expected(data: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        decode(data)


@every_malformation
def test_decoder_goes_on_refusing(data: bytes, text: str) -> None:
    decoder = Decoder()
    decoder.feed(data)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=text):
            decoder.next_command()
        decoder.feed(bytes.fromhex("0005"))
    assert decoder.trailing == data + bytes.fromhex("00050005")


def test_every_unknown_number_is_refused() -> None:
    for value in range(256):
        for known, data in (
            (range(1), bytes([value, 5])),
            (range(6), bytes([0, value])),
            (range(5), bytes([0, 1, value])),
            ((1, 4, 255), bytes([0, 2, value])),
        ):
            if value not in known:
                with pytest.raises(RemoteProtocolError, match=str(value)):
                    decode(data)


def test_size_beyond_the_datagram_is_refused() -> None:
    data = bytes.fromhex("000300010000010000050400000000000000000000ffffc633640914e968656c6c")
    with pytest.raises(RemoteProtocolError, match="Packet payload is truncated: found 4 bytes, expected 5"):
        decode(data)


def test_error_text_does_not_hold_the_token() -> None:
    data = bytearray(encode(ClientHello(USER, b"correct horse battery staple 32!", 3, 1, 2)))
    data[50] = 200
    for malformed in (data, data[:40]):
        with pytest.raises(RemoteProtocolError) as failure:
            decode(malformed)
        assert "correct" not in str(failure.value)
        assert b"correct".hex() not in str(failure.value)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_application_data_follows_connect() -> None:
    decoder = Decoder()
    decoder.feed(encode(Connect(PEER_IPV4)) + b"GET /")
    assert decoder.next_command() == Connect(PEER_IPV4)
    assert decoder.trailing == b"GET /"


def test_largest_packet_through_the_decoder() -> None:
    packet = Packet(65535, 65535, 1, 0, PEER_IPV4, bytes(65535))
    decoder = Decoder()
    decoder.feed(encode(packet)[:-1])
    assert decoder.next_command() is None
    decoder.feed(b"\x00")
    assert decoder.next_command() == packet


def test_decoder_copies_what_it_is_fed() -> None:
    buffer = bytearray(encode(ClientHello(USER, TOKEN, 3, 1, 2)))
    decoder = Decoder()
    decoder.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert decoder.next_command() == ClientHello(USER, TOKEN, 3, 1, 2)


# --- properties ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(commands, st.binary(max_size=20))
def test_decode_inverts_encode(command: Command, trailing: bytes) -> None:
    data = encode(command)
    assert decode(data + trailing) == (command, len(data))


@settings(deadline=None)
@given(packets)
def test_lengths_of_any_packet(packet: Packet) -> None:
    header = encode_packet_header(packet)
    assert len(header) == 10 + address_length(packet.address)
    assert (command_length(header), payload_length(header)) == (len(header), len(packet.payload))


@settings(deadline=None)
@given(optional_addresses)
def test_address_length_is_what_encode_writes(address: Address | None) -> None:
    assert len(encode(Connect(address))) == 2 + address_length(address)


@settings(deadline=None)
@given(st.data(), st.lists(commands, max_size=4), st.sampled_from([b"", b"\x00", b"\x00\x01"]))
def test_any_chunking_gives_the_same_commands(data: st.DataObject, sent: list[Command], rest: bytes) -> None:
    stream = b"".join(map(encode, sent)) + rest
    decoder = Decoder()
    received: list[Command] = []
    for chunk in data.draw(chunked(stream)):
        decoder.feed(chunk)
        received.extend(drain(decoder))
    assert received == sent
    assert decoder.trailing == rest


@settings(deadline=None, max_examples=300)
@given(wire_bytes)
def test_arbitrary_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        command, consumed = decode(data)
    except RemoteProtocolError:
        return
    assert encode(command) == data[:consumed]


def outcome(chunks: list[bytes]) -> tuple[list[Command], str | None, bytes]:
    """What a decoder makes of a stream: its commands, its error and what is left."""
    decoder = Decoder()
    found: list[Command] = []
    error = None
    for chunk in chunks:
        decoder.feed(chunk)
        try:
            found.extend(drain(decoder))
        except RemoteProtocolError as failure:
            error = str(failure)
    return found, error, decoder.trailing


@settings(deadline=None, max_examples=300)
@given(st.data(), st.lists(wire_bytes | commands.map(encode), max_size=3))
def test_any_chunking_of_arbitrary_bytes_ends_the_same(data: st.DataObject, parts: list[bytes]) -> None:
    stream = b"".join(parts)
    assert outcome(data.draw(chunked(stream))) == outcome([stream])

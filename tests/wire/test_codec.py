"""Commands to bytes and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asport_sync.errors import RemoteProtocolError
from asport_sync.wire import (
    ClientHello,
    Command,
    Packet,
    decode,
    encode,
)
from asport_sync.wire.codec import command_length, payload_length

from .strategies import commands, packets, wire_bytes
from .vectors import COMMANDS, USER

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
def test_lengths_are_known_as_soon_as_they_can_be(command: Command, data: bytes) -> None:
    payload = command.size if isinstance(command, Packet) else 0
    header = len(data) - payload
    # The byte that decides: the family of an address, the code of ServerHello, else the command type.
    header_known_at = {1: 3, 2: 3, 3: 11}.get(data[1], 2)
    payload_known_at = 10 if isinstance(command, Packet) else 2
    for length in range(len(data) + 1):
        assert command_length(data[:length]) == (header if length >= header_known_at else None)
        assert payload_length(data[:length]) == (payload if length >= payload_known_at else None)


# --- malformed bytes -------------------------------------------------------------------------------------------------


@every_malformation
def test_malformed_bytes_are_refused_with_what_was_found_and_expected(data: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        decode(data)


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


# --- properties ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(commands, st.binary(max_size=20))
def test_decode_inverts_encode(command: Command, trailing: bytes) -> None:
    data = encode(command)
    assert decode(data + trailing) == (command, len(data))


@settings(deadline=None)
@given(packets)
def test_lengths_of_any_packet(packet: Packet) -> None:
    data = encode(packet)
    assert payload_length(data) == len(packet.payload)
    assert command_length(data) == len(data) - len(packet.payload)


@settings(deadline=None, max_examples=300)
@given(wire_bytes)
def test_arbitrary_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        command, consumed = decode(data)
    except RemoteProtocolError:
        return
    assert encode(command) == data[:consumed]

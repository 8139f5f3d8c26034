"""Commands out of streams that arrive in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asport_sync.errors import RemoteProtocolError
from asport_sync.wire import ClientHello, Command, Connect, Packet, encode

from .decoder import Decoder
from .strategies import chunked, commands, wire_bytes
from .test_codec import every_command, every_malformation
from .vectors import PEER_IPV4, TOKEN, USER


def drain(decoder: Decoder) -> Iterator[Command]:
    """The commands that are complete, each as soon as it is taken out."""
    while (command := decoder.next_command()) is not None:
        yield command


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


@every_malformation
def test_decoder_goes_on_refusing(data: bytes, text: str) -> None:
    decoder = Decoder()
    decoder.feed(data)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=text):
            decoder.next_command()
        decoder.feed(bytes.fromhex("0005"))
    assert decoder.trailing == data + bytes.fromhex("00050005")


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

"""Values: what can't be written can't be built, and no secret is printed."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv6Address
from typing import Any

import pytest

from asport_sync.errors import LocalProtocolError
from asport_sync.wire import Address, ClientHello, Dissociate, Packet, ServerHello, ServerHelloCode

from .vectors import PEER_IPV4, PEER_MAPPED, TOKEN, USER


def client_hello(**changes: Any) -> ClientHello:
    fields: dict[str, Any] = {"uuid": USER, "token": TOKEN, "mode": 3, "port_start": 1, "port_end": 2} | changes
    return ClientHello(**fields)


def packet(**changes: Any) -> Packet:
    fields: dict[str, Any] = {"assoc_id": 1, "pkt_id": 2, "frag_total": 1, "frag_id": 0, "payload": b""} | changes
    return Packet(address=PEER_IPV4, **fields)


@pytest.mark.parametrize("token", [b"", bytes(31), bytes(33)])
def test_token_of_wrong_length_is_refused(token: bytes) -> None:
    with pytest.raises(LocalProtocolError, match=rf"token has {len(token)} bytes, expected 32"):
        client_hello(token=token)


@pytest.mark.parametrize("mode", [-1, 8, 255])
def test_mode_that_no_dialect_knows_is_refused(mode: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"mode is {mode}, expected 0 to 7"):
        client_hello(mode=mode)


@pytest.mark.parametrize("field", ["port_start", "port_end"])
@pytest.mark.parametrize("port", [-1, 65536])
def test_port_range_outside_16_bits_is_refused(field: str, port: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"{field} is {port}, expected 0 to 65535"):
        client_hello(**{field: port})


def test_inverted_port_range_is_well_formed() -> None:
    hello = client_hello(port_start=9, port_end=3)
    assert (hello.port_start, hello.port_end) == (9, 3)


def test_the_token_is_never_printed() -> None:
    secret = b"correct horse battery staple 32!"
    for text in (repr(client_hello(token=secret)), str(client_hello(token=secret))):
        assert "token" not in text
        assert "correct" not in text
        assert secret.hex() not in text
        assert str(USER) in text
    with pytest.raises(LocalProtocolError) as failure:
        client_hello(token=secret + b"!")
    assert "correct" not in str(failure.value)


def test_commands_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        client_hello().mode = 1  # type: ignore[misc]
    assert not hasattr(client_hello(), "__dict__")


def test_server_hello_has_a_port_exactly_on_success() -> None:
    with pytest.raises(LocalProtocolError, match="without a port"):
        ServerHello(ServerHelloCode.SUCCESS)
    with pytest.raises(LocalProtocolError, match="AUTH_FAILED with port 5"):
        ServerHello(ServerHelloCode.AUTH_FAILED, 5)
    with pytest.raises(LocalProtocolError, match="port is 65536"):
        ServerHello(ServerHelloCode.SUCCESS, 65536)


@pytest.mark.parametrize(
    ("field", "greatest"), [("assoc_id", 65535), ("pkt_id", 65535), ("frag_total", 255), ("frag_id", 255)]
)
def test_packet_numbers_outside_their_width_are_refused(field: str, greatest: int) -> None:
    assert getattr(packet(**{field: greatest}), field) == greatest
    for value in (-1, greatest + 1):
        with pytest.raises(LocalProtocolError, match=f"{field} is {value}, expected 0 to {greatest}"):
            packet(**{field: value})


def test_packet_payload_must_fit_the_size_field() -> None:
    assert packet(payload=bytes(65535)).size == 65535
    with pytest.raises(LocalProtocolError, match="size is 65536"):
        packet(payload=bytes(65536))


def test_packet_payload_is_not_printed() -> None:
    assert "cookie" not in repr(packet(payload=b"cookie=1"))


def test_dissociate_needs_a_16_bit_id() -> None:
    with pytest.raises(LocalProtocolError, match="assoc_id is 65536"):
        Dissociate(65536)


def test_address_equality_is_that_of_the_wire() -> None:
    assert PEER_IPV4 != PEER_MAPPED
    assert Address.from_text("2001:DB8:0::1", 1) == Address.from_text("2001:db8::1", 1)
    zoned = Address.from_text("fe80::1%eth0", 1)
    assert zoned == Address(IPv6Address("fe80::1"), 1)
    assert hash(zoned) == hash(Address.from_text("fe80::1%lo", 1))


def test_address_from_bad_text_is_refused() -> None:
    for host in ("example.net", "", "1.2.3", "[::1]"):
        with pytest.raises(LocalProtocolError, match="expected an IPv4 or IPv6 literal"):
            Address.from_text(host, 1)
    with pytest.raises(LocalProtocolError, match="port is 70000"):
        Address.from_text("192.0.2.1", 70000)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("192.0.2.1", "192.0.2.1:53"),
        ("2001:db8:0:0:0:0:0:1", "[2001:db8::1]:53"),
        ("::ffff:c000:201", "192.0.2.1:53"),
    ],
)
def test_address_as_text(host: str, text: str) -> None:
    assert str(Address.from_text(host, 53)) == text

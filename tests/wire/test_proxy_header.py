"""PROXY headers, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from asport_sync.errors import LocalProtocolError
from asport_sync.wire import Address
from asport_sync.wire.proxy_header import own_header, tcp_header, udp_header

from .strategies import addresses
from .vectors import PEER_IPV4, PEER_MAPPED

LOCAL_IPV4 = Address.from_text("127.0.0.1", 2024)
LOCAL_IPV6 = Address.from_text("::1", 2024)
LOCAL_MAPPED = Address.from_text("::ffff:127.0.0.1", 2024)
PEER_IPV6 = Address.from_text("2001:db8::1", 443)

SIGNATURE = "0d0a0d0a000d0a515549540a"
MAPPED_HEX = "00000000000000000000ffffcb007107"


def test_known_headers() -> None:
    assert (
        tcp_header(1, PEER_IPV4, LOCAL_IPV4).hex()
        == "50524f58592054435034203230332e302e3131332e37203132372e302e302e3120353433323120323032340d0a"
    )
    assert tcp_header(2, PEER_IPV4, LOCAL_IPV4).hex() == SIGNATURE + "2111000ccb0071077f000001d43107e8"
    assert udp_header(PEER_IPV4, LOCAL_IPV4).hex() == SIGNATURE + "2112000ccb0071077f000001d43107e8"
    both_ipv6 = "20010db8" + "00" * 11 + "01" + "00" * 10 + "ffff7f000001" + "01bb07e8"
    assert tcp_header(2, PEER_IPV6, LOCAL_IPV4).hex() == SIGNATURE + "21210024" + both_ipv6
    assert udp_header(PEER_IPV6, LOCAL_IPV4).hex() == SIGNATURE + "21220024" + both_ipv6


def test_the_header_of_a_connection_of_our_own_names_nobody() -> None:
    assert own_header(1) == b"PROXY UNKNOWN\r\n"
    assert own_header(2).hex() == SIGNATURE + "20000000"
    with pytest.raises(LocalProtocolError, match="expected 1 or 2"):
        own_header(3)


@pytest.mark.parametrize(
    ("source", "destination", "text"),
    [
        (PEER_IPV4, LOCAL_IPV4, b"PROXY TCP4 203.0.113.7 127.0.0.1 54321 2024\r\n"),
        (PEER_IPV6, LOCAL_IPV6, b"PROXY TCP6 2001:db8::1 ::1 443 2024\r\n"),
        (PEER_IPV4, LOCAL_IPV6, b"PROXY TCP6 ::ffff:203.0.113.7 ::1 54321 2024\r\n"),
        (PEER_MAPPED, LOCAL_IPV4, b"PROXY TCP4 203.0.113.7 127.0.0.1 54321 2024\r\n"),
        (PEER_MAPPED, LOCAL_MAPPED, b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:127.0.0.1 54321 2024\r\n"),
        (PEER_IPV6, LOCAL_IPV4, b"PROXY TCP6 2001:db8::1 ::ffff:127.0.0.1 443 2024\r\n"),
    ],
)
def test_version_1(source: Address, destination: Address, text: bytes) -> None:
    assert tcp_header(1, source, destination) == text


@pytest.mark.parametrize(
    ("source", "destination", "family", "rest"),
    [
        (PEER_IPV6, LOCAL_IPV6, 2, "0024" + "20010db8" + "00" * 11 + "01" + "00" * 15 + "01" + "01bb07e8"),
        (PEER_IPV4, LOCAL_IPV6, 2, "0024" + MAPPED_HEX + "00" * 15 + "01" + "d43107e8"),
        (PEER_MAPPED, LOCAL_IPV4, 1, "000c" + "cb007107" + "7f000001" + "d43107e8"),
        (PEER_MAPPED, LOCAL_MAPPED, 2, "0024" + MAPPED_HEX + "00000000000000000000ffff7f000001" + "d43107e8"),
        (PEER_IPV6, LOCAL_IPV4, 2, "0024" + "20010db8" + "00" * 11 + "01" + "00" * 10 + "ffff7f000001" + "01bb07e8"),
    ],
)
def test_version_2(source: Address, destination: Address, family: int, rest: str) -> None:
    assert tcp_header(2, source, destination).hex() == f"{SIGNATURE}21{family}1{rest}"
    assert udp_header(source, destination).hex() == f"{SIGNATURE}21{family}2{rest}"


def test_unknown_source_is_refused() -> None:
    for version in (1, 2):
        with pytest.raises(LocalProtocolError, match="needs the visitor's address"):
            tcp_header(version, None, LOCAL_IPV4)
    with pytest.raises(LocalProtocolError, match="needs the visitor's address"):
        udp_header(None, LOCAL_IPV4)


@pytest.mark.parametrize("version", [0, 3])
def test_unknown_version_is_refused(version: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"version is {version}, expected 1 or 2"):
        tcp_header(version, PEER_IPV4, LOCAL_IPV4)


@settings(deadline=None)
@given(addresses, addresses)
def test_shape_for_any_pair(source: Address, destination: Address) -> None:
    text = tcp_header(1, source, destination)
    assert text.endswith(b"\r\n")
    assert len(text) <= 107  # the limit in HAProxy's specification
    for header in (tcp_header(2, source, destination), udp_header(source, destination)):
        assert len(header) == 16 + int.from_bytes(header[14:16], "big")
        assert (header[13] >> 4 == 1) == text.startswith(b"PROXY TCP4 ")
        assert (header[13] >> 4 == 2) == text.startswith(b"PROXY TCP6 ")

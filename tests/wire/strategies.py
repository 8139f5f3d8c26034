"""Hypothesis strategies for wire values."""

from __future__ import annotations

from hypothesis import strategies as st

from asport_sync.wire import (
    Address,
    ClientHello,
    Command,
    Connect,
    Dissociate,
    Heartbeat,
    Packet,
    ServerHello,
    ServerHelloCode,
)

uint8 = st.integers(0, 0xFF)
uint16 = st.integers(0, 0xFFFF)

addresses: st.SearchStrategy[Address] = st.builds(Address, st.ip_addresses(), uint16)
optional_addresses: st.SearchStrategy[Address | None] = st.none() | addresses

client_hellos: st.SearchStrategy[ClientHello] = st.builds(
    ClientHello, st.uuids(), st.binary(min_size=32, max_size=32), st.integers(0, 7), uint16, uint16
)
server_hellos: st.SearchStrategy[ServerHello] = st.one_of(
    st.builds(ServerHello, st.just(ServerHelloCode.SUCCESS), uint16),
    st.builds(ServerHello, st.sampled_from([code for code in ServerHelloCode if code is not ServerHelloCode.SUCCESS])),
)
packets: st.SearchStrategy[Packet] = st.builds(
    Packet, uint16, uint16, uint8, uint8, optional_addresses, st.binary(max_size=40)
)

commands: st.SearchStrategy[Command] = st.one_of(
    client_hellos,
    server_hellos,
    st.builds(Connect, optional_addresses),
    packets,
    st.builds(Dissociate, uint16),
    st.builds(Heartbeat),
)

# Arbitrary bytes rarely get past the first two; the second half starts like a command.
wire_bytes: st.SearchStrategy[bytes] = st.binary(max_size=80) | st.builds(
    lambda command_type, rest: bytes([0, command_type]) + rest, st.integers(0, 6), st.binary(max_size=80)
)


@st.composite
def chunked(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """``data`` cut at random places, empty pieces included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

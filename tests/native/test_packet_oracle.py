"""Holds the C codec of Connect, Packets and fragments (packet.c) against the Python one (``asport_sync.wire``)."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asport_sync.errors import LocalProtocolError
from asport_sync.wire import codec
from asport_sync.wire.commands import Address, Connect, Packet
from tests.native.oracle import (
    LIFETIME,
    Native,
    NativeAssembler,
    expected_answer,
    load,
    same_decision,
    same_packet,
    same_plan,
)
from tests.support.compiling import NoCompiler
from tests.wire import fragments

RANDOM_INPUTS = 20_000


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    try:
        return load(tmp_path_factory.mktemp("packet"))
    except NoCompiler as problem:
        pytest.skip(str(problem))


# --- inputs ----------------------------------------------------------------------------------------------------------

addresses = st.builds(Address, st.ip_addresses(), st.integers(0, 65535))
packets = st.builds(
    Packet,
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.integers(0, 255),
    st.integers(0, 255),
    st.none() | addresses,
    st.binary(max_size=100),
)


def _bytes_like_commands(generator: random.Random) -> bytes:
    """Bytes that get past the first checks often enough to reach every later one."""
    data = bytearray(generator.randbytes(generator.randrange(70)))
    if data and generator.random() < 0.95:
        data[0] = 0
    if len(data) > 1 and generator.random() < 0.95:
        data[1] = generator.randrange(7)
    for offset, values in ((2, [0, 1, 4, 5, 255]), (10, [1, 4, 255, 2]), (50, [0, 3, 7, 8])):
        if len(data) > offset and generator.random() < 0.8:
            data[offset] = generator.choice(values)
    return bytes(data)


# --- commands --------------------------------------------------------------------------------------------------------


def test_random_bytes(native: Native) -> None:
    generator = random.Random(1)
    accepted = packets_seen = 0
    for _ in range(RANDOM_INPUTS):
        data = _bytes_like_commands(generator)
        if len(data) > 9 and data[1] == 3 and generator.random() < 0.5:
            data = data[:8] + generator.randrange(40).to_bytes(2, "big") + data[10:]  # a size that may be there
        accepted += same_decision(native, data)
        packets_seen += same_packet(native, data)
    assert accepted > RANDOM_INPUTS // 20
    assert packets_seen > RANDOM_INPUTS // 100


@given(data=st.binary(max_size=70))
def test_any_bytes(native: Native, data: bytes) -> None:
    same_decision(native, data)
    same_packet(native, data)


@given(packet=packets, cut=st.integers(0, 130), trailing=st.binary(max_size=5))
def test_packets(native: Native, packet: Packet, cut: int, trailing: bytes) -> None:
    data = codec.encode(packet)
    assert native.encode(packet) + packet.payload == data
    assert same_decision(native, data + trailing)
    assert same_packet(native, data + trailing)
    same_decision(native, data[:cut])
    same_packet(native, data[:cut])


@given(source=addresses, trailing=st.binary(max_size=5))
def test_connects(native: Native, source: Address, trailing: bytes) -> None:
    data = codec.encode(Connect(source))
    assert native.encode_connect(source) == data
    assert codec.decode(native.encode_connect(source)) == (Connect(source), len(data))
    assert native.decode_connect(data + trailing) == source


def test_connect_without_an_address(native: Native) -> None:
    assert native.decode_connect(codec.encode(Connect(None))) is None


# --- fragments -------------------------------------------------------------------------------------------------------


IPV4 = Address(ipaddress.IPv4Address("192.0.2.1"), 53)
IPV6 = Address(ipaddress.IPv6Address("2001:db8::1"), 53)


@pytest.mark.parametrize("address", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_small_plans(native: Native, address: Address) -> None:
    planned = sum(same_plan(native, limit, address, payload) for limit in range(60) for payload in range(300))
    assert 0 < planned < 60 * 300


@settings(max_examples=500)
@given(limit=st.integers(0, 70000), payload=st.integers(0, 70000), address=st.sampled_from([IPV4, IPV6]))
def test_plans(native: Native, limit: int, payload: int, address: Address) -> None:
    same_plan(native, limit, address, payload)


@given(
    limit=st.integers(30, 2000),
    fragments_=st.integers(1, 256),
    more=st.integers(-1, 1),
    address=st.sampled_from([IPV4, IPV6]),
)
def test_plans_at_the_edges(native: Native, limit: int, fragments_: int, more: int, address: Address) -> None:
    """Payloads that fill their last fragment to the brim, and one byte more or less."""
    first = limit - fragments.header_length(address)
    same_plan(native, limit, address, max(0, first + (fragments_ - 1) * (limit - 11) + more))


@pytest.mark.parametrize("seed", range(5))
def test_reassembly(native: Native, seed: int) -> None:
    """The same fragments, good and bad, give the same answers in the same order, for as long as one likes."""
    generator = random.Random(seed)
    max_packets, max_bytes = generator.choice([(3, 65535), (20, 65535), (4, 200_000)])
    python = fragments.Reassembler(max_packets, max_bytes, LIFETIME)
    assembler = NativeAssembler(native, max_packets, max_bytes)
    completed = refused = now = 0
    try:
        for _ in range(4000):
            now += generator.randrange(40)
            total = generator.choice([0, 1, 2, 2, 2, 3, 3, 255])
            index = generator.randrange(max(total, 1) + (generator.random() < 0.1)) % 256
            has_address = (index == 0) != (generator.random() < 0.05)
            size = generator.choice([0, 1, 20, 1000, 30000, 65535]) if generator.random() < 0.3 else 10
            packet = Packet(
                generator.randrange(3),
                generator.randrange(4),
                total,
                index,
                generator.choice([IPV4, IPV6]) if has_address else None,
                generator.randbytes(size),
            )
            answer = python.add(packet, float(now))
            assert assembler.add(packet, now) == expected_answer(native, answer)
            assert (assembler.next_expiry(now) == 2**64 - 1) == (python.pending_packets == 0)
            completed += isinstance(answer, Packet) and total > 1
            refused += isinstance(answer, fragments.DropReason)
        assert completed > 50
        assert refused > 50
        assert (
            python.drops[fragments.DropReason.TOO_MANY_PACKETS] + python.drops[fragments.DropReason.TOO_MANY_BYTES] > 0
        )
    finally:
        assembler.close()


@settings(max_examples=50)
@given(payload=st.binary(max_size=3000), limit=st.integers(30, 1500), address=addresses, order=st.randoms())
def test_cut_by_one_joined_by_the_other(
    native: Native, payload: bytes, limit: int, address: Address, order: random.Random
) -> None:
    try:
        pieces = fragments.fragment(Packet(1, 2, 1, 0, address, payload), limit)
    except LocalProtocolError:
        assert native.plan(limit, len(payload), address.ip.version == 6) is None
        return
    order.shuffle(pieces)
    assembler = NativeAssembler(native, 1, 65535)
    try:
        for piece in pieces[:-1]:
            assert assembler.add(piece, 0) == native.lib.AQ_ASSEMBLY_PENDING
        assert assembler.add(pieces[-1], 0) == (payload, Address(address.ip, address.port))
    finally:
        assembler.close()

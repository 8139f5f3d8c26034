"""Holds the C codec of Connect, Packets and fragments (packet.c) against the Python one (``asport_sync.wire``).

The C file is compiled into a shared object of its own, so that this needs no built extension.
"""

from __future__ import annotations

import ipaddress
import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire import codec, fragments
from asport_sync.wire.commands import Address, Connect, Packet

NATIVE = Path(__file__).resolve().parents[2] / "asport_sync" / "_native"
RANDOM_INPUTS = 20_000
LIFETIME = 1000

Assembled = tuple[bytes, Address]


class Native:
    """packet.c, loaded."""

    def __init__(self, library: Path) -> None:
        self.ffi: Any = cffi.FFI()  # what it hands out has the types of the headers, which no stub knows
        for header in ("aq_api.h", "packet.h"):
            text = (NATIVE / header).read_text()
            self.ffi.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
        self.lib: Any = self.ffi.dlopen(str(library))

    def command_length(self, data: bytes) -> int | str | None:
        """The length, None for "more bytes", or the problem."""
        problem = self.ffi.new("const char **")
        length: int = self.lib.aq_command_length(data, len(data), problem)
        if length < 0:
            text: bytes = self.ffi.string(problem[0])
            return text.decode()
        return length or None

    def decode(self, data: bytes) -> tuple[int, Any]:
        header = self.ffi.new("aq_packet_header *")
        problem = self.ffi.new("const char **")
        return self.lib.aq_packet_decode(data, len(data), header, problem), header

    def encode(self, packet: Packet) -> bytes:
        out = self.ffi.new("uint8_t[]", 64)
        address = self.ffi.NULL if packet.address is None else self.to_native(packet.address)
        length = self.lib.aq_packet_encode(
            out, packet.assoc_id, packet.pkt_id, packet.frag_total, packet.frag_id, packet.size, address
        )
        return bytes(self.ffi.buffer(out, length))

    def encode_connect(self, source: Address) -> bytes:
        out = self.ffi.new("uint8_t[]", 64)
        length = self.lib.aq_connect_encode(out, self.to_native(source))
        return bytes(self.ffi.buffer(out, length))

    def decode_connect(self, data: bytes) -> Address | None:
        source = self.ffi.new("aq_address *")
        source.port = source.scope = 4711  # whatever was there is gone
        self.lib.aq_connect_decode(data, source)
        assert source.scope == 0
        if source.family == 0:
            assert source.port == 0
            return None
        return self.from_native(source)

    def to_native(self, address: Address) -> Any:
        result = self.ffi.new("aq_address *")
        result.family = address.ip.version
        packed = address.ip.packed
        self.ffi.memmove(result.ip, packed, len(packed))
        result.port = address.port
        return result

    def from_native(self, address: Any) -> Address:
        length = {4: 4, 6: 16}[address.family]
        ip = ipaddress.ip_address(bytes(self.ffi.buffer(address.ip, length)))
        return Address(ip, address.port)

    def plan(self, limit: int, payload: int, ipv6: bool) -> list[int] | None:
        """The payload bytes of every fragment, as fragments.plan() gives them; None where there is no plan."""
        first, rest = self.ffi.new("size_t *"), self.ffi.new("size_t *")
        count = self.lib.aq_fragment_plan(limit, payload, ipv6, first, rest)
        if count == 0:
            return None
        lengths = [first[0]] + [rest[0]] * (count - 2)
        return [*lengths, payload - sum(lengths)] if count > 1 else lengths


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no C compiler: {command[0]} is not there")
    library = tmp_path_factory.mktemp("packet") / "packet.so"
    source = NATIVE / "packet.c"
    subprocess.run(
        [*command, "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{NATIVE}", str(source), "-o", str(library)],
        check=True,
        timeout=120,
    )
    return Native(library)


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


def _same_decision(native: Native, data: bytes) -> bool:
    """Both codecs say the same about a command; returns whether they accept it."""
    try:
        _, consumed = codec.decode(data)
    except RemoteProtocolError:
        accepted = False
    else:
        accepted = True

    length = native.command_length(data)
    if isinstance(length, str):
        assert not accepted, f"refused by C only ({length})"
        return False
    try:
        assert codec.command_length(data) == length
        payload = codec.payload_length(data)
    except RemoteProtocolError as error:
        pytest.fail(f"refused by Python only ({error})")
    if length is None or len(data) < length:
        assert not accepted
        return False

    assert payload is not None
    assert accepted == (len(data) >= length + payload)
    if accepted:
        assert consumed == length + payload
    return accepted


def _same_packet(native: Native, data: bytes) -> bool:
    """What C reads from a Packet is what Python reads; returns whether there was one."""
    result, header = native.decode(data)
    if result != 1 or len(data) < header.header + header.size:
        return False
    packet, consumed = codec.decode(data)
    assert isinstance(packet, Packet)
    assert header.header + header.size == consumed
    assert header.header == codec.command_length(data)
    assert (header.association, header.packet) == (packet.assoc_id, packet.pkt_id)
    assert (header.total, header.index) == (packet.frag_total, packet.frag_id)
    assert header.size == packet.size
    assert bool(header.has_address) == (packet.address is not None)
    if packet.address is not None:
        assert native.from_native(header.address) == packet.address
    assert native.encode(packet) == data[: header.header]
    return True


def test_random_bytes(native: Native) -> None:
    generator = random.Random(1)
    accepted = packets_seen = 0
    for _ in range(RANDOM_INPUTS):
        data = _bytes_like_commands(generator)
        if len(data) > 9 and data[1] == 3 and generator.random() < 0.5:
            data = data[:8] + generator.randrange(40).to_bytes(2, "big") + data[10:]  # a size that may be there
        accepted += _same_decision(native, data)
        packets_seen += _same_packet(native, data)
    assert accepted > RANDOM_INPUTS // 20
    assert packets_seen > RANDOM_INPUTS // 100


@given(data=st.binary(max_size=70))
def test_any_bytes(native: Native, data: bytes) -> None:
    _same_decision(native, data)
    _same_packet(native, data)


@given(packet=packets, cut=st.integers(0, 130), trailing=st.binary(max_size=5))
def test_packets(native: Native, packet: Packet, cut: int, trailing: bytes) -> None:
    data = codec.encode(packet)
    assert native.encode(packet) == codec.encode_packet_header(packet)
    assert _same_decision(native, data + trailing)
    assert _same_packet(native, data + trailing)
    _same_decision(native, data[:cut])
    _same_packet(native, data[:cut])


@given(source=addresses, trailing=st.binary(max_size=5))
def test_connects(native: Native, source: Address, trailing: bytes) -> None:
    data = codec.encode(Connect(source))
    assert native.encode_connect(source) == data
    assert codec.decode(native.encode_connect(source)) == (Connect(source), len(data))
    assert native.decode_connect(data + trailing) == source


def test_connect_without_an_address(native: Native) -> None:
    assert native.decode_connect(codec.encode(Connect(None))) is None


# --- fragments -------------------------------------------------------------------------------------------------------


def _same_plan(native: Native, limit: int, address: Address, payload: int) -> bool:
    """Both cut alike; returns whether it can be cut at all."""
    try:
        expected = fragments.plan(limit, address, payload)
    except LocalProtocolError:
        expected = None
    assert native.plan(limit, payload, address.ip.version == 6) == expected
    return expected is not None


IPV4 = Address(ipaddress.IPv4Address("192.0.2.1"), 53)
IPV6 = Address(ipaddress.IPv6Address("2001:db8::1"), 53)


@pytest.mark.parametrize("address", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_small_plans(native: Native, address: Address) -> None:
    planned = sum(_same_plan(native, limit, address, payload) for limit in range(60) for payload in range(300))
    assert 0 < planned < 60 * 300


@settings(max_examples=500)
@given(limit=st.integers(0, 70000), payload=st.integers(0, 70000), address=st.sampled_from([IPV4, IPV6]))
def test_plans(native: Native, limit: int, payload: int, address: Address) -> None:
    _same_plan(native, limit, address, payload)


@given(
    limit=st.integers(30, 2000),
    fragments_=st.integers(1, 256),
    more=st.integers(-1, 1),
    address=st.sampled_from([IPV4, IPV6]),
)
def test_plans_at_the_edges(native: Native, limit: int, fragments_: int, more: int, address: Address) -> None:
    """Payloads that fill their last fragment to the brim, and one byte more or less."""
    first = limit - 10 - codec.address_length(address)
    _same_plan(native, limit, address, max(0, first + (fragments_ - 1) * (limit - 11) + more))


class NativeAssembler:
    """The C assembler, with the interface of the Python one as far as it is compared."""

    def __init__(self, native: Native, max_packets: int, max_bytes: int) -> None:
        self._native = native
        self._assembler = native.lib.aq_assembler_new(max_packets, max_bytes, LIFETIME)
        assert self._assembler != native.ffi.NULL

    def close(self) -> None:
        self._native.lib.aq_assembler_free(self._assembler)

    def add(self, packet: Packet, now: int) -> Assembled | int:
        native = self._native
        data = native.encode(packet) + packet.payload
        result, header = native.decode(data)
        assert result == 1
        payload = native.ffi.new("uint8_t[]", packet.payload)
        out = native.ffi.new("aq_assembled *")
        added: int = native.lib.aq_assembler_add(self._assembler, header, payload, now, out)
        if added != native.lib.AQ_ASSEMBLY_COMPLETE:
            return added
        return bytes(native.ffi.buffer(out.payload, out.length)), native.from_native(out.address)

    def forget(self, assoc_id: int) -> None:
        self._native.lib.aq_assembler_forget(self._assembler, assoc_id)

    def next_expiry(self, now: int) -> int:
        end: int = self._native.lib.aq_assembler_expire(self._assembler, now)
        return end


def _expected_answer(native: Native, answer: Packet | fragments.DropReason | None) -> Assembled | int:
    if answer is None:
        pending: int = native.lib.AQ_ASSEMBLY_PENDING
        return pending
    if isinstance(answer, Packet):
        assert answer.address is not None
        return answer.payload, answer.address
    result: int = {
        fragments.DropReason.DUPLICATE: native.lib.AQ_ASSEMBLY_DUPLICATE,
        fragments.DropReason.TOO_LONG: native.lib.AQ_ASSEMBLY_TOO_BIG,
    }.get(answer, native.lib.AQ_ASSEMBLY_BAD)
    return result


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
            if generator.random() < 0.01:
                assoc_id = generator.randrange(3)
                python.forget(assoc_id)
                assembler.forget(assoc_id)
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
            assert assembler.add(packet, now) == _expected_answer(native, answer)
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

"""packet.c beside the Python codec: both asked the same question, and the answers held against each other.

The C file is compiled into a shared object of its own, so that this needs no built extension.
"""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path
from typing import Any

import cffi

from asport_sync.errors import LocalProtocolError, RemoteProtocolError
from asport_sync.wire import codec
from asport_sync.wire.commands import Address, Packet
from tests.support.compiling import compiler
from tests.wire import fragments

NATIVE = Path(__file__).resolve().parents[2] / "asport_sync" / "_native"
LIFETIME = 1000

Assembled = tuple[bytes, Address]


class Native:
    """packet.c, loaded."""

    def __init__(self, library: Path) -> None:
        self.ffi: Any = cffi.FFI()  # what it hands out has the types of the headers, which no stub knows
        for header in ("aq_api.h", "tunnel/packet.h"):
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


def load(folder: Path) -> Native:
    """Compile packet.c into ``folder`` and load it.

    Raises:
        NoCompiler: There is none.
    """
    library = folder / "packet.so"
    source = NATIVE / "tunnel/packet.c"
    subprocess.run(
        [*compiler(), "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{NATIVE}", str(source), "-o", str(library)],
        check=True,
        timeout=120,
    )
    return Native(library)


# --- commands ---------------------------------------------------------------------------------------------------------


def same_decision(native: Native, data: bytes) -> bool:
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
        raise AssertionError(f"refused by Python only ({error})") from error
    if length is None or len(data) < length:
        assert not accepted
        return False

    assert payload is not None
    assert accepted == (len(data) >= length + payload)
    if accepted:
        assert consumed == length + payload
    return accepted


def same_packet(native: Native, data: bytes) -> bool:
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


# --- fragments --------------------------------------------------------------------------------------------------------


def same_plan(native: Native, limit: int, address: Address, payload: int) -> bool:
    """Both cut alike; returns whether it can be cut at all."""
    try:
        expected = fragments.plan(limit, address, payload)
    except LocalProtocolError:
        expected = None
    assert native.plan(limit, payload, address.ip.version == 6) == expected
    return expected is not None


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

    def next_expiry(self, now: int) -> int:
        end: int = self._native.lib.aq_assembler_expire(self._assembler, now)
        return end


def expected_answer(native: Native, answer: Packet | fragments.DropReason | None) -> Assembled | int:
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

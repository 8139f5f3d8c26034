"""Encodes and decodes commands (ASPORT draft, "Command"; all integers big endian).

``decode`` is for a carrier that delivers a command whole, a QUIC DATAGRAM frame or a stream read to its end: missing
bytes are an error of the peer. It leaves the bytes after the command to the caller, which ignores them (DATAGRAM) or
treats them as application data (Connect). ``command_length`` and ``payload_length`` tell how long a command is that is
still arriving.

Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias
from uuid import UUID

from asport_sync.errors import RemoteProtocolError
from asport_sync.hidden import HiddenBytes
from asport_sync.wire.commands import (
    MAX_MODE,
    TOKEN_LENGTH,
    VERSION,
    Address,
    AddressFamily,
    ClientHello,
    Command,
    CommandType,
    Connect,
    Dissociate,
    Heartbeat,
    Packet,
    ServerHello,
    ServerHelloCode,
)

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Input types of the decoding functions. A memoryview must have single-byte items."""

_COMMAND = struct.Struct(">BB")  # version, type
_CLIENT_HELLO = struct.Struct(f">16s{TOKEN_LENGTH}sBHH")  # uuid, token, mode, start and end of the expected port range
_PORT = struct.Struct(">H")
_PACKET = struct.Struct(">HHBBH")  # assoc_id, pkt_id, frag_total, frag_id, size
_ASSOC_ID = struct.Struct(">H")

_COMMAND_NAMES = {
    CommandType.CLIENT_HELLO: "ClientHello",
    CommandType.SERVER_HELLO: "ServerHello",
    CommandType.CONNECT: "Connect",
    CommandType.PACKET: "Packet",
    CommandType.DISSOCIATE: "Dissociate",
    CommandType.HEARTBEAT: "Heartbeat",
}

_ADDRESS_LENGTHS = {
    AddressFamily.IPV4: 1 + 4 + _PORT.size,
    AddressFamily.IPV6: 1 + 16 + _PORT.size,
    AddressFamily.NONE: 1,  # neither address nor port
}

_PACKET_FIXED_LENGTH = _COMMAND.size + _PACKET.size  # the bytes of a Packet before its address

# --- encoding --------------------------------------------------------------------------------------------------------


def encode(command: Command) -> bytes:
    """Returns the bytes of a command, including the payload of a Packet."""
    prefix = _COMMAND.pack(VERSION, command.command_type)
    if isinstance(command, Packet):
        numbers = command.assoc_id, command.pkt_id, command.frag_total, command.frag_id, command.size
        return prefix + _PACKET.pack(*numbers) + _encode_address(command.address) + command.payload
    if isinstance(command, ClientHello):
        fields = command.uuid.bytes, command.token, command.mode, command.port_start, command.port_end
        return HiddenBytes(prefix + _CLIENT_HELLO.pack(*fields))
    if isinstance(command, ServerHello):
        port = b"" if command.port is None else _PORT.pack(command.port)
        return prefix + bytes([command.code]) + port
    if isinstance(command, Connect):
        return prefix + _encode_address(command.address)
    if isinstance(command, Dissociate):
        return prefix + _ASSOC_ID.pack(command.assoc_id)
    return prefix  # Heartbeat


def _family(address: Address | None) -> AddressFamily:
    if address is None:
        return AddressFamily.NONE
    return AddressFamily.IPV4 if isinstance(address.ip, IPv4Address) else AddressFamily.IPV6


def _encode_address(address: Address | None) -> bytes:
    family = bytes([_family(address)])
    return family if address is None else family + address.ip.packed + _PORT.pack(address.port)


# --- lengths ---------------------------------------------------------------------------------------------------------


def command_length(prefix: Buffer) -> int | None:
    """Returns the length in bytes of the command that starts with ``prefix``, without the payload of a Packet.

    Args:
        prefix: The first bytes of a command; 11 always suffice.

    Returns:
        The length, or None if more bytes are needed.

    Raises:
        RemoteProtocolError: Unknown version, command type, ServerHello code or address family. Raised as soon as the
            byte is present.
    """
    command_type = _command_type(prefix)
    if command_type is None:
        return None
    body = _COMMAND.size
    if command_type is CommandType.CLIENT_HELLO:
        return body + _CLIENT_HELLO.size
    if command_type is CommandType.DISSOCIATE:
        return body + _ASSOC_ID.size
    if command_type is CommandType.HEARTBEAT:
        return body
    if command_type is CommandType.SERVER_HELLO:
        if len(prefix) <= body:
            return None
        return body + 1 + (_PORT.size if _server_hello_code(prefix[body]) is ServerHelloCode.SUCCESS else 0)
    address_offset = body if command_type is CommandType.CONNECT else _PACKET_FIXED_LENGTH
    if len(prefix) <= address_offset:
        return None
    return address_offset + _ADDRESS_LENGTHS[_address_family(prefix[address_offset])]


def payload_length(prefix: Buffer) -> int | None:
    """Returns the bytes of payload after ``command_length`` bytes: the size field of a Packet, 0 for other commands.

    Returns:
        The length, or None if more bytes are needed (10 suffice).

    Raises:
        RemoteProtocolError: Unknown version or command type.
    """
    command_type = _command_type(prefix)
    if command_type is None:
        return None
    if command_type is not CommandType.PACKET:
        return 0
    if len(prefix) < _PACKET_FIXED_LENGTH:
        return None
    size: int = _PACKET.unpack_from(prefix, _COMMAND.size)[-1]
    return size


def _command_type(prefix: Buffer) -> CommandType | None:
    if len(prefix) > 0 and prefix[0] != VERSION:
        raise RemoteProtocolError(f"ASPORT version is {prefix[0]}, expected {VERSION}")
    if len(prefix) < _COMMAND.size:
        return None
    try:
        return CommandType(prefix[1])
    except ValueError:
        raise RemoteProtocolError(f"command type is {prefix[1]}, expected 0 to {max(CommandType)}") from None


def _server_hello_code(value: int) -> ServerHelloCode:
    try:
        return ServerHelloCode(value)
    except ValueError:
        raise RemoteProtocolError(f"ServerHello code is {value}, expected 0 to {max(ServerHelloCode)}") from None


def _address_family(value: int) -> AddressFamily:
    try:
        return AddressFamily(value)
    except ValueError:
        raise RemoteProtocolError(f"address family is {value}, expected 1 (IPv4), 4 (IPv6) or 255 (none)") from None


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(data: Buffer) -> tuple[Command, int]:
    """Decodes the command at the start of ``data``, which must contain all of its bytes.

    Args:
        data: A datagram, or a stream's bytes up to its end.

    Returns:
        The command and its length in bytes, including a Packet's payload. The bytes after it are not examined.

    Raises:
        RemoteProtocolError: The bytes are not a command, or only a part of one.
    """
    header = command_length(data)
    if header is None or len(data) < header:
        raise RemoteProtocolError(_truncated(data, header))
    consumed = header + (payload_length(data) or 0)
    if len(data) < consumed:
        found, size = len(data) - header, consumed - header
        raise RemoteProtocolError(f"Packet payload is truncated: found {found} bytes, expected {size} (size field)")

    body = _COMMAND.size
    command_type = CommandType(data[1])
    if command_type is CommandType.PACKET:
        assoc_id, pkt_id, frag_total, frag_id, _ = _PACKET.unpack_from(data, body)
        address = _decode_address(data, _PACKET_FIXED_LENGTH)
        return Packet(assoc_id, pkt_id, frag_total, frag_id, address, bytes(data[header:consumed])), consumed
    if command_type is CommandType.CLIENT_HELLO:
        return _decode_client_hello(data), consumed
    if command_type is CommandType.SERVER_HELLO:
        code = ServerHelloCode(data[body])
        port = _PORT.unpack_from(data, body + 1)[0] if code is ServerHelloCode.SUCCESS else None
        return ServerHello(code, port), consumed
    if command_type is CommandType.CONNECT:
        return Connect(_decode_address(data, body)), consumed
    if command_type is CommandType.DISSOCIATE:
        return Dissociate(*_ASSOC_ID.unpack_from(data, body)), consumed
    return Heartbeat(), consumed


def _truncated(data: Buffer, expected: int | None) -> str:
    if len(data) < _COMMAND.size:
        return f"command is truncated: found {len(data)} bytes, expected at least {_COMMAND.size}"
    name = _COMMAND_NAMES[CommandType(data[1])]
    wanted = "more" if expected is None else str(expected)
    return f"{name} is truncated: found {len(data)} bytes, expected {wanted}"


def _decode_client_hello(data: Buffer) -> ClientHello:
    uuid, token, mode, port_start, port_end = _CLIENT_HELLO.unpack_from(data, _COMMAND.size)
    token = HiddenBytes(token)
    if mode > MAX_MODE:
        raise RemoteProtocolError(f"ClientHello mode is {mode}, expected 0 to {MAX_MODE}")
    return ClientHello(UUID(bytes=uuid), token, mode, port_start, port_end)


def _decode_address(data: Buffer, offset: int) -> Address | None:
    family = AddressFamily(data[offset])
    if family is AddressFamily.NONE:
        return None
    port_offset = offset + _ADDRESS_LENGTHS[family] - _PORT.size
    packed = bytes(data[offset + 1 : port_offset])
    ip = IPv4Address(packed) if family is AddressFamily.IPV4 else IPv6Address(packed)
    return Address(ip, _PORT.unpack_from(data, port_offset)[0])

"""PROXY protocol headers (HAProxy's specification, versions 1 and 2): tell the local service who the public peer is.

Source and destination of a header must be of one family, while the public peer and the local service need not be. The
source is therefore written in the destination's family where that is possible, and the header says "unknown" where it
isn't:

===================  ===========  =======================
source               destination  written
===================  ===========  =======================
same family          same family  both as they are
IPv4                 IPv6         source as IPv4-mapped
IPv4-mapped IPv6     IPv4         source as IPv4
any other IPv6       IPv4         unknown, no addresses
===================  ===========  =======================
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from asport_sync.errors import LocalProtocolError
from asport_sync.wire.commands import Address

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_2_PROXY = 0x21  # version 2, command PROXY
_STREAM = 0x1
_DGRAM = 0x2
_AF_UNSPEC = 0x00
_AF_INET = 0x10
_AF_INET6 = 0x20
_PORTS = struct.Struct(">HH")


def tcp_header(version: int, source: Address | None, destination: Address) -> bytes:
    """The header that goes once in front of a TCP connection's data.

    Args:
        version: 1 (text) or 2 (binary).
        source: The address of the Connect command.
        destination: The local address that was connected to.

    Raises:
        LocalProtocolError: There is no such version, or the source is not known: a service that asks for the header
            would take the tunnel itself for the peer.
    """
    if version == 1:
        return _version_1(_required(source), destination)
    if version == 2:
        return _version_2(_STREAM, _required(source), destination)
    raise LocalProtocolError(f"PROXY protocol version is {version}, expected 1 or 2")


def udp_header(source: Address | None, destination: Address) -> bytes:
    """The version 2 header that goes in front of every UDP datagram to the local service. Version 1 has none for UDP.

    Args:
        source: The address of the Packet command.
        destination: The local address that the datagram goes to.

    Raises:
        LocalProtocolError: The source is not known.
    """
    return _version_2(_DGRAM, _required(source), destination)


def _required(source: Address | None) -> Address:
    if source is None:
        raise LocalProtocolError("a PROXY header needs the public peer's address, and the server sent none")
    return source


def _in_family_of(destination: Address, source: Address) -> Address | None:
    """The source in the family of the destination, or None where it has no form there."""
    if isinstance(source.ip, IPv4Address) and isinstance(destination.ip, IPv6Address):
        return Address(IPv6Address(b"\x00" * 10 + b"\xff\xff" + source.ip.packed), source.port)
    if isinstance(source.ip, IPv6Address) and isinstance(destination.ip, IPv4Address):
        mapped = source.ip.ipv4_mapped
        return None if mapped is None else Address(mapped, source.port)
    return source


def _version_1(source: Address, destination: Address) -> bytes:
    written = _in_family_of(destination, source)
    if written is None:
        return b"PROXY UNKNOWN\r\n"
    family = "TCP4" if isinstance(destination.ip, IPv4Address) else "TCP6"
    return f"PROXY {family} {written.host} {destination.host} {written.port} {destination.port}\r\n".encode("ascii")


def _version_2(transport: int, source: Address, destination: Address) -> bytes:
    written = _in_family_of(destination, source)
    if written is None:
        family, addresses = _AF_UNSPEC, b""
    else:
        family = _AF_INET if isinstance(destination.ip, IPv4Address) else _AF_INET6
        addresses = written.ip.packed + destination.ip.packed + _PORTS.pack(written.port, destination.port)
    return _SIGNATURE + struct.pack(">BBH", _VERSION_2_PROXY, family | transport, len(addresses)) + addresses

"""PROXY protocol headers (HAProxy's specification, versions 1 and 2): tell the local service the visitor's address.

They also contain the public address and port that the visitor used.

Source and destination of a header must have the same address family, but the known addresses may differ. If one is
IPv6, both are written as IPv6, the other as an IPv4-mapped address (RFC 4291 section 2.5.5.2):

===================  ===========  =========================================
source               destination  written
===================  ===========  =========================================
same family          same family  both unchanged
IPv4                 IPv6         source as IPv4-mapped
IPv4-mapped IPv6     IPv4         source as IPv4
any other IPv6       IPv4         destination as IPv4-mapped
===================  ===========  =========================================
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from asport_sync.errors import LocalProtocolError
from asport_sync.wire.commands import Address

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_2_LOCAL = 0x20  # version 2, command LOCAL
_VERSION_2_PROXY = 0x21  # version 2, command PROXY
_STREAM = 0x1
_DGRAM = 0x2
_AF_INET = 0x10
_AF_INET6 = 0x20
_PORTS = struct.Struct(">HH")


def tcp_header(version: int, source: Address | None, destination: Address) -> bytes:
    """Returns the header that precedes the data of a TCP connection.

    Args:
        version: 1 (text) or 2 (binary).
        source: The address of the Connect command.
        destination: The public address and port.

    Raises:
        LocalProtocolError: There is no such version, or the source is unknown: a service that expects the header would
            take the tunnel itself for the visitor.
    """
    if version == 1:
        return _version_1(_required(source), destination)
    if version == 2:
        return _version_2(_STREAM, _required(source), destination)
    raise _no_such(version)


def udp_header(source: Address | None, destination: Address) -> bytes:
    """Returns the version 2 header that precedes every UDP datagram to the local service. Version 1 has none for UDP.

    Args:
        source: The address of the Packet command.
        destination: The public address and port.

    Raises:
        LocalProtocolError: The source is unknown.
    """
    return _version_2(_DGRAM, _required(source), destination)


def own_header(version: int) -> bytes:
    """Returns the header of a TCP connection that this side opens for itself, such as a health check.

    Raises:
        LocalProtocolError: There is no such version.
    """
    if version == 1:
        return b"PROXY UNKNOWN\r\n"
    if version == 2:
        return _SIGNATURE + struct.pack(">BBH", _VERSION_2_LOCAL, 0, 0)
    raise _no_such(version)


def _no_such(version: int) -> LocalProtocolError:
    return LocalProtocolError(f"PROXY protocol version is {version}, expected 1 or 2")


def _required(source: Address | None) -> Address:
    if source is None:
        raise LocalProtocolError("a PROXY header needs the visitor's address, but the server sent none")
    return source


def _of_one_family(source: Address, destination: Address) -> tuple[Address, Address]:
    """Returns both addresses as the header contains them."""
    if isinstance(source.ip, IPv4Address) == isinstance(destination.ip, IPv4Address):
        return source, destination
    if isinstance(source.ip, IPv4Address):
        return _mapped(source), destination
    if isinstance(source.ip, IPv6Address) and source.ip.ipv4_mapped is not None:
        return Address(source.ip.ipv4_mapped, source.port), destination
    return source, _mapped(destination)


def _mapped(address: Address) -> Address:
    return Address(IPv6Address(b"\x00" * 10 + b"\xff\xff" + address.ip.packed), address.port)


def _version_1(source: Address, destination: Address) -> bytes:
    source, destination = _of_one_family(source, destination)
    family = "TCP4" if isinstance(source.ip, IPv4Address) else "TCP6"
    return f"PROXY {family} {source.host} {destination.host} {source.port} {destination.port}\r\n".encode("ascii")


def _version_2(transport: int, source: Address, destination: Address) -> bytes:
    source, destination = _of_one_family(source, destination)
    family = _AF_INET if isinstance(source.ip, IPv4Address) else _AF_INET6
    addresses = source.ip.packed + destination.ip.packed + _PORTS.pack(source.port, destination.port)
    return _SIGNATURE + struct.pack(">BBH", _VERSION_2_PROXY, family | transport, len(addresses)) + addresses

"""A reader of PROXY protocol headers, written from HAProxy's specification and from nothing of the package."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
LONGEST_TEXT = 107  # bytes of a version 1 header at most, its end included

_TEXT = re.compile(r"PROXY TCP([46]) (\S+) (\S+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})")
# The byte of family and transport.
_KINDS = {0x11: (4, "tcp"), 0x12: (4, "udp"), 0x21: (6, "tcp"), 0x22: (6, "udp")}


@dataclass(frozen=True)
class Header:
    """What a header says. Hosts are as ``ipaddress`` writes them, IPv4-mapped ones as the IPv4 address that they are.

    Attributes:
        version: 1 or 2.
        family: 4 or 6, of both addresses.
        transport: "tcp" or "udp".
        source: The public peer.
        destination: What it asked.
        rest: What follows the header.
    """

    version: int
    family: int
    transport: str
    source: tuple[str, int]
    destination: tuple[str, int]
    rest: bytes


def parse(data: bytes) -> Header:
    """Reads the header at the beginning of ``data``.

    Raises:
        ValueError: There is none, or it breaks the specification.
    """
    if data.startswith(SIGNATURE):
        return _binary(data)
    line, end, rest = data[:LONGEST_TEXT].partition(b"\r\n")
    found = _TEXT.fullmatch(line.decode("ascii"))
    if not end or found is None:
        raise ValueError(f"no PROXY header: {data[:LONGEST_TEXT]!r}")
    family = int(found[1])
    hosts = [_host(family, ipaddress.ip_address(found[number])) for number in (2, 3)]
    ports = [int(found[number]) for number in (4, 5)]
    if max(ports) > 65535:
        raise ValueError(f"no port: {line!r}")
    rest = data[len(line) + len(end) :]
    return Header(1, family, "tcp", (hosts[0], ports[0]), (hosts[1], ports[1]), rest)


def _binary(data: bytes) -> Header:
    if len(data) < 16 or data[12] != 0x21 or data[13] not in _KINDS:
        raise ValueError(f"no version 2 header of a relayed connection: {data[:16].hex()}")
    family, transport = _KINDS[data[13]]
    size = 4 if family == 4 else 16
    length = int.from_bytes(data[14:16], "big")
    body, rest = data[16 : 16 + length], data[16 + length :]
    if len(body) < length or length < 2 * size + 4:
        raise ValueError("the header is cut off")
    hosts = [_host(family, ipaddress.ip_address(body[at : at + size])) for at in (0, size)]
    ports = [int.from_bytes(body[at : at + 2], "big") for at in (2 * size, 2 * size + 2)]
    return Header(2, family, transport, (hosts[0], ports[0]), (hosts[1], ports[1]), rest)


def _host(family: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.version != family:
        raise ValueError(f"{address} is not of IPv{family}")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)

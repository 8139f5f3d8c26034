"""Sets of IP addresses: what the keys ``allow_from`` and ``deny_from`` hold. No I/O."""

from __future__ import annotations

import bisect
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from asport_sync.config.bad_value import BadValue, shown
from asport_sync.config.hosts import IPAddress
from asport_sync.config.values import text

MAX_NETWORKS: Final = 4096
"""Maximum number of networks in a list: enough for a country, and few compared with a client's other memory."""

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Addresses: TypeAlias = str | IPAddress | IPNetwork | Sequence[str | IPAddress | IPNetwork]
"""What a program may pass for an ``AddressSet``."""
_Ranges: TypeAlias = tuple[tuple[int, int], ...]

_BITS = {4: 32, 6: 128}
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True, init=False, repr=False)
class AddressSet:
    """An immutable set of IP addresses. IPv4-mapped IPv6 addresses count as IPv4 addresses.

    Attributes:
        ipv4: Ranges of addresses as numbers, first and last included: ascending, neither overlapping nor adjacent.
        ipv6: The same for IPv6.
    """

    ipv4: _Ranges
    ipv6: _Ranges

    def __init__(self, networks: Iterable[IPNetwork] = ()) -> None:
        ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for each in map(unmapped, networks):
            ranges[each.version].append((int(each.network_address), int(each.broadcast_address)))
        object.__setattr__(self, "ipv4", _merged(ranges[4]))
        object.__setattr__(self, "ipv6", _merged(ranges[6]))

    @classmethod
    def everything(cls) -> AddressSet:
        """Returns the set of all addresses."""
        return cls._of(*(((0, 2**bits - 1),) for bits in _BITS.values()))

    @classmethod
    def _of(cls, ipv4: _Ranges, ipv6: _Ranges) -> AddressSet:
        made = cls()
        object.__setattr__(made, "ipv4", ipv4)
        object.__setattr__(made, "ipv6", ipv6)
        return made

    def __and__(self, other: AddressSet) -> AddressSet:
        """Returns the addresses that are in both."""
        return self._of(_both(self.ipv4, other.ipv4), _both(self.ipv6, other.ipv6))

    def __sub__(self, other: AddressSet) -> AddressSet:
        """Returns the addresses of this set that are not in the other one."""
        return self._of(
            _both(self.ipv4, _others(other.ipv4, _BITS[4])), _both(self.ipv6, _others(other.ipv6, _BITS[6]))
        )

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        ranges, number = (self.ipv4 if address.version == 4 else self.ipv6), int(address)
        index = bisect.bisect_right(ranges, (number, 2**128)) - 1
        return index >= 0 and number <= ranges[index][1]

    def __bool__(self) -> bool:
        return bool(self.ipv4 or self.ipv6)

    def __iter__(self) -> Iterator[IPNetwork]:
        """Yields the fewest networks that make up the set, IPv4 first, in ascending order."""
        for ranges, kind in ((self.ipv4, ipaddress.IPv4Address), (self.ipv6, ipaddress.IPv6Address)):
            for first, last in ranges:
                yield from ipaddress.summarize_address_range(kind(first), kind(last))

    def packed(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields first and last address of each range in network byte order, IPv4 first, in ascending order."""
        for ranges, length in ((self.ipv4, 4), (self.ipv6, 16)):
            for first, last in ranges:
                yield first.to_bytes(length, "big"), last.to_bytes(length, "big")

    def __str__(self) -> str:
        return ", ".join(map(str, self)) or "no address"

    def __repr__(self) -> str:
        return f"AddressSet({str(self)!r})"


def _merged(ranges: list[tuple[int, int]]) -> _Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _both(one: _Ranges, other: _Ranges) -> _Ranges:
    """Returns what is in both."""
    found = []
    i = j = 0
    while i < len(one) and j < len(other):
        first, last = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if first <= last:
            found.append((first, last))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def _others(ranges: _Ranges, bits: int) -> _Ranges:
    """Returns all numbers of that many bits that are not in these ranges."""
    found = []
    begin = 0
    for first, last in ranges:
        if begin < first:
            found.append((begin, first - 1))
        begin = last + 1
    if begin < 2**bits:
        found.append((begin, 2**bits - 1))
    return tuple(found)


def unmapped(network: IPNetwork) -> IPNetwork:
    """Returns the IPv4 network for a network of IPv4-mapped addresses; others unchanged."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen))
    return network


def ip_network(value: object) -> IPNetwork:
    """Returns a network from ``address/length``, or an address as a network of one.

    Bits below the length must be zero: they are most likely a mistake, and it is not obvious which part is wrong.
    """
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        return value
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        value = str(value)
    expected = 'expected an IP address or a network, such as "192.0.2.7", "198.51.100.0/24" or "2001:db8::/32"'
    if not isinstance(value, str):
        raise BadValue(f"{expected}, not {shown(value)}")
    written = text(value).strip()
    host, slash, length = written.partition("/")
    if "%" in host:
        raise BadValue(f"{expected}, not {shown(value)}: a zone is not possible here")
    try:
        address = _address(host)
    except ValueError:
        raise BadValue(f"{expected}, not {shown(value)}") from None
    bits = _BITS[address.version]
    if slash and (not re.fullmatch(r"[0-9]{1,3}", length) or int(length) > bits):
        raise BadValue(f'expected a length from 0 to {bits} after the "/" of {shown(value)}')
    found = ipaddress.ip_network((address, int(length) if slash else bits), strict=False)
    if found.network_address != address:
        raise BadValue(f"{written} has bits set below its length: write {found} for the network, or {address} alone")
    return found


def _address(host: str) -> IPAddress:
    bracketed = host.startswith("[") and host.endswith("]")
    return ipaddress.IPv6Address(host[1:-1]) if bracketed else ipaddress.ip_address(host)


def addresses(value: object) -> AddressSet:
    """Returns the addresses of a network or of a list of networks."""
    if isinstance(value, AddressSet):
        return value
    if not isinstance(value, (list, tuple)):
        return AddressSet([ip_network(value)])
    if len(value) > MAX_NETWORKS:
        raise BadValue(
            f"expected at most {MAX_NETWORKS} networks, not {len(value)}: use the system's firewall for more"
        )
    found = []
    for index, each in enumerate(value):
        try:
            found.append(ip_network(each))
        except BadValue as error:
            raise BadValue(error.problem, index) from None
    return AddressSet(found)


def some_addresses(value: object) -> AddressSet:
    """Returns the addresses of a list that is not empty: an empty one would shut out everyone, likely by mistake."""
    if isinstance(value, (list, tuple)) and not value:
        raise BadValue("an empty list would permit no visitor at all: to permit all of them, omit the key")
    return addresses(value)

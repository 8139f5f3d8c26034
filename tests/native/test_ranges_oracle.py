"""ranges.c and the sets of the configuration beside the standard library: all say the same of every address."""

from __future__ import annotations

import ipaddress
import itertools
import subprocess
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asport_sync.config import AddressSet
from asport_sync.config.addresses import IPNetwork
from tests.support.compiling import compiler_or_skip

NATIVE = Path(__file__).resolve().parents[2] / "asport_sync" / "_native"
RANGE = "aq_address_range"


class Native:
    """ranges.c, loaded."""

    def __init__(self, library: Path) -> None:
        self.ffi: Any = cffi.FFI()
        for header in ("aq_api.h", "core/ranges.h"):
            text = (NATIVE / header).read_text()
            self.ffi.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
        self.lib: Any = self.ffi.dlopen(str(library))

    def new(self, addresses: AddressSet) -> Any:
        """The set as the engine has it."""
        ranges = list(addresses.packed())
        raw = self.ffi.new(f"{RANGE}[]", len(ranges))
        for each, (first, last) in zip(raw, ranges, strict=True):
            each.family = 4 if len(first) == 4 else 6
            self.ffi.memmove(each.first, first, len(first))
            self.ffi.memmove(each.last, last, len(last))
        error = self.ffi.new("int64_t *")
        made = self.lib.aq_ranges_new(raw, len(ranges), 0, error)
        assert made != self.ffi.NULL, error[0]
        return made

    def contain(self, made: Any, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether the engine finds the address in the set."""
        raw = self.ffi.new("aq_address *")
        raw.family = address.version
        self.ffi.memmove(raw.ip, address.packed, len(address.packed))
        return bool(self.lib.aq_ranges_contain(made, raw))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    library = tmp_path_factory.mktemp("ranges") / "ranges.so"
    source = NATIVE / "core" / "ranges.c"
    subprocess.run(
        [*compiler_or_skip(), "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{NATIVE}", str(source), "-o", str(library)],
        check=True,
        timeout=120,
    )
    return Native(library)


def network(number: int, length: int, bits: int) -> IPNetwork:
    kind = ipaddress.IPv4Network if bits == 32 else ipaddress.IPv6Network
    return kind((number >> (bits - length) << (bits - length), length))


def families(small: int) -> st.SearchStrategy[tuple[int, int]]:
    """An address and its size; near each other, so that networks overlap and touch. Mapped addresses are among them."""
    near = st.integers(0, small)
    return st.one_of(
        st.tuples(st.one_of(near, st.integers(2**32 - small, 2**32 - 1), st.integers(0, 2**32 - 1)), st.just(32)),
        st.tuples(st.one_of(near, st.integers(0, 2**128 - 1), near.map(lambda low: 0xFFFF << 32 | low)), st.just(128)),
    )


ADDRESSES = families(64)
NETWORKS = st.lists(
    st.tuples(ADDRESSES, st.one_of(st.integers(0, 8), st.integers(0, 128))).map(
        lambda drawn: network(drawn[0][0], max(0, drawn[0][1] - drawn[1]), drawn[0][1])
    ),
    max_size=12,
)


def as_address(drawn: tuple[int, int]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    number, bits = drawn
    return ipaddress.IPv4Address(number) if bits == 32 else ipaddress.IPv6Address(number)


def expected(networks: list[IPNetwork], address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """What the standard library says, once what is mapped is IPv4 on both sides."""
    mapped = ipaddress.IPv6Network("::ffff:0:0/96")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    for each in networks:
        plain = each
        if isinstance(each, ipaddress.IPv6Network) and each.subnet_of(mapped):
            plain = ipaddress.ip_network((int(each.network_address) & 0xFFFFFFFF, each.prefixlen - 96))
        if address.version == plain.version and address in plain:
            return True
    return False


def edges(networks: list[IPNetwork]) -> list[tuple[int, int]]:
    """First and last address of each network, and their neighbours."""
    return [
        (number, each.max_prefixlen)
        for each in networks
        for end in (int(each.network_address), int(each.broadcast_address))
        for number in (end - 1, end, end + 1)
        if 0 <= number < 2**each.max_prefixlen
    ]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(NETWORKS, NETWORKS, NETWORKS, st.lists(ADDRESSES, min_size=1, max_size=20))
def test_sets_have_the_addresses_of_their_networks(
    native: Native,
    allowed: list[IPNetwork],
    also: list[IPNetwork],
    denied: list[IPNetwork],
    drawn: list[tuple[int, int]],
) -> None:
    """In both lists of permitted networks, and not in those that are denied."""
    together = AddressSet(allowed) & AddressSet(also)
    addresses = together - AddressSet(denied)
    made = native.new(addresses)
    try:
        for each in [*drawn, *edges(allowed + also + denied)]:
            address = as_address(each)
            wanted = expected(allowed, address) and expected(also, address) and not expected(denied, address)
            assert (address in addresses) is wanted, address
            assert native.contain(made, address) is wanted, address
    finally:
        native.lib.aq_ranges_unref(made)


@given(NETWORKS)
def test_a_set_is_the_same_however_it_is_written(networks: list[IPNetwork]) -> None:
    """And its parts are the fewest, in order, with gaps between them."""
    made = AddressSet(networks)
    assert AddressSet(reversed(networks)) == made
    assert AddressSet(made) == made
    assert AddressSet.everything() - (AddressSet.everything() - made) == made
    for ranges in (made.ipv4, made.ipv6):
        for (_, last), (first, _) in itertools.pairwise(ranges):
            assert last + 1 < first
    assert [each.max_prefixlen for each in made] == sorted(each.max_prefixlen for each in made)
    assert bool(made) == (made != AddressSet())

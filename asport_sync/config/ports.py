"""Ports: ranges and sets of them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from asport_sync.config.bad_value import BadValue, KeyPath, each, shown

LOWEST_PORT: Final = 1
"""Port 0 asks the kernel for any port; as a port to forward it would be a different one for TCP and for UDP."""
HIGHEST_PORT: Final = 65535


class PortRange(NamedTuple):
    """Ports from start to end, inclusive.

    Attributes:
        start: The first port.
        end: The last port, not below ``start``.
    """

    start: int
    end: int

    def __str__(self) -> str:
        return str(self.start) if self.start == self.end else f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class PortSet:
    """An immutable set of ports, stored as ranges: all 65,535 ports take one pair.

    Attributes:
        ranges: Ascending; neither overlapping nor adjacent, whatever the input.
    """

    ranges: tuple[PortRange, ...] = ()

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        merged: list[PortRange] = []
        for start, end in sorted(ranges):
            if start > end:
                continue
            if merged and start <= merged[-1].end + 1:
                merged[-1] = PortRange(merged[-1].start, max(merged[-1].end, end))
            else:
                merged.append(PortRange(start, end))
        object.__setattr__(self, "ranges", tuple(merged))

    def __contains__(self, port: object) -> bool:
        if not isinstance(port, int):
            return False
        index = bisect.bisect_right(self.ranges, (port, HIGHEST_PORT)) - 1
        return index >= 0 and port <= self.ranges[index].end

    def __iter__(self) -> Iterator[int]:
        """Yields the ports in ascending order."""
        for start, end in self.ranges:
            yield from range(start, end + 1)

    def __len__(self) -> int:
        return sum(end - start + 1 for start, end in self.ranges)

    def intersection(self, start: int, end: int) -> PortSet:
        """Returns the ports of this set from start to end, inclusive; none if start is above end."""
        return PortSet((max(start, low), min(end, high)) for low, high in self.ranges)

    def __str__(self) -> str:
        return ", ".join(map(str, self.ranges)) or "no port"

    def __repr__(self) -> str:
        return f"PortSet({[tuple(each) for each in self.ranges]})"


ALL_PORTS: Final = PortRange(LOWEST_PORT, HIGHEST_PORT)


def port_range(value: object) -> PortRange:
    """Returns a range from a port, a [start, end] pair, or a table of ``start`` and ``end``."""
    return _range(value, "a port, [start, end] or {start, end}", pairs=True)


def port_set(value: object) -> PortSet:
    """Returns a set of ports.

    Args:
        value: A port, a table of ``start`` and ``end``, or a list of those and of [start, end] pairs. A list of two
            numbers is two ports; a tuple, which only a program can pass, is rejected as ambiguous.
    """
    if isinstance(value, PortSet):
        return value
    if isinstance(value, tuple):
        raise BadValue("a tuple could mean a range or single ports: write [(start, end)] or [port, port]")
    if isinstance(value, list):
        return PortSet(each(value, port_range))
    return PortSet([_range(value, "a port, {start, end} or a list of them", pairs=False)])


def _range(value: object, forms: str, *, pairs: bool) -> PortRange:
    start: tuple[KeyPath, object]
    end: tuple[KeyPath, object]
    if isinstance(value, Mapping):
        if unknown := [name for name in value if name not in ("start", "end")]:
            raise BadValue("unknown key: a range of ports has start and end", str(unknown[0]))
        if missing := [name for name in ("start", "end") if name not in value]:
            raise BadValue(f"a range of ports needs start and end: {missing[0]} is missing")
        start, end = (("start",), value["start"]), (("end",), value["end"])
    elif isinstance(value, (list, tuple)) and pairs:
        if len(value) != 2:
            raise BadValue(f"expected {forms}: a range has two ports, not {len(value)}")
        start, end = ((0,), value[0]), ((1,), value[1])
    elif isinstance(value, int):
        start = end = ((), value)
    else:
        quotes = ": write it without quotes" if isinstance(value, str) and value.isdigit() else ""
        raise BadValue(f"expected {forms}, not {shown(value)}{quotes}")
    ports = []
    for within, port in (start, end):
        if isinstance(port, bool) or not isinstance(port, int) or not LOWEST_PORT <= port <= HIGHEST_PORT:
            raise BadValue(f"expected a port from {LOWEST_PORT} to {HIGHEST_PORT}, not {shown(port)}", *within)
        ports.append(int(port))
    if ports[0] > ports[1]:
        raise BadValue(f"the range starts at {ports[0]}, above its end {ports[1]}")
    return PortRange(ports[0], ports[1])

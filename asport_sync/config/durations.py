"""Converts durations to seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from asport_sync.config.bad_value import BadValue, shown

SHORTEST_DURATION: Final = 0.001
"""Seconds. No timer of a tunnel needs less, and zero would busy-loop or time out immediately."""
LONGEST_DURATION: Final = 100 * 365.25 * 86400
"""Seconds. Well below the maximum of locks and of the engine (292 years in nanoseconds)."""

SHORTEST_CHECK_INTERVAL: Final = 0.1
"""Seconds. A local service notices being checked more often."""

SHORTEST_SWITCHED: Final = 1.0
LONGEST_SWITCHED: Final = 9 * 3600.0
"""Seconds, for durations that may be off: the maximum of TCP keepalive on Linux, 32,767 seconds, rounded down."""

SHORTEST_PROBING: Final = 0.1
LONGEST_PROBING: Final = 3600.0
"""Seconds of ``keep_alive``. Probes more often cost more than they tell; mappings of a NAT last no hour."""

# Nanoseconds per unit. Months and years are Gregorian means, rounded as in the reference implementation.
_NANOSECONDS: Final[Mapping[str, int]] = {
    unit: nanoseconds
    for nanoseconds, units in {
        1: "nanos nsec ns",
        1_000: "usec us",
        1_000_000: "millis msec ms",
        1_000_000_000: "seconds second secs sec s",
        60_000_000_000: "minutes minute mins min m",
        3_600_000_000_000: "hours hour hrs hr h",
        86_400_000_000_000: "days day d",
        604_800_000_000_000: "weeks week w",
        2_630_016_000_000_000: "months month M",
        31_557_600_000_000_000: "years year y",
    }.items()
    for unit in units.split()
}


def duration(value: object, *, bare_seconds: bool = False) -> float:
    """Returns a duration in seconds.

    Args:
        value: One or more whole numbers, each with a unit, spaces allowed: "1h 30m", "500ms".
        bare_seconds: Whether a number without a unit is accepted as seconds. A program may pass one; in a file it would
            be ambiguous between seconds and milliseconds.
    """
    example = 'expected a duration, such as "10s", "500ms" or "1h 30m"'
    seconds: float
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not bare_seconds:
            hint = f'"{value}s"' if isinstance(value, int) and 0 < value < 10**9 else '"10s"'
            raise BadValue(f"expected a duration with a unit, such as {hint}, not {shown(value)}")
        seconds = float(value) if abs(value) < 10**40 else math.inf
    elif isinstance(value, str):
        seconds = _sum_of_parts(value, example) / 1e9
    else:
        raise BadValue(f"{example}, not {shown(value)}")
    if not SHORTEST_DURATION <= seconds <= LONGEST_DURATION:  # also False for NaN
        raise BadValue(f"expected a duration from 1ms to 100years, not {shown(value)}")
    return seconds


def check_interval(value: object, *, bare_seconds: bool = False) -> float:
    """Returns the time between two health checks in seconds, like :func:`duration`, but at least 100 ms."""
    seconds = duration(value, bare_seconds=bare_seconds)
    if seconds < SHORTEST_CHECK_INTERVAL:
        raise BadValue(f"expected a duration from 100ms to 100years, not {shown(value)}")
    return seconds


def keep_alive(value: object, *, bare_seconds: bool = False) -> float:
    """Returns the time in seconds after which a silent server is probed."""
    seconds = duration(value, bare_seconds=bare_seconds)
    if not SHORTEST_PROBING <= seconds <= LONGEST_PROBING:
        raise BadValue(f"expected a duration from 100ms to 1h, not {shown(value)}")
    return seconds


def off_or_duration(value: object, *, bare_seconds: bool = False) -> float:
    """Returns a duration in seconds that may be switched off: 0.0 for "off", false or 0, also as text."""
    if value is False or value == 0 or (isinstance(value, str) and value.lower() in ("off", "no", "false", "0", "0s")):
        return 0.0
    seconds = duration(value, bare_seconds=bare_seconds)
    if not SHORTEST_SWITCHED <= seconds <= LONGEST_SWITCHED:
        raise BadValue(f'expected "off", or a duration from 1s to 9h, not {shown(value)}')
    return seconds


def _sum_of_parts(value: str, example: str) -> int:
    if re.fullmatch(r"\s*[0-9]+\s*", value):
        raise BadValue(f'expected a duration with a unit, such as "{value.strip()[:9]}s", not {shown(value)}')
    if re.search(r"[0-9][.,][0-9]", value):
        raise BadValue(f'{example}, not {shown(value)}: whole numbers only, so "1500ms" for one and a half seconds')
    part = re.compile(r"\s*([0-9]{1,20})\s*([A-Za-z]+)\s*")
    position = total = 0
    while match := part.match(value, position):
        number, unit = match.groups()
        if unit not in _NANOSECONDS:
            raise BadValue(
                f'{example}, not {shown(value)}: "{unit[:20]}" is not one of ns, us, ms, s, m, h, d, w, M, y'
            )
        total += int(number) * _NANOSECONDS[unit]
        position = match.end()
    if not value or position != len(value):
        raise BadValue(f"{example}, not {shown(value)}")
    return total

"""Limits on bandwidth: converts rates to bytes per second, and back to text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from asport_sync.config.bad_value import BadValue, shown

SLOWEST_RATE: Final = 1000
FASTEST_RATE: Final = 12_500_000_000
"""Bytes per second: 8 kbit/s and 100 Gbit/s, the maximum of the engine's buckets."""

# Bytes per second. Decimal prefixes, as everywhere in networking.
_RATES: Final[Mapping[str, int]] = {
    "kbit": 125,
    "mbit": 125_000,
    "gbit": 125_000_000,
    "kbyte": 1_000,
    "mbyte": 1_000_000,
    "gbyte": 1_000_000_000,
}


class Bandwidth(NamedTuple):
    """Limits on payload in bytes per second; 0: no limit.

    Attributes:
        inward: From visitors to the local service: ``in`` in a configuration.
        outward: From the local service to visitors: ``out`` in a configuration.
    """

    inward: int = 0
    outward: int = 0

    def __str__(self) -> str:
        return f"in {written_rate(self.inward)}, out {written_rate(self.outward)}"


def bandwidth(value: object) -> Bandwidth:
    """Returns the limits of both directions from a table of ``in`` and ``out``, of which one may be missing."""
    example = "expected a table of in and out, such as {in: 10mbit, out: 2mbit}"
    if isinstance(value, Bandwidth):
        return value
    if not isinstance(value, Mapping):
        raise BadValue(f"{example}, not {shown(value)}")
    if not value:
        raise BadValue(f"{example}, not an empty table")
    if unknown := [name for name in value if name not in ("in", "out")]:
        raise BadValue("unknown key: a bandwidth has in and out", str(unknown[0]))
    rates = []
    for name in ("in", "out"):
        try:
            rates.append(rate(value[name]) if name in value else 0)
        except BadValue as error:
            raise BadValue(error.problem, name) from None
    return Bandwidth(*rates)


def rate(value: object) -> int:
    """Returns bytes per second: a whole number with one unit, such as "10mbit" or "2mbyte"; 0 for "off" and false.

    A number without a unit is rejected, and so are units that some programs use for bits and others for bytes.
    """
    example = 'expected a rate, such as "10mbit" (bits per second), "2mbyte" (bytes per second) or "off"'
    if value is False or (isinstance(value, str) and value.lower() in ("off", "no", "false")):
        return 0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        written = f"{value}" if isinstance(value, int) and 0 < value < 10**9 else "10"
        raise BadValue(
            f'expected a rate with a unit, such as "{written}kbit" or "{written}mbit" (bits per second), or '
            f'"{written}kbyte" (bytes per second), not {shown(value)}'
        )
    if not isinstance(value, str):
        raise BadValue(f"{example}, not {shown(value)}")
    match = re.fullmatch(r"\s*([0-9]{1,15})\s*([A-Za-z/]*)\s*", value)
    if match is None:
        whole = ': whole numbers only, so "1500kbit" for 1.5 Mbit/s' if re.search(r"[0-9][.,][0-9]", value) else ""
        raise BadValue(f"{example}, not {shown(value)}{whole}")
    number, unit = match.groups()
    if unit.lower() not in _RATES:
        prefix = unit[:1].lower() if unit[:1].lower() in ("k", "m", "g") else "m"
        raise BadValue(
            f'{example}, not {shown(value)}: write "{number[:9]}{prefix}bit" for bits per second, or '
            f'"{number[:9]}{prefix}byte" for bytes per second'
        )
    found = int(number) * _RATES[unit.lower()]
    if not SLOWEST_RATE <= found <= FASTEST_RATE:
        raise BadValue(f"expected a rate from 8kbit to 100gbit, not {shown(value)}")
    return found


def written_rate(rate: int) -> str:
    """Returns a rate in bytes per second as :func:`rate` accepts it, in the largest unit of bits that divides it."""
    if rate == 0:
        return "off"
    for unit in ("gbit", "mbit", "kbit"):
        if rate % _RATES[unit] == 0:
            return f"{rate // _RATES[unit]}{unit}"
    return f"{rate * 8 / 1000:g}kbit"  # only a program can have set it

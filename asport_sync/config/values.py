"""Converts single configuration values, as given by a file or a program, to the values that a configuration holds.

This module has plain values: text, numbers and names. Each other kind has its own: :mod:`choices`, :mod:`durations`,
:mod:`rates`, :mod:`ports`, :mod:`hosts`, :mod:`paths`, :mod:`passwords`, :mod:`pins`. All have pure functions, without
clock and threads; only :mod:`machine` reads the state of the system. Each takes a parsed scalar, list or table and
returns the value or raises :class:`BadValue`. They are as lenient as the reference implementation: text is accepted for
numbers and booleans, and whole numbers for text. Only port ranges require numbers.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from asport_sync.config.bad_value import BadValue, each, is_date, kind, shown

LONGEST_NAME: Final = 64
"""Characters of the name of a tunnel or user. Names are part of log lines, and of status lines, whose length is
bounded."""

LONGEST_HTTP_PATH: Final = 2000
"""Characters: what web servers accept in any case."""

LARGEST_UDP_PAYLOAD: Final = 65507
"""Bytes: 65,535 minus the IPv4 and UDP headers (RFC 768)."""


def text(value: object) -> str:
    """Returns text; whole numbers and booleans become text, as in the reference implementation.

    Numbers with a fraction are rejected: programs differ in how they write them (1.0 or 1), which matters in a
    password. The error never shows the value, which may be a secret.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) < 10**1000:
        return str(value)
    if not isinstance(value, str):
        quotes = ": write it in quotes" if isinstance(value, (int, float)) or is_date(value) else ""
        raise BadValue(f"expected text, not {kind(value)}{quotes}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValue("contains half of a surrogate pair, which UTF-8 cannot encode") from None
    return value


def boolean(value: object) -> bool:
    """Returns a boolean; also from 1 and 0 and the texts true, on, yes, 1, false, off, no, 0 in any case."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return value == 1
    if isinstance(value, str):
        if value.lower() in ("true", "on", "yes", "1"):
            return True
        if value.lower() in ("false", "off", "no", "0"):
            return False
    raise BadValue(f"expected true or false, not {shown(value)}")


def integer(value: object, low: int, high: int, unit: str = "") -> int:
    """Returns a whole number from low to high, inclusive; also from text and from a float without a fraction."""
    expected = f"expected a whole number{unit and f' of {unit}'} from {low} to {high}"
    number: int
    if isinstance(value, bool):
        raise BadValue(f"{expected}, not {shown(value)}")
    if isinstance(value, int):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    elif isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value):
        number = int(value)
    else:
        suffix = isinstance(value, str) and re.fullmatch(r"[0-9.]+ *[A-Za-z]+", value)
        raise BadValue(f"{expected}, not {shown(value)}{': no unit may follow the number' if suffix else ''}")
    if not low <= number <= high:
        raise BadValue(f"{expected}, not {shown(number)}")
    return number


def packet_size(value: object) -> int:
    """Returns the size in bytes of a buffer for one UDP packet, clamped to the maximum payload of 65,507."""
    return min(integer(value, 1, 2**63 - 1, "bytes"), LARGEST_UDP_PAYLOAD)


def identifier(value: object) -> uuid.UUID:
    """Returns a UUID from its hyphenated, plain, braced or URN form in any case (RFC 9562, section 4).

    The error does not show the value: UUID and password are easily swapped.
    """
    if isinstance(value, uuid.UUID):
        return value
    hyphenated = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    forms = rf"[0-9a-f]{{32}}|{hyphenated}|\{{{hyphenated}\}}|urn:uuid:{hyphenated}"
    if not re.fullmatch(forms, text(value), re.IGNORECASE | re.ASCII):
        raise BadValue('expected a UUID, such as "00112233-4455-6677-8899-aabbccddeeff"')
    return uuid.UUID(text(value).lower())


def protocols(value: object) -> tuple[str, ...]:
    """Returns names of application protocols for ALPN, each of 1 to 255 bytes (RFC 7301, section 3.1).

    At least one: a QUIC handshake without any fails (RFC 9001, section 8.1).
    """
    if not isinstance(value, (list, tuple)):
        raise BadValue(f'expected a list, such as ["asport"], not {shown(value)}')
    if not value:
        raise BadValue('expected a list of at least one protocol, such as ["asport"], not an empty list')
    return tuple(each(value, _protocol))


def _protocol(value: object) -> str:
    name = text(value)
    if not 1 <= len(name.encode()) <= 255:
        raise BadValue("expected a protocol name of 1 to 255 bytes")
    return name


def tunnel_name(value: object) -> str:
    """Returns the name of a tunnel."""
    return _name(value, "tunnel")


def user_name(value: object) -> str:
    """Returns the name of a user, which is no UUID: commands accept either."""
    name = _name(value, "user")
    try:
        identifier(name)
    except BadValue:
        return name
    raise BadValue("a UUID is not a name of a user")


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{LONGEST_NAME}}}", value):
        raise BadValue(
            f"{shown(value)} is not a name of a {what}: expected 1 to {LONGEST_NAME} letters, digits, -, _ and ."
        )
    return value


def http_path(value: object) -> str:
    """Returns what an HTTP request asks for: a path in its URL-encoded form, and a query if there is one."""
    path = text(value)
    if not re.fullmatch(rf"/[!-~]{{0,{LONGEST_HTTP_PATH - 1}}}", path):
        raise BadValue(
            f'expected a path such as "/health", URL-encoded and of at most {LONGEST_HTTP_PATH} characters, '
            f"not {shown(path)}"
        )
    return path

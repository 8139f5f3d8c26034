"""Converts hashes of public keys (pins)."""

from __future__ import annotations

import binascii
import re
from typing import Final

from asport_sync.config.bad_value import BadValue, each, kind
from asport_sync.config.values import text

PIN_PREFIX: Final = "sha256//"


def pins(value: object) -> tuple[bytes, ...]:
    """Returns the SHA-256 hashes of keys.

    An empty list is rejected: it would silently remove the protection.
    """
    example = f'["{PIN_PREFIX}..."], as asport-sync pin prints it'
    if not isinstance(value, (list, tuple)):
        raise BadValue(f"expected a list, such as {example}, not {kind(value)}")
    if not value:
        raise BadValue(f"expected at least one pin, such as {example}: to use none, omit the key")
    return tuple(each(value, _pin))


def _pin(value: object) -> bytes:
    # Not shown in errors: it may be a private key pasted by mistake.
    written = text(value).strip()
    if written.startswith(PIN_PREFIX):
        encoded = written[len(PIN_PREFIX) :]
        if not re.fullmatch(r"[A-Za-z0-9+/]{43}=", encoded, re.ASCII):
            raise BadValue(f'expected 44 characters of base64, the last a "=", after {PIN_PREFIX}')
        return binascii.a2b_base64(encoded)
    if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{2}(:[0-9a-f]{2}){31}", written, re.IGNORECASE | re.ASCII):
        raise BadValue(f"expected {PIN_PREFIX} and base64, or the 64 hexadecimal digits of a SHA-256")
    return bytes.fromhex(written.replace(":", ""))


def written_pin(pin: bytes) -> str:
    """Returns a pin as text in a form that :func:`pins` accepts."""
    return PIN_PREFIX + binascii.b2a_base64(pin, newline=False).decode("ascii")

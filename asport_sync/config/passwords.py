"""Converts passwords, tokens and secrets for keys. No error shows them."""

from __future__ import annotations

import re
from typing import Final

from asport_sync.config.bad_value import BadValue
from asport_sync.config.values import text
from asport_sync.hidden import HiddenBytes, HiddenText

# Characters or bytes: 32 hexadecimal digits have 128 bits, the length of a stateless reset token.
_SHORTEST_RESET_KEY: Final = 32
# Characters: with 6 bits each they have 96 bits, too many to guess.
_SHORTEST_TOKEN: Final = 16


def secret(value: object) -> str:
    """Returns a password: non-empty text."""
    password = text(value)
    if not password:
        raise BadValue("an empty password is not allowed")
    return HiddenText(password)


def reset_key(value: object) -> bytes:
    """Returns a secret for stateless reset keys: text of at least 32 characters, or as many bytes."""
    given = value if isinstance(value, (bytes, bytearray)) else text(value)
    if len(given) < _SHORTEST_RESET_KEY:
        raise BadValue(f"shorter than {_SHORTEST_RESET_KEY} characters; generate one with: openssl rand -base64 32")
    return HiddenBytes(given.encode() if isinstance(given, str) else given)


def token(value: object) -> str:
    """Returns the token of a status address: printable ASCII of at least 16 characters, without spaces."""
    given = text(value)
    if not re.fullmatch(r"[!-~]*", given):
        raise BadValue("expected printable ASCII characters without spaces")
    if len(given) < _SHORTEST_TOKEN:
        raise BadValue(f"shorter than {_SHORTEST_TOKEN} characters; generate one with: openssl rand -base64 32")
    return HiddenText(given)

"""Text and bytes that ``repr`` does not show: passwords, private keys, tokens, and keys derived from them.

They compare equal to the values they hold and can be used in their place; ``str`` and ``%s`` still yield the value.
They are hidden from code that shows values incidentally: the ``repr`` of containers, and tracebacks that include local
variables.
"""

from __future__ import annotations

import re
from typing import Final

_SHOWN: Final = "<hidden>"

_PASSWORD_OF_URI: Final = re.compile(r"(asport:/*[^\s:@/]*:)[^\s@]+", re.IGNORECASE)


class HiddenText(str):
    """A secret text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _SHOWN


class HiddenBytes(bytes):
    """Secret bytes. Slices of them are not hidden."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _SHOWN


def without_passwords(text: str) -> str:
    """Returns a text in which the passwords of URIs are hidden, such as of one that was given in place of a file."""
    return _PASSWORD_OF_URI.sub(rf"\1{_SHOWN}", text)

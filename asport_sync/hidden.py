"""Text and bytes that no ``repr`` shows: passwords, private keys, tokens, and keys made of them.

They are equal to and usable as what they hold, and ``str`` and formatting with ``%s`` still give that. They are hidden
from what shows values without being asked for this one: the ``repr`` of whatever holds them, and tracebacks with the
values of local variables.
"""

from __future__ import annotations

_SHOWN = "<hidden>"


class HiddenText(str):
    """A secret text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _SHOWN


class HiddenBytes(bytes):
    """Secret bytes. What is cut out of them is no longer hidden."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _SHOWN

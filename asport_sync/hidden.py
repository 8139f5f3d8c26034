"""Text and bytes that ``repr`` does not show: passwords, private keys, tokens, and keys derived from them.

They compare equal to the values they hold and can be used in their place; ``str`` and ``%s`` still yield the value.
They are hidden from code that shows values incidentally: the ``repr`` of containers, and tracebacks that include local
variables.
"""

from __future__ import annotations

_SHOWN = "<hidden>"


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

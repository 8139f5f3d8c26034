"""Where a value of a configuration is written."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """The first character of a key or of an element of a list in a file.

    Attributes:
        line: Counted from 1.
        column: In characters, counted from 1.
    """

    line: int
    column: int


class Variable(NamedTuple):
    """An environment variable that stands for a key.

    Attributes:
        name: Its name, ``ASPORT_`` included.
    """

    name: str


def position_of(text: str, position: int) -> Position:
    """Returns the position of a character in a text."""
    return Position(text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position))

"""The error of a single value, and how its text names values and places."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from asport_sync.errors import ConfigError

T = TypeVar("T")
KeyPath = tuple[str | int, ...]
"""The path from the top of a configuration to a value: keys of tables and indices of lists."""


class BadValue(ConfigError):
    """A value is unusable. The text says what was expected; the caller that knows the place adds it.

    Attributes:
        within: The path from the value to the part that is wrong; empty for the value itself.
    """

    def __init__(self, problem: str, *within: str | int) -> None:
        super().__init__(problem, key=dotted(within) or None)
        self.within: KeyPath = within


def dotted(at: KeyPath) -> str:
    """Returns the text form of a key path, such as ``proxies[0].allow_ports``."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w-]{1,60}", part, re.ASCII) else shown(part)
            text += f".{name}" if text else name
    return text


def is_date(value: object) -> bool:
    """Returns whether a parser made a date or time of it, without importing datetime."""
    return type(value).__module__ == "datetime"


def kind(value: object) -> str:
    """Returns the type of this value, for error texts. Never shows the value."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number with a fraction"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    if is_date(value):
        return "a date or time"
    return f"a Python {type(value).__name__}"


def printable(text: str) -> str:
    """Returns text with escapes for characters that are not printable or would control a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shown(value: object) -> str:
    """Returns a value for error texts, shortened. Not for secrets."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        return f'"{printable(short)}"'
    if isinstance(value, int):
        # Python refuses to convert numbers of more than 4300 digits.
        return str(value) if abs(value) < 10**40 else "a number of more than 40 digits"
    if isinstance(value, float):
        return repr(value)
    return kind(value)


def each(elements: Iterable[object], parse: Callable[[object], T]) -> list[T]:
    """Returns the parsed elements of a list; errors name the element."""
    parsed = []
    for index, element in enumerate(elements):
        try:
            parsed.append(parse(element))
        except BadValue as error:
            raise BadValue(error.problem, index, *error.within) from None
    return parsed

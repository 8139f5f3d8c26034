"""Reading of a tree of tables into dataclasses: every error is collected, with its key and where possible its line.

A dataclass says with :func:`key` in the metadata of a field which function reads the key of that name; default values
are those of the dataclass alone. Parsers raise :class:`~asport_sync.config.values.BadValue`; the reader adds the place.
Used by one thread at a time: a :class:`Source` belongs to the call that loads it.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from asport_sync.config.values import BadValue, KeyPath, dotted, kind
from asport_sync.errors import ConfigError

T = TypeVar("T")


class ConfigErrors(ConfigError):
    """Everything that is wrong with one configuration.

    ``problem``, ``path``, ``line`` and ``key`` are those of the first error; the text has one line for each.

    Attributes:
        errors: In the order of their lines; never empty.
    """

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        # Errors without a line, such as missing keys, come last.
        self.errors = sorted(errors, key=lambda error: (error.line is None, error.line or 0))
        first = self.errors[0]
        super().__init__(first.problem, path=first.path, line=first.line, key=first.key)
        self.args = ("\n".join(map(str, self.errors)),)

    def __reduce__(self) -> tuple[type[ConfigErrors], tuple[list[ConfigError]]]:
        return ConfigErrors, (self.errors,)


def bare(error: ConfigError) -> ConfigError:
    """The same error without the way it came, so that no traceback shows what a configuration says.

    Tools that report errors like to add the values of local variables, and those of a parser are the file.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class Invalid(Exception):
    """A value is not usable, and its errors are already in the source's list. Never leaves this package."""


@dataclass(slots=True)
class Source:
    """Where a tree of values comes from, and what was found wrong with it so far.

    Attributes:
        path: The file as the user named it; None for options given by a program.
        directory: What relative paths start from; None leaves them relative.
        lines: Line, counted from 1, of each key and list element, where it is known.
        errors: Grows while the tree is read.
    """

    path: str | None = None
    directory: Path | None = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    errors: list[ConfigError] = field(default_factory=list)

    def line(self, at: KeyPath) -> int | None:
        """Returns the line of a key, or of the nearest table around it that is not the whole file."""
        while at and at not in self.lines:
            at = at[:-1]
        return self.lines[at] if at else None

    def report(self, problem: str, at: KeyPath, *, shown_as: KeyPath | None = None) -> None:
        """Notes an error.

        Args:
            problem: What is wrong and what was expected.
            at: The key; gives the line.
            shown_as: The key to show, where ``at`` itself must not be shown.
        """
        key = dotted(at if shown_as is None else shown_as) or None
        self.errors.append(ConfigError(problem, path=self.path, line=self.line(at), key=key))

    def fail(self) -> NoReturn:
        """Raises all errors noted so far.

        Raises:
            ConfigErrors: Always.
        """
        raise ConfigErrors(self.errors)


class Item(NamedTuple):
    """One value and its place.

    Attributes:
        value: A scalar, list or table.
        at: The way to it from the top.
        source: Where errors go.
    """

    value: object
    at: KeyPath
    source: Source

    def __repr__(self) -> str:
        return f"Item({dotted(self.at)}: {kind(self.value)})"  # the value may be a password

    def child(self, part: str | int, value: object) -> Item:
        """Returns a value inside this one."""
        return Item(value, (*self.at, part), self.source)

    def table(self, expected: str = "a table") -> dict[str, Item]:
        """Returns the entries of a table. A UUID as a key, which only a program can give, counts as its text.

        Raises:
            BadValue: This isn't a table, or a key in it isn't text.
        """
        if not isinstance(self.value, Mapping):
            raise BadValue(f"expected {expected}, not {kind(self.value)}")
        entries = {}
        for written, value in self.value.items():
            name = str(written) if isinstance(written, uuid.UUID) else written
            if not isinstance(name, str):
                raise BadValue(f"expected text as the keys of a table, not {kind(name)}")
            entries[name] = self.child(name, value)
        return entries

    def elements(self, expected: str) -> list[Item]:
        """Returns the elements of a list.

        Raises:
            BadValue: This isn't a list.
        """
        if not isinstance(self.value, (list, tuple)):
            raise BadValue(f"expected {expected}, not {kind(self.value)}")
        return [self.child(index, value) for index, value in enumerate(self.value)]

    def parsed(self, parse: Callable[[Item], T]) -> T:
        """Returns what a parser makes of this value.

        Raises:
            Invalid: It isn't usable; the error is noted.
        """
        try:
            return parse(self)
        except BadValue as error:
            at = (*self.at, *error.within)
            self.source.report(error.problem, at)
        raise Invalid


def parsed_all(items: Iterable[Item], parse: Callable[[Item], T]) -> tuple[T, ...]:
    """Returns what a parser makes of each item.

    Raises:
        Invalid: One or more are not usable; all errors are noted.
    """
    parsed = []
    failed = False
    for item in items:
        try:
            parsed.append(item.parsed(parse))
        except Invalid:
            failed = True
    if failed:
        raise Invalid
    return tuple(parsed)


class Key(NamedTuple):
    """How the key of a dataclass field is read.

    Attributes:
        parse: Makes the field's value of an item.
        aliases: Other names of the key.
    """

    parse: Callable[[Item], object]
    aliases: tuple[str, ...] = ()


def key(parse: Callable[[Item], object], *aliases: str) -> Mapping[str, Key]:
    """Returns the metadata of a dataclass field that is a key."""
    return {"key": Key(parse, aliases)}


def scalar(parse: Callable[[object], object], *aliases: str) -> Mapping[str, Key]:
    """Returns the metadata of a field whose parser needs the value only, not its place."""
    return key(lambda item: parse(item.value), *aliases)


def names_of(cls: type) -> dict[str, str]:
    """Returns every name and alias of the keys of a dataclass, with the name of its field."""
    names = {}
    for each in dataclasses.fields(cls):
        if isinstance(found := each.metadata.get("key"), Key):
            names.update(dict.fromkeys((each.name, *found.aliases), each.name))
    return names


def gather(table: Mapping[str, Item], names: Mapping[str, str], gathered: dict[str, Item]) -> dict[str, Item]:
    """Sorts the entries of a table by field.

    Args:
        table: Entries by the name that was written.
        names: Field by accepted name.
        gathered: Takes the known entries, by field. A field may be filled from several tables, but once only: a second
            value is noted as an error.

    Returns:
        The entries whose name is not known.
    """
    unknown = {}
    for name, item in table.items():
        if name not in names:
            unknown[name] = item
        elif (first := gathered.setdefault(names[name], item)) is not item:
            line = item.source.line(first.at)
            item.source.report(f"given twice: also as {dotted(first.at)}{f' in line {line}' if line else ''}", item.at)
    return unknown


def build(cls: type[T], items: Mapping[str, Item], owner: Item, **ready: Any) -> T:
    """Returns an instance of a dataclass.

    Args:
        cls: The dataclass.
        items: Its keys, by field.
        owner: The table; the place of missing keys.
        ready: Fields that are not to be read.

    Raises:
        Invalid: A key is missing, without a value or not usable, or an error was noted in this source before.
    """
    source = owner.source
    values = dict(ready)
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        found = each.metadata.get("key")
        if each.name in ready or not isinstance(found, Key):
            continue
        optional = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        if each.name not in items:
            if not optional:
                source.report("this key is required", (*owner.at, each.name))
        elif items[each.name].value is not None:
            try:
                values[each.name] = items[each.name].parsed(found.parse)
            except Invalid:
                pass
        elif each.default is not None:
            source.report("this key has no value", items[each.name].at)
    if source.errors:
        raise Invalid
    return cls(**values)


def similarity(name: str, known: str) -> float:
    """Returns how likely a mistyped key means a known one, from 0 to 1 for the same but for case and hyphens."""
    import difflib  # only for what a file has wrong

    return difflib.SequenceMatcher(None, name[:60].lower().replace("-", "_"), known).ratio()

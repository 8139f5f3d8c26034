"""Reads a tree of tables into dataclasses; collects all errors, with key and, if known, position.

:func:`key` in the metadata of a dataclass field sets the function that parses the key of that name; default values are
defined by the dataclass only. Parsers raise :class:`~asport_sync.config.bad_value.BadValue`; the reader adds the place.
Used by one thread at a time: a :class:`Source` belongs to the call that loads it.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from asport_sync.config.bad_value import BadValue, KeyPath, dotted, kind
from asport_sync.config.kinds import Schema, from_environment
from asport_sync.config.positions import Position, Variable
from asport_sync.errors import ConfigError, ConfigErrors
from asport_sync.hidden import HiddenText

T = TypeVar("T")


def bare(error: ConfigError) -> ConfigError:
    """Returns the error without its traceback and causes, so that no traceback shows the configuration.

    Error reporting tools often add the values of local variables, and a parser's local variables contain the file.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class EnvironmentText(HiddenText):
    """A text of a file that has values of environment variables in it, after the prefix ``env:``.

    Attributes:
        variables: The names of these variables.
    """

    __slots__ = ("variables",)

    variables: tuple[str, ...]

    def __new__(cls, text: str, variables: Iterable[str]) -> EnvironmentText:
        """Returns the text with the names of its variables."""
        made = super().__new__(cls, text)
        made.variables = tuple(dict.fromkeys(variables))
        return made


class Invalid(Exception):
    """A value is unusable, and its errors are already in the source's list. Never leaves this package."""


@dataclass(slots=True)
class Source:
    """The origin of a tree of values, and the errors found in it so far.

    Attributes:
        path: The file as given by the caller; None for options given by a program.
        directory: Base of relative paths; None leaves them relative.
        positions: Position of each key and list element, if known, or the environment variable that it comes from.
        errors: Grows while the tree is read.
        unusable: Paths of values that are known to be unusable before the tree is read: no more errors of them.
    """

    path: str | None = None
    directory: Path | None = None
    positions: Mapping[KeyPath, Position | Variable] = field(default_factory=dict)
    errors: list[ConfigError] = field(default_factory=list)
    unusable: set[KeyPath] = field(default_factory=set)

    def position(self, at: KeyPath) -> Position | Variable | None:
        """Returns where a key is from, or the nearest enclosing table that is not the whole file."""
        while at and at not in self.positions:
            at = at[:-1]
        return self.positions[at] if at else None

    def report(self, problem: str, at: KeyPath, *, shown_as: KeyPath | None = None) -> None:
        """Adds an error.

        Args:
            problem: What is wrong and what was expected.
            at: The key; determines the position.
            shown_as: The key to show, if ``at`` itself must not be shown.
        """
        if any(at[:length] in self.unusable for length in range(1, len(at) + 1)):
            return
        key = dotted(at if shown_as is None else shown_as) or None
        position = self.position(at)
        if isinstance(position, Variable):
            self.errors.append(ConfigError(problem, variable=position.name, key=key))
            return
        line, column = position or (None, None)
        self.errors.append(ConfigError(problem, path=self.path, line=line, column=column, key=key))

    def in_line(self, at: KeyPath, before: str) -> str:
        """Returns the line of a key for error texts, after some words; empty if it is unknown."""
        position = self.position(at)
        return f"{before}line {position.line}" if isinstance(position, Position) else ""

    def fail(self) -> NoReturn:
        """Raises all errors reported so far.

        Raises:
            ConfigErrors: Always.
        """
        raise ConfigErrors(self.errors)


class Item(NamedTuple):
    """A value and its place.

    Attributes:
        value: A scalar, list or table.
        at: Its path from the top.
        source: Collects the errors.
    """

    value: object
    at: KeyPath
    source: Source

    def __repr__(self) -> str:
        return f"Item({dotted(self.at)}: {kind(self.value)})"  # the value may be a password

    def child(self, part: str | int, value: object) -> Item:
        """Returns an item inside this one."""
        return Item(value, (*self.at, part), self.source)

    def table(self, expected: str = "a table") -> dict[str, Item]:
        """Returns the entries of a table. A UUID as a key, which only programs can give, counts as its text.

        Raises:
            BadValue: The value is no table, or a key in it is no text.
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
            BadValue: The value is no list.
        """
        if not isinstance(self.value, (list, tuple)):
            raise BadValue(f"expected {expected}, not {kind(self.value)}")
        return [self.child(index, value) for index, value in enumerate(self.value)]

    def parsed(self, parse: Callable[[Item], T]) -> T:
        """Returns the result of a parser for this value.

        Raises:
            Invalid: The value is unusable; the error is reported.
        """
        try:
            return parse(self)
        except BadValue as error:
            at = (*self.at, *error.within)
            self.source.report(error.problem, at)
        raise Invalid


def parsed_all(items: Iterable[Item], parse: Callable[[Item], T]) -> tuple[T, ...]:
    """Returns the results of a parser for each item.

    Raises:
        Invalid: One or more are unusable; all errors are reported.
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


FIRST_RELEASE: Final = "0.1.0"


class Key(NamedTuple):
    """How to read the key of a dataclass field, and what docs/configuration.md says of it besides its description.

    Attributes:
        parse: Converts an item to the field's value.
        aliases: Other names of the key.
        accepts: Type, unit and range of the values in a file, as Markdown.
        schema: The form of these values.
        default: The default in words, if the field's default is no constant.
        since: The first release with this key, or "Unreleased"; a heading of CHANGELOG.md.
        needs_restart: Whether a running client or server cannot change it.
    """

    parse: Callable[[Item], object]
    aliases: tuple[str, ...]
    accepts: str
    schema: Schema
    default: str = ""
    since: str = FIRST_RELEASE
    needs_restart: bool = False


def key(parse: Callable[[Item], object], *aliases: str, accepts: str, schema: Schema) -> Mapping[str, Key]:
    """Returns the metadata of a dataclass field that is a key."""
    return {"key": Key(parse, aliases, accepts, schema)}


def scalar(parse: Callable[[object], object], *aliases: str, accepts: str, schema: Schema) -> Mapping[str, Key]:
    """Returns the metadata of a field whose parser needs only the value, not its place."""
    return key(lambda item: parse(item.value), *aliases, accepts=accepts, schema=schema)


def documented(
    metadata: Mapping[str, Key], *, since: str = FIRST_RELEASE, default: str = "", needs_restart: bool = False
) -> Mapping[str, Key]:
    """Returns the metadata of a key with its first release, its default in words, or what a change of it needs."""
    return {"key": metadata["key"]._replace(since=since, default=default, needs_restart=needs_restart)}


def names_of(cls: type) -> dict[str, str]:
    """Returns the field name for every name and alias of the keys of a dataclass."""
    names = {}
    for each in dataclasses.fields(cls):
        if isinstance(found := each.metadata.get("key"), Key):
            names.update(dict.fromkeys((each.name, *found.aliases), each.name))
    return names


def gather(table: Mapping[str, Item], names: Mapping[str, str], gathered: dict[str, Item]) -> dict[str, Item]:
    """Sorts the entries of a table by field.

    Args:
        table: Entries by name as written.
        names: Field by accepted name.
        gathered: Receives the known entries, by field. Several tables may fill it, but each field only once: a second
            value is reported as an error.

    Returns:
        The entries with unknown names.
    """
    unknown = {}
    for name, item in table.items():
        if name not in names:
            unknown[name] = item
        elif (first := gathered.setdefault(names[name], item)) is not item:
            where = item.source.in_line(first.at, " in ")
            item.source.report(f"given twice: also as {dotted(first.at)}{where}", item.at)
    return unknown


def build(cls: type[T], items: Mapping[str, Item], owner: Item, **ready: Any) -> T:
    """Returns an instance of a dataclass.

    Args:
        cls: The dataclass.
        items: Its keys, by field.
        owner: The table; the place of missing keys.
        ready: Values of fields that are not to be read.

    Raises:
        Invalid: A key is missing, has no value or is unusable, or an error was reported in this source before.
    """
    values = ready | parse_keys(cls, items, owner, ready)
    if owner.source.errors:
        raise Invalid
    return cls(**values)


def parse_keys(
    cls: type, items: Mapping[str, Item], owner: Item | None, ready: Container[str] = (), inherited: Container[str] = ()
) -> dict[str, Any]:
    """Returns the values of keys by field, without those that are unusable; reports all errors.

    Args:
        cls: The dataclass.
        items: Its keys, by field.
        owner: The table; the place of missing keys. None: any may be missing.
        ready: Fields that are not to be read.
        inherited: Fields that may be missing, because they have a value elsewhere.
    """
    values: dict[str, Any] = {}
    for each in dataclasses.fields(cls):
        found = each.metadata.get("key")
        if each.name in ready or not isinstance(found, Key):
            continue
        optional = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        if each.name not in items:
            if owner is not None and not optional and each.name not in inherited:
                owner.source.report("this key is required", (*owner.at, each.name))
        elif items[each.name].value is not None:
            item = items[each.name]
            if isinstance(item.value, EnvironmentText):
                item = item._replace(value=from_environment(found.schema, str(item.value)))
            try:
                values[each.name] = item.parsed(found.parse)
            except Invalid:
                pass
        elif each.default is None:
            values[each.name] = None
        else:
            items[each.name].source.report("this key has no value", items[each.name].at)
    return values


def similarity(name: str, known: str) -> float:
    """Returns how likely a mistyped key means a known one, from 0 to 1 (equal except for case and hyphens)."""
    import difflib  # imported only for files with errors

    return difflib.SequenceMatcher(None, name[:60].lower().replace("-", "_"), known).ratio()

"""Parses the text of configuration files to trees of tables, with the position of every key.

One function per format; the YAML and TOML parsers are imported on demand. All return a :class:`Document` or raise
ConfigError with the file and, if known, the position. Error texts never quote the file: any part of it may be a
password.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

from asport_sync.config.bad_value import KeyPath, dotted, kind
from asport_sync.config.positions import Position, position_of
from asport_sync.errors import ConfigError


@dataclass(slots=True)
class Document:
    """A parsed file.

    Attributes:
        tree: The top-level table; not shown by ``repr``.
        positions: Position of each key and list element.
        errors: Errors that did not prevent reading the rest, such as a repeated key.
    """

    tree: Mapping[str, object] = field(repr=False)
    positions: dict[KeyPath, Position] = field(default_factory=dict)
    errors: list[ConfigError] = field(default_factory=list)


class Syntax(Exception):
    """The text violates the rules of its format."""

    def __init__(self, problem: str, position: Position | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.position = position


def parse(text: str, suffix: str, path: str) -> Document:
    """Returns the content of a configuration file.

    Args:
        text: The file's text.
        suffix: The file name's extension including the dot, one of ``FORMATS``.
        path: The file's name, for errors.

    Raises:
        ConfigError: The text is not in this format, is empty, or has no table at the top level.
    """
    name, read = FORMATS[suffix]
    if not text.strip():
        raise ConfigError("the file is empty", path=path)
    positions: dict[KeyPath, Position] = {}
    repeated: list[KeyPath] = []
    try:
        tree = read(text, positions, repeated)
    except Syntax as error:
        line, column = error.position or (None, None)
        raise ConfigError(f"not valid {name}: {error.problem}", path=path, line=line, column=column) from None
    except RecursionError:
        raise ConfigError(f"not usable {name}: nested too deeply", path=path) from None
    if not isinstance(tree, Mapping):
        found = "nothing but comments" if tree is None else kind(tree)
        raise ConfigError(f"expected keys and values at the top level, not {found}", path=path)
    # A repeated key has the position of its second occurrence: the one to remove.
    errors = [
        ConfigError("given twice", path=path, line=positions[at].line, column=positions[at].column, key=dotted(at))
        for at in repeated
    ]
    return Document(tree, positions, errors)


# --- YAML -------------------------------------------------------------------------------------------------------------


def _read_yaml(text: str, positions: dict[KeyPath, Position], repeated: list[KeyPath]) -> object:
    from asport_sync.config import yaml_format

    return yaml_format.read(text, positions, repeated)


# --- JSON -------------------------------------------------------------------------------------------------------------

_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)


def _read_json(text: str, positions: dict[KeyPath, Position], repeated: list[KeyPath]) -> object:
    def constant(name: str) -> NoReturn:
        raise Syntax(f"{name} is not a valid JSON number")

    try:
        tree: object = json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise Syntax(f"{error.msg[:1].lower()}{error.msg[1:]}", Position(error.lineno, error.colno)) from None
    except ValueError:  # Python's limit on digits
        raise Syntax("a number has too many digits") from None
    _PositionFinder(text, _JSON_TOKEN, ":", positions, repeated).value(())
    return tree


# --- TOML -------------------------------------------------------------------------------------------------------------

_TOML_TOKEN: Final = re.compile(
    r"""
      \#[^\n]*
    | \"{3} (?: \\. | (?!\"{3}) [^\\] )* \"{3,5}      # up to two quotes may stand before the closing three
    | '{3} (?: (?!'{3}) . )* '{3,5}
    | " (?: \\. | [^"\\] )* "
    | ' [^']* '
    | [0-9]{4}-[0-9]{2}-[0-9]{2}\ [0-9]{2}:[0-9:.+Zz-]*  # the only scalar with a space in it
    | [\[\]{},=]
    | [^\s\[\]{},=#"']+
    """,
    re.VERBOSE | re.DOTALL,
)


def _toml(text: str) -> dict[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
    parsed: dict[str, object] = tomllib.loads(text)
    return parsed


def _read_toml(text: str, positions: dict[KeyPath, Position], repeated: list[KeyPath]) -> object:
    try:
        tree: object = _toml(text)
    except ValueError as error:
        # The parsers give the place in their text only; other ValueErrors are Python's own, about numbers and dates.
        position = re.search(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)\Z", str(error))
        if position is None:
            raise Syntax("a number or date is out of range") from None
        problem = str(error)[: position.start()]
        where = Position(int(position[1]), int(position[2])) if position[1] else position_of(text, len(text))
        raise Syntax(f"{problem[:1].lower()}{problem[1:]}", where) from None
    _TomlPositionFinder(text, _TOML_TOKEN, "=", positions, repeated).document()
    return tree


# --- positions in JSON and TOML --------------------------------------------------------------------------------------


class _PositionFinder:
    """Finds the positions of keys and list elements in text that its parser has accepted.

    The standard library's parsers return values without positions. This class follows brackets and separators only: a
    scalar is one token. On invalid text the positions would be wrong, but it terminates, as every step takes a token.
    """

    def __init__(
        self,
        text: str,
        token: re.Pattern[str],
        separator: str,
        positions: dict[KeyPath, Position],
        repeated: list[KeyPath],
    ) -> None:
        self._tokens = self._positioned(text, token)
        self._separator = separator
        self._positions = positions
        self._repeated = repeated
        self._token = ""
        """The next token; empty at the end."""
        self._position = Position(1, 1)
        self._advance()

    @staticmethod
    def _positioned(text: str, token: re.Pattern[str]) -> Iterator[tuple[str, Position]]:
        line, line_start, position = 1, 0, 0
        for match in token.finditer(text):
            line += text.count("\n", position, match.start())
            line_start = max(line_start, text.rfind("\n", position, match.start()) + 1)
            position = match.start()
            if not match.group().startswith("#"):
                yield match.group(), Position(line, position - line_start + 1)

    def _advance(self) -> str:
        """Returns the current token and moves to the next."""
        taken = self._token
        self._token, self._position = next(self._tokens, ("", self._position))
        return taken

    def value(self, at: KeyPath) -> None:
        """Consumes one value."""
        self._positions.setdefault(at, self._position)
        opening = self._advance()
        if opening not in ("[", "{"):
            return
        closing = "]" if opening == "[" else "}"
        index, seen = 0, set[KeyPath]()
        while self._token not in (closing, ""):
            if opening == "[":
                self.value((*at, index))
                index += 1
            else:
                inside = self.pair(at)
                if inside in seen:
                    self._repeated.append(inside)
                seen.add(inside)
            if self._token == ",":
                self._advance()
        self._advance()

    def pair(self, at: KeyPath) -> KeyPath:
        """Consumes a key and its value, and returns the path of the key."""
        position = self._position
        for part in self.key(self._separator):
            at = (*at, part)
            self._positions.setdefault(at, position)
        self._positions[at] = position
        self.value(at)
        return at

    def key(self, end: str) -> list[str]:
        """Consumes a key and the token that ends it; returns the parts of the key."""
        parts = []
        while self._token not in (end, ""):
            parts.append(str(json.loads(self._advance())))
        self._advance()
        return parts


class _TomlPositionFinder(_PositionFinder):
    """Adds the headers, dotted keys and bare keys of TOML."""

    def document(self) -> None:
        """Consumes the whole text."""
        latest: dict[KeyPath, int] = {}  # index of the last element of each array of tables
        table: KeyPath = ()
        while self._token:
            if self._token == "[":
                table = self._header(latest)
            else:
                self.pair(table)

    def _header(self, latest: dict[KeyPath, int]) -> KeyPath:
        position = self._position
        self._advance()
        is_array = self._token == "["
        if is_array:
            self._advance()
        table: KeyPath = ()
        names = self.key("]")
        for depth, name in enumerate(names, 1):
            table = (*table, name)
            self._positions.setdefault(table, position)
            if is_array and depth == len(names):
                self._advance()
                latest[table] = latest.get(table, -1) + 1
            if table in latest:
                table = (*table, latest[table])
                self._positions.setdefault(table, position)
        return table

    def key(self, end: str) -> list[str]:
        parts = []
        while self._token not in (end, ""):
            written = self._advance()
            if written.startswith("'"):
                parts.append(written[1:-1])
            elif written.startswith('"'):
                parts.append(str(_toml(f"key = {written}")["key"]))
            else:
                parts.extend(part for part in written.split(".") if part)
        self._advance()
        return parts


FORMATS: Final[Mapping[str, tuple[str, Callable[[str, dict[KeyPath, Position], list[KeyPath]], object]]]] = {
    ".json": ("JSON", _read_json),
    ".toml": ("TOML", _read_toml),
    ".yaml": ("YAML", _read_yaml),
    ".yml": ("YAML", _read_yaml),
}
"""Name of the format and its reader by file name extension, in search order."""

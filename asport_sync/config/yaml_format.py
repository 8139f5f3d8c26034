"""Parses YAML text to trees of tables. A separate module, so that PyYAML is not loaded for JSON and TOML files."""

from __future__ import annotations

import re
from typing import Final

import yaml

from asport_sync.config.bad_value import KeyPath
from asport_sync.config.formats import Syntax
from asport_sync.config.positions import Position, position_of

_MAX_YAML_NODES: Final = 100_000
"""Aliases let a short YAML file expand to a tree of any size. Sensible files are far below this."""


class _CoreSchemaLoader(yaml.SafeLoader):
    """Resolves plain scalars by the core schema of YAML 1.2, as the reference implementation does.

    YAML 1.1, PyYAML's default, would read ``proxy_protocol: off`` as false and ``22:22`` as 1342. Only composing is
    used, without construction: nodes have the positions that constructed values lack, and no tag can create an object.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as declared by the base class


_YAML: Final = "tag:yaml.org,2002:"
_CoreSchemaLoader.add_implicit_resolver(_YAML + "null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_CoreSchemaLoader.add_implicit_resolver(
    _YAML + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_CoreSchemaLoader.add_implicit_resolver(
    _YAML + "int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", re.ASCII), list("-+0123456789")
)
_CoreSchemaLoader.add_implicit_resolver(
    _YAML + "float",
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
        re.ASCII,
    ),
    list("-+.0123456789"),
)


def read(text: str, positions: dict[KeyPath, Position], repeated: list[KeyPath]) -> object:
    """Returns the tree of a text; records the position of each key and element, and the repeated keys.

    Raises:
        Syntax: The text is not YAML, or uses features that are unsupported in configurations.
    """
    try:
        loader = _CoreSchemaLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Syntax(_without_quotes(error), _position(mark) if mark else None) from None
    except yaml.reader.ReaderError as error:
        position = position_of(text, error.position)
        raise Syntax(f"the character U+{ord(text[error.position]):04X} is not allowed", position) from None
    except (ValueError, OverflowError):  # such as an escape beyond the last code point
        raise Syntax("an escape or number is out of range") from None
    return _YamlTree(positions, repeated).value(root, ()) if root else None


def _position(mark: yaml.Mark) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _without_quotes(error: yaml.MarkedYAMLError) -> str:
    """Returns PyYAML's description of an error without quotes from the file, such as the name of an alias."""

    def without(quoted: re.Match[str]) -> str:
        # Single characters, escapes and the parser's own terms in angle brackets describe the error.
        return quoted[0] if len(quoted[1]) == 1 or quoted[1].startswith(("<", "\\")) else "'...'"

    described = " ".join(part for part in (error.problem, error.context) if part)
    return re.sub(r"'([^']*)'", without, described)


class _YamlTree:
    """Converts composed nodes to plain values and records their positions."""

    def __init__(self, positions: dict[KeyPath, Position], repeated: list[KeyPath]) -> None:
        self._positions = positions
        self._repeated = repeated
        self._nodes = 0

    def value(self, node: yaml.Node, at: KeyPath) -> object:
        self._nodes += 1
        if self._nodes > _MAX_YAML_NODES:
            raise Syntax(f"more than {_MAX_YAML_NODES} values after alias expansion")
        position = _position(node.start_mark)
        self._positions.setdefault(at, position)
        if isinstance(node, yaml.MappingNode) and node.tag == _YAML + "map":
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode) and node.tag == _YAML + "seq":
            return [self.value(each, (*at, index)) for index, each in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return _yaml_scalar(node, position)
        raise Syntax("only the standard YAML tags are supported", position)

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, object]:
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            position = _position(key_node.start_mark)
            # Keys are used as written: otherwise a UUID of only digits would become a number.
            if not isinstance(key_node, yaml.ScalarNode):
                raise Syntax("a list or a table cannot be a key", position)
            inside = (*at, key_node.value)
            self._positions[inside] = position
            if key_node.value in mapping:
                self._repeated.append(inside)
            mapping[key_node.value] = self.value(value_node, inside)
        return mapping


def _yaml_scalar(node: yaml.ScalarNode, position: Position) -> object:
    tag, written = node.tag.removeprefix(_YAML), str(node.value)
    try:
        if tag == "str":
            return written
        if tag == "null":
            return None
        if tag == "bool" and written.lower() in ("true", "false"):
            return written.lower() == "true"
        if tag == "float":
            return float(written.replace(".inf", "inf").replace(".nan", "nan"))
        if tag == "int":
            number = int(written)
            if str(number) == written:
                return number
    except ValueError:
        pass
    if tag in ("int", "float", "bool"):
        # 0123 could mean 123 or four characters, which matters in a password.
        raise Syntax("a number in an unusual form: write plain decimal digits, or put text in quotes", position)
    raise Syntax("only the standard YAML tags are supported", position)

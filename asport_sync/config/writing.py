"""Writes configurations with comments, in each format that is read. Pure functions, no I/O."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from asport_sync.config.bad_value import printable

Format = Literal["yaml", "toml", "json"]

_WIDTH: Final = 100
"""Characters of a line with a comment."""


@dataclass(frozen=True, slots=True)
class Note:
    """A comment, which begins a paragraph.

    Attributes:
        text: Without marks of comments; wrapped.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A key.

    Attributes:
        name: Its name.
        value: As in JSON.
        is_comment: Whether it is only an example, which takes effect without the mark in front.
    """

    name: str
    value: object
    is_comment: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """A table, or an element of a list of tables.

    Attributes:
        name: The key of the table or list.
        lines: What is inside.
        is_element: Whether it is an element.
    """

    name: str
    lines: Sequence[Note | Pair | Group]
    is_element: bool = False


Line: TypeAlias = Note | Pair | Group


def written(lines: Sequence[Line], form: Format, schema: str) -> str:
    """Returns the text of a configuration.

    Args:
        lines: What is in it. JSON has no comments, so there they are omitted.
        form: Its format.
        schema: The file with its JSON Schema, which the first line names for editors.
    """
    if form == "json":
        return json.dumps({"$schema": schema, **_tree(lines)}, indent=2, ensure_ascii=False) + "\n"
    if form == "toml":
        return "\n".join([f"#:schema {schema}", "", *_toml(lines, ())]).rstrip("\n") + "\n"
    return "\n".join([f"# yaml-language-server: $schema={schema}", "", *_yaml(lines, "")]).rstrip("\n") + "\n"


def _comment(text: str, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(
        printable(text),
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=mark,
        break_on_hyphens=False,
        break_long_words=False,
    )


# --- JSON -------------------------------------------------------------------------------------------------------------


def _tree(lines: Iterable[Line]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for line in lines:
        if isinstance(line, Pair) and not line.is_comment:
            tree[line.name] = line.value
        elif isinstance(line, Group) and line.is_element:
            tree.setdefault(line.name, []).append(_tree(line.lines))
        elif isinstance(line, Group):
            tree[line.name] = _tree(line.lines)
    return tree


# --- YAML -------------------------------------------------------------------------------------------------------------

# Text that is text without quotes in YAML 1.1 and 1.2, in any place.
_PLAIN: Final = re.compile(r"(?!(true|false|null|yes|no|on|off|y|n)$)[A-Za-z/][\w./@-]*(:[\w./@-]+)*", re.I | re.A)


def _yaml(lines: Sequence[Line], indent: str) -> Iterator[str]:
    is_first, open_list = True, ""
    for line in lines:
        if isinstance(line, Note):
            if not is_first:
                yield ""
            yield from _comment(line.text, indent)
        elif isinstance(line, Pair):
            yield f"{indent}{'#' if line.is_comment else ''}{yaml_value(line.name)}: {yaml_value(line.value)}"
        elif line.is_element:
            if open_list != line.name:
                yield f"{indent}{yaml_value(line.name)}:"
            yield f"{indent}  -"
            yield from _yaml(line.lines, f"{indent}    ")
        else:
            yield f"{indent}{yaml_value(line.name)}:"
            yield from _yaml(line.lines, f"{indent}  ")
        is_first = False
        if not isinstance(line, Note):  # elements of a list follow each other
            open_list = line.name if isinstance(line, Group) and line.is_element else ""


def yaml_value(value: object) -> str:
    """Returns a value in one line of YAML."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_value(name)}: {yaml_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    # JSON's escapes are those of YAML and TOML, except of DEL, and of NEL, which both treat in their own ways.
    return re.sub(
        r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda c: f"\\u{ord(c[0]):04x}", json.dumps(text, ensure_ascii=False)
    )


# --- TOML -------------------------------------------------------------------------------------------------------------


def _toml(lines: Sequence[Line], at: tuple[str, ...]) -> Iterator[str]:
    """Yields keys before tables, because a key after a table would be in it."""
    notes: list[Note] = []
    tables: list[tuple[list[Note], Group]] = []
    is_first = True
    for line in lines:
        if isinstance(line, Note):
            notes.append(line)
        elif isinstance(line, Group):
            tables.append((notes, line))
            notes = []
        else:
            if notes and not is_first:
                yield ""
            yield from _toml_notes(notes)
            yield f"{'#' if line.is_comment else ''}{_toml_key(line.name)} = {_toml_value(line.value)}"
            notes, is_first = [], False
    yield from _toml_notes(notes)
    for before, table in tables:
        inside = (*at, table.name)
        header = ".".join(map(_toml_key, inside))
        yield ""
        yield from _toml_notes(before)
        yield f"[[{header}]]" if table.is_element else f"[{header}]"
        yield from _toml(table.lines, inside)


def _toml_notes(notes: list[Note]) -> Iterator[str]:
    for number, note in enumerate(notes):
        if number:
            yield ""
        yield from _comment(note.text, "")


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(name)} = {_toml_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)

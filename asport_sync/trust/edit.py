"""Changes users in the text of a configuration file, and leaves everything else in it as it is.

One class for each format. They find their way in the text, but do not validate it: the caller reads the result and
compares it with what it should be. Text in a form that they do not handle raises :class:`CannotEdit`.
"""

from __future__ import annotations

import abc
import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import yaml

from asport_sync.config.bad_value import BadValue
from asport_sync.config.ports import PortRange
from asport_sync.config.values import identifier
from asport_sync.errors import AsportError


class CannotEdit(AsportError):
    """The text has a form in which it cannot be changed automatically."""


def _is(written: object, user: uuid.UUID) -> bool:
    try:
        return identifier(written) == user
    except BadValue:
        return False


def _written(ports: PortRange) -> int | dict[str, int]:
    return ports.start if ports.start == ports.end else {"start": ports.start, "end": ports.end}


class Editor(abc.ABC):
    """Changes users in one text. ``entry`` is an index in ``proxies``."""

    def __init__(self, text: str) -> None:
        self._text = text

    @abc.abstractmethod
    def add(self, entry: int, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        """Returns the text with another user, last in the table ``users``."""

    @abc.abstractmethod
    def add_entry(self, ports: PortRange, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        """Returns the text with another entry of ``proxies``, last in the list: a user and their ports."""

    @abc.abstractmethod
    def remove(self, entry: int, user: uuid.UUID) -> str:
        """Returns the text without a user."""

    @abc.abstractmethod
    def set_password(self, entry: int, user: uuid.UUID, password: str) -> str:
        """Returns the text with another value where the password is."""


# --- YAML -------------------------------------------------------------------------------------------------------------

_Pair = tuple[yaml.ScalarNode, yaml.Node]


class _YamlEditor(Editor):
    """Replaces, inserts and removes characters at the places that the parser reports."""

    def _proxies(self) -> yaml.SequenceNode:
        root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        proxies = _child(root, "proxies")
        if not isinstance(proxies, yaml.SequenceNode):
            raise CannotEdit("proxies is no list")
        return proxies

    def _users(self, entry: int) -> yaml.MappingNode:
        users = _child(self._proxies().value[entry], "users")
        if not isinstance(users, yaml.MappingNode) or not users.value:
            raise CannotEdit("users is no table")
        return users

    def _find(self, users: yaml.MappingNode, user: uuid.UUID) -> int:
        return next(index for index, (key, _) in enumerate(users.value) if _is(key.value, user))

    def add(self, entry: int, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        users = self._users(entry)
        first: _Pair = users.value[0]
        last: _Pair = users.value[-1]
        end = _end(last[1])
        if users.flow_style:
            inside = ", ".join(f"{key}: {json.dumps(value)}" for key, value in keys.items())
            return self._spliced(end, end, f", {user}: {{{inside}}}")
        return self._with_lines(end, first[0].start_mark.column, _lines_of(user, keys))

    def add_entry(self, ports: PortRange, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        proxies = self._proxies()
        written = json.dumps(_written(ports)).replace('"', "")
        if proxies.flow_style:
            inside = ", ".join(f"{key}: {json.dumps(value)}" for key, value in keys.items())
            at = _end(proxies.value[-1]) if proxies.value else proxies.end_mark.index - 1
            comma = ", " if proxies.value else ""
            return self._spliced(at, at, f"{comma}{{allow_ports: {written}, users: {{{user}: {{{inside}}}}}}}")
        lines = [f"- allow_ports: {written}", "  users:", *(f"    {line}" for line in _lines_of(user, keys))]
        return self._with_lines(_end(proxies), proxies.start_mark.column, lines)

    def _with_lines(self, after: int, column: int, lines: list[str]) -> str:
        """Returns the text with lines after the one that has this index."""
        at = self._end_of_line(after)
        newline = "\r\n" if "\r\n" in self._text else "\n"
        before = "" if at == 0 or self._text[at - 1] == "\n" else newline
        return self._spliced(at, at, before + "".join(f"{' ' * column}{line}{newline}" for line in lines))

    def remove(self, entry: int, user: uuid.UUID) -> str:
        users = self._users(entry)
        index = self._find(users, user)
        key, value = users.value[index]
        if not users.flow_style:
            start = self._text.rfind("\n", 0, key.start_mark.index) + 1
            if self._text[start : key.start_mark.index].strip():
                raise CannotEdit("the user is not on a line of their own")
            return self._spliced(start, self._end_of_line(_end(value)), "")
        if index > 0:
            return self._spliced(_end(users.value[index - 1][1]), _end(value), "")
        return self._spliced(key.start_mark.index, users.value[1][0].start_mark.index, "")

    def set_password(self, entry: int, user: uuid.UUID, password: str) -> str:
        users = self._users(entry)
        node = users.value[self._find(users, user)][1]
        if isinstance(node, yaml.MappingNode):
            node = _child(node, "password")
        if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">"):
            raise CannotEdit("the password is not on a line of its own")
        return self._spliced(node.start_mark.index, node.end_mark.index, json.dumps(password))

    def _end_of_line(self, at: int) -> int:
        """Returns the index after the end of the line that has this index, or that ends right before it."""
        if at > 0 and self._text[at - 1] == "\n":
            return at
        found = self._text.find("\n", at)
        return len(self._text) if found < 0 else found + 1

    def _spliced(self, start: int, end: int, new: str) -> str:
        return self._text[:start] + new + self._text[end:]


def _lines_of(user: uuid.UUID, keys: Mapping[str, str]) -> list[str]:
    return [f"{user}:", *(f"  {key}: {json.dumps(value)}" for key, value in keys.items())]


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == name:
                found: yaml.Node = value
                return found
    return None


def _end(node: yaml.Node) -> int:
    """Returns the index after the last character of a node: the parser's own, for tables, is after blank lines."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    return node.end_mark.index


# --- TOML -------------------------------------------------------------------------------------------------------------


class _TomlEditor(Editor):
    """Leaves the form of the text to tomlkit."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        try:
            import tomlkit
        except ImportError:
            raise AsportError(
                "changing a TOML file needs the package tomlkit: pip install 'asport-sync[edit]'"
            ) from None
        self._tomlkit = tomlkit
        self._document = tomlkit.parse(text)

    def _users(self, entry: int) -> Any:
        return self._document["proxies"][entry]["users"]

    def _key(self, users: Any, user: uuid.UUID) -> str:
        return next(str(key) for key in users if _is(str(key), user))

    def add(self, entry: int, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        users = self._users(entry)
        has_tables = any(isinstance(each, self._tomlkit.items.Table) for each in users.values())
        table: Any = self._tomlkit.table() if has_tables else self._tomlkit.inline_table()
        table.update(keys)
        users[str(user)] = table
        return self._tomlkit.dumps(self._document)

    def add_entry(self, ports: PortRange, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        proxies: Any = self._document["proxies"]
        has_tables = isinstance(proxies, self._tomlkit.items.AoT)
        entry: Any = self._tomlkit.table() if has_tables else self._tomlkit.inline_table()
        written = _written(ports)
        if isinstance(written, dict):
            table = self._tomlkit.inline_table()
            table.update(written)
            entry["allow_ports"] = table
        else:
            entry["allow_ports"] = written
        users: Any = self._tomlkit.table() if has_tables else self._tomlkit.inline_table()
        inside = self._tomlkit.inline_table()
        inside.update(keys)
        users[str(user)] = inside
        entry["users"] = users
        proxies.append(entry)
        return self._tomlkit.dumps(self._document)

    def remove(self, entry: int, user: uuid.UUID) -> str:
        users = self._users(entry)
        del users[self._key(users, user)]
        return self._tomlkit.dumps(self._document)

    def set_password(self, entry: int, user: uuid.UUID, password: str) -> str:
        users = self._users(entry)
        key = self._key(users, user)
        if isinstance(users[key], Mapping):
            users[key]["password"] = password
        else:
            users[key] = password
        return self._tomlkit.dumps(self._document)


# --- JSON -------------------------------------------------------------------------------------------------------------


class _JsonEditor(Editor):
    """Writes the whole tree again, with the indentation of the first line that has one."""

    def _changed(self, entry: int, change: Callable[[dict[str, Any]], object]) -> str:
        return self._with_changed_proxies(lambda proxies: change(proxies[entry]["users"]))

    def _with_changed_proxies(self, change: Callable[[list[Any]], object]) -> str:
        tree = json.loads(self._text)
        change(tree["proxies"])
        indent = re.search(r"\n([ \t]+)\S", self._text)
        end = "\n" if self._text.endswith("\n") else ""
        return json.dumps(tree, ensure_ascii=False, indent=None if indent is None else indent[1]) + end

    def add(self, entry: int, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        return self._changed(entry, lambda users: users.update({str(user): dict(keys)}))

    def add_entry(self, ports: PortRange, user: uuid.UUID, keys: Mapping[str, str]) -> str:
        entry = {"allow_ports": _written(ports), "users": {str(user): dict(keys)}}
        return self._with_changed_proxies(lambda proxies: proxies.append(entry))

    def remove(self, entry: int, user: uuid.UUID) -> str:
        return self._changed(entry, lambda users: users.pop(next(key for key in users if _is(key, user))))

    def set_password(self, entry: int, user: uuid.UUID, password: str) -> str:
        def change(users: dict[str, Any]) -> None:
            key = next(key for key in users if _is(key, user))
            if isinstance(users[key], dict):
                users[key]["password"] = password
            else:
                users[key] = password

        return self._changed(entry, change)


EDITORS: Final[Mapping[str, type[Editor]]] = {
    ".yaml": _YamlEditor,
    ".yml": _YamlEditor,
    ".toml": _TomlEditor,
    ".json": _JsonEditor,
}
"""By extension of the file."""

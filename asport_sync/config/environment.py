"""Environment variables in configurations: ``ASPORT_...`` replaces a key of a file, ``env:`` stands in for a value.

The environment is read each time that a file is, so a program that changes ``os.environ`` sees its changes at the next
reload. The name of a variable is ``ASPORT_`` and the key in capitals; ``__`` separates a table, a name or an index from
what is inside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from asport_sync.config import kinds
from asport_sync.config.bad_value import KeyPath
from asport_sync.config.positions import Variable
from asport_sync.config.reader import EnvironmentText, Source
from asport_sync.errors import ConfigError

if TYPE_CHECKING:
    from asport_sync.config import Side
    from asport_sync.config.structure import Entry, Table

PREFIX: Final = "ASPORT_"
VALUE_PREFIX: Final = "env:"

URI: Final = "ASPORT_URI"
"""Where to connect, for commands that need no configuration."""
RESERVED: Final = frozenset(
    {
        URI,
        "ASPORT_CACHE",  # these belong to the build of the package
        "ASPORT_NGTCP2",
        "ASPORT_NGTCP2_SOURCE",
        "ASPORT_WERROR",
    }
)
"""Variables that are no keys."""
_OF_TESTS: Final = "ASPORT_TEST_"

# Kubernetes gives every container such variables for each Service, and its name may begin with "asport". The one that
# ends in _PORT has the address as a URL, which tells the set of a Service from a misspelt key, such as ASPORT_PORT=443.
_SERVICE: Final = re.compile(r"(ASPORT(_[A-Z0-9]+)*)_PORT")
_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")
_OF_SERVICE: Final = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CLOSE: Final = 0.6
"""Minimum similarity for suggesting a variable, as for keys."""


def variables() -> dict[str, str]:
    """Returns the variables that stand for keys, those of tables before those of keys inside them."""
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    services = [
        service[1]
        for name, value in given.items()
        if (service := _SERVICE.fullmatch(name)) and _SERVICE_ADDRESS.fullmatch(value)
    ]
    found = {
        name: value
        for name, value in given.items()
        if name not in RESERVED
        and not name.startswith(_OF_TESTS)
        and not any(name.startswith(each) and _OF_SERVICE.fullmatch(name, len(each)) for each in services)
    }
    return dict(sorted(found.items(), key=lambda each: (each[0].count("__"), each[0])))


def mistaken(side: Side) -> list[ConfigError]:
    """Returns errors of the variables that stand for no key of a side."""
    source = Source()
    put_variables({}, side, source)
    return source.errors


def is_given() -> bool:
    """Returns whether the environment alone may be a configuration: it has the key that both sides require."""
    return f"{PREFIX}SERVER" in os.environ


# --- values with the prefix env: --------------------------------------------------------------------------------------


def with_values(tree: Mapping[str, object], source: Source) -> dict[str, Any]:
    """Returns a copy of a tree in which texts that begin with ``env:`` are replaced; unset variables are reported."""
    return {name: _with_values(value, (name,), source) for name, value in tree.items()}


def _with_values(value: object, at: KeyPath, source: Source) -> object:
    if isinstance(value, Mapping):
        return {name: _with_values(each, (*at, name), source) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_values(each, (*at, index), source) for index, each in enumerate(value)]
    if not isinstance(value, str) or not value.startswith(VALUE_PREFIX):
        return value
    written = value[len(VALUE_PREFIX) :]
    names = [written] if _NAME.fullmatch(written) else _REFERENCE.findall(written)
    if not names:  # not shown: it may be a password
        source.report(f"expected the name of an environment variable, or text with ${{NAME}}, after {VALUE_PREFIX}", at)
    unset = [name for name in dict.fromkeys(names) if name not in os.environ]
    for name in unset:
        source.report(f"the environment variable {name} is not set", at)
    if unset or not names:
        source.unusable.add(at)
    if _NAME.fullmatch(written):
        return EnvironmentText(os.environ.get(written, ""), names)
    return EnvironmentText(_REFERENCE.sub(lambda found: os.environ.get(found[1], ""), written), names)


# --- variables for keys -----------------------------------------------------------------------------------------------


def put_variables(tree: dict[str, Any], side: Side, source: Source) -> None:
    """Replaces keys of a tree by what the environment has; reports variables that stand for no key.

    Args:
        tree: What a file has; changed in place.
        side: Whose configuration it is.
        source: Gets the variables as positions of the keys that they replace.
    """
    given = variables()
    if not given:
        return
    overlay = _Overlay(tree, source)
    from asport_sync.config.structure import table_of  # imported only where it is needed

    for name, value in given.items():
        try:
            overlay.put(name, name[len(PREFIX) :].split("__"), value, table_of(side), overlay.tree, ())
        except _Unusable as error:
            problem = str(error) or f"no key has this name{_hint(name, side)}"
            source.errors.append(ConfigError(problem, variable=name))


class _Unusable(Exception):
    """The variable stands for no key, for the reason in the text if there is one."""


class _Overlay:
    """Puts variables into a tree.

    Attributes:
        tree: Changed by each of them.
    """

    def __init__(self, tree: dict[str, Any], source: Source) -> None:
        self.tree = tree
        self._positions = dict(source.positions)
        source.positions = self._positions
        self._unusable = source.unusable

    def put(
        self, variable: str, parts: list[str], value: str, table: Table, owner: dict[str, Any], at: KeyPath
    ) -> None:
        """Sets the key that the rest of a variable's name stands for.

        Args:
            variable: Its whole name.
            parts: What is left of the name, by ``__``.
            value: Its value.
            table: The table in which the key is.
            owner: That table in the tree.
            at: The path to it.
        """
        entry = table.entries.get(parts[0].lower())
        if entry is None or not parts[0].isupper():
            raise _Unusable
        owner, at = _slot(table, entry, owner, at)
        if len(parts) == 1:
            self._replace_secret(table, entry, owner, at[:-1])
            self._set(owner, at, kinds.from_environment(entry.key.schema, value), variable)
            return
        if entry.inside is None:
            raise _Unusable
        inside, *rest = parts[1:]
        container = self._container(owner, at, entry, variable)
        if entry.form == "table" and isinstance(container, dict):
            self.put(variable, [inside, *rest], value, entry.inside, container, at)
        elif entry.form == "list" and isinstance(container, list):
            self._put_element(variable, inside, rest, value, entry.inside, container, at)
        elif entry.form == "named" and isinstance(container, dict):
            self._put_named(variable, inside, rest, value, entry, container, at)
        # Else the file has something unusable there, which is reported when it is read.

    def _put_element(
        self, variable: str, index: str, rest: list[str], value: str, table: Table, elements: list[Any], at: KeyPath
    ) -> None:
        if not re.fullmatch(r"[0-9]{1,4}", index) or not rest:
            raise _Unusable(f"expected an index and a key, such as {PREFIX}{str(at[-1]).upper()}__0__KEY")
        number = int(index)
        if number > len(elements):
            raise _Unusable(
                f"there are {len(elements)} entries of {at[-1]}, counted from 0, so the next is {len(elements)}"
            )
        inside = (*at, number)
        if number == len(elements):
            elements.append({})
            self._positions[inside] = Variable(variable)
        if isinstance(elements[number], dict):
            self.put(variable, rest, value, table, elements[number], inside)

    def _put_named(
        self, variable: str, part: str, rest: list[str], value: str, entry: Entry, tables: dict[str, Any], at: KeyPath
    ) -> None:
        same = [name for name in tables if _simple(name) == _simple(part)]
        if len(same) > 1:
            raise _Unusable(f"{part} may be any of {', '.join(same)}")
        is_user = entry.name == "users"
        name = same[0] if same else part.lower().replace("_", "-") if is_user else part.lower()
        assert entry.inside is not None
        if not rest:
            self._set(tables, (*at, name), value if is_user else kinds.from_environment(kinds.TABLE, value), variable)
            return
        if is_user and name in tables and not isinstance(tables[name], dict):
            tables[name] = {} if rest in (["PASSWORD"], ["PASSWORD_FILE"]) else {"password": tables[name]}
        inside = (*at, name)
        if name not in tables or tables[name] is None:
            tables[name] = {}
            self._positions[inside] = Variable(variable)
        if isinstance(tables[name], dict):
            self.put(variable, rest, value, entry.inside, tables[name], inside)

    def _container(self, owner: dict[str, Any], at: KeyPath, entry: Entry, variable: str) -> object:
        if owner.get(str(at[-1])) is None:
            self._set(owner, at, [] if entry.form == "list" else {}, variable)
        return owner[str(at[-1])]

    def _set(self, owner: dict[str, Any], at: KeyPath, value: object, variable: str) -> None:
        owner[str(at[-1])] = value
        for known in [each for each in self._positions if each[: len(at)] == at]:
            del self._positions[known]
        self._unusable.difference_update([each for each in self._unusable if each[: len(at)] == at])
        self._positions[at] = Variable(variable)

    def _replace_secret(self, table: Table, entry: Entry, owner: dict[str, Any], at: KeyPath) -> None:
        """Removes the password that a variable for its file replaces, or the reverse."""
        other = entry.name.removesuffix("_file") if entry.name.endswith("_file") else f"{entry.name}_file"
        if other in table.entries and other in owner and not isinstance(self._positions.get((*at, other)), Variable):
            del owner[other]


def _slot(table: Table, entry: Entry, owner: dict[str, Any], at: KeyPath) -> tuple[dict[str, Any], KeyPath]:
    """Returns the table that has a key under any of its names, and the path of the key; else where it is to be set."""
    for where, found in tables_with_keys(table, owner, at):
        for name in entry.names:
            if name in found:
                return found, (*where, name)
    return owner, (*at, entry.name)


def tables_with_keys(table: Table, owner: dict[str, Any], at: KeyPath) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yields a table of a tree with its path; and its tables ``security`` and ``security.tls`` if it may have them."""
    yield at, owner
    if table.has_security and isinstance(security := owner.get("security"), dict):
        yield (*at, "security"), security
        if isinstance(tls := security.get("tls"), dict):
            yield (*at, "security", "tls"), tls


def _simple(name: str) -> str:
    """Returns what variables of a name and of other spellings of it have in common."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def variables_of(table: Table) -> Iterator[str]:
    """Yields the variables of all keys of a table; <name>, <uuid> and <index> stand for what differs."""
    yield from dict(_spellings(table, PREFIX, PREFIX)).values()


def _spellings(table: Table, spelled: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yields the variables of all keys, for each of the names that a key has in files: spelled with it, and right."""
    for entry in table.entries.values():
        for name in entry.names:
            wrong, right = f"{spelled}{name.upper()}", f"{prefix}{entry.name.upper()}"
            yield wrong, right
            if entry.inside is not None:
                inside = {"named": "<uuid>" if entry.name == "users" else "<name>", "list": "<index>"}.get(entry.form)
                between = f"__{inside}__" if inside else "__"
                yield from _spellings(entry.inside, wrong + between, right + between)


def _hint(variable: str, side: Side) -> str:
    from asport_sync.config.reader import similarity
    from asport_sync.config.structure import table_of

    other: Side = "server" if side == "client" else "client"
    words = variable.upper().split("__")

    def likeness(candidate: str) -> float:
        """How similar the names are, without the prefix, and without names of tunnels, UUIDs and indices."""
        parts = candidate.split("__")
        if len(parts) != len(words):
            return 0.0
        pairs = [pair for pair in zip(words, parts, strict=True) if not pair[1].startswith("<")]
        written, known = ("__".join(each).removeprefix(PREFIX).lower() for each in zip(*pairs, strict=True))
        return similarity(written, known)

    def best(of: Side) -> tuple[float, str]:
        names = dict(_spellings(table_of(of), PREFIX, PREFIX))
        if of == side == "client":
            names[URI] = URI
        return max((likeness(spelled), right) for spelled, right in names.items())

    (own, name), (foreign, foreign_name) = best(side), best(other)
    if foreign == 1.0 and own < 1.0:
        return f": this is a key of the {other}; a {side} has no such key"
    if max(own, foreign - 0.1) < _CLOSE:
        return ""
    if own >= foreign - 0.1:
        return f": did you mean {name}?"
    return f": did you mean {foreign_name}? But that is a key of the {other}"

"""The tables of a configuration and their keys, from the model, for what is generated from it.

Built on first use, then immutable: any thread may read it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from asport_sync.config import (
    WITHOUT_EFFECT,
    CertificatesConfig,
    ClientConfig,
    HealthConfig,
    PortRange,
    ProxyConfig,
    ServerConfig,
    Side,
    StatusConfig,
    TlsClientConfig,
    TlsServerConfig,
    TunnelConfig,
    UserConfig,
)
from asport_sync.config.reader import Key

Form = Literal["value", "table", "named", "list"]
"""Whether a key has a value, a table, a table of tables by name, or a list of tables."""

SECRET: Final = frozenset({"password", "reset_key", "token", "private_key"})
"""Keys whose values are never shown, unless they are paths."""

REQUIRED: Final = object()
"""In place of a default."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A key of a table.

    Attributes:
        name: The key.
        cls: The class of the model that has the field.
        key: How it is read.
        default: The value if it is not given; ``REQUIRED``, or None if the default is computed.
        form: What it has.
        inside: The table that it has, by any number of names or elements; None for a value.
    """

    name: str
    cls: type
    key: Key
    default: object
    form: Form
    inside: Table | None

    @property
    def names(self) -> tuple[str, ...]:
        """The key and its aliases."""
        return (self.name, *self.key.aliases)

    @property
    def meaning(self) -> str:
        """The description as Markdown; empty if docstrings are not loaded (``python -OO``)."""
        return meaning(self.cls, self.name)

    @property
    def written_default(self) -> str:
        """The default as Markdown."""
        if self.key.default:
            return self.key.default
        return "required" if self.default is REQUIRED else written(self.default, self.key.accepts)


class Table(NamedTuple):
    """A table.

    Attributes:
        entries: Its keys.
        has_security: Whether its TLS keys may also be in tables ``security`` and ``security.tls``.
    """

    entries: Mapping[str, Entry]
    has_security: bool

    def find(self, name: str) -> Entry | None:
        """Returns the key with that name or alias."""
        return next((each for each in self.entries.values() if name in each.names), None)


_INSIDE: Mapping[str, tuple[Form, tuple[type, ...]]] = {
    "certificates": ("table", (CertificatesConfig,)),
    "health": ("table", (HealthConfig,)),
    "status": ("table", (StatusConfig,)),
    "tunnels": ("named", (TunnelConfig, TlsClientConfig)),
    "proxies": ("list", (ProxyConfig,)),
    "users": ("named", (UserConfig,)),
}
"""Keys that have tables: the form, and the classes whose fields are the keys of the table."""


@functools.cache
def table_of(side: Side) -> Table:
    """Returns the top level of a configuration."""
    if side == "client":
        return _table(ClientConfig, TunnelConfig, TlsClientConfig)
    return _table(ServerConfig, TlsServerConfig)


def _table(*classes: type) -> Table:
    entries = {}
    for cls in classes:
        for field in dataclasses.fields(cls):
            if isinstance(found := field.metadata.get("key"), Key):
                entries[field.name] = _entry(cls, field, found)
    return Table(entries, has_security=any(issubclass(cls, (TlsClientConfig, TlsServerConfig)) for cls in classes))


def _entry(cls: type, field: dataclasses.Field[Any], found: Key) -> Entry:
    default: object = field.default
    if default is dataclasses.MISSING:
        computed = field.default_factory is not dataclasses.MISSING or bool(found.default)
        default = None if computed else REQUIRED
    form, classes = _INSIDE.get(field.name, ("value", ()))
    return Entry(field.name, cls, found, default, form, _table(*classes) if classes else None)


def own_fields(cls: type) -> list[str]:
    """Returns the fields that a class has not inherited."""
    return list(inspect.get_annotations(cls))


# --- descriptions -----------------------------------------------------------------------------------------------------


def descriptions(cls: type) -> dict[str, str]:
    """Returns what the docstring of a class says of each attribute, as one line."""
    _, _, listed = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def meaning(cls: type, name: str) -> str:
    """Returns the description of a key as Markdown; empty if there is none."""
    text = descriptions(cls).get(name, "").replace("``", "`")
    text = text.replace("Without effect, see :data:`WITHOUT_EFFECT`", f"Without effect: {WITHOUT_EFFECT.get(name)}")
    text = text.replace("; not shown by `repr`", "")
    text = re.sub(r": a table \(:class:`\w+`\)", "", text)
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)


def written(value: Any, accepts: str) -> str:
    """Returns a default as in a configuration file, as Markdown."""
    if value is None or value == ():
        return "not set"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, PortRange):
        return f"`[{value.start}, {value.end}]`"
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    if "duration" in accepts and not value:
        return "`off`"
    if "duration" in accepts:
        return f"`{written_duration(value)}`"
    return f"`{value}` ({value >> 20} MiB)" if isinstance(value, int) and value >= 1 << 20 else f"`{value}`"


def written_duration(seconds: float) -> str:
    """Returns a duration as in a configuration file, in one unit."""
    minutes, rest = divmod(seconds, 60)
    if minutes > 1 and not rest:
        return f"{minutes:g}m"
    return f"{seconds:g}s" if seconds >= 1 and seconds == int(seconds) else f"{1000 * seconds:g}ms"


def walk(table: Table) -> Iterator[Entry]:
    """Yields the keys of a table and of all tables inside it."""
    for entry in table.entries.values():
        yield entry
        if entry.inside is not None:
            yield from walk(entry.inside)

"""The effective value of every key, and where it comes from. No secret is among them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from asport_sync.config import ClientConfig, ServerConfig, Side
from asport_sync.config.addresses import AddressSet
from asport_sync.config.bad_value import KeyPath, dotted
from asport_sync.config.credentials import Credential
from asport_sync.config.environment import PREFIX, URI, tables_with_keys
from asport_sync.config.hosts import LocalTargets
from asport_sync.config.load import origin, read_tree, tree_of, tree_of_environment, tree_of_uri
from asport_sync.config.paths import CREDENTIAL_PREFIX
from asport_sync.config.pins import written_pin
from asport_sync.config.ports import PortRange, PortSet
from asport_sync.config.positions import Variable
from asport_sync.config.rates import Bandwidth, written_rate
from asport_sync.config.reader import EnvironmentText, Source
from asport_sync.config.structure import SECRET, Entry, Table, table_of, written_duration
from asport_sync.config.uri import ServerUri
from asport_sync.errors import ConfigError

HIDDEN: Final = "***"
_PEM: Final = "PEM text"

Kind = Literal["file", "environment", "credential", "default"]


class Origin(NamedTuple):
    """Where a value comes from.

    Attributes:
        kind: The sort of place.
        path: The file that has the key, or the secret itself.
        line: Its line, counted from 1.
        column: Its column, counted from 1.
        variables: The environment variables that it is, or that are in it.
        credential: The name of the systemd credential that it is.
        words: What the default is, if it is no constant.
    """

    kind: Kind
    path: str | None = None
    line: int | None = None
    column: int | None = None
    variables: tuple[str, ...] = ()
    credential: str | None = None
    words: str = ""

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        if self.kind == "file":
            return place
        inside = f" in {place}" if place else ""
        if self.kind == "credential":
            return f"credential {self.credential}{inside}"
        if self.kind == "environment":
            return f"environment variable {', '.join(self.variables)}{inside}"
        return f"default: {self.words}" if self.words else "default"


class Setting(NamedTuple):
    """A key with its effective value.

    Attributes:
        key: Dotted key, such as ``proxies[0].allow_ports``.
        value: What a file in JSON could have; None: not set. ``***`` for a secret, ``PEM text`` for certificates.
        origin: Where it comes from.
    """

    key: str
    value: object
    origin: Origin


class _Owner(NamedTuple):
    """A table of a tree in which keys may be given, and its path."""

    tree: dict[str, Any]
    at: KeyPath


def effective(side: Side, path: str | os.PathLike[str] | None = None, *, uri: ServerUri | None = None) -> list[Setting]:
    """Returns all keys of a configuration.

    Args:
        side: Whose configuration.
        path: The file, as for ``load_client`` and ``load_server``.
        uri: Instead of a file: what ``ASPORT_URI`` has.

    Raises:
        ConfigError: As these functions do.
    """
    if uri is not None:
        tree, source = _tree_of_uri(uri)
    else:
        file = origin(side, path)
        tree, source = tree_of(side, file) if file else tree_of_environment(side)
    config = read_tree(side, tree, source)
    return list(_Walk(source).root(config, tree))


def _tree_of_uri(uri: ServerUri) -> tuple[dict[str, Any], Source]:
    tree, source = tree_of_uri(uri, {})
    if "local" not in tree and "tunnels" not in tree:
        raise ConfigError(
            f"{URI} does not name the local service that becomes public: set {PREFIX}LOCAL as well, in place of --local"
        )
    source.positions = {**source.positions, **{(name,): Variable(URI) for name in uri.options()}}
    return tree, source


class _Walk:
    """Walks through a tree and the configuration that was read from it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def root(self, config: ClientConfig | ServerConfig, tree: dict[str, Any]) -> Iterator[Setting]:
        top = _Owner(tree, ())
        if isinstance(config, ServerConfig):
            yield from self._keys(table_of("server"), [top], (), config, config.tls)
            return
        table = table_of("client")
        if set(config.tunnels) == {""}:
            tunnel = config.tunnels[""]
            own = Table({name: each for name, each in table.entries.items() if name != "tunnels"}, table.has_security)
            yield from self._keys(own, [top], (), config, tunnel, tunnel.tls)
            return
        of_the_process = {name: each for name, each in table.entries.items() if each.cls is ClientConfig}
        tunnels = of_the_process.pop("tunnels")
        yield from self._keys(Table(of_the_process, has_security=False), [top], (), config)
        for name, tunnel in config.tunnels.items():
            assert tunnels.inside is not None
            owners = [_Owner(tree["tunnels"][name] or {}, ("tunnels", name)), top]
            yield from self._keys(tunnels.inside, owners, ("tunnels", name), tunnel, tunnel.tls)

    def _keys(self, table: Table, owners: list[_Owner], at: KeyPath, *objects: object) -> Iterator[Setting]:
        """Yields the keys of a table.

        Args:
            table: The table.
            owners: Where its keys may be given; the first that has one counts.
            at: Its path for people.
            objects: Have the values.
        """
        for entry in table.entries.values():
            value = next(getattr(each, entry.name) for each in objects if _has(each, entry.name))
            yield from self._key(table, entry, owners, (*at, entry.name), value)

    def _key(self, table: Table, entry: Entry, owners: list[_Owner], at: KeyPath, value: object) -> Iterator[Setting]:
        in_file = table.entries.get(f"{entry.name}_file")
        found = _given((entry, in_file) if in_file else (entry,), table, owners)
        if found and value is None and found[1] is not None:
            found = None  # a tunnel's password replaces the password_file of all tunnels, and the reverse
        if entry.inside is None or value is None:
            content = bool(in_file and found and found[0][-1] in in_file.names)
            yield Setting(dotted(at), plain(entry, value), self._origin(entry, found, content=content))
            return
        where, written = found or (at, {})
        if entry.form == "table":
            yield from self._keys(entry.inside, [_Owner(written or {}, where)], at, value)
            return
        assert isinstance(value, tuple)  # proxies or users
        if not value:
            yield Setting(dotted(at), [], self._origin(entry, found))
        names: Any = enumerate(written) if isinstance(written, list) else written.items()
        for (name, each), element in zip(names, value, strict=True):
            inside, shown_at = (*where, name), (*at, name)
            if isinstance(each, dict):
                yield from self._keys(entry.inside, [_Owner(each, inside)], shown_at, element)
            else:  # the password of a user
                yield Setting(dotted(shown_at), HIDDEN, self._origin(entry, (inside, each)))

    def _origin(self, entry: Entry, found: tuple[KeyPath, object] | None, *, content: bool = False) -> Origin:
        """Returns where a value comes from.

        Args:
            entry: Its key.
            found: The path of the key that has been given, and what it has; None: it was not given.
            content: Whether the value is the content of the file that this names.
        """
        if found is None:
            return Origin("default", words=entry.key.default.replace("`", ""))
        at, written = found
        position = self._source.position(at)
        if isinstance(position, Variable):
            return Origin("environment", variables=(position.name,))
        line, column = position or (None, None)
        if isinstance(written, EnvironmentText):
            return Origin("environment", self._source.path, line, column, written.variables)
        if isinstance(written, str) and written.startswith(CREDENTIAL_PREFIX):
            name = written.removeprefix(CREDENTIAL_PREFIX)
            return Origin("credential", self._source.path, line, column, credential=name)
        if content and isinstance(written, str):
            return Origin("file", str(_shown((self._source.directory or Path()) / written)))
        return Origin("file", self._source.path, line, column)


def _has(config: object, name: str) -> bool:
    """Returns whether a configuration has a field; a client has deprecated attributes besides."""
    return name in type(config).__dataclass_fields__  # type: ignore[attr-defined]


def _given(entries: tuple[Entry, ...], table: Table, owners: list[_Owner]) -> tuple[KeyPath, Any] | None:
    """Returns the path of one of some keys under any of its names, and what it has there; None if none is given."""
    for owner in owners:
        for at, tree in tables_with_keys(table, owner.tree, owner.at):
            for name in (name for entry in entries for name in entry.names):
                if name in tree:
                    return (*at, name), tree[name]
    return None


def plain(entry: Entry, value: object) -> object:
    """Returns a value as a file in JSON could have it; secrets are hidden."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Credential):
        if value.path is not None:
            return str(_shown(value.path))
        return HIDDEN if entry.name in SECRET else _PEM
    if entry.name in SECRET:
        return HIDDEN
    if entry.name == "pem":
        return _PEM
    if isinstance(value, float):
        return written_duration(value) if value else "off"
    return _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, PortRange):
        return value.start if value.start == value.end else [value.start, value.end]
    if isinstance(value, PortSet):
        return [_plain(each) for each in value.ranges]
    if isinstance(value, AddressSet):
        return [str(each) for each in value]
    if isinstance(value, Bandwidth):
        return {"in": written_rate(value.inward), "out": written_rate(value.outward)}
    if isinstance(value, LocalTargets):
        written = [str(each) for each in value.addresses]
        return written[0] if len(written) == 1 else written
    if isinstance(value, bytes):
        return written_pin(value)
    if isinstance(value, Path):
        return str(_shown(value))
    if type(value) is tuple:
        return [_plain(each) for each in value]
    return str(value)


def _shown(path: Path) -> Path:
    """Returns a path without ``..``, unless it leads elsewhere then, because a folder before that is a link."""
    short = Path(os.path.normpath(path))
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def as_json(settings: list[Setting]) -> list[Mapping[str, object]]:
    """Returns the keys as what ``--json`` prints: origins without what they do not have."""
    return [
        {
            "key": each.key,
            "value": each.value,
            "origin": {
                name: list(part) if isinstance(part, tuple) else part
                for name, part in each.origin._asdict().items()
                if part not in (None, (), "")
            },
        }
        for each in settings
    ]

"""The configuration of a client, see :mod:`asport_sync.config.common`; and how it is read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple

from asport_sync.config import kinds, values
from asport_sync.config.bad_value import BadValue, KeyPath
from asport_sync.config.common import HostConfig
from asport_sync.config.frozen_map import FrozenMap
from asport_sync.config.hosts import LocalTargets
from asport_sync.config.keys import with_inherited_keys
from asport_sync.config.layout import SortedKeys, sorted_keys
from asport_sync.config.places import TOP_LEVEL, belongs_to
from asport_sync.config.reader import Invalid, Item, Source, bare, documented, key, names_of, parse_keys
from asport_sync.config.tables import SECRETS_IN_FILES, from_files
from asport_sync.config.tls import TlsClientConfig
from asport_sync.config.tunnel import TunnelConfig
from asport_sync.errors import ConfigError, ConfigErrors


@belongs_to("client", TOP_LEVEL)
@with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class ClientConfig(HostConfig):
    """All settings of a client: of its process, and of each tunnel.

    Attributes:
        tunnels: The tunnels by name: 1 to 64 letters, digits, ``-``, ``_`` and ``.``. Each is a table with the keys of
            a tunnel, including TLS keys; those at the top level are the defaults.
        defaults: The keys of tunnels that are at the top level, by field, for tunnels that are added later; not shown
            by ``repr``.
    """

    tunnels: Mapping[str, TunnelConfig] = field(
        metadata=documented(
            key(lambda item: _tunnel_tables(item), accepts="table, not empty: NAME = table", schema=kinds.TABLE),
            since="Unreleased",
            default="one tunnel, with the keys at the top level",
        )
    )
    defaults: Mapping[str, object] = field(default=FrozenMap(), repr=False, compare=False)

    @classmethod
    def from_options(cls, **options: object) -> ClientConfig:
        """Returns a configuration from keyword arguments: the keys of a file, validated in the same way.

        In addition to the forms that files use: seconds as a number for durations, a tuple for a range of ports or for
        host and port, ``uuid.UUID``, and path objects. Relative paths stay relative to the working directory.

        Raises:
            ConfigErrors: One or more options are wrong; ``path`` and ``line`` are None.
        """
        try:
            return read_client(options, Source())
        except ConfigError as error:
            problem = bare(error)
        finally:
            options.clear()  # as bare() says
        raise problem

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Returns a setting of the only tunnel. Deprecated: up to release 0.1.1 every client had one tunnel."""
            if name not in _OF_A_TUNNEL:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if len(self.tunnels) != 1:
                raise AttributeError(f"{name} is a key of each tunnel: use tunnels[NAME].{name}")
            (tunnel,) = self.tunnels.values()
            message = f"ClientConfig.{name} is deprecated: use tunnels[{tunnel.name!r}].{name}"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return getattr(tunnel, name)


_OF_A_TUNNEL = frozenset(each.name for each in fields(TunnelConfig)) - {"name"} | {"server_name"}


def _tunnel_tables(item: Item) -> dict[str, Item]:
    """Returns the tables of the tunnels by name. A program may begin with none, and add some."""
    expected = "a table of NAME = table"
    tables = item.table(expected)
    if not tables and item.source.path is not None:
        raise BadValue(f"expected {expected}, not an empty table")
    for name, table in tables.items():
        try:
            values.tunnel_name(name)
        except BadValue as error:
            item.source.report(error.problem, table.at)
    return tables


_TUNNEL_NAMES = names_of(TunnelConfig)
_TLS_NAMES = names_of(TlsClientConfig)


class _TunnelKeys(NamedTuple):
    """The keys of a tunnel, or the defaults of all tunnels, regardless of their place in the file.

    Attributes:
        values: The values of those that are usable, by field.
        items: All that are given, by field; None: it has no place in this source.
    """

    values: Mapping[str, object]
    items: Mapping[str, Item | None]


def _default_keys(keys: SortedKeys) -> _TunnelKeys:
    in_files = from_files(keys.own)
    own = in_files | parse_keys(TunnelConfig, keys.own, None, in_files)
    return _TunnelKeys(own | parse_keys(TlsClientConfig, keys.tls, None), dict.fromkeys(in_files) | keys.own | keys.tls)


def _tunnel_keys(table: Item, defaults: _TunnelKeys) -> _TunnelKeys:
    """Returns the keys of a tunnel: its own, and the defaults of those that it has not."""
    keys = sorted_keys(table, "client", _TUNNEL_NAMES, _TLS_NAMES, names_of(ClientConfig))
    replaced = {*keys.own, *keys.tls}
    for secret in SECRETS_IN_FILES:
        pair = {secret, f"{secret}_file"}
        if not replaced.isdisjoint(pair):
            replaced |= pair  # each of them replaces the other, too
    values = {name: value for name, value in defaults.values.items() if name not in replaced}
    items = {name: item for name, item in defaults.items.items() if name not in replaced}
    in_files = from_files(keys.own)
    values |= in_files | parse_keys(TunnelConfig, keys.own, table, in_files, inherited=items)
    values |= parse_keys(TlsClientConfig, keys.tls, None)
    return _TunnelKeys(values, items | keys.own | keys.tls)


_NO_TRUST = "no certificate would be trusted: disable_native is set, and neither paths nor pem is given"
_NO_UDP = "a unix socket carries TCP connections only, but network includes udp: set network to tcp"


def _tunnels(tables: Mapping[str, Item], defaults: _TunnelKeys, source: Source) -> dict[str, TunnelConfig]:
    """Returns the tunnels from their tables and the defaults.

    Raises:
        ConfigErrors: One or more keys are wrong, or the source already had errors.
    """
    keys = {name: _tunnel_keys(table, defaults) for name, table in tables.items()}
    if source.errors:
        source.fail()
    tunnels = {}
    problems: dict[tuple[str, KeyPath], None] = {}  # several tunnels may have the same default
    for name, (found, items) in keys.items():
        of_tls = names_of(TlsClientConfig)
        tls = TlsClientConfig(**{key: value for key, value in found.items() if key in of_tls})  # type: ignore[arg-type]
        trust = tls.certificates
        if trust.disable_native and tls.verifies_certificate and not (trust.paths or trust.pem):
            problems[_NO_TRUST, (items["certificates"] or tables[name]).at] = None
        own = {key: value for key, value in found.items() if key not in of_tls}
        local = own["local"]
        if isinstance(local, LocalTargets) and local.is_unix and own.setdefault("network", "tcp") != "tcp":
            problems[_NO_UDP, (items["local"] or tables[name]).at] = None
        tunnels[name] = TunnelConfig(name=name, tls=tls, **own)  # type: ignore[arg-type]
    for problem, at in problems:
        source.report(problem, at)
    if source.errors:
        source.fail()
    return tunnels


def read_client(tree: Mapping[str, object], source: Source, *, with_tunnels: bool = True) -> ClientConfig:
    """Returns the configuration of a client from a tree of tables.

    Args:
        tree: The tables.
        source: Their origin.
        with_tunnels: Whether it has tunnels. If not, the table ``tunnels`` is ignored, and no key of a tunnel needs to
            be there: those at the top level are the defaults of tunnels that are added later.

    Raises:
        ConfigErrors: One or more keys are wrong, or the source already had errors.
    """
    root = Item(tree, (), source)
    keys = sorted_keys(root, "client", names_of(ClientConfig) | _TUNNEL_NAMES, _TLS_NAMES)
    host = parse_keys(HostConfig, keys.own, root)
    defaults = _default_keys(keys)
    tables = {"": root._replace(value={})} if with_tunnels else {}
    if with_tunnels and "tunnels" in keys.own:
        tables = {}
        try:
            if keys.own["tunnels"].value is None:
                source.report("this key has no value", keys.own["tunnels"].at)
            else:
                tables = keys.own["tunnels"].parsed(_tunnel_tables)
        except Invalid:
            pass
    tunnels = FrozenMap(_tunnels(tables, defaults, source))
    return ClientConfig(tunnels=tunnels, defaults=FrozenMap(defaults.values), **host)


def tunnel_from_options(config: ClientConfig, name: str, options: dict[str, object]) -> TunnelConfig:
    """Returns another tunnel for a client, validated like those in a file; the client's defaults apply.

    Args:
        config: The client's configuration.
        name: The tunnel's name.
        options: Its keys, in the forms that :meth:`ClientConfig.from_options` accepts; cleared.

    Raises:
        ConfigErrors: The name, or one or more keys are wrong.
    """
    source = Source()
    defaults = _TunnelKeys(config.defaults, dict.fromkeys(config.defaults))
    try:
        tables = Item({name: options}, ("tunnels",), source).parsed(_tunnel_tables)
        return _tunnels(tables, defaults, source)[name]
    except Invalid:
        problem: ConfigError = ConfigErrors(source.errors)
    except ConfigError as error:
        problem = bare(error)
    finally:
        options.clear()  # as bare() says
    raise problem

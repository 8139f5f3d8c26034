"""The configuration of a server, see :mod:`asport_sync.config.common`; and how it is read."""

from __future__ import annotations

import ipaddress
import uuid as uuid_module
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asport_sync.config import choices, hosts, kinds, passwords, ports, values
from asport_sync.config.bad_value import BadValue, dotted
from asport_sync.config.choices import AmbiguousDialectName, BalanceName, DialectName, Network
from asport_sync.config.common import ConnectionConfig, HostConfig, LimitsConfig, VisitorsConfig
from asport_sync.config.hosts import HostPort, IPAddress
from asport_sync.config.keys import (
    BANDWIDTH,
    BOOLEAN,
    DIALECT,
    DURATION,
    NETWORK,
    PASSWORD,
    PATH,
    choice_of,
    integer_of,
    with_inherited_keys,
)
from asport_sync.config.layout import sorted_keys
from asport_sync.config.machine import ephemeral_ports
from asport_sync.config.places import TOP_LEVEL, belongs_to
from asport_sync.config.ports import PortSet
from asport_sync.config.rates import Bandwidth
from asport_sync.config.reader import Invalid, Item, Source, bare, build, documented, key, names_of, parsed_all, scalar
from asport_sync.config.tables import from_files, read_table
from asport_sync.config.tls import TlsServerConfig
from asport_sync.errors import ConfigError

_CLIENTS = 64
"""Per user: more than a household or a small office has, and few compared with the maximum."""
_CLIENTS_TOTAL = 10000
"""Of a server, joined or not: as many as take 730 MiB."""
_MAX_CLIENTS = 65535
"""One less than the engine has places for connections."""
_USER_NAME = scalar(
    values.user_name, accepts="1 to 64 letters, digits, `-`, `_` and `.`; no UUID", schema=kinds.USER_NAME
)
_RESET_KEY = scalar(passwords.reset_key, accepts="text of at least 32 characters", schema=kinds.text(32))


@belongs_to("server", "the table of a user")
@with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class UserConfig(VisitorsConfig):
    """A user of a server: an entry of the table ``users``, UUID = password, or UUID = table with these keys.

    Attributes:
        uuid: The user's UUID: the key of the entry. Each UUID may occur only once on a server.
        password: The user's password; not shown by ``repr``. Not required if ``password_file`` is given.
        password_file: File whose first line is the password, instead of ``password``.
        name: A name for the user in logs, the status and the commands, in addition to the UUID. Each may occur only
            once on a server.
        dialect: Dialect of the protocol that this user's clients speak; ``auto``: identified by the mode byte if
            possible. If not given, that of the entry of ``proxies`` applies.
        max_clients: Maximum clients of this user at the same time. If not given, that of the entry of ``proxies``
            applies.
        bandwidth: Maximum rate of the payload of all connections of this user, TCP and UDP together: ``in`` from
            visitors to local services, ``out`` from local services to visitors. That of the entry of ``proxies``
            applies in addition. If not given, there is no limit of the user's own.
    """

    uuid: uuid_module.UUID
    password: str = field(repr=False, metadata=PASSWORD)
    password_file: Path | None = field(default=None, metadata=PATH)
    name: str | None = field(default=None, metadata=documented(_USER_NAME, since="Unreleased"))
    dialect: DialectName | None = field(default=None, metadata=DIALECT)
    max_clients: int | None = field(default=None, metadata=documented(integer_of(1, _MAX_CLIENTS), since="Unreleased"))
    bandwidth: Bandwidth | None = field(default=None, metadata=documented(BANDWIDTH, since="Unreleased"))


@belongs_to("server", "an entry of proxies")
@with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class ProxyConfig(VisitorsConfig):
    """An entry of ``proxies``: users, and what they may open.

    Attributes:
        users: The users by their UUID: the password, or a table with the keys of a user.
        bind_ip: Address of the public sockets. ``::`` includes IPv4, and becomes ``0.0.0.0`` if the host has no IPv6.
        allow_ports: Public ports that these users may open.
        only_v6: Whether public sockets on an IPv6 ``bind_ip`` accept IPv6 only. If not given, the system's default
            applies.
        allow_network: The networks for which these users may open ports.
        dialect: Dialect of the protocol that these users' clients speak; ``auto``: identified by the mode byte if
            possible. If not given, the server's ``dialect`` applies.
        max_clients: Maximum clients of each of these users at the same time.
        bandwidth: Maximum rate of the payload of all connections of these users together, TCP and UDP: ``in`` from
            visitors to local services, ``out`` from local services to visitors. If not given, there is no limit.
        max_clients_total: Maximum clients of all these users together. If not given, there is no limit.
        balance: Lets several clients of one user have the same port, if they ask for exactly that one, and spreads its
            visitors over them: ``round_robin``: in turn; ``least_connections``: to the client with the fewest TCP
            connections, or UDP associations. If not given, a port belongs to one client.
    """

    users: tuple[UserConfig, ...] = field(
        metadata=key(
            lambda item: _users(item), accepts="table, not empty: UUID = password, or UUID = table", schema=kinds.TABLE
        )
    )
    bind_ip: IPAddress = field(
        default=ipaddress.IPv6Address("::"), metadata=scalar(hosts.ip, accepts="IP address", schema=kinds.IP)
    )
    allow_ports: PortSet = field(
        default_factory=ephemeral_ports,
        metadata=documented(
            scalar(
                ports.port_set,
                accepts="port, `{start, end}`, or a list of these and of `[start, end]`",
                schema=kinds.PORT_SET,
            ),
            default="the system's ephemeral ports",
        ),
    )
    only_v6: bool | None = field(default=None, metadata=BOOLEAN)
    allow_network: Network = field(default="both", metadata=NETWORK)
    dialect: DialectName | None = field(default=None, metadata=DIALECT)
    max_clients: int = field(default=_CLIENTS, metadata=documented(integer_of(1, _MAX_CLIENTS), since="Unreleased"))
    bandwidth: Bandwidth | None = field(default=None, metadata=documented(BANDWIDTH, since="Unreleased"))
    max_clients_total: int | None = field(
        default=None, metadata=documented(integer_of(1, _MAX_CLIENTS), since="Unreleased")
    )
    balance: BalanceName | None = field(
        default=None, metadata=documented(choice_of(choices.BALANCES), since="Unreleased")
    )


@belongs_to("server", TOP_LEVEL)
@with_inherited_keys
@dataclass(frozen=True, kw_only=True)
class ServerConfig(HostConfig, ConnectionConfig, LimitsConfig):
    """All settings of a server, in addition to its TLS keys (:class:`TlsServerConfig`).

    Durations are in seconds, sizes in bytes; docs/configuration.md has the forms that files and options accept.

    Attributes:
        server: IP address and UDP port on which clients are accepted; port 0 lets the system choose. The parameter
            ``listen`` of ``asport_sync.Server`` is the same.
        proxies: Users and what they may open. The list may be empty.
        only_v6: Whether the QUIC socket on an IPv6 address accepts IPv6 only. If not given, the system's default
            applies.
        authentication_failed_reply: Whether a client that fails to authenticate is notified of the reason. If not, its
            connection is closed without one.
        max_idle_time: QUIC idle timeout: a connection without packets for that long is closed.
        max_clients_total: Maximum clients of all users together, including those that have not joined yet.
        udp_session_timeout: Time without traffic after which a UDP association ends. It ends sooner only by eviction.
        dialect: Dialect of the protocol (meaning of the mode byte) of users without a ``dialect`` of their own;
            ``auto``: identified by the mode byte if possible.
        ambiguous_dialect: How ``auto`` interprets mode bytes 1 and 2, whose meaning differs between the two dialects;
            ``both``: whatever the user may use of either meaning is served.
        reset_key: Secret from which the key of stateless resets (RFC 9000, section 10.3) is derived, for servers that
            replace each other; not shown by ``repr``. If not given, that key is derived from the private key, this
            machine and ``server``.
        reset_key_file: File whose first line is that secret, instead of ``reset_key``.
        tls: The TLS keys. Files and options have them at the top level, or in the table ``security.tls``.
    """

    server: HostPort = field(
        metadata=documented(scalar(hosts.ip_port, accepts="`ip:port`", schema=kinds.IP_PORT), needs_restart=True)
    )
    proxies: tuple[ProxyConfig, ...] = field(
        metadata=key(lambda item: _proxies(item), accepts="list of tables", schema=kinds.TABLES)
    )
    only_v6: bool | None = field(default=None, metadata=documented(BOOLEAN, needs_restart=True))
    authentication_failed_reply: bool = field(default=True, metadata=BOOLEAN)
    max_idle_time: float = field(default=10.0, metadata=DURATION)
    max_clients_total: int = field(
        default=_CLIENTS_TOTAL, metadata=documented(integer_of(1, _MAX_CLIENTS), since="Unreleased")
    )
    udp_session_timeout: float = field(default=300.0, metadata=DURATION)
    dialect: DialectName = field(default="auto", metadata=DIALECT)
    ambiguous_dialect: AmbiguousDialectName = field(default="both", metadata=choice_of(choices.AMBIGUOUS_DIALECTS))
    reset_key: bytes | None = field(
        default=None, repr=False, metadata=documented(_RESET_KEY, since="Unreleased", needs_restart=True)
    )
    reset_key_file: Path | None = field(default=None, metadata=documented(PATH, since="Unreleased", needs_restart=True))
    tls: TlsServerConfig

    @classmethod
    def from_options(cls, **options: object) -> ServerConfig:
        """Returns a configuration from keyword arguments: the keys of a file, validated in the same way.

        In addition to the forms that files use: seconds as a number for durations, a tuple for a range of ports inside
        a list, ``PortSet``, ``uuid.UUID``, address and path objects, and bytes in PEM or DER for ``certificate`` and
        ``private_key``. ``proxies`` is a list of dicts. Relative paths stay relative to the working directory.

        Raises:
            ConfigErrors: One or more options are wrong; ``path`` and ``line`` are None.
        """
        try:
            return read_server(options, Source())
        except ConfigError as error:
            problem = bare(error)
        finally:
            options.clear()  # as bare() says
        raise problem


def dialect_of(config: ServerConfig, proxy: ProxyConfig, user: UserConfig) -> DialectName:
    """Returns the dialect of a user of an entry: the user's own, else the entry's, else the server's."""
    return user.dialect or proxy.dialect or config.dialect


def _proxies(item: Item) -> tuple[ProxyConfig, ...]:
    entries = item.elements("a list of tables, each with users")
    _report_repeated_users(entries)
    proxies = parsed_all(entries, _proxy)
    _report_repeated_names(proxies, item)
    return proxies


def _proxy(item: Item) -> ProxyConfig:
    proxy = read_table(ProxyConfig, item, item.table("a table with users"), "server")
    if proxy.only_v6 and proxy.bind_ip.version == 4:
        raise BadValue("an IPv4 bind_ip cannot be IPv6 only", "only_v6")
    return proxy


def _report_repeated_users(entries: list[Item]) -> None:
    """Reports each repeated UUID, in whatever spelling. :func:`_users` validates the values."""
    seen: dict[uuid_module.UUID, Item] = {}
    for entry in entries:
        users = entry.value.get("users") if isinstance(entry.value, Mapping) else None
        for written in users if isinstance(users, Mapping) else ():
            try:
                uuid = values.identifier(written)
            except BadValue:
                continue
            user = entry.child("users", users).child(str(written), None)
            if (first := seen.setdefault(uuid, user)) is not user:
                where = dotted(first.at[:-1]) + user.source.in_line(first.at, ", ")
                user.source.report(f"this UUID is given twice, first in {where}", user.at)


def _report_repeated_names(proxies: Iterable[ProxyConfig], item: Item) -> None:
    seen: dict[str, uuid_module.UUID] = {}
    for index, proxy in enumerate(proxies):
        for user in proxy.users:
            if user.name is not None and (first := seen.setdefault(user.name, user.uuid)) != user.uuid:
                at = (*item.at, index, "users", str(user.uuid), "name")
                item.source.report(f"the user {first} has this name already", at)


def _users(item: Item) -> tuple[UserConfig, ...]:
    expected = 'a table of UUID = "password"'
    users = item.table(expected)
    if not users:
        raise BadValue(f"expected {expected}, not an empty table")
    return parsed_all(users.values(), _user)


def _user(item: Item) -> UserConfig:
    written = str(item.at[-1])
    try:
        uuid = values.identifier(written)
    except BadValue as error:
        # The password may be in the place of the UUID, so it is not shown.
        item.source.report(f"invalid key: {error.problem}", item.at, shown_as=item.at[:-1])
        raise Invalid from None
    if isinstance(item.value, Mapping):
        return read_table(UserConfig, item, item.table(), "server", uuid=uuid)
    if item.value is None:
        raise BadValue("this user has no password")
    return UserConfig(uuid=uuid, password=passwords.secret(item.value))


def read_server(tree: Mapping[str, object], source: Source) -> ServerConfig:
    """Returns the configuration of a server from a tree of tables.

    Raises:
        ConfigErrors: One or more keys are wrong, or the source already had errors.
    """
    root = Item(tree, (), source)
    keys = sorted_keys(root, "server", names_of(ServerConfig), names_of(TlsServerConfig))
    tls = None
    try:
        # With Noise there may be no TLS keys; the error reported for it prevents use of the None.
        tls = None if keys.noise else build(TlsServerConfig, keys.tls, keys.tls_owner)
    except Invalid:
        pass
    try:
        config = build(ServerConfig, keys.own, root, tls=tls, **from_files(keys.own))
    except Invalid:
        source.fail()
    if config.only_v6 and ":" not in config.server.host:
        source.report("an IPv4 address cannot be IPv6 only", keys.own["only_v6"].at)
        source.fail()
    return config

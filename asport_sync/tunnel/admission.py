"""Who may join a server, and what is granted to whom. Decisions only: nothing here is bound or sent."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field

from asport_sync.config import DialectName, Network, PortSet, ServerConfig
from asport_sync.engine import Connection, equal
from asport_sync.wire import TOKEN_LENGTH, ClientHello, Dialect, ForwardMode, token


@dataclass(frozen=True, slots=True)
class User:
    """A user and what he may open.

    Attributes:
        uuid: His name.
        password: His password; not shown by ``repr``.
        bind_ip: Where his ports are opened.
        only_v6: IPV6_V6ONLY of them; None: as the system says.
        allow_ports: Ports he may open.
        allow_network: Networks he may open them for.
        dialect: Meaning of the mode byte he sends.
    """

    uuid: uuid.UUID
    password: str = field(repr=False)
    bind_ip: str
    only_v6: bool | None
    allow_ports: PortSet
    allow_network: Network
    dialect: DialectName


def users_of(config: ServerConfig) -> dict[uuid.UUID, User]:
    """The users of a server by their name."""
    return {
        user.uuid: User(
            uuid=user.uuid,
            password=user.password,
            bind_ip=str(proxy.bind_ip),
            only_v6=proxy.only_v6,
            allow_ports=proxy.allow_ports,
            allow_network=proxy.allow_network,
            dialect=config.dialect_of(proxy, user),
        )
        for proxy in config.proxies
        for user in proxy.users
    }


class Authenticator:
    """Tells users from everybody else by the token of ClientHello. Any thread.

    Args:
        users: By name.
    """

    def __init__(self, users: dict[uuid.UUID, User]) -> None:
        self._users = users
        self._nobodys_password = os.urandom(16).hex()

    def check(self, connection: Connection, hello: ClientHello) -> User | None:
        """The user whose UUID and token these are, or None.

        An unknown UUID costs the same work as a wrong token, so that an answer's delay tells nothing.

        Raises:
            EngineError: The connection is gone.
        """
        user = self._users.get(hello.uuid)
        password = self._nobodys_password if user is None else user.password
        expected = connection.export(token.label(hello.uuid), token.context(password), TOKEN_LENGTH)
        return user if equal(expected, hello.token) else None


def granted(allowed: Network, asked: ForwardMode, dialect: Dialect) -> ForwardMode | None:
    """What a user gets of the networks he asked for; None: the answer is NetworkDenied.

    The dialects differ. Flags are met as far as they are allowed, and nothing on the wire tells the client of the
    rest. In the draft's enumeration all that is asked for must be allowed.
    """
    tcp = asked.tcp and allowed in ("tcp", "both")
    udp = asked.udp if allowed in ("udp", "both") else None
    mode = ForwardMode(tcp, udp)
    if not tcp and udp is None:
        return None
    if dialect is Dialect.DRAFT and mode != asked:
        return None
    return mode
